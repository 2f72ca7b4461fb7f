"""Training by several processes: the same as by one, one writer, one stop, and no hanging when one dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from ssdlib.common.distributed import any_process, gather
from ssdlib.common.paths import project_root
from ssdlib.config import ModelConfig
from ssdlib.data.source import open_folder
from ssdlib.detector.model_file import load_model
from ssdlib.detector.weights import build_model
from ssdlib.evaluation.evaluate import evaluate_model
from ssdlib.inference.predictor import Predictor
from ssdlib.training.checkpoints import load_state
from tests.spawned import Process, command, pair

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="POSIX signals")]
SETTINGS = (
    "initial_weights=scratch", "model.width=0.0625", "model.batch_norm=false", "batch_size=5",
    "warmup_steps=5",
)  # fmt: skip


def arguments(data: Path, run: Path, epochs: int, *more: str) -> list[str]:
    settings = [f"recipe.{setting}" for setting in (*SETTINGS, f"epochs={epochs}", *more)]
    given = ["train", "--profile=smoke", "--data", str(data), "--run", str(run), "--device=cpu"]
    return given + [word for setting in settings for word in ("--set", setting)]


@pytest.fixture
def started():
    """Processes put in here do not outlive the test."""
    processes = []
    yield processes
    for process in processes:
        if process.running():
            process.signal(signal.SIGKILL)


# --- the same as one process -----------------------------------------------------------------------------


def test_two_processes_train_as_one_does(smears_root, tmp_path, started):
    """Twenty steps, a batch of three as two images and one, and one writer.

    By SGD with small steps: Adam divides small gradients by their size, which makes rounding errors of them
    large ones, and large steps of any kind multiply them.
    """
    more = ("evaluate_every=20", "checkpoint_every=20", "optimizer=sgd", "learning_rate=3e-5", "batch_size=3")
    given = [arguments(smears_root, tmp_path / name, 20, *more) for name in ("two", "one")]
    two, one = ([*words, "--set", "train_images=3"] for words in given)
    started += [*pair(tmp_path, command, two), Process(tmp_path / "log", command, *one)]
    assert [process.wait() for process in started] == [0, 0, 0], [process.text for process in started]
    two, one = (
        json.loads((tmp_path / name / "history.json").read_text())["epochs"] for name in ("two", "one")
    )
    assert len(one) == 20
    for part in ("loss", "localization", "confidence"):
        np.testing.assert_allclose([r[part] for r in two], [r[part] for r in one], rtol=1e-5)
    assert [r["map_50"] for r in two] == [r["map_50"] for r in one] and two[-1]["map_50"] is not None
    assert two[-1]["val_loss"] == pytest.approx(one[-1]["val_loss"], rel=1e-4)

    states = [load_state(tmp_path / name / "checkpoints")[0] for name in ("two", "one")]
    for part in ("model", "average"):
        for name, tensor in states[1][part].items():
            torch.testing.assert_close(states[0][part][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert "weights: " in started[0].text and "weights: " not in started[1].text
    assert len(list((tmp_path / "two/events").iterdir())) == 1
    load_model(tmp_path / "two/checkpoints/best.safetensors")
    assert not list((tmp_path / "two").rglob("*.tmp"))


def test_batch_norm_is_refused_on_several_cpu_processes(smears_root, tmp_path, started):
    """PyTorch synchronizes it on GPUs alone; unsynchronized, two processes would not train as one does."""
    started += pair(tmp_path, command, arguments(smears_root, tmp_path / "run", 1, "model.batch_norm=true"))
    assert [process.wait(60) for process in started] == [1, 1], [process.text for process in started]
    assert "cannot train a network with BatchNorm" in started[0].text and "Traceback" not in started[0].text
    assert not (tmp_path / "run/checkpoints").exists()


def in_group(work, *given):
    distributed.init_process_group("gloo")
    work(*given)
    distributed.destroy_process_group()
    return 0


def evaluate_shares(root):
    model = build_model(ModelConfig(width=0.0625), seed=1)
    predictor = Predictor(model, device="cpu", precision="fp32", batch_size=2)
    train = open_folder(root).dataset("train")
    for count in (5, 1, 6):
        data = train.subset(count)
        metrics, detections = evaluate_model(predictor, data)
        shared, found = evaluate_model(predictor, data, shared=True)
        assert shared == metrics
        assert [d.to_dict() for d in found] == [d.to_dict() for d in detections] and len(found) == count
    assert sum(map(len, detections)) > 0
    rank = distributed.get_rank()
    assert gather(rank) == [0, 1]
    assert [any_process(value, torch.device("cpu")) for value in (False, rank == 1)] == [False, True]


def test_shared_evaluation_loses_nothing_and_counts_nothing_twice(smears_root, tmp_path, started):
    """Three batches over two processes, one image over two processes, an even share."""
    started += pair(tmp_path, in_group, [evaluate_shares, smears_root])
    assert [process.wait() for process in started] == [0, 0], [process.text for process in started]


# --- stopping --------------------------------------------------------------------------------------------


def test_a_signal_to_one_process_stops_both_after_the_same_step_and_saves(smears_root, tmp_path, started):
    started += pair(tmp_path, command, arguments(smears_root, tmp_path / "run", 500))
    started[0].wait_until((tmp_path / "run/history.json").exists)
    started[1].signal(signal.SIGINT)
    started[1].signal(signal.SIGTERM)  # a launcher passes on what the terminal sent already
    assert [process.wait(30) for process in started] == [130, 130], [process.text for process in started]
    texts = [process.text for process in started]
    assert "stopped by a signal to another process" in texts[0] and "Traceback" not in "".join(texts)
    state, complaints = load_state(tmp_path / "run/checkpoints")
    assert state["step"] > 0 and not complaints


@pytest.mark.parametrize("killed", [0, 1])
def test_the_survivor_of_a_killed_process_says_so_and_ends(smears_root, tmp_path, started, killed):
    started += pair(tmp_path, command, arguments(smears_root, tmp_path / "run", 500))
    started[0].wait_until((tmp_path / "run/checkpoints/last.pt").exists)
    started[killed].signal(signal.SIGKILL)
    survivor = started[1 - killed]
    assert survivor.wait(20) == 1
    said = survivor.text
    assert "error: another process of this training has ended" in said and "resume (--resume)" in said, said
    assert "Traceback" not in said, said
    state, complaints = load_state(tmp_path / "run/checkpoints")
    assert state["epoch"] > 0 and not complaints


def test_processes_that_see_different_states_refuse_to_start(smears_root, tmp_path, started):
    """As on two machines that do not share the run folder."""
    again = arguments(smears_root, tmp_path / "run", 1)
    assert Process(tmp_path / "log", command, *again).wait() == 0
    elsewhere = arguments(smears_root, tmp_path / "elsewhere", 1)
    started += pair(tmp_path, command, [*again, "--resume"], [*elsewhere, "--resume"])
    assert [process.wait(30) for process in started] == [1, 1], [process.text for process in started]
    assert "processes 0 and 1 differ in: finished steps" in started[0].text


def test_torchrun_ends_a_job_of_which_one_process_was_killed(smears_root, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "ssdlib"]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(
            [*launcher, *arguments(smears_root, tmp_path / "run", 500)],
            env={**os.environ, "PYTHONPATH": str(project_root()), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 100
        # The line is printed after the state is saved: a kill between the two would be none of our business.
        while "epoch   1/500" not in (tmp_path / "log").read_text():
            assert job.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.05)
        workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        assert len(workers) == 2
        os.kill(int(workers[1]), signal.SIGKILL)
        assert job.wait(timeout=45) != 0
    finally:
        job.kill()
        job.wait()
    text = (tmp_path / "log").read_text()
    assert text.count("epoch   1/500") == 1 and f"exitcode  : -{int(signal.SIGKILL)}" in text, text
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert load_state(tmp_path / "run/checkpoints")[0]["epoch"] > 0
