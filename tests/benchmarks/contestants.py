"""Who takes part in time to accuracy, each trained and asked for boxes as its own users would do it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from ssdlib.common.errors import CheckpointError, ConfigError, TrainingError
from ssdlib.common.runtime import choose_precision
from ssdlib.config import NO_AUGMENTATION, RECIPES, Recipe, Settings
from ssdlib.data.dataset import DetectionDataset, ImageCache
from ssdlib.data.loaders import EpochBatches, SeededDataset, choose_workers, set_epoch
from ssdlib.data.source import DataSource
from ssdlib.detector.model import SSD300
from ssdlib.detector.weights import build_model
from ssdlib.inference.detections import Detections
from ssdlib.inference.predictor import Predictor
from ssdlib.training.trainer import Trainer
from tests.benchmarks.suites import torchvision_model


@dataclass(frozen=True)
class TorchvisionRecipe(Settings):
    """How torchvision's reference script (references/detection) trains ssd300_vgg16, for a smaller batch.

    There: SGD at 0.002 for 8 GPUs with 4 images each, divided by ten after 80 and 110 of 120 epochs, a
    warm-up from a thousandth of the rate, no clipping, and the augmentation `ssd`.
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
    """At most, and at most one epoch less a step."""
    precision: str = "fp32"
    augment: str = "RandomPhotometricDistort, RandomZoomOut, RandomIoUCrop, RandomHorizontalFlip"


AnyRecipe = Recipe | TorchvisionRecipe


def contestants(pretrained: bool = False) -> dict[str, AnyRecipe]:
    """The recipes by name. All see the same images: `scratch` goes without its synthetic smears.

    `original` starts from random weights like the others unless `pretrained`.
    """
    scratch = RECIPES["scratch"].replace(smears=0)
    original = RECIPES["original"]
    if not pretrained:
        original = original.replace(initial_weights="scratch")
    return {"scratch": scratch, "original": original, "torchvision": TorchvisionRecipe()}


def describe(recipe: AnyRecipe, device: torch.device) -> str:
    """One line on what runs."""
    if isinstance(recipe, TorchvisionRecipe):
        return (
            f"torchvision's ssd300_vgg16 from {recipe.initial_weights}, its reference recipe for a batch of "
            f"{recipe.batch_size}: SGD {recipe.learning_rate:g}, {recipe.augment}, {recipe.precision}"
        )
    model, network = recipe.model, "SSD300"
    if model.width != 1:
        network += f" of width {model.width:g}"
    if model.batch_norm:
        network += " with BatchNorm"
    augmented = "not augmented" if recipe.augment == NO_AUGMENTATION else "augmented"
    return (
        f"our recipe {recipe.name}: {network} from {recipe.initial_weights}, batches of {recipe.batch_size}, "
        f"{recipe.optimizer} {recipe.learning_rate:g}, {augmented}, {choose_precision('auto', device)}"
    )


@dataclass(frozen=True)
class Schedule:
    """Whole epochs nearest to a number of images, and the steps after which the network is judged."""

    per_step: int
    """Images."""
    batches: int
    """Steps of an epoch."""
    epochs: int
    stops: tuple[int, ...]

    @classmethod
    def stretch(cls, images: int, evaluations: int, train_images: int, batch_size: int) -> Schedule:
        """At least one epoch. Raises ConfigError for more evaluations than steps."""
        per_step = min(batch_size, train_images)
        batches = train_images // per_step
        epochs = max(1, round(images / (batches * per_step)))
        steps = epochs * batches
        if not 1 <= evaluations <= steps:
            raise ConfigError(
                f"{images} images are {steps} steps here, which allow 1 to {steps} evaluations, "
                f"not {evaluations}; change --evaluations or --images"
            )
        stops = tuple(round(k * steps / evaluations) for k in range(1, evaluations + 1))
        return cls(per_step, batches, epochs, stops)

    @property
    def steps(self) -> int:
        """All of them."""
        return self.epochs * self.batches

    @property
    def images(self) -> int:
        """Seen in all."""
        return self.steps * self.per_step


class Detector(Protocol):
    """What `ssdlib.evaluation.evaluate_model` asks for boxes."""

    class_names: tuple[str, ...]
    batch_size: int

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Detections]:
        """Detections of each (H, W, 3) uint8 RGB image."""


class Contestant(Protocol):
    """A training that can be halted to be judged."""

    initial_weights: str
    """Where it really started."""

    def train_until(self, step: int) -> None:
        """Go on to the end of that step, counted from the start. Raises TrainingError."""

    def detector(self) -> Detector:
        """The network as it is now."""


@dataclass(frozen=True)
class Setting:
    """What is the same for all."""

    source: DataSource
    device: torch.device
    seed: int
    folder: Path
    """For whatever a trainer writes."""
    progress: bool = True


