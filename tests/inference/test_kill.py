"""`kill -9` of `ssdlib detect`, at any moment: called again, it ends in the bytes of one never killed."""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from ssdlib.config import ModelConfig
from ssdlib.data.images import write_image
from ssdlib.data.smears import draw_smear
from ssdlib.detector.model_file import save_model
from ssdlib.detector.weights import build_model
from tests.fuzz.cases import TIMES
from tests.inference.test_job import EVERYTHING
from tests.spawned import Process, command, die_at, killed_at_random

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="POSIX signals")]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> list[str]:
    """The words of a job on four fields, a broad and a damaged one, without --out."""
    folder = tmp_path_factory.mktemp("job")
    smear = draw_smear(3).image
    for number in range(4):
        write_image(folder / f"in/{number:02}.jpg", np.roll(smear, 40 * number, axis=1))
    write_image(folder / "in/02b.png", np.tile(smear[:240], (1, 2, 1)))
    (folder / "in/03b.png").write_bytes(b"damaged")
    save_model(build_model(ModelConfig(width=0.05), seed=1), folder / "w.safetensors")
    given = ["detect", str(folder / "in"), "--weights", str(folder / "w.safetensors"), "--quiet"]
    given += ["--format", EVERYTHING, "--threshold=0.2", "--batch=3", "--device=cpu"]
    return [*given, "--um-per-pixel=0.1"]  # at one scale only, to take less time


def everything(out: Path) -> dict[str, object]:
    """Every file, byte for byte; of the journal, in which an image may stand twice, the set of its lines."""
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {**files, "job/journal.jsonl": set(files["job/journal.jsonl"].splitlines())}


@pytest.fixture(scope="module")
def uninterrupted(job, tmp_path_factory) -> tuple[dict[str, object], float]:
    """What the job ends in, and how long it takes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    began = time.monotonic()
    process = Process(folder / "log", command, *job, "--out", str(folder / "out"))
    assert process.wait() == 3, process.text
    seconds, found = time.monotonic() - began, everything(folder / "out")
    assert len([name for name in found if name.startswith("voc/")]) == 10 and "report.html" in found
    return found, seconds


@pytest.mark.parametrize("number", range(1 if TIMES == 1 else TIMES // 2))
def test_killed_again_and_again_at_random_moments(job, uninterrupted, tmp_path, number, fuzz_seed):
    expected, seconds = uninterrupted
    words = [*job, "--out", str(tmp_path / "out")]
    generator = random.Random(f"{fuzz_seed} {number}")
    killed_at_random(tmp_path / "log", words, seconds, generator, kills=3 if TIMES == 1 else 10)
    last = Process(tmp_path / "log", command, *words)
    assert last.wait() == 3, last.text
    assert everything(tmp_path / "out") == expected


MOMENTS = (
    "half-written 02.jpg 1",  # no group of images is done yet
    "after 03.xml 1",  # not yet in the journal
    "half-appended journal.jsonl 5",
    "half-written report.html 1",
)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment_of_writing(job, uninterrupted, tmp_path, moment):
    words, out = [*job, "--out", str(tmp_path / "out")], tmp_path / "out"
    killed = Process(tmp_path / "log", die_at, moment, *words)
    assert killed.wait() == -signal.SIGKILL, killed.text
    if moment.startswith("half-written"):
        assert list(out.rglob(".*.tmp")), "the kill left half a file"
    last = Process(tmp_path / "log", command, *words)
    assert last.wait() == 3, last.text
    assert ("images had been done before" in last.text) == (moment != MOMENTS[0]), last.text
    assert everything(out) == uninterrupted[0]
