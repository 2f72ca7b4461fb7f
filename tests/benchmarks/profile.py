"""Where training's time and memory go: `python -m tests.benchmarks --only profile`.

The project's own `Trainer` is watched from outside while it trains; its loop knows nothing of it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from ssdlib.common.signals import StopSignals
from ssdlib.common.tables import Table
from ssdlib.config import RECIPES, Recipe
from ssdlib.data.dataset import DetectionDataset
from ssdlib.detector.weights import build_model
from ssdlib.training.trainer import Trainer
from tests.benchmarks.common import Measurement, targets, watch
from tests.benchmarks.suites import RATE
from tests.benchmarks.timing import Bench, now

NETWORK, LOSS, UPDATE, DATA = "network", "matching and loss", "update", "waiting for data"
WIDTHS = (1.0, 0.5)


def measure(bench: Bench) -> Measurement:
    """The parts of the time at each width, and the peak memory at the first."""
    settings = {"batch_size": bench.batch, "learning_rate": RATE, "epochs": 100}
    recipe = RECIPES["scratch"].replace(**settings)
    recipes = [recipe.replace(model=recipe.model.replace(width=width)) for width in WIDTHS]
    time = [time_shares(bench, one) for one in recipes]
    memory = peak_memory(bench, recipes[0])
    reached = {f"network's share of the time, width {row['width']:g}": row["shares"][NETWORK] for row in time}
    reached["peak memory, GB"] = memory["peak_gb"]
    return Measurement({"time": time, "memory": memory}, [table(time)], targets(reached))


def table(time: list[dict[str, Any]]) -> Table:
    """A table of the time of training by part, a row for each width."""
    parts = list(time[0]["shares"])
    rows = [
        (
            f"width {row['width']:g}",
            f"{1e3 * row['seconds_per_image']:.1f}",
            *(f"{row['shares'][part]:.1%}" for part in parts),
        )
        for row in time
    ]
    return Table(("time of training", "ms/image", *parts), rows)


class Stopwatch:
    """The time that passes, in parts: each `lap` adds the time since the one before to a part.

    On a GPU every lap waits for the work given to it, so work that would overlap is counted one after
    another: the parts beside the network take there at most what this says.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        """Set all parts to zero."""
        self.seconds = dict.fromkeys((NETWORK, LOSS, UPDATE, DATA), 0.0)
        self._last = now(self.device)

    def lap(self, part: str) -> None:
        """Add the time since the last lap to `part`."""
        here = now(self.device)
        self.seconds[part] += here - self._last
        self._last = here

    def shares(self) -> dict[str, float]:
        """The share of each part; together they are 1."""
        total = sum(self.seconds.values())
        return {part: seconds / total for part, seconds in self.seconds.items()}


class _TimedLoader:
    """A loader that times the wait for each batch and passes on everything else."""

    def __init__(self, loader: Any, stopwatch: Stopwatch) -> None:
        self._loader, self._stopwatch = loader, stopwatch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        while True:
            self._stopwatch.lap(UPDATE)
            batch = next(batches, None)
            self._stopwatch.lap(DATA)
            if batch is None:
                return
            yield batch


def timed(trainer: Trainer) -> Stopwatch:
    """A stopwatch that times everything this trainer does, in these parts:

    - network: forward and backward pass;
    - matching and loss: ground truth to priors, the loss, its own backward pass;
    - update: clipping, optimizer, averaged weights, and the loop's book-keeping;
    - waiting for data: until a batch is there and on the device. Without worker processes that is all of
      the augmentation.
    """
    stopwatch = Stopwatch(trainer.accelerator.device)
    backward = trainer.accelerator.backward

    def timed_backward(loss: Tensor) -> None:
        stopwatch.lap(LOSS)
        backward(loss)
        stopwatch.lap(NETWORK)

    def after_forward(network: nn.Module, inputs: Any, outputs: tuple[Tensor, ...]) -> None:
        stopwatch.lap(NETWORK)
        # autograd goes back from the loss; from the network's first output on it is the network's own.
        register_multi_grad_hook(outputs, lambda _: stopwatch.lap(LOSS), mode="any")

    trainer.loader = _TimedLoader(trainer.loader, stopwatch)
    trainer.model.register_forward_pre_hook(lambda network, inputs: stopwatch.lap(DATA))
    trainer.model.register_forward_hook(after_forward)
    trainer.accelerator.backward = timed_backward
    return stopwatch


def time_shares(bench: Bench, recipe: Recipe) -> dict[str, Any]:
    """The shares of the wall time of one epoch, after one of a single step that fills caches."""
    steps = bench.rounds if bench.device.type == "cpu" else 50
    trainer = make_trainer(bench, recipe, steps)
    stopwatch = timed(trainer)
    first = StopSignals()
    first.requested = "the benchmark"
    trainer.train_one_epoch(first)
    trainer.epoch, trainer.step = 1, trainer.batches
    stopwatch.start()
    trainer.train_one_epoch(StopSignals())
    stopwatch.lap(UPDATE)
    return {
        "width": recipe.model.width,
        "steps": steps,
        "seconds_per_image": sum(stopwatch.seconds.values()) / (steps * recipe.batch_size),
        "shares": stopwatch.shares(),
    }


def make_trainer(bench: Bench, recipe: Recipe, steps: int) -> Trainer:
    """A trainer whose epochs are `steps` long: the training images, as often as that takes."""
    data = bench.source.dataset("train")
    images = steps * recipe.batch_size
    samples = (data.samples * (1 + images // len(data)))[:images]
    repeated = DetectionDataset(samples, data.class_names).preload()
    folder = bench.folder / "profile"
    model = build_model(recipe.model)
    return Trainer(model, recipe, repeated, None, run_dir=folder, device=bench.device, progress=False)


def peak_memory(bench: Bench, recipe: Recipe) -> dict[str, Any]:
    """The most memory that a fresh process held while it trained, loading of the libraries included.

    Of the training process alone: worker processes, where there are any, share most of theirs with it.
    """
    process = multiprocessing.get_context("spawn").Process(target=_train_three_steps, args=(bench, recipe))
    process.start()
    cost = watch(process.pid, process.is_alive)
    if process.exitcode:
        raise RuntimeError(f"the training whose memory was measured ended with {process.exitcode}")
    return {"width": recipe.model.width, "batch": recipe.batch_size, "peak_gb": cost.first_mb / 1000}


def _train_three_steps(bench: Bench, recipe: Recipe) -> None:
    make_trainer(bench, recipe, 3).train_one_epoch(StopSignals())
