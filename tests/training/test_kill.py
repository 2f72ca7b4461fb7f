"""`kill -9` of a real training, at any moment: resumed, it ends in the bits of one that was never killed."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch

from ssdlib.training import checkpoints
from tests.spawned import Process, command

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
SETTINGS = (
    "initial_weights=scratch", "model.width=0.0625", "batch_size=2", "epochs=4", "warmup_steps=2",
    "evaluate_every=1",
)  # fmt: skip


def train(data: Path, run: Path, *more: str) -> list[str]:
    words = ["train", "--profile=smoke", "--data", str(data), "--run", str(run), "--device=cpu", *more]
    return words + [word for setting in SETTINGS for word in ("--set", f"recipe.{setting}")]


def outcome(run: Path) -> dict[str, object]:
    """All that a training ends in but times: weights bit for bit, losses and figures."""
    state = checkpoints.read_state(run / "checkpoints" / "last.pt")
    records = json.loads((run / "history.json").read_text())["epochs"]
    best = safetensors.torch.load_file(run / "checkpoints" / "best.safetensors")
    kept = {key: state[key] for key in ("epoch", "step", "model", "average", "optimizer", "scheduler")}
    return {
        "last": checkpoints.digest(kept),
        "best": checkpoints.digest(best),
        "history": [(r["epoch"], r["loss"], r["map_50"]) for r in records],
        "files": sorted(p.name for p in (run / "checkpoints").iterdir()),
    }


@pytest.fixture(scope="module")
def uninterrupted(smears_root, tmp_path_factory):
    """The outcome, and how long it took."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    began = time.monotonic()
    process = Process(folder / "log", command, *train(smears_root, folder / "run"))
    assert process.wait() == 0, process.text
    return outcome(folder / "run"), time.monotonic() - began


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_again_and_again_at_random_moments(smears_root, uninterrupted, tmp_path, seed):
    expected, seconds = uninterrupted
    generator, delays = random.Random(seed), []
    for _ in range(4):
        delays.append(generator.uniform(0, seconds))
        process = Process(tmp_path / "log", command, *train(smears_root, tmp_path / "run", "--resume"))
        process.process.join(delays[-1])
        process.signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0), (delays, process.text)
    process = Process(tmp_path / "log", command, *train(smears_root, tmp_path / "run", "--resume"))
    assert process.wait() == 0, (delays, process.text)
    assert outcome(tmp_path / "run") == expected, delays


def die_at(moment: str, *words: str) -> int:
    """The command line in a process that kills itself, with signal 9, at one moment of its writing."""
    what, name, count = moment.split()
    left = [None] * int(count)

    def perhaps(happening: str, file: str, last_deed=lambda: None) -> None:
        if (happening, file) == (what, name):
            left.pop()
            if not left:
                last_deed()
                os.kill(os.getpid(), signal.SIGKILL)

    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        # A temporary file is called .next.pt.xyz.tmp; half of it is on the disk.
        half = file.stat().st_size // 2
        perhaps("half-written", ".".join(file.name.split(".")[1:3]), lambda: os.truncate(file, half))
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        perhaps("before", Path(target).name)
        result = replace(self, target)
        perhaps("after", Path(target).name)
        return result

    os.fsync, Path.replace = noted_fsync, noted_replace
    return command(*words)


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
