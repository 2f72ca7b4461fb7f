"""Where training's time and memory go: `python -m tests.benchmarks --only profile`.

The project's own `Trainer` is watched from outside while it trains; its loop knows nothing of it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ssdlib.common.tables import Table, number
from ssdlib.config import RECIPES, Recipe
from ssdlib.data.dataset import DetectionDataset
from ssdlib.data.loaders import make_loader
from ssdlib.data.transforms import train_transform
from ssdlib.detector.loss import multibox_loss
from ssdlib.detector.matching import match
from ssdlib.detector.model import IMAGE_SIZE
from ssdlib.detector.weights import build_model
from ssdlib.training.monitor import StopSignals
from ssdlib.training.optim import make_optimizer
from ssdlib.training.trainer import Trainer
from tests.benchmarks.common import target, watch
from tests.benchmarks.suites import RATE, Bench, forward_flops, matrix_rate
from tests.benchmarks.timing import now

NETWORK, LOSS, UPDATE, DATA = "network", "matching and loss", "update", "waiting for data"
WIDTHS = (1.0, 0.5)

NETWORK_SHARE, MEMORY_GB, MATRIX_SHARE = 0.95, 6.0, 0.40
"""At least this share in the network; at most these GB; at least this share of a GPU's matrix rate."""


def measure(bench: Bench, recipe: Recipe | None = None, widths: tuple[float, ...] = WIDTHS) -> dict[str, Any]:
    """Where the time goes at each width; at the first one also peak memory and the device's rate."""
    recipe = (recipe or RECIPES["scratch"]).replace(
        batch_size=bench.batch, learning_rate=RATE, initial_weights="scratch", epochs=100
    )
    recipes = [recipe.replace(model=recipe.model.replace(width=width)) for width in widths]
    measured = {
        "time": [time_shares(bench, one) for one in recipes],
        "memory": peak_memory(bench, recipes[0]),
        "device": device_rates(bench, recipes[0]),
    }
    return {**measured, "targets": targets(measured, bench.device)}


# --- time ------------------------------------------------------------------------------------------------


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


class _Outside:
    """A wrapper of an object of the trainer that passes on everything it does not time itself."""

    def __init__(self, inside: Any, stopwatch: Stopwatch) -> None:
        self._inside, self._stopwatch = inside, stopwatch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)


class _Loader(_Outside):
    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._inside)
        while True:
            self._stopwatch.lap(UPDATE)
            batch = next(batches, None)
            self._stopwatch.lap(DATA)
            if batch is None:
                return
            yield batch


class _Model(_Outside):
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        self._stopwatch.lap(DATA)  # the way to the device
        outputs = self._inside(images)
        self._stopwatch.lap(NETWORK)
        waiting = [True]

        def loss_is_behind(_: Tensor) -> None:
            # autograd goes back from the loss; from the network's outputs on it is the network's own.
            if waiting:
                waiting.clear()
                self._stopwatch.lap(LOSS)

        for output in outputs:
            if output.requires_grad:
                output.register_hook(loss_is_behind)
        return outputs


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

    trainer.loader = _Loader(trainer.loader, stopwatch)
    trainer.model = _Model(trainer.model, stopwatch)
    trainer.accelerator.backward = timed_backward
    return stopwatch


def time_shares(bench: Bench, recipe: Recipe) -> dict[str, Any]:
    """The shares of the wall time of one epoch, after one of a single step that fills caches."""
    steps = bench.rounds if bench.device.type == "cpu" else 50
    trainer = _trainer(bench, recipe, steps)
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


