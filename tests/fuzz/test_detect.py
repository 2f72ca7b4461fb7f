"""The command `detect`: odd names, odd files, damaged pictures, and an output folder that others filled."""

import csv
import io
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from ssdlib.common.errors import DataError
from ssdlib.common.files import is_hidden
from ssdlib.common.tables import from_cell
from ssdlib.config import ModelConfig
from ssdlib.data.images import IMAGE_SUFFIXES, encode_image, read_image
from ssdlib.data.smears import draw_smear
from ssdlib.detector.model_file import save_model
from ssdlib.detector.weights import build_model
from ssdlib.inference.results import FORMATS
from tests.fuzz.cases import NAMES, command, damaged, fuzzed, json_bytes, nothing_changed, reshaped

pytestmark = pytest.mark.skipif(os.name != "posix", reason="names of bytes, links and named pipes")
SMEAR = draw_smear(3).image[:160, :200]
CONTENT = {suffix: encode_image(SMEAR, suffix) for suffix in (".jpg", ".png", ".tif", ".bmp")}
STEMS = (
    b"a", b"a\xff\xfe", b"x" * 251, "ü".encode() * 125, b"-rf", b"--out", b"\x1b[2J\x1b]0;title\x07", b"=1+1",
    b"+SUM(A1)", b"@a", b"a\nb", b"a\tb", b"a,b;c", b'"', b"'", b".hidden", b" ", b"...", b".. ", b"CON",
    b"[1]", b"a.tif[1]", b"*", b"\xe2\x80\xaegpj", b"%s{}", b"A", b"sub/a", b".. /a", b".. /.. /a", b" /a",
    b"sub--a", b"a.tif[2", b"<b>&amp;",
)  # fmt: skip
LISTED = [os.fsencode(name) for name in NAMES if name != "\ud800" and not os.path.isdir(name)]  # noqa: PTH112
"""Those of folders would stand for all images in them."""
KINDS = ("sound", "sound", "damaged", "damaged", "empty", "fifo", "link", "loop", "gone", "folder")


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A folder with weights of a very small network, and a picture that links lead to."""
    house = tmp_path_factory.mktemp("house")
    save_model(build_model(ModelConfig(width=0.05), seed=1), house / "w.safetensors")
    (house / "victim.jpg").write_bytes(CONTENT[".jpg"])
    (house / "victims").mkdir()
    return house


def put(data, path: bytes, kind: str, victim: Path) -> None:
    """Something of this kind at the path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 (bytes)
    with suppress(FileExistsError, IsADirectoryError, NotADirectoryError):
        match kind:
            case "fifo":
                os.mkfifo(path)
            case "link":
                os.symlink(os.fsencode(victim), path)  # noqa: PTH211
            case "loop":
                os.symlink(os.path.basename(path), path)  # noqa: PTH119, PTH211
            case "gone":
                os.symlink(b"nowhere", path)  # noqa: PTH211
            case "folder":
                os.makedirs(path)  # noqa: PTH103
            case _:
                content = CONTENT[f".{path.rpartition(b'.')[2].decode().lower()}"]
                content = {"damaged": lambda: data.draw(damaged(content)), "empty": bytes}.get(
                    kind, lambda: content
                )()
                with open(path, "xb") as stream:  # noqa: PTH123
                    stream.write(content)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))


def readable(path: Path) -> bool:
    try:
        return read_image(path) is not None
    except DataError:
        return False


def parse(out: Path) -> None:
    """Whatever the output folder holds can be read by those whom it is for."""
    for path in (one for one in out.rglob("*") if one.is_file()):
        assert not path.name.endswith(".tmp")
        match path.suffix:
            case ".csv":
                table = rows(path)
                assert all(None not in row and None not in row.values() for row in table), path
                assert not [cell for row in table for cell in row.values() if cell[:1] in "=@\t" and cell], (
                    path
                )
            case ".json" | ".geojson":
                json.loads(path.read_text("utf-8"))
            case ".xml":
                etree.parse(path)


