"""Archives cut into parts: the plan, the files of a part, and a worker; all without a cluster."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ssdlib.__main__ import main
from ssdlib.common.errors import ConfigError, SsdError
from ssdlib.config import ModelConfig
from ssdlib.detector.model_file import save_model
from ssdlib.detector.weights import build_model
from ssdlib.inference.engines import config_of, file_for
from ssdlib.inference.inputs import find_images
from ssdlib.inference.job import DetectJob
from ssdlib.tools.cluster.cluster import WorkerPool, choose_pool, noted_address, reach
from ssdlib.tools.cluster.parts import CELLS, IMAGES, finished, part_file, summarize, tidy, write_part
from ssdlib.tools.cluster.plan import PLAN, Plan, make_plan
from ssdlib.tools.cluster.worker import ATTEMPTS, MOST_ATTEMPTS, ArchiveJob, Worker

NAMES = ("WBC", "RBC", "Platelets")


@pytest.fixture
def fields(smears_root, tmp_path) -> Path:
    """Twelve smears, and one file between them that is no image."""
    folder = tmp_path / "fields"
    folder.mkdir()
    for image in sorted((smears_root / "JPEGImages").iterdir()):
        os.link(image, folder / image.name)
    (folder / "SmearImage_00004b.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(build_model(ModelConfig(width=0.25, batch_norm=True), seed=3), file)
    return file


def shape_of(plan: Plan) -> dict[int, list[str]]:
    """Names of the images in each part."""
    return {n: [task.path.name for task in plan.tasks(row)] for row, n in enumerate(plan.numbers)}


def touch(folder: Path, names: str) -> None:
    for name in names:
        (folder / f"{name}.png").touch()


@pytest.mark.parametrize(
    ("names", "size", "expected"),
    [
        ("", 2, {}),
        ("a", 2, {0: "a"}),
        ("ab", 2, {0: "ab"}),
        ("abc", 2, {0: "ab", 1: "c"}),
        ("abc", 1, {0: "a", 1: "b", 2: "c"}),
        ("abc", 64, {0: "abc"}),
    ],
)
def test_a_plan_cuts_images_into_parts(tmp_path, names, size, expected):
    (tmp_path / "in").mkdir()
    touch(tmp_path / "in", names)
    tasks = find_images([str(tmp_path / "in")]) if names else []
    plan = make_plan(tmp_path / "plan.parquet", tasks, size)
    assert shape_of(plan) == {n: [f"{name}.png" for name in part] for n, part in expected.items()}
    assert plan.images() == {n: len(part) for n, part in expected.items()}


def nothing(folder: Path) -> None:
    """The same images as before."""


def added(folder: Path) -> None:
    touch(folder, ["a2", "f"])


def removed(folder: Path) -> None:
    (folder / "c.png").unlink()


def changed(folder: Path) -> None:
    (folder / "a.png").write_text("another")


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        (nothing, {0: "a b", 1: "c d", 2: "e"}),
        (added, {0: "a b", 1: "c d", 2: "e", 3: "a2 f"}),
        (removed, {0: "a b", 2: "e", 3: "d"}),
        (changed, {1: "c d", 2: "e", 3: "a b"}),
    ],
)
def test_a_plan_goes_on_from_an_earlier_one(tmp_path, happens, expected):
    folder, file = tmp_path / "in", tmp_path / "plan.parquet"
    folder.mkdir()
    touch(folder, "abcde")
    make_plan(file, find_images([str(folder)]), 2)
    happens(folder)
    plan = make_plan(file, find_images([str(folder)]), 2)
    assert shape_of(plan) == {n: [f"{name}.png" for name in part.split()] for n, part in expected.items()}


def test_a_path_that_is_no_utf8_and_a_missing_one_are_planned(tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(odd).touch()
    tasks = find_images([odd], listed=[str(tmp_path / "gone.png")])
    plan = make_plan(tmp_path / "plan.parquet", tasks, 8)
    assert [task.path for task in plan.tasks(0)] == [Path(odd), tmp_path / "gone.png"]


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more"])
def test_a_damaged_plan_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "plan.parquet").write_bytes(content)
    with pytest.raises(SsdError, match=r"plan\.parquet.*--restart"):
        Plan(tmp_path / "plan.parquet")


def record(name: str, cells: int = 0) -> dict:
    one = {"box": [1.5, 2.0, 11.5, 42.0], "label": "RBC", "score": 0.75}
    counts = {"WBC": 0, "RBC": cells, "Platelets": 0}
    size = {"width": 640, "height": 480, "tiles": 1, "view": [640, 480], "copy": None}
    scale = {"scale": "assumed", "um_per_pixel": None, "measured_um": None, "quality": []}
    return {"image": name, "state": "done", **size, **scale, "detections": [one] * cells, "counts": counts}


def unreadable(name: str) -> dict:
    return {"image": name, "state": "unreadable", "message": f"{name} is damaged"}


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record("a")],
        [unreadable("a")],
        [record("a", 2), unreadable("b"), record("c"), record("d", 1)],
    ],
    ids=["nothing", "no cells", "unreadable", "all kinds"],
)
@pytest.mark.parametrize("um", [None, 0.1])
def test_the_tables_of_a_part(tmp_path, records, um):
    write_part(tmp_path, 7, [{**r, "measured_um": um} for r in records], NAMES)
    cells, images = (pd.read_parquet(part_file(tmp_path, table, 7)) for table in (CELLS, IMAGES))
    found = [r for r in records if r["state"] == "done"]
    assert list(images["image"]) == [r["image"] for r in records]
    assert list(images["RBC"].dropna()) == [r["counts"]["RBC"] for r in found]
    assert list(cells["image"]) == [r["image"] for r in found for _ in r["detections"]]
    assert (cells["width_um"].isna() if um is None else cells["width_um"] == 1.0).all()
    summary = summarize(tmp_path, [7], NAMES)
    assert (summary.images, summary.unreadable) == (len(found), len(records) - len(found))
    assert sum(summary.counts) == len(cells) and summary.failures == [
        r["message"] for r in records if r["state"] != "done"
    ]


def test_an_archive_at_another_scale_is_told(tmp_path):
    small = {**record("a", 30), "scale": "cells", "um_per_pixel": 0.2}
    write_part(tmp_path, 0, [small], NAMES)
    assert "--um-per-pixel" in summarize(tmp_path, [0], NAMES).scale_note


def test_what_was_killed_or_left_the_plan_is_tidied_away(tmp_path):
    for number in (0, 1, 2):
        write_part(tmp_path, number, [record("a", 1)], NAMES)
    part_file(tmp_path, IMAGES, 1).unlink()  # killed between its two files
    (tmp_path / CELLS / ".part-000003.parquet.xyz.tmp").touch()  # killed in a file
    tidy(tmp_path, [0, 1, 3])
    assert finished(tmp_path) == {0}
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == {"cells/part-000000.parquet", "images/part-000000.parquet"}


@pytest.fixture(params=["torch", "onnx"])
def engine(request, monkeypatch, weights) -> tuple[str, Path]:
    """An engine and the file that it runs; what is exported is kept beside the weights."""
    monkeypatch.setattr("ssdlib.common.paths.data_folder", lambda: weights.parent)
    return request.param, file_for(request.param, weights)


@pytest.fixture
def make_worker(engine, tmp_path):
    """A worker for the plan of a folder, cut into parts."""

    def make(fields: Path | str, part_images: int) -> Worker:
        out = tmp_path / "out"
        make_plan(out / PLAN, find_images([str(fields)]), part_images)
        (out / ATTEMPTS).mkdir(exist_ok=True)
        settings = {"batch_size": 2, "score_threshold": 0.1, "precision": "fp32"}
        job = ArchiveJob(DetectJob((), dict.fromkeys(NAMES, 0.1), out=out), *engine, part_images, settings)
        return Worker(job, engine[1].read_bytes(), 1, Path.cwd())

    return make


@pytest.fixture
def worker(make_worker, fields) -> Worker:
    return make_worker(fields, 5)


def batch(number: int, row_group: int | None = None) -> dict[str, np.ndarray]:
    return {"number": np.array([number]), "row_group": np.array([number if row_group is None else row_group])}


def test_a_worker_finds_what_plain_detect_finds(worker, engine, fields, tmp_path):
    for number in (2, 0, 1):
        assert worker(batch(number))["number"].tolist() == [number]
    name, file = engine
    plain = ["detect", str(fields), "--weights", str(file), "--engine", name, "--precision", "fp32"]
    plain += ["--threshold", "0.1", "--batch", "2", "--out", str(tmp_path / "plain"), "--format", "csv", "-q"]
    assert main(plain) == 3
    for table in (CELLS, IMAGES):
        theirs = pd.read_csv(tmp_path / "plain" / f"{table}.csv")
        ours = pd.read_parquet(tmp_path / "out" / table)
        assert list(ours.columns) == list(theirs.columns) and len(ours) == len(theirs) > 10
        # Groups of a batch differ where parts do: the last bits of a sum may.
        pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, atol=0.02)


def test_the_onnx_engines_are_handed_on_as_onnx_files(engine, weights):
    name, file = engine
    assert file.suffix == {"torch": ".safetensors", "onnx": ".onnx"}[name] and file.is_file()
    assert file_for("onnx-int8", "ready.onnx") == Path("ready.onnx")
    assert config_of(file).class_names == NAMES


def test_relative_paths_are_meant_from_where_the_command_was_given(
    make_worker, fields, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    worker = make_worker("fields", 3)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    worker(batch(9, row_group=0))
    images = pd.read_parquet(part_file(tmp_path / "out", IMAGES, 9))
    assert list(images["state"]) == ["done"] * 3 and images["image"][0].startswith("fields/")


def test_a_part_that_is_done_is_not_done_again(worker, tmp_path):
    worker(batch(0))
    file = part_file(tmp_path / "out", IMAGES, 0)
    before = file.stat()
    worker(batch(0))
    assert file.stat().st_mtime_ns == before.st_mtime_ns and file.stat().st_ino == before.st_ino


def test_a_part_that_ends_its_worker_each_time_is_given_up(worker, tmp_path):
    (tmp_path / "out" / ATTEMPTS / "part-000001").write_bytes(b"." * MOST_ATTEMPTS)
    assert worker(batch(0))["error"].tolist() == [""]
    (error,) = worker(batch(1))["error"]
    assert "part 1 was begun 4 times" in error and "SmearImage_0000" in error


@pytest.mark.parametrize("special", ["link", "pipe", "folder"])
def test_attempts_are_counted_in_files_alone(worker, tmp_path, special):
    path = tmp_path / "out" / ATTEMPTS / "part-000001"
    if special == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif special == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    (error,) = worker(batch(1))["error"]
    assert "part-000001" in error and not (tmp_path / "elsewhere").exists()


def node(cpus: int, gpus: int = 0, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})}


@pytest.mark.parametrize(
    ("nodes", "workers", "gpu", "expected"),
    [
        ([node(2)], None, True, WorkerPool(2, 1, 0)),
        ([node(0), node(4), node(8)], None, True, WorkerPool(12, 1, 0)),
        ([node(4), node(8, alive=False)], None, True, WorkerPool(4, 1, 0)),
        ([node(4)], 3, True, WorkerPool(3, 1, 0)),
        ([], 3, True, WorkerPool(3, 1, 0)),
        ([node(16, 1)], None, True, WorkerPool(1, 16, 1)),
        ([node(16, 4), node(8, 1), node(64)], None, True, WorkerPool(5, 4, 1)),
        ([node(1, 4)], None, True, WorkerPool(4, 1, 1)),
        ([node(16, 4)], None, False, WorkerPool(16, 1, 0)),
    ],
)
def test_a_pool_of_workers_for_a_cluster(nodes, workers, gpu, expected):
    assert choose_pool(nodes, workers, gpu=gpu) == expected


@pytest.mark.parametrize("nodes", [[], [node(0)], [node(4, alive=False)]])
def test_a_cluster_without_anything_is_refused(nodes):
    with pytest.raises(ConfigError, match="no machine"):
        choose_pool(nodes, None, gpu=True)


@pytest.mark.parametrize(
    "more",
    [
        ["--engine-cluster", "ray"],
        ["--engine-cluster", "spark", "--out", "found"],
        ["--engine-cluster", "ray", "--out", "found", "--format", "csv"],
        ["--engine-cluster", "ray", "--out", "found", "--json", "a.json"],
        ["--workers", "2"],
        ["--format", "csv"],
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(fields, tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    assert main(["detect", str(fields), *more]) == 1
    assert re.search("--engine-cluster|--out", capsys.readouterr().err) and not (tmp_path / "found").exists()


@pytest.mark.parametrize("before", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_told_at_once(
    fields, weights, tmp_path, monkeypatch, capsys, before
):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # taken, but nobody listens
        address = f"{before}127.0.0.1:{other.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        write_part(tmp_path / "out", 0, [record("a")], NAMES)
        command = ["detect", str(fields), "--weights", str(weights), "--out", str(tmp_path / "out")]
        assert main([*command, "--engine-cluster", "ray", "--restart"]) == 1
    assert f"RAY_ADDRESS={address}" in capsys.readouterr().err
    assert finished(tmp_path / "out") == {0}, "nothing was thrown away yet"


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_what_is_no_address_is_left_to_ray(address):
    reach(address)


def test_a_cluster_that_was_killed_here_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert noted_address() == ""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1\n")
    with pytest.raises(ConfigError, match="no Ray cluster"):
        reach(noted_address())


def test_a_cluster_that_answers_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach(f"127.0.0.1:{server.getsockname()[1]}")


def test_folders_of_plain_detect_and_of_a_cluster_are_told_apart(fields, weights, tmp_path, capsys):
    plain, cluster = tmp_path / "plain", tmp_path / "cluster"
    (plain / "job").mkdir(parents=True)
    (plain / "job" / "journal.jsonl").touch()
    make_plan(cluster / "job" / "plan.parquet", [], 64)
    command = ["detect", str(fields), "--weights", str(weights), "-q", "--out"]
    assert main([*command, str(plain), "--engine-cluster", "ray"]) == 1
    assert "without --engine-cluster" in capsys.readouterr().err
    assert main([*command, str(cluster)]) == 1
    assert "of detect --engine-cluster" in capsys.readouterr().err
