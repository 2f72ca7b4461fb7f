"""`kill -9` of the commands that write data sets and reviews: given again, they end in the same
bytes, with nothing left beside them, and no half of them passes for a whole."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ssdlib.common.files import write_json
from ssdlib.inference.detections import Detections
from tests.fuzz.cases import TIMES
from tests.spawned import Process, command, die_at, killed_at_random

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="POSIX signals")]

MOMENTS = {
    "smears": ("half-written smears.json 1", "before out 1", "after out 1"),
    "voc": ("half-written test.txt 1",),
    "coco": ("half-written instances_val.json 1",),
    "yolo": ("before data.yaml 1",),
    "csv": ("half-written val.csv 1",),
    "label-errors": ("half-written decisions.json 1", "after label_errors.html 1"),
    "complete": ("half-written completion.json 1", "after data 1"),
}
"""Of each command, kinds of moments at which it is killed."""


@pytest.fixture(scope="module")
def words(smears_source, tmp_path_factory) -> Callable[[str, Path], list[str]]:
    """The words of a command that writes `out` in a folder."""
    folder = tmp_path_factory.mktemp("given")
    dataset = smears_source.dataset("all")
    for sample in dataset.samples:
        boxes, size = [*sample.boxes.tolist()[1:], [3, 3, 60, 60]], (sample.width, sample.height)
        scores, labels = [0.9] * len(boxes), [*sample.labels.tolist()[1:], 2]
        found = Detections(boxes, scores, labels, size, dataset.class_names, image=sample.image_id)
        write_json(folder / "found" / f"{sample.image_id}.json", [found.to_dict()])
    data = ["--data", str(smears_source.folder), "-q"]
    predicted = ["--predictions", str(folder / "found"), "--min-score=0.5", *data]

    def of(name: str, into: Path) -> list[str]:
        out = str(into / "out")
        match name:
            case "smears":
                return ["data", "smears", out, "--train=2", "--val=1", "--test=1", "-q"]
            case "label-errors" | "complete":
                return ["data", name, "--out", out, *predicted]
            case layout:
                return ["data", "convert", out, "--to", layout, *data]

    return of


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def uninterrupted(words, tmp_path_factory) -> Callable[[str], tuple[dict[str, bytes | None], float]]:
    """What a command ends in, and how long it takes."""
    known: dict[str, tuple[dict[str, bytes | None], float]] = {}

    def of(name: str) -> tuple[dict[str, bytes | None], float]:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            (folder / "whole").mkdir()
            began = time.monotonic()
            whole = Process(folder / "log", command, *words(name, folder / "whole"))
            assert whole.wait() == 0, whole.text
            seconds, found = time.monotonic() - began, contents(folder / "whole")
            assert found and not [left for left in found if left.endswith((".tmp", ".partial"))]
            known[name] = found, seconds
        return known[name]

    return of


def finish(words: list[str], folder: Path, expected: dict[str, bytes | None]) -> None:
    """Give the command again, unless the kill came after all was written, and compare."""
    there = folder / "killed" / "out"
    if not (words[1] == "convert" and there.exists()):
        last = Process(folder / "log", command, *words)
        assert last.wait() == 0, last.text
    assert contents(folder / "killed") == expected


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(("name", "moment"), [(n, moment) for n in MOMENTS for moment in MOMENTS[n]])
def test_killed_at_a_moment_of_writing(words, uninterrupted, tmp_path, name, moment):
    expected, _ = uninterrupted(name)
    (tmp_path / "killed").mkdir()
    given = words(name, tmp_path / "killed")
    killed = Process(tmp_path / "log", die_at, moment, *given)
    assert killed.wait() == -signal.SIGKILL, killed.text
    finish(given, tmp_path, expected)


@pytest.mark.skipif(TIMES == 1, reason="make fuzz")
@pytest.mark.parametrize("number", range(TIMES // 4))
@pytest.mark.parametrize("name", MOMENTS)
def test_killed_at_random_moments(words, uninterrupted, tmp_path, name, number, fuzz_seed):
    expected, seconds = uninterrupted(name)
    (tmp_path / "killed").mkdir()
    given = words(name, tmp_path / "killed")
    generator = random.Random(f"{fuzz_seed} {name} {number}")
    kills = generator.randint(1, 3)
    killed_at_random(tmp_path / "log", given, seconds, generator, kills=kills)
    finish(given, tmp_path, expected)