def _trainer(bench: Bench, recipe: Recipe, steps: int) -> Trainer:
    """A trainer whose epochs are `steps` long: the training images, as often as that takes."""
    data = bench.source.dataset("train")
    images = steps * recipe.batch_size
    samples = (data.samples * (1 + images // len(data)))[:images]
    repeated = DetectionDataset(samples, data.class_names).preload()
    folder = bench.folder / "profile"
    model = build_model(recipe.model)
    return Trainer(model, recipe, repeated, None, run_dir=folder, device=bench.device, progress=False)


# --- memory ----------------------------------------------------------------------------------------------


def peak_memory(bench: Bench, recipe: Recipe, steps: int = 3) -> dict[str, Any]:
    """The most memory that a fresh process held while it trained, loading of the libraries included.

    Of the training process alone: worker processes, where there are any, share most of theirs with it.
    """
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(bench, recipe, steps))
    process.start()
    cost = watch(process.pid, process.is_alive)
    if process.exitcode:
        raise RuntimeError(f"the training whose memory was measured ended with {process.exitcode}")
    return {"width": recipe.model.width, "batch": recipe.batch_size, "peak_gb": cost.first_mb / 1000}


def _train(bench: Bench, recipe: Recipe, steps: int) -> None:
    _trainer(bench, recipe, steps).train_one_epoch(StopSignals())


# --- the device's rate -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One way to run the network."""

    name: str
    precision: str
    channels_last: bool = False
    compiled: bool = False


VARIANTS = (
    Variant("eager fp32", "fp32"),
    Variant("bf16", "bf16"),
    Variant("bf16, channels_last", "bf16", channels_last=True),
    Variant("bf16, channels_last, compiled", "bf16", channels_last=True, compiled=True),
)


def device_rates(
    bench: Bench, recipe: Recipe, variants: tuple[Variant, ...] = VARIANTS, size: int = 4096
) -> list[dict[str, Any]]:
    """Images a second of each variant that makes sense here, the data already on the device.

    Their share is of the rate of a large matrix product in the same precision (cuDNN may use TF32 in fp32
    convolutions, which that does not). bf16 only where it is native, compilation only on a GPU.
    """
    on_gpu = bench.device.type == "cuda"
    rates, _, _ = matrix_rate(bench, size)
    return [
        _device_rate(bench, recipe, variant, rates[variant.precision])
        for variant in variants
        if variant.precision in rates and (on_gpu or not variant.compiled)
    ]


def _device_rate(bench: Bench, recipe: Recipe, variant: Variant, matrix: float) -> dict[str, Any]:
    on_gpu = bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    step = training_step(bench, recipe, variant)
    stopwatch, seconds = Stopwatch(bench.device), []
    warm, timed = (5, 30) if on_gpu else (1, min(bench.rounds, 3))
    for step_number in range(warm + timed):
        stopwatch.start()
        step()
        stopwatch.lap(NETWORK)
        if step_number >= warm:
            seconds.append(stopwatch.seconds[NETWORK])
    rate = recipe.batch_size / median(seconds)
    return {
        "name": variant.name,
        "width": recipe.model.width,
        "batch": recipe.batch_size,
        "images_per_second": rate,
        "share_of_matrix_rate": 3 * forward_flops(recipe.model) * rate / matrix,
        "peak_gpu_gb": torch.cuda.max_memory_allocated(bench.device) / 1e9 if on_gpu else None,
    }


def training_step(bench: Bench, recipe: Recipe, variant: Variant) -> Callable[[], None]:
    """One step after the recipe on a batch that lies on the device: the loop without its data."""
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    model = build_model(recipe.model).to(bench.device, memory_format=layout).train()
    optimizer = make_optimizer(model, recipe)
    data = bench.source.dataset("train", transform=train_transform(recipe.augment, IMAGE_SIZE))
    images, targets = next(iter(make_loader(data, recipe.batch_size, shuffle=True, seed=0, workers=0)))
    images = images.to(bench.device, memory_format=layout)
    boxes = [target["boxes"].to(bench.device) / IMAGE_SIZE for target in targets]
    labels = [target["labels"].to(bench.device) for target in targets]
    network = torch.compile(model) if variant.compiled else model

    def step() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=variant.precision == "bf16"):
            locs, logits = network(images)
        matches = match(boxes, labels, model.priors, recipe.iou_threshold)
        loss = multibox_loss(locs, logits, matches, model.priors, variances=recipe.model.variances)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


# --- what it says ----------------------------------------------------------------------------------------


def targets(measured: Mapping[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """The targets with what was measured; that of the matrix rate is for GPUs."""
    found = [
        target(f"network's share of the time, width {row['width']:g}", row["shares"][NETWORK], NETWORK_SHARE)
        for row in measured["time"]
    ]
    memory = measured["memory"]
    name = f"peak memory, GB, batch {memory['batch']}, width {memory['width']:g}"
    found.append(target(name, memory["peak_gb"], MEMORY_GB, at_most=True))
    if device.type == "cuda":
        best = max(row["share_of_matrix_rate"] for row in measured["device"])
        found.append(target("share of the GPU's matrix rate", best, MATRIX_SHARE))
    return found


def tables(measured: Mapping[str, Any]) -> list[Table]:
    """Two tables: the time of training by part, and the rate of the network on data that is there."""
    times, device = measured["time"], measured["device"]
    parts = list(times[0]["shares"])
    by_part = [
        (
            f"width {row['width']:g}",
            f"{1e3 * row['seconds_per_image']:.1f}",
            *(f"{row['shares'][part]:.1%}" for part in parts),
        )
        for row in times
    ]
    rates = [
        (
            row["name"],
            f"{row['images_per_second']:.2f}",
            f"{row['share_of_matrix_rate']:.1%}",
            number(row["peak_gpu_gb"], ".2f"),
        )
        for row in device
    ]
    title = f"network alone, width {device[0]['width']:g}, batch {device[0]['batch']}"
    return [
        Table(("time of training", "ms/image", *parts), by_part),
        Table((title, "img/s", "of matrix rate", "peak GPU GB"), rates),
    ]
