"""Every setting of the project, as frozen dataclasses with the reason beside each value.

Settings travel as plain JSON (`to_dict`, `from_dict`); a key that no field has is an error, never ignored.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ssdlib.common.errors import ConfigError

BCCD_CLASSES = ("WBC", "RBC", "Platelets")
"""Class names in label order: background is 0, WBC 1, RBC 2, Platelets 3."""

BACKGROUNDS = ("hard", "soft", "ignore_confident")
"""Ways to learn background where labels have gaps: see `ssdlib.detector.loss.background_weights`."""


class Settings:
    """Base of all settings: to and from plain JSON values, strict about names and types."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (tuples become lists), ready for `json.dumps`."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values. Raises ConfigError that names an unknown key and the known ones."""
        if not isinstance(values, dict):
            raise ConfigError(f"{cls.__name__} must be an object of settings, not {values!r}")
        hints = typing.get_type_hints(cls)
        known = {f.name for f in dataclasses.fields(cls) if f.init}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                f"{cls.__name__} has no setting {', '.join(map(repr, unknown))}; "
                f"it has: {', '.join(sorted(known))}"
            )
        try:
            return cls(
                **{
                    name: _typed(value, hints[name], f"{cls.__name__}.{name}")
                    for name, value in values.items()
                }
            )
        except TypeError as error:
            raise ConfigError(f"{cls.__name__}: {error}") from error

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed. Raises ConfigError for an unknown name."""
        unknown = sorted(set(changes) - {f.name for f in dataclasses.fields(self)})
        if unknown:
            raise ConfigError(f"{type(self).__name__} has no setting {', '.join(map(repr, unknown))}")
        return dataclasses.replace(self, **changes)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Convert one JSON value to the field's declared type, or raise ConfigError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in arguments:
            return None
        return _typed(value, next(a for a in arguments if a is not type(None)), where)
    if isinstance(hint, type) and issubclass(hint, Settings):
        return value if isinstance(value, hint) else hint.from_dict(value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(item, arguments[0], where) for item in value)
        if len(arguments) != len(value):
            raise ConfigError(f"{where} must have {len(arguments)} values, not {len(value)}")
        return tuple(_typed(item, argument, where) for item, argument in zip(value, arguments, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (hint is not bool and isinstance(value, bool))
    ):
        raise ConfigError(f"{where} must be {hint.__name__}, not {value!r}")
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, such as {"recipe.epochs": 3}; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Each setting that differs, in words: `recipe.epochs was 3, is 5`. Nested settings go by dotted name."""
    old, new = flatten(before), flatten(after)
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


@dataclass(frozen=True)
class PriorConfig(Settings):
    """Default boxes ("priors"), sizes as fractions of the image side. Liu et al. 2016, section 2.2."""

    feature_maps: tuple[int, ...] = (38, 19, 10, 5, 3, 1)
    scales: tuple[float, ...] = (0.1, 0.2, 0.375, 0.55, 0.725, 0.9)
    final_scale: float = 1.0
    """Stands in for the "next" scale on the last map, whose extra square prior is sqrt(scale * next)."""
    aspect_ratios: tuple[tuple[float, ...], ...] = (
        (2.0,),
        (2.0, 3.0),
        (2.0, 3.0),
        (2.0, 3.0),
        (2.0,),
        (2.0,),
    )
    """Beside the two squares, each ratio r gives a wide prior (r) and a tall one (1 / r)."""
    strides: tuple[int, ...] | None = None
    """Pixels between centers, as torchvision counts them. None spreads f centers evenly: (i + 0.5) / f."""
    clip: bool = True
    """Limit width and height to the image."""

    def __post_init__(self) -> None:
        lengths = {len(self.feature_maps), len(self.scales), len(self.aspect_ratios)}
        if self.strides is not None:
            lengths.add(len(self.strides))
        if len(lengths) != 1:
            raise ConfigError(
                "feature_maps, scales, aspect_ratios and strides must have one entry for each map"
            )
        if not all(0 < scale < math.inf for scale in (*self.scales, self.final_scale)):
            raise ConfigError(f"every scale must be positive: {self.scales}, {self.final_scale}")
        if not all(0 < ratio < math.inf for ratios in self.aspect_ratios for ratio in ratios):
            raise ConfigError(f"every aspect ratio must be positive: {self.aspect_ratios}")
        if not all(count > 0 for count in (*self.feature_maps, *(self.strides or ()))):
            raise ConfigError(
                f"feature_maps and strides must be positive: {self.feature_maps}, {self.strides}"
            )

    @property
    def per_location(self) -> tuple[int, ...]:
        """Priors at each cell of each map: (4, 6, 6, 6, 4, 4) in the paper."""
        return tuple(2 + 2 * len(ratios) for ratios in self.aspect_ratios)

    @property
    def count(self) -> int:
        """All priors of an image, P: 8732 in the paper."""
        return sum(f * f * n for f, n in zip(self.feature_maps, self.per_location, strict=True))


TORCHVISION_PRIORS = PriorConfig(
    scales=(0.07, 0.15, 0.33, 0.51, 0.69, 0.87), final_scale=1.05, strides=(8, 16, 32, 64, 100, 300)
)
"""What torchvision's ssd300_vgg16 uses (the paper's COCO setting: a smaller first scale)."""

SMALL_PRIORS = PriorConfig(scales=(0.07, 0.15, 0.25, 0.4, 0.6, 0.85))
"""Scales with room for platelets: the median one is 0.06 x 0.08 of a BCCD field."""


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The network. Everything needed to rebuild it from a checkpoint's metadata."""

    class_names: tuple[str, ...] = BCCD_CLASSES
    """Without background, which is always class 0."""
    batch_norm: bool = False
    """BatchNorm after each VGG convolution: needed to train from scratch."""
    width: float = 1.0
    """Channel multiplier of backbone and extras. 1.0 is the paper's; less is for CPUs and tests."""
    priors: PriorConfig = field(default_factory=PriorConfig)
    variances: tuple[float, float] = (0.1, 0.2)
    """Encoding divides center offsets by the first and log sizes by the second."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """RGB statistics (ImageNet's) taken off inside the network, images in [0, 1]."""
    l2norm_scale: float = 20.0
    """Initial scale of the normalized conv4_3 features. Liu et al. 2015 (ParseNet); SSD section 3.1."""

    def __post_init__(self) -> None:
        if not self.class_names or len(set(self.class_names)) != len(self.class_names):
            raise ConfigError(f"class names must be distinct and at least one: {self.class_names}")
        if not 0 < self.width <= 1:
            raise ConfigError(f"width must be in (0, 1], not {self.width}")
        if not all(0 < value < math.inf for value in (*self.variances, *self.std)):
            raise ConfigError(f"variances and std must be positive: {self.variances}, {self.std}")

    @property
    def num_classes(self) -> int:
        """C, background included."""
        return len(self.class_names) + 1


@dataclass(frozen=True)
class AugmentConfig(Settings):
    """Training-time augmentation; SSD sections 2.2 and 3.6 unless the field says otherwise."""

    photometric: float = 0.05
    """Chance of each photometric distortion (brightness, contrast, saturation, hue); on BCCD 0.5 does
    as well."""
    zoom_out: float = 1.25
    """Largest side of the canvas an image may be placed on, in image sides; 1 is off. The paper's 4 makes
    platelets vanish."""
    zoom_out_chance: float = 0.5
    zoom_in: float = 1.25
    """Largest magnification of a random crop, its shape about the image's; 1 is off."""
    zoom_in_chance: float = 0.5
    iou_crop: float = 0.0
    """Smallest minimum-IoU of the paper's random crops; 0 is off. They reach 0.3 of a side and twice the
    image's aspect, which no microscope does to a cell."""
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5
    """Cells have no up."""
    quarter_turns: bool = False
    """Off, because a 4:3 field squeezed into a square makes all cells narrow: turned, they would be wide."""


NO_AUGMENTATION = AugmentConfig(
    photometric=0.0, zoom_out=1.0, zoom_in=1.0, horizontal_flip=0.0, vertical_flip=0.0
)


@dataclass(frozen=True)
class Recipe(Settings):
    """How a network is trained."""

    name: str = "custom"
    initial_weights: str = "scratch"
    """scratch, imagenet, coco, shipped, or a file: see `ssdlib.detector.weights.build_model`."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(batch_norm=True, priors=SMALL_PRIORS))
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.05
    bias_lr_factor: float = 1.0
    """Biases learn at this multiple of the rate (2 in Caffe's SSD) and are never decayed."""
    schedule: str = "cosine"
    """cosine (to 1 % of the rate) or steps."""
    step_milestones: tuple[float, ...] = (0.5, 0.75)
    """Fractions of the training after which `steps` divides the rate by ten."""
    warmup_steps: int = 50
    epochs: int = 40
    batch_size: int = 8
    clip_norm: float = 10.0
    ema_decay: float = 0.99
    """Exponential moving average of the weights, which is what is evaluated and saved; 0 is off."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    iou_threshold: float = 0.5
    """A prior is positive from this IoU with an object on."""
    negatives_per_positive: float = 3.0
    background: str = "hard"
    """hard, soft or ignore_confident: what background counts where labels may be missing."""
    ignore_above: float = 0.2
    """ignore_confident leaves out negatives to which the network gives an object more than this. Where half
    of the labels are missing, even an unmistakable cell gets no more than 0.5."""
    ignore_iou: float = 0.3
    """ignore_confident keeps negatives that overlap a labeled object at this IoU or more: they teach where
    an object ends, and without them many boxes come out on one cell. 1 keeps none."""
    ignore_after: float = 0.3
    """The share of the training after which ignore_confident sets in; before, the network knows nothing."""
    pretrain_epochs: int = 0
    """Passes over `pretrain_smears` synthetic smears before the training proper, at the same settings."""
    pretrain_smears: int = 600
    smears: int = 0
    """Synthetic smears among the training images. They, too, are only for data with BCCD's classes."""
    evaluate_every: int = 2
    """Epochs between evaluations on val (the last epoch is always evaluated)."""
    checkpoint_every: int = 1
    """Epochs between saved training states."""

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ConfigError(f"optimizer must be adamw or sgd, not {self.optimizer!r}")
        if self.schedule not in ("cosine", "steps"):
            raise ConfigError(f"schedule must be cosine or steps, not {self.schedule!r}")
        least = dict.fromkeys(("epochs", "batch_size", "evaluate_every", "checkpoint_every"), 1)
        least |= {"pretrain_epochs": 0, "pretrain_smears": 1, "smears": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"{name} must be at least {value}, not {getattr(self, name)}")
        if self.background not in BACKGROUNDS:
            raise ConfigError(f"background must be {', '.join(BACKGROUNDS)}, not {self.background!r}")
        for name in ("ignore_above", "ignore_iou", "ignore_after"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, not {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be in [0, 1), not {self.ema_decay}")

    def background_at(self, step: int, steps: int) -> str:
        """`background` at a step, from 0, of a training of `steps`: "hard" until `ignore_after` of it."""
        waiting = self.background == "ignore_confident" and step < self.ignore_after * steps
        return "hard" if waiting else self.background


SHIPPED_MODEL = ModelConfig(width=0.5, batch_norm=True, priors=SMALL_PRIORS)
"""The network of the shipped weights; only other classes can be given to it (a test compares the two)."""
_SCRATCH = Recipe(
    # From random weights to the best val mAP for each minute of a CPU: half of the paper's channels cost a
    # quarter of the arithmetic; synthetic smears among the images, because their labels have no gaps.
    name="scratch",
    model=SHIPPED_MODEL,
    epochs=40,
    smears=100,
)
_ORIGINAL = Recipe(
    # The notebook this course grew from, with its network mended: VGG16 without BatchNorm from
    # ImageNet weights, SGD in steps, nothing augmented.
    name="original",
    initial_weights="imagenet",
    model=ModelConfig(),
    optimizer="sgd",
    learning_rate=1e-3,
    momentum=0.9,
    weight_decay=5e-4,
    bias_lr_factor=2.0,
    schedule="steps",
    warmup_steps=0,
    epochs=50,
    clip_norm=10.0,
    ema_decay=0.0,
    augment=NO_AUGMENTATION,
)
_PAPER = _ORIGINAL.replace(
    # Liu et al. 2016 as far as 205 images allow: the same optimizer and start, their augmentation.
    name="paper",
    warmup_steps=200,
    epochs=120,
    augment=AugmentConfig(photometric=0.5, zoom_out=4.0, zoom_in=1.0, iou_crop=0.1, vertical_flip=0.0),
)
_FINETUNE = Recipe(
    # A trained network needs few and small steps: what it knows is to be kept, not learnt again.
    name="finetune",
    initial_weights="shipped",
    model=SHIPPED_MODEL,
    learning_rate=1e-4,
    warmup_steps=20,
    epochs=10,
    evaluate_every=5,
)
RECIPES = {recipe.name: recipe for recipe in (_SCRATCH, _ORIGINAL, _PAPER, _FINETUNE)}


@dataclass(frozen=True)
class Profile(Settings):
    """How much of everything the notebooks do: the one knob of `make run PROFILE=...`."""

    name: str
    recipe: Recipe
    train_images: int | None = None
    val_images: int | None = None
    test_images: int | None = None
    """How many images of each split are used, from its start; None is all."""
    precision: str = "auto"
    """auto (bf16 where the processor has it natively), fp32 or bf16."""
    seed: int = 0


PROFILES = {
    profile.name: profile
    for profile in (
        # Under a minute of training on two cores. It starts from the shipped weights, so every notebook has
        # something good to show when it is tested; fp32 so that any CPU comes to about the same.
        Profile(
            name="smoke",
            recipe=_FINETUNE.replace(batch_size=4, epochs=3, warmup_steps=5, evaluate_every=1),
            train_images=64,
            val_images=24,
            test_images=24,
            precision="fp32",
        ),
        # A coffee break on two cores: all images, from the shipped weights.
        Profile(name="quick", recipe=_FINETUNE.replace(epochs=10, evaluate_every=2)),
        # All of it from nothing, in a quarter of an hour on two cores.
        Profile(name="full", recipe=_SCRATCH),
    )
}


def find_profile(name: str) -> Profile:
    """The profile called `name`. Raises ConfigError that lists the known ones."""
    if name not in PROFILES:
        raise ConfigError(f"there is no profile {name!r}; choose one of: {', '.join(PROFILES)}")
    return PROFILES[name]
