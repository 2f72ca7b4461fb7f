"""The trainings that time to accuracy compares: our recipes, and torchvision's reference script."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from ssdlib.common.errors import TrainingError
from ssdlib.common.signals import StopSignals
from ssdlib.config import RECIPES, ModelConfig, Recipe, Settings
from ssdlib.data.dataset import DetectionDataset, ImageCache
from ssdlib.data.loaders import EpochBatches, SeededDataset, choose_workers, set_epoch
from ssdlib.data.source import DataSource
from ssdlib.detector.weights import build_model
from ssdlib.inference.detections import Detections
from ssdlib.inference.predictor import Predictor
from ssdlib.training.trainer import Trainer
from tests.benchmarks.suites import torchvision_model


@dataclass(frozen=True)
class TorchvisionRecipe(Settings):
    """The recipe of torchvision's reference script (references/detection), for a smaller batch.

    It trains ssd300_vgg16 by SGD at 0.002 for 8 GPUs with 4 images each, divided by ten after 80 and 110 of
    120 epochs, a warm-up from a thousandth of the rate, no clipping, and the augmentation `ssd`.
    """

    name: str = "torchvision"
    initial_weights: str = "scratch"
    batch_size: int = 8
    learning_rate: float = 0.002 * 8 / 32
    """By the linear rule: the reference's for 32 images, times our batch over theirs."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    step_milestones: tuple[float, ...] = (80 / 120, 110 / 120)
    """Fractions of the training after which the rate is divided by ten."""
    warmup_steps: int = 1000
    """Steps of warm-up, but at most one epoch less a step."""
    precision: str = "fp32"
    augment: str = "RandomPhotometricDistort, RandomZoomOut, RandomIoUCrop, RandomHorizontalFlip"


AnyRecipe = Recipe | TorchvisionRecipe

BASELINES: dict[str, AnyRecipe] = {
    "scratch": RECIPES["scratch"].replace(smears=0),
    "original": RECIPES["original"].replace(initial_weights="scratch"),
    "torchvision": TorchvisionRecipe(),
}
"""All start from random weights and see the same images: `scratch` goes without its synthetic smears."""


@dataclass(frozen=True)
class Benchmark:
    """What is the same for all trainings. It travels to their processes."""

    source: DataSource
    images: int
    evaluations: int
    seed: int
    device: str
    path: Path
    """The JSON file of results."""
    progress: bool = True


@dataclass(frozen=True)
class Schedule:
    """Whole epochs nearest to a number of images, and those after which the network is evaluated."""

    batches: int
    """Steps of an epoch."""
    epoch_images: int
    """Images of an epoch."""
    epochs: int
    evaluated: tuple[int, ...]
    """Epochs, counted from 1; evenly spread, the last one included."""

    @classmethod
    def stretch(cls, images: int, evaluations: int, train_images: int, batch_size: int) -> Schedule:
        """The schedule of at least one epoch, with at most one evaluation after each."""
        per_step = min(batch_size, train_images)
        batches = train_images // per_step
        epochs = max(1, round(images / (batches * per_step)))
        evaluations = min(evaluations, epochs)
        evaluated = tuple(round(k * epochs / evaluations) for k in range(1, evaluations + 1))
        return cls(batches, batches * per_step, epochs, evaluated)


def start(recipe: AnyRecipe, schedule: Schedule, benchmark: Benchmark, folder: Path) -> Ours | Torchvision:
    """The training of a recipe, ready for its first epoch; what it writes goes into `folder`."""
    if isinstance(recipe, TorchvisionRecipe):
        return Torchvision(recipe, schedule, benchmark)
    return Ours(recipe, schedule, benchmark, folder)


class Ours:
    """The project's own `Trainer` and its loop."""

    def __init__(self, recipe: Recipe, schedule: Schedule, benchmark: Benchmark, folder: Path) -> None:
        self.trainer = Trainer(
            build_model(recipe.model, recipe.initial_weights, benchmark.seed),
            recipe.replace(epochs=schedule.epochs),
            benchmark.source.dataset("train"),
            None,
            run_dir=folder,
            device=benchmark.device,
            seed=benchmark.seed,
            progress=benchmark.progress,
        )

    def train_one_epoch(self) -> None:
        """Train for an epoch. Decoding the images is part of the first."""
        if self.trainer.epoch == 0:
            self.trainer.train_data.preload()
        self.trainer.train_one_epoch(StopSignals())
        self.trainer.epoch += 1

    def detector(self) -> Predictor:
        """The network as it is now."""
        trainer = self.trainer
        return Predictor(trainer.weights, device=trainer.device, precision=trainer.precision)