def enter(recipe: AnyRecipe, schedule: Schedule, setting: Setting) -> Contestant:
    """The contestant of a recipe, ready to start."""
    kind = Torchvision if isinstance(recipe, TorchvisionRecipe) else Ours
    return kind(recipe, schedule, setting)


class StopAt:
    """Asks `Trainer.train_one_epoch` to stop after a step, in the place of `StopSignals`."""

    def __init__(self, trainer: Trainer, step: int) -> None:
        self.trainer, self.step = trainer, step

    @property
    def requested(self) -> str:
        """True as a word, as there."""
        return "the benchmark" if self.trainer.step >= self.step else ""


class Ours:
    """The project's own `Trainer`, by its own loop."""

    def __init__(self, recipe: Recipe, schedule: Schedule, setting: Setting) -> None:
        self.device = setting.device
        model, self.initial_weights = _first_weights(recipe, setting.seed)
        self.trainer = Trainer(
            model,
            recipe.replace(epochs=schedule.epochs),
            setting.source.dataset("train"),
            None,
            run_dir=setting.folder,
            device=setting.device,
            seed=setting.seed,
            progress=setting.progress,
        )

    def train_until(self, step: int) -> None:
        """See `Contestant`. Decoding the images, which is done once, is part of the training."""
        trainer = self.trainer
        if trainer.step == 0:
            trainer.train_data.preload()
        while trainer.step < step:
            trainer.train_one_epoch(StopAt(trainer, step))
            if trainer.step == (trainer.epoch + 1) * trainer.batches:
                trainer.epoch += 1

    def detector(self) -> Detector:
        """See `Contestant`."""
        return Predictor(self.trainer.weights, device=self.device, precision=self.trainer.precision)


def _first_weights(recipe: Recipe, seed: int) -> tuple[SSD300, str]:
    """The network, and where its weights are from: scratch, if those to download cannot be had."""
    try:
        return build_model(recipe.model, recipe.initial_weights, seed), recipe.initial_weights
    except CheckpointError as error:
        if recipe.initial_weights not in ("imagenet", "coco"):
            raise
        print(f"{recipe.name} starts from scratch: {error}", flush=True)
        return build_model(recipe.model, "scratch", seed), "scratch"


class Torchvision:
    """torchvision's SSD300 with its own loss, transforms and post-processing, after its reference script.

    It gets our batches (the same images in the same order) and reads them from their files every time, as
    the script does, in as many worker processes as ours has.
    """

    def __init__(self, recipe: TorchvisionRecipe, schedule: Schedule, setting: Setting) -> None:
        torch.manual_seed(setting.seed)
        self.initial_weights = recipe.initial_weights
        self.device, self.progress = setting.device, setting.progress
        self.class_names = tuple(setting.source.class_names)
        data = DetectionDataset(
            setting.source.dataset("train").samples,
            self.class_names,
            reference_transform(),
            cache=ImageCache(limit=0),
        )
        batches = EpochBatches(len(data), recipe.batch_size, shuffle=True, seed=setting.seed, drop_last=True)
        workers = choose_workers()
        self.loader = DataLoader(
            SeededDataset(data, setting.seed),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_as_lists,
            persistent_workers=workers > 0,
        )
        self.batches, self.step = schedule.batches, 0
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

    def train_until(self, step: int) -> None:
        """See `Contestant`."""
        self.model.train()
        while self.step < step:
            epoch, done = divmod(self.step, self.batches)
            set_epoch(self.loader, epoch, start=done)
            with tqdm(self.loader, f"epoch {epoch + 1}", leave=False, disable=not self.progress) as bar:
                for images, targets in bar:
                    self._train_on(images, targets)
                    if self.step == step:
                        break

    def _train_on(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
        images = [image.to(self.device) for image in images]
        targets = [{name: value.to(self.device) for name, value in target.items()} for target in targets]
        loss = sum(self.model(images, targets).values())
        # The reference script reads the loss of every step as well, and stops likewise.
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss is no longer finite at step {self.step + 1}: {loss.item():g}")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1

    def detector(self) -> Detector:
        """See `Contestant`."""
        return TorchvisionDetector(self.model, self.class_names, self.device)


class TorchvisionDetector:
    """torchvision's model as `evaluate_model` wants it: score from 0.01, NMS at 0.45, 200 boxes, as ours."""

    batch_size = 8

    def __init__(self, model: torch.nn.Module, class_names: tuple[str, ...], device: torch.device) -> None:
        self.model, self.class_names, self.device = model.eval(), class_names, device

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
    factor = 0.1 ** sum(step >= milestone * schedule.steps for milestone in recipe.step_milestones)
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


def seconds_since(began: float, device: torch.device) -> float:
    """Seconds since a `time.perf_counter()`, with what the GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
