"""Every setting of the project, as frozen dataclasses with the reason beside each value.

Settings travel as plain JSON (`to_dict`, `from_dict`). Pydantic checks them: a key that no field has, a value
of another type or out of range is an error that says where, never ignored or converted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from ssdlib.common.errors import ConfigError
from ssdlib.common.files import shortened

IMAGE_SIZE = 300
"""The side of the square images that the network takes, in pixels."""

CANDIDATES = 1000
"""The best detections of each class in one view that go into NMS, several to a cell. The paper has 400."""

NMS_IOU = 0.45
"""IoU above which two detections are of one object, unless the weights know better. Liu et al. 2016."""

MAX_LOG_RATIO = math.log(1000 / 16)
"""Decoded sizes are limited to exp() of this times the prior's, so that a wild output stays finite."""

BCCD_CLASSES = ("WBC", "RBC", "Platelets")
"""Class names in label order: background is 0, WBC 1, RBC 2, Platelets 3."""

DEFAULT_THRESHOLD = 0.5
"""The score from which a detection counts as a cell, unless weights or user say otherwise."""

NAMED_WEIGHTS = ("scratch", "imagenet", "coco", "shipped", "blood", "bccd")
"""What initial weights may be called; anything else is a file."""

Background = Literal["hard", "ignore_confident"]
BACKGROUNDS: tuple[str, ...] = typing.get_args(Background)
"""Ways to learn background where labels have gaps: see `ssdlib.detector.loss.ignored_background`."""

MAX_SCORES = 10_000_000
"""Priors times classes of a network at most, background included: 0.3 GB of scores for a batch of eight."""

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""Pydantic's configuration for every dataclass of settings."""
Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings:
    """Base of all settings: to and from plain JSON values.

    The constructors check their arguments too, and raise pydantic's ValidationError.
    """

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (tuples become lists), ready for `json.dumps`."""
        return TypeAdapter(type(self)).dump_python(self, mode="json")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Settings built from JSON values. Raises ConfigError that names each wrong or unknown setting."""
        try:
            # From JSON text, because only there do strict tuples take lists.
            return TypeAdapter(cls).validate_json(json.dumps(values))
        except ValidationError as error:
            raise ConfigError(_explain(cls, error)) from error
        except (RecursionError, ValueError, TypeError) as error:  # of json.dumps
            raise ConfigError(f"{cls.__name__} cannot be read: {error}") from error

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed. Raises ConfigError as `from_dict` does."""
        try:
            return dataclasses.replace(self, **changes)
        except ValidationError as error:
            raise ConfigError(_explain(type(self), error)) from error


def _explain(cls: type[Settings], error: ValidationError) -> str:
    """What is wrong with each setting, and where: `Recipe.epochs should be greater than 0, not -1`."""
    sentences = []
    for problem in error.errors(include_url=False)[:10]:
        where = ".".join([cls.__name__, *(str(name)[:80] for name in problem["loc"])])
        if problem["type"] == "unexpected_keyword_argument":
            owner = cls
            for name in problem["loc"][:-1]:
                hint = typing.get_type_hints(owner)[name]
                owner = next((one for one in typing.get_args(hint) if dataclasses.is_dataclass(one)), hint)
            known = ", ".join(sorted(field.name for field in dataclasses.fields(owner)))
            odd = shortened(problem["loc"][-1])
            sentences.append(f"{where}: {owner.__name__} has no setting {odd}; it has: {known}")
        elif problem["msg"].startswith("Input "):
            told = problem["msg"].removeprefix("Input ")
            sentences.append(f"{where} {told}, not {shortened(problem['input'])}")
        else:
            sentences.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(sentences)


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


@dataclass(frozen=True, config=STRICT)
class PriorConfig(Settings):
    """Default boxes ("priors"), sizes as fractions of the image side. Liu et al. 2016, section 2.2."""

    feature_maps: tuple[PositiveInt, ...] = (38, 19, 10, 5, 3, 1)
    scales: tuple[PositiveFloat, ...] = (0.1, 0.2, 0.375, 0.55, 0.725, 0.9)
    final_scale: PositiveFloat = 1.0
    """Stands in for the "next" scale on the last map, whose extra square prior is sqrt(scale * next)."""
    aspect_ratios: tuple[tuple[PositiveFloat, ...], ...] = (
        (2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,)
    )  # fmt: skip
    """Beside the two squares, each ratio r gives a wide prior (r) and a tall one (1 / r)."""
    strides: tuple[PositiveInt, ...] | None = None
    """Pixels between centers, as torchvision counts them. None spreads f centers evenly: (i + 0.5) / f."""
    clip: bool = True
    """Limit width and height to the image."""

    def __post_init__(self) -> None:
        per_map = (self.feature_maps, self.scales, self.aspect_ratios, self.strides or self.feature_maps)
        if len(set(map(len, per_map))) != 1:
            raise ValueError(
                "feature_maps, scales, aspect_ratios and strides must have one entry for each map"
            )

    @property
    def per_location(self) -> tuple[int, ...]:
        """Priors at each location of each map: (4, 6, 6, 6, 4, 4) in the paper."""
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


Side = Annotated[int, Field(ge=1, le=100_000)]
"""Pixels."""
Interval = tuple[float, float]
"""Lowest and highest value."""


@dataclass(frozen=True, config=STRICT)
class Appearance(Settings):
    """What a network's training images looked like, to say of another image whether it is like them.

    Each field is the interval of one figure of `ssdlib.inference.quality`, which makes them: that of 98 % of
    the training images, widened.
    """

    brightness: Interval
    """The background's, mean of R, G and B, 0 to 255."""
    tint: tuple[Interval, Interval]
    """The background's R and B, each as log10 of its ratio to G: 0 is gray."""
    density: Interval
    """Optical density of the red cells in G, where they absorb most: log10(background / cell)."""
    stain: tuple[Interval, Interval]
    """Optical density of the red cells in R and B, each less than that in G."""
    blur: Interval
    """Standard deviation in pixels, of the 300 that a view has, of the blur of the sharpest edges."""
    size: Interval | None = None
    """Median side of an image's reference cells, as a share of the view's sqrt(width * height)."""


