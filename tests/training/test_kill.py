"""`kill -9` of a real training, at any moment: resumed, it ends in the bits of one that was never killed."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from ssdlib.training import checkpoints
from tests.fuzz.cases import TIMES
from tests.spawned import Process, command, die_at, killed_at_random

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="POSIX signals")]
SETTINGS = (
    "initial_weights=scratch", "model.width=0.0625", "batch_size=2", "epochs=4", "warmup_steps=2",
    "evaluate_every=1",
)  # fmt: skip


def train(data: Path, run: Path, *more: str) -> list[str]:
    words = ["train", "--profile=smoke", "--data", str(data), "--run", str(run), "--device=cpu", *more]
    return words + [word for setting in SETTINGS for word in ("--set", f"recipe.{setting}")]


def outcome(run: Path) -> dict[str, object]:
    """All that a training ends in but times: weights byte for byte, the state bit for bit, all figures."""
    state = checkpoints.read_state(run / "checkpoints" / "last.pt")
    history = json.loads((run / "history.json").read_text())
    for record in (*history["epochs"], *state["history"]["epochs"]):
        record["seconds"] = record["images_per_second"] = None
    files = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return {
        "last": checkpoints.digest({**state, "seconds": None}),
        "best": (run / "checkpoints" / "best.safetensors").read_bytes(),
        "history": history,
        "files": sorted(name for name in files if not name.startswith("events/")),
    }


@pytest.fixture(scope="module")
def uninterrupted(smears_root, tmp_path_factory):
    """The outcome, and how long it took."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    began = time.monotonic()
    process = Process(folder / "log", command, *train(smears_root, folder / "run"))
    assert process.wait() == 0, process.text
    return outcome(folder / "run"), time.monotonic() - began


@pytest.mark.parametrize("number", range(2 if TIMES == 1 else TIMES))
def test_killed_again_and_again_at_random_moments(smears_root, uninterrupted, tmp_path, number, fuzz_seed):
    expected, seconds = uninterrupted
    generator = random.Random(f"{fuzz_seed} {number}")
    words = train(smears_root, tmp_path / "run", "--resume")
    killed_at_random(tmp_path / "log", words, seconds, generator, kills=generator.randint(1, 3))
    process = Process(tmp_path / "log", command, *words)
    assert process.wait() == 0, process.text
    assert outcome(tmp_path / "run") == expected


MOMENTS = (
    "half-written next.pt 2",
    "before next.pt 3",
    "after next.pt 2",  # whole, but not yet the last
    "after previous.pt 1",  # there is no last
    "after last.pt 4",  # all but the goodbye
    "half-written best.safetensors 1",
    "after history.json 4",  # the epoch is in the history but not in the state
)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment_of_writing(smears_root, uninterrupted, tmp_path, moment):
    run = tmp_path / "run"
    words = train(smears_root, run, "--resume")
    killed = Process(tmp_path / "log", die_at, moment, *words)
    assert killed.wait() == -signal.SIGKILL, killed.text
    if moment.startswith("half"):
        assert list(run.rglob(".*.tmp")), "the kill left half a file"
    resumed = Process(tmp_path / "log", command, *words)
    assert resumed.wait() == 0, resumed.text
    assert outcome(run) == uninterrupted[0]