@fuzzed(6)
@given(st.data())
def test_a_folder_of_anything(house, data):
    given, out = os.fsencode(house / "in"), house / "out"
    for folder in (house / "in", out):
        shutil.rmtree(folder, ignore_errors=True)
    entries = st.tuples(st.sampled_from(STEMS), st.sampled_from(sorted(CONTENT)), st.sampled_from(KINDS))
    for stem, suffix, kind in [(b"first", ".jpg", "sound"), *data.draw(st.lists(entries, max_size=5))]:
        with suppress(OSError):  # a file where a folder is to be
            put(data, given + b"/" + stem + suffix.encode(), kind, house / "victim.jpg")
    there = [Path(here, name) for here, _, names in os.walk(house / "in") for name in names]
    hidden = {one for one in there if any(is_hidden(part) for part in one.relative_to(house / "in").parts)}
    images = [one for one in there if one.suffix.lower() in IMAGE_SUFFIXES and one not in hidden]
    # A link that leads nowhere is an image that cannot be read.
    images = [one for one in images if one.is_file() or not os.path.exists(one)]  # noqa: PTH110 (raises)
    images = {one: readable(one) for one in images}
    formats = ",".join(data.draw(st.sets(st.sampled_from(FORMATS), max_size=4)) | {"csv"})
    way, words = data.draw(st.sampled_from(("folder", "files", "list", "parquet"))), [house / "in"]
    listed = [os.fsencode(one) for one in there]
    if way == "files":
        images = {one: sound for one, sound in images.items() if one.is_file()}
        words = sorted(images)
    elif way != "folder":
        listed += data.draw(st.lists(st.sampled_from(LISTED), max_size=3))
        words = ["-"]
        if way == "parquet":
            pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            texts = [one.decode("utf-8", "replace") for one in listed]
            parquet.write_table(pa.table({"path": texts}), house / "list.parquet")
            words = [house / "list.parquet"]
    stdin = SimpleNamespace(buffer=io.BytesIO(b"\n".join(listed) + b"\n"))
    more = data.draw(st.sampled_from(([], ["--tile", "off"], ["--border", "two-sides"], ["--restart"])))
    with nothing_changed(house), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stdin)
        options = ["--weights", house / "w.safetensors", "--out", out, "--format", formats, *more]
        words = ["detect", *options, "--", *words]
        code, text = command(*words)
        assert code in (0, 3), text
        before = {path.name: path.read_bytes() for path in out.glob("*.csv")}
        stdin.buffer.seek(0)
        assert command(*words)[0] == code
        assert {path.name: path.read_bytes() for path in out.glob("*.csv")} == before
    parse(out)
    states = {from_cell(row["image"]): row["state"] for row in rows(out / "images.csv")}
    assert (code == 3) == ("unreadable" in states.values()), text
    if way in ("folder", "files"):
        expected = {os.fsencode(one).decode("utf-8", "replace"): done for one, done in images.items()}
        assert {name: state == "done" for name, state in states.items()} == expected
    else:
        done = {os.fsencode(one).decode("utf-8", "replace") for one, well in images.items() if well}
        done = {one for one in done if "\n" not in one and (way == "list" or "\ufffd" not in one)}
        assert done <= {name for name, state in states.items() if state == "done"}


# --- an output folder that is not empty --------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(house) -> Path:
    """A folder with what a whole call left, and its pictures in house/pictures."""
    for name, content in (("a.jpg", CONTENT[".jpg"]), ("b.png", CONTENT[".png"]), ("c.jpg", b"damaged")):
        (house / "given").mkdir(exist_ok=True)
        (house / "given" / name).write_bytes(content)
    shutil.rmtree(house / "out", ignore_errors=True)
    assert call(house)[0] == 3
    shutil.move(house / "out", house / "done")
    return house / "done"


def call(house: Path, *words: str) -> tuple[int, str]:
    weights, formats = house / "w.safetensors", "pictures,csv,json,report,coco,voc"
    return command(
        "detect", house / "given", "--weights", weights, "--out", house / "out", "--format", formats, *words
    )


PLACES = (
    "pictures",
    "pictures/a.jpg",
    "coco",
    "coco/data",
    "coco/labels.json",
    "voc/Annotations",
    "voc/Annotations/a.xml",
    "job",
    "job/journal.jsonl",
    "job/settings.json",
    "cells.csv",
    "images.csv",
    "cells.json",
    "report.html",
    "job/plan.parquet",
)


@fuzzed(8)
@given(st.data())
def test_into_what_others_left(house, done, data):
    out = house / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(done, out)
    hostile = False
    for _ in range(data.draw(st.integers(1, 2))):
        kind = data.draw(
            st.sampled_from(("settings", "journal", "journal", "lines", "lines", "lines", "place", "place"))
        )
        settings, journal = out / "job/settings.json", out / "job/journal.jsonl"
        if hostile or not journal.is_file() or not settings.is_file():
            break
        if kind == "settings":
            value = data.draw(reshaped(json.loads((done / "job/settings.json").read_text())))
            settings.write_bytes(data.draw(st.just(json_bytes(value)) | damaged(settings.read_bytes())))
            hostile = True
        elif kind == "journal":
            journal.write_bytes(data.draw(damaged(journal.read_bytes())))
        elif kind == "lines":
            lines = journal.read_bytes().splitlines() or [b"{}"]
            at = data.draw(st.integers(0, len(lines) - 1))
            with suppress(ValueError):
                lines[at] = json_bytes(data.draw(reshaped(json.loads(lines[at]))))
            journal.write_bytes(b"\n".join(lines) + b"\n")
        else:
            hostile = True
            place = out / data.draw(st.sampled_from(PLACES))
            shutil.rmtree(place, ignore_errors=True)
            place.unlink(missing_ok=True)
            match data.draw(st.sampled_from(("link", "loop", "fifo", "folder", "victims", "empty"))):
                case "link":
                    place.symlink_to(house / "victim.jpg")
                case "loop":
                    place.symlink_to(place.name)
                case "fifo":
                    os.mkfifo(place)
                case "folder":
                    (place / "inside").mkdir(parents=True)
                case "victims":
                    place.symlink_to(house / "victims")
                case "empty":
                    place.touch()
    words = data.draw(st.sampled_from(([], [], ["--restart"])))
    with nothing_changed(house):
        code, text = call(house, *words)
    assert code == 3 or (hostile and code == 1), text
    if code == 3:
        parse(out)
        assert [row["state"] for row in rows(out / "images.csv")] == ["done", "done", "unreadable"]
        if words:  # all is done anew
            assert (out / "cells.csv").read_bytes() == (done / "cells.csv").read_bytes()