@dataclass(frozen=True, config=STRICT)
class Use(Settings):
    """How a network looks at images and counts; written into its weights file, heeded by whatever runs it."""

    view: tuple[Side, Side] = (640, 480)
    """Width and height in pixels of the fields it was trained on, each squeezed to 300 x 300 as one view."""
    reference: str = "RBC"
    """The class whose size tells the scale of an image; empty: none of its classes does."""
    reference_side: PositiveFloat = 104.0
    """Median side, sqrt(width * height) in pixels, of the reference class there, clear of the border."""
    um_per_pixel: PositiveFloat | None = 0.072
    """Micrometers per pixel of such fields. BCCD states none: red cells measure 7 to 8, hence 7.5 / 104."""
    thresholds: dict[str, Fraction] | None = None
    """Score of each class from which a detection counts as a cell; None: 0.5 for all."""
    nms_iou: dict[str, Fraction] | None = None
    """IoU of each class above which two detections are of one cell; None: 0.45 for all."""
    appearance: Appearance | None = None
    """What the training images looked like; None where it was not written down."""


@dataclass(frozen=True, config=STRICT)
class ModelConfig(Settings):
    """The network. Everything needed to rebuild it from a checkpoint's metadata."""

    class_names: Annotated[tuple[str, ...], Field(min_length=1)] = BCCD_CLASSES
    """Without background, which is always class 0."""
    batch_norm: bool = False
    """BatchNorm after each VGG convolution: needed to train from scratch."""
    width: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Channel multiplier of backbone and extras. 1.0 is the paper's; less is for CPUs and tests."""
    priors: PriorConfig = PriorConfig()
    variances: tuple[PositiveFloat, PositiveFloat] = (0.1, 0.2)
    """Encoding divides center offsets by the first and log sizes by the second."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """RGB statistics (ImageNet's) taken off inside the network, images in [0, 1]."""
    l2norm_scale: float = 20.0
    """Initial scale of the normalized conv4_3 features. Liu et al. 2015 (ParseNet); SSD section 3.1."""
    use: Use = Use()
    """How it looks at images and counts."""

    def __post_init__(self) -> None:
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class names must be distinct: {', '.join(self.class_names)[:500]}")
        if self.priors.count * self.num_classes > MAX_SCORES:
            raise ValueError(
                f"{self.num_classes - 1:,} classes for {self.priors.count:,} priors are more than an image "
                f"may have scores ({MAX_SCORES:,}): take fewer classes or aspect ratios"
            )

    @property
    def thresholds(self) -> dict[str, float]:
        """The score of each class from which a detection is a cell; 0.5 where the weights say nothing."""
        chosen = self.use.thresholds or {}
        return {name: chosen.get(name, DEFAULT_THRESHOLD) for name in self.class_names}

    @property
    def num_classes(self) -> int:
        """C, background included."""
        return len(self.class_names) + 1


@dataclass(frozen=True, config=STRICT)
class AugmentConfig(Settings):
    """Training-time augmentation; SSD sections 2.2 and 3.6 unless the field says otherwise."""

    photometric: Fraction = 0.05
    """Chance of each photometric distortion (brightness, contrast, saturation, hue); on BCCD 0.5 does
    as well."""
    zoom_out: float = 1.25
    """Largest side of the canvas an image may be placed on, in image sides; 1 is off. The paper's 4 makes
    platelets vanish."""
    zoom_out_chance: Fraction = 0.5
    zoom_in: float = 1.25
    """Largest magnification of a random crop, its shape about the image's; 1 is off."""
    zoom_in_chance: Fraction = 0.5
    iou_crop: Fraction = 0.0
    """Smallest minimum-IoU of the paper's random crops; 0 is off. They reach 0.3 of a side and twice the
    image's aspect, which no microscope does to a cell."""
    horizontal_flip: Fraction = 0.5
    vertical_flip: Fraction = 0.5
    """Cells have no up."""
    stain: Fraction = 0.0
    """Chance that lamp and stain become another laboratory's: see `ssdlib.data.transforms.Stain`."""
    blur: Fraction = 0.0
    """Chance of a Gaussian blur of up to 1.5 pixels of the 300, as out of focus or from few pixels."""


NO_AUGMENTATION = AugmentConfig(
    photometric=0.0, zoom_out=1.0, zoom_in=1.0, horizontal_flip=0.0, vertical_flip=0.0
)


@dataclass(frozen=True, config=STRICT)
class Recipe(Settings):
    """How a network is trained."""

    name: str = "custom"
    initial_weights: str = "scratch"
    """scratch, imagenet, coco, shipped, bccd, or a file: see `ssdlib.detector.weights.build_model`."""
    model: ModelConfig = ModelConfig(batch_norm=True, priors=SMALL_PRIORS)
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 0
    """The first stages of VGG16 that stay as the initial weights have them, with BatchNorm's statistics: to
    fine-tune in half the time. The first two take most of it, and know only edges and colors."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.05
    bias_lr_factor: float = 1.0
    """Biases learn at this multiple of the rate (2 in Caffe's SSD) and are never decayed."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """cosine (to 1 % of the rate) or steps."""
    step_milestones: tuple[float, ...] = (0.5, 0.75)
    """Fractions of the training after which `steps` divides the rate by ten."""
    warmup_steps: int = 50
    epochs: PositiveInt = 40
    batch_size: PositiveInt = 8
    clip_norm: float = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Exponential moving average of the weights, which is what is evaluated and saved; 0 is off."""
    augment: AugmentConfig = AugmentConfig()
    iou_threshold: float = 0.5
    """A prior is positive from this IoU with an object on."""
    negatives_per_positive: float = 3.0
    background: Background = "hard"
    """hard or ignore_confident: what background counts where labels may be missing."""
    ignore_above: Fraction = 0.2
    """ignore_confident leaves out negatives to which the network gives an object more than this. Where half
    of the labels are missing, even an unmistakable cell gets no more than 0.5."""
    ignore_iou: Fraction = 0.3
    """ignore_confident keeps negatives that overlap a labeled object at this IoU or more: they teach where
    an object ends, and without them many boxes come out on one cell. 1 keeps none."""
    ignore_after: Fraction = 0.3
    """The share of the training after which ignore_confident sets in; before, the network knows nothing."""
    smears: NonNegativeInt = 0
    """Synthetic smears among the training images. They, too, are only for data with BCCD's classes."""
    evaluate_every: PositiveInt = 2
    """Epochs between evaluations on val (the last epoch is always evaluated)."""
    checkpoint_every: PositiveInt = 1
    """Epochs between saved training states."""

    @property
    def initial_file(self) -> Path | None:
        """The file that the initial weights are, which need not be there; None for those with a name."""
        return None if self.initial_weights in NAMED_WEIGHTS else Path(self.initial_weights)

    def background_at(self, step: int, steps: int) -> str:
        """`background` at a step, from 0, of a training of `steps`: "hard" until `ignore_after` of it."""
        waiting = self.background == "ignore_confident" and step < self.ignore_after * steps
        return "hard" if waiting else self.background


SHIPPED_MODEL = ModelConfig(width=0.5, batch_norm=True, priors=SMALL_PRIORS)
"""The network of the shipped weights; only other classes can be given to it (a test compares the two)."""

# Each recipe with its command, hardware, time and result: figures of docs/recipes.md and of the card
# data/weights/ssd300-bccd.md, on BCCD's official split, torch 2.15.

_SCRATCH = Recipe(
    # From random weights to the best val mAP for each minute of a CPU: half of the paper's channels cost a
    # quarter of the arithmetic; synthetic smears among the images, because their labels have no gaps.
    #
    #     python -m ssdlib train --profile full --data bccd --set seed=2
    #
    # One core of an AMD EPYC (AVX-512, bf16): 29 minutes. val mAP@0.5 0.915 at the best epoch, which is the
    # shipped weights (0.919 on test), 0.910 at the last; seeds 0 and 1 have 0.909 and 0.908 at their best.
    name="scratch",
    model=SHIPPED_MODEL,
    epochs=40,
    smears=100,
)
_ORIGINAL = Recipe(
    # The notebook this course grew from, with its network fixed: VGG16 without BatchNorm from
    # ImageNet weights, SGD in steps, nothing augmented.
    #
    #     python -m ssdlib train --profile full --set recipe=original --data bccd
    #
    # Never run to its end here, as ImageNet's weights were not at hand: no time, no result. From random
    # weights it has 0.214 after 1,000 images and 7.2 minutes (data/measurements/time-to-accuracy.json).
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
    #
    #     python -m ssdlib train --profile full --set recipe=paper --data bccd
    #
    # Never run here, for the same reason.
    name="paper",
    warmup_steps=200,
    epochs=120,
    augment=AugmentConfig(photometric=0.5, zoom_out=4.0, zoom_in=1.0, iou_crop=0.1, vertical_flip=0.0),
)
_FINETUNE = Recipe(
    # A trained network needs few and small steps: what it knows is to be kept, not learned again.
    #
    #     python -m ssdlib train --profile quick --data my_cells/
    #
    # Meant for data of your own (with --init shipped), so there is no figure for BCCD: the benchmark's
    # weights, from which the course starts, have val mAP@0.5 0.915 already.
    name="finetune",
    initial_weights="bccd",
    model=SHIPPED_MODEL,
    learning_rate=1e-4,
    warmup_steps=20,
    epochs=10,
    evaluate_every=5,
)
_BLOOD = _FINETUNE.replace(
    # Every microscope at hand, with complete labels: the shipped weights, begun from the benchmark's.
    #
    #     python -m ssdlib data complete --data bccd ... --out bccd-complete
    #     python -m ssdlib train --profile full --set recipe=blood --data bccd-complete,txl-pbc
    #
    # Its card, data/weights/ssd300-blood.md, has hardware, time and results.
    name="blood",
    frozen_stages=2,
    learning_rate=5e-4,
    warmup_steps=30,
    epochs=8,
    ema_decay=0.995,
    smears=40,
    evaluate_every=4,
    # Microscopes differ by more than one of them varies: in stain and light, in focus, in magnification.
    augment=AugmentConfig(
        zoom_out=2.0, zoom_out_chance=0.35, zoom_in=1.6, zoom_in_chance=0.4, stain=0.7, blur=0.2
    ),
)
RECIPES = {recipe.name: recipe for recipe in (_SCRATCH, _ORIGINAL, _PAPER, _FINETUNE, _BLOOD)}


@dataclass(frozen=True, config=STRICT)
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
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


PROFILES = {
    profile.name: profile
    for profile in (
        # python -m ssdlib run --profile smoke --data smears
        # 4 minutes on two cores (README.md). From nothing, so that a learner sees a network learn and
        # still err: an eighth of the channels; fp32 so that any CPU comes to about the same.
        Profile(
            name="smoke",
            recipe=_SCRATCH.replace(
                model=SHIPPED_MODEL.replace(width=0.125),
                learning_rate=2e-3,
                epochs=8,
                batch_size=2,
                warmup_steps=20,
                ema_decay=0.98,
                smears=0,
                evaluate_every=2,
            ),
            train_images=96,
            val_images=36,
            test_images=48,
            precision="fp32",
        ),
        # python -m ssdlib run --profile quick --data bccd
        # 5 minutes on two cores (README.md): all images, from the shipped weights.
        Profile(name="quick", recipe=_FINETUNE.replace(epochs=10, evaluate_every=2)),
        # python -m ssdlib run --profile full --data bccd
        # 29 minutes on one core (README.md): all images, from random weights; the result of `scratch` above.
        Profile(name="full", recipe=_SCRATCH),
    )
}


def find_profile(name: str) -> Profile:
    """The profile called `name`. Raises ConfigError that lists the known ones."""
    if name not in PROFILES:
        raise ConfigError(f"there is no profile {name!r}; choose one of: {', '.join(PROFILES)}")
    return PROFILES[name]
