"""Plans and parts of an archive, and lists in Parquet, with damage: an error or a value."""

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdlib.common.errors import SsdError
from ssdlib.inference.inputs import find_images, listed_paths
from ssdlib.tools.cluster.parts import IMAGES, part_file, summarize, tidy, write_part
from ssdlib.tools.cluster.plan import Plan, make_plan
from tests.fuzz.cases import NAMES, attempt, damaged, fuzzed, nothing_changed

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

CLASSES = ("WBC", "RBC")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> tuple[bytes, bytes]:
    """A plan of six images in three parts, and the table of the images of a part."""
    folder = tmp_path_factory.mktemp("sound")
    for number in range(6):
        (folder / f"{number}.png").touch()
    make_plan(folder / "plan", find_images([str(folder)]), 2)
    one = {"box": [1.5, 2.0, 11.5, 42.0], "label": "RBC", "score": 0.75}
    known = {"width": 64, "height": 48, "tiles": 1, "scale": "cells", "um_per_pixel": 0.1, "measured_um": 0.1}
    done = {"state": "done", **known, "quality": [], "detections": [one], "counts": {"WBC": 0, "RBC": 1}}
    bad = {"image": "b", "state": "unreadable", "message": "damaged"}
    write_part(folder, 0, [{"image": "a", **done}, bad], CLASSES)
    return (folder / "plan").read_bytes(), part_file(folder, IMAGES, 0).read_bytes()


@st.composite
def tables(draw: st.DrawFn, columns: tuple[str, ...]) -> bytes:
    """A sound Parquet file whose columns, and what they hold, are not those that are due."""
    names = draw(st.lists(st.sampled_from([*columns, "x", ""]), min_size=1, max_size=4, unique=True))
    rows = draw(st.integers(0, 3))
    kinds = {
        "binary": st.binary(max_size=20), "int64": st.integers(-(2**63), 2**63 - 1), "double": st.floats(),
        "string": st.sampled_from([name for name in NAMES if name.isprintable()]), "bool": st.booleans(),
        "null": st.none(),
    }  # fmt: skip
    arrays = []
    for _ in names:
        kind = draw(st.sampled_from(list(kinds)))
        values = draw(st.lists(st.none() | kinds[kind], min_size=rows, max_size=rows))
        arrays.append(pa.array(values, kind))
    about = {
        "parts": draw(st.sampled_from(["[0]", "[-1]", "[0, 0]", "[]", "{}", "[1e999]", "[" * 9999, "x"]))
    }
    stream = io.BytesIO()
    parquet.write_table(pa.table(arrays, names=names).replace_schema_metadata(about), stream)
    return stream.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@fuzzed(25)
@given(st.data())
def test_a_plan_is_read_or_refused(tmp_path_factory, sound, data):
    folder = tmp_path_factory.getbasetemp() / "plan"
    columns = ("path", "size", "changed_ns")
    put(folder / "out/plan", data.draw(damaged(sound[0]) | tables(columns)))
    with nothing_changed(folder):
        plan = attempt(Plan, folder / "out/plan")
        if not isinstance(plan, SsdError):
            attempt(plan.images)
            for group in range(len(plan.numbers)):
                attempt(plan.tasks, group)
        attempt(make_plan, folder / "out/plan", [], 2)


@fuzzed(25)
@given(st.data())
def test_a_part_is_summed_up_or_refused(tmp_path_factory, sound, data):
    folder = tmp_path_factory.getbasetemp() / "part"
    columns = ("image", "state", "scale", "um_per_pixel", "quality", "message", *CLASSES)
    put(part_file(folder / "out", IMAGES, 0), data.draw(damaged(sound[1]) | tables(columns)))
    with nothing_changed(folder):
        attempt(summarize, folder / "out", [0], CLASSES)


@fuzzed(25)
@given(st.data())
def test_a_list_in_parquet_is_read_or_refused(tmp_path_factory, sound, data):
    file = tmp_path_factory.getbasetemp() / "list.parquet"
    put(file, data.draw(damaged(sound[0]) | damaged(sound[1]) | tables(("path", "image"))))
    attempt(lambda: list(listed_paths([str(file)])))


@pytest.mark.parametrize("special", ["pipe", "zero", "folder"])
def test_what_is_no_file_is_refused(tmp_path, special):
    for path in (tmp_path / "plan", part_file(tmp_path, IMAGES, 0)):
        path.parent.mkdir(exist_ok=True)
        if special == "pipe":
            os.mkfifo(path)
        elif special == "zero":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
    for call in (
        lambda: Plan(tmp_path / "plan"),
        lambda: summarize(tmp_path, [0], CLASSES),
        lambda: list(listed_paths([str(tmp_path / "plan")])),
    ):
        assert isinstance(attempt(call), SsdError)


@pytest.mark.parametrize("where", ["images", "images/part-000000.parquet", "cells", "job/attempts", "job"])
def test_links_in_the_folder_of_a_job_are_refused(tmp_path, where):
    (tmp_path / "out" / where).parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/part-000001.parquet").write_bytes(b"kept")
    (tmp_path / "out" / where).symlink_to(tmp_path / "elsewhere")
    with nothing_changed(tmp_path, but=""), pytest.raises(SsdError, match="is a link"):
        tidy(tmp_path / "out", ())


def test_names_that_are_no_parts_are_left_alone(tmp_path):
    names = ("part-x.parquet", "part-.parquet", "part-1.parquet", "part-٣٣٣٣٣٣.parquet")
    for name in names:
        put(tmp_path / "images" / name, b"")
    tidy(tmp_path, ())
    assert {path.name for path in (tmp_path / "images").iterdir()} == set(names)