class Torchvision:
    """torchvision's SSD300 with its own loss, transforms and post-processing, after its reference script.

    It gets our batches (the same images in the same order) and reads them from their files every time, as
    the script does, in as many worker processes as ours has.
    """

    def __init__(self, recipe: TorchvisionRecipe, schedule: Schedule, benchmark: Benchmark) -> None:
        torch.manual_seed(benchmark.seed)
        self.device, self.progress = torch.device(benchmark.device), benchmark.progress
        self.class_names = tuple(benchmark.source.class_names)
        data = DetectionDataset(
            benchmark.source.dataset("train").samples,
            self.class_names,
            reference_transform(),
            cache=ImageCache(limit=0),
        )
        batches = EpochBatches(
            len(data), recipe.batch_size, shuffle=True, seed=benchmark.seed, drop_last=True
        )
        workers = choose_workers()
        self.loader = DataLoader(
            SeededDataset(data, benchmark.seed),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_as_lists,
            persistent_workers=workers > 0,
        )
        self.epoch = 0
        self.model = torchvision_model(len(self.class_names) + 1).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: reference_rate(step, schedule, recipe)
        )

    def train_one_epoch(self) -> None:
        """Train for an epoch. Raises TrainingError for a loss that is not finite."""
        self.model.train()
        set_epoch(self.loader, self.epoch)
        self.epoch += 1
        for images, targets in tqdm(
            self.loader, f"epoch {self.epoch}", leave=False, disable=not self.progress
        ):
            images = [image.to(self.device) for image in images]
            targets = [{name: value.to(self.device) for name, value in one.items()} for one in targets]
            loss = sum(self.model(images, targets).values())
            # The reference script reads the loss of every step as well, and stops likewise.
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is no longer finite in epoch {self.epoch}: {loss.item():g}")
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()

    def detector(self) -> TorchvisionDetector:
        """The network as it is now."""
        return TorchvisionDetector(self.model, self.class_names, self.device)


class TorchvisionDetector:
    """torchvision's model as `evaluate_model` wants it: score from 0.01, NMS at 0.45, 200 boxes, as ours."""

    batch_size = 8

    def __init__(self, model: torch.nn.Module, class_names: tuple[str, ...], device: torch.device) -> None:
        self.model, self.class_names, self.device = model.eval(), class_names, device
        self.config = ModelConfig(class_names=class_names)

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Detections]:
        """Detections of each (H, W, 3) uint8 RGB image, in its pixels."""
        source = iter(images)
        while batch := list(islice(source, self.batch_size)):
            pixels = [torch.from_numpy(image).permute(2, 0, 1).to(self.device) for image in batch]
            with torch.inference_mode():
                results = self.model([F.to_dtype(image, torch.float32, scale=True) for image in pixels])
            for image, found in zip(batch, results, strict=True):
                boxes, scores, labels = (found[name].cpu() for name in ("boxes", "scores", "labels"))
                height, width = image.shape[:2]
                yield Detections(boxes, scores, labels, (width, height), self.class_names)


def reference_transform() -> v2.Transform:
    """The augmentation `ssd` of torchvision's reference script, in torchvision's own v2 transforms."""
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill={tv_tensors.Image: (123, 117, 104), "others": 0}),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.SanitizeBoundingBoxes(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def reference_rate(step: int, schedule: Schedule, recipe: TorchvisionRecipe) -> float:
    """The learning rate at `step` (from 0) as a fraction of the recipe's: warm-up, then steps down."""
    factor = 0.1 ** sum(
        step >= milestone * schedule.epochs * schedule.batches for milestone in recipe.step_milestones
    )
    warmup = min(recipe.warmup_steps, schedule.batches - 1)
    if step < warmup:
        factor *= 0.001 + 0.999 * step / warmup
    return factor


def _as_lists(samples: list[tuple[Any, dict]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of any size as torchvision's detectors take them: float32 in [0, 1], boxes in pixels."""
    images = [image.as_subclass(Tensor) for image, _ in samples]
    targets = [
        {"boxes": target["boxes"].as_subclass(Tensor), "labels": target["labels"]} for _, target in samples
    ]
    return images, targets
