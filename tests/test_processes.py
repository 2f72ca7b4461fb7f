"""Training by two processes, as torchrun starts them on a CPU: the losses of one, one writer, one stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssdlib.__main__ import main
from ssdlib.checkpoints import load_state
from ssdlib.runs import project_root
from ssdlib.weights import load_model

SETTINGS = (
    "recipe.initial_weights=scratch",
    "recipe.model.width=0.0625",
    "recipe.model.batch_norm=false",
    "recipe.batch_size=4",
)


def arguments(data: Path, run: Path, epochs: int) -> list[str]:
    settings = [*SETTINGS, f"recipe.epochs={epochs}"]
    given = ["train", "--profile=smoke", "--data", str(data), "--run", str(run), "--device=cpu"]
    return given + [word for setting in settings for word in ("--set", setting)]


@pytest.fixture
def start():
    """Start commands in two processes that know each other, and leave none behind."""
    started = []

    def start(*command: str) -> list[subprocess.Popen]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        for rank in range(2):
            ranks = {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
            world = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2")
            rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment = {"PYTHONPATH": str(project_root()), "OMP_NUM_THREADS": "1", **rendezvous}
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "ssdlib", *command],
                    env={**os.environ, **environment, **ranks, **world},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_torchrun_gives_the_losses_of_one_process_and_one_writer(smears_root, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "ssdlib"]
    done = subprocess.run(
        [*launcher, *arguments(smears_root, tmp_path / "two", 2)],
        env={**os.environ, "PYTHONPATH": str(project_root()), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights: ") == 1 and done.stdout.count("epoch 1/2") == 1
    assert main(arguments(smears_root, tmp_path / "one", 2)) == 0
    two, one = (
        json.loads((tmp_path / name / "history.json").read_text())["epochs"] for name in ("two", "one")
    )
    assert [record["loss"] for record in two] == pytest.approx([record["loss"] for record in one], rel=1e-4)
    assert two[-1]["map_50"] is not None
    assert len(list((tmp_path / "two/events").iterdir())) == 1
    load_model(tmp_path / "two/checkpoints/best.safetensors")
    assert not list((tmp_path / "two").rglob("*.tmp"))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_signal_to_one_process_stops_both_after_the_same_step_and_saves(smears_root, tmp_path, start):
    processes = start(*arguments(smears_root, tmp_path / "run", 500))
    history, deadline = tmp_path / "run/history.json", time.monotonic() + 60
    while not history.exists():
        assert all(p.poll() is None for p in processes) and time.monotonic() < deadline
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGINT)
    processes[1].send_signal(signal.SIGTERM)  # a launcher passes on what the terminal sent already
    texts = [process.communicate(timeout=30)[1] for process in processes]
    assert [process.returncode for process in processes] == [130, 130], texts
    assert "stopped by a signal to another process" in texts[0] and "Traceback" not in "".join(texts)
    state, complaints = load_state(tmp_path / "run/checkpoints")
    assert state["step"] > 0 and not complaints
