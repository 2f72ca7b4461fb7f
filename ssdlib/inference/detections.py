"""The detections of one image, in the one form that every consumer takes, and what makes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.inference.interop import Conversions, valid

DEFAULT_THRESHOLD = 0.5
"""The score from which a detection counts as a cell, unless another is given."""

ImageLike = str | Path | np.ndarray
"""A file, or (H, W, 3) uint8 RGB."""


def class_thresholds(threshold: float | Mapping[str, float], class_names: Sequence[str]) -> dict[str, float]:
    """The score threshold of each class in label order, from one number for all or one for each name.

    Raises ConfigError where a mapping lacks a class or names one that does not exist, and outside [0, 1].
    """
    if not isinstance(threshold, Mapping):
        threshold = dict.fromkeys(class_names, threshold)
    if set(threshold) != set(class_names):
        raise ConfigError(
            f"score thresholds are given for {', '.join(threshold) or 'no class'}; "
            f"give one for each of {', '.join(class_names)}"
        )
    for name, value in threshold.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"the score threshold of {name} must be in [0, 1], not {value}")
    return {name: float(threshold[name]) for name in class_names}


@dataclass(frozen=True, eq=False, repr=False)
class Detections(Conversions):
    """The D detections of one image, highest score first (equal scores keep the order they came in).

    Anything array-like is taken and kept as CPU tensors. Raises DataError, naming the image, where shapes,
    labels or numbers are impossible.
    """

    boxes: Tensor
    """(D, 4) float32, xyxy in pixels of the original image."""
    scores: Tensor
    """(D,) float32 in [0, 1]."""
    labels: Tensor
    """(D,) int64, from 1 (background, 0, is never detected)."""
    image_size: tuple[int, int]
    """(width, height) of the original image."""
    class_names: tuple[str, ...]
    """Without background: the name of label k is class_names[k - 1]."""
    image: str = ""
    """File name or id of the image."""

    def __post_init__(self) -> None:
        boxes = _tensor(self.boxes, torch.float32).reshape(-1, 4)
        scores = _tensor(self.scores, torch.float32).reshape(-1)
        labels = _tensor(self.labels, torch.int64).reshape(-1)
        names = tuple(self.class_names)
        if not len(boxes) == len(scores) == len(labels):
            raise self._impossible(f"{len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels")
        if not (torch.isfinite(boxes).all() and torch.isfinite(scores).all()):
            raise self._impossible("a box or score that is not a finite number")
        if len(labels) and not (int(labels.min()) >= 1 and int(labels.max()) <= len(names)):
            raise self._impossible(f"a label outside 1..{len(names)} ({', '.join(names)})")
        order = torch.argsort(scores, descending=True, stable=True)
        width, height = self.image_size
        for field, value in (
            ("boxes", boxes[order]),
            ("scores", scores[order]),
            ("labels", labels[order]),
            ("image_size", (int(width), int(height))),
            ("class_names", names),
        ):
            object.__setattr__(self, field, value)

    def _impossible(self, what: str) -> DataError:
        return DataError(
            f"detections of {self.image or 'an image'}: {what}. Make them again with the model's class names."
        )

    @classmethod
    def empty(cls, image_size: tuple[int, int], class_names: Iterable[str], image: str = "") -> Self:
        """No detections in an image of (width, height) pixels."""
        return cls(torch.empty(0, 4), torch.empty(0), torch.empty(0), image_size, tuple(class_names), image)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        sure = self.above(DEFAULT_THRESHOLD)
        counts = ", ".join(f"{count} {name}" for name, count in sure.counts().items())
        below = f", and {len(self) - len(sure)} below" if len(sure) < len(self) else ""
        where = f"{self.image or 'an image'} ({self.image_size[0]} x {self.image_size[1]})"
        return f"<Detections in {where}: {counts} at score >= {DEFAULT_THRESHOLD}{below}>"

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label - 1] for label in self.labels.tolist()]

    def above(self, threshold: float | Mapping[str, float]) -> Detections:
        """The detections with score >= threshold: one number, or one for each class name.

        Raises ConfigError where a mapping lacks a class or names one that does not exist.
        """
        least = torch.tensor(list(class_thresholds(threshold, self.class_names).values()))  # (classes,)
        keep = self.scores >= least[self.labels - 1]
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep])

    def counts(self) -> dict[str, int]:
        """The number of detections of each class; a class without detections counts 0."""
        numbers = torch.bincount(self.labels, minlength=len(self.class_names) + 1)[1:]
        return dict(zip(self.class_names, numbers.tolist(), strict=True))

    def mean_scores(self) -> dict[str, float | None]:
        """The mean score of each class; None for a class without detections."""
        means: dict[str, float | None] = {}
        for label, name in enumerate(self.class_names, start=1):
            scores = self.scores[self.labels == label]
            means[name] = float(scores.double().mean()) if len(scores) else None
        return means

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; boxes rounded to 0.01 pixel and scores to six digits."""
        return {
            "image": self.image,
            "width": self.image_size[0],
            "height": self.image_size[1],
            "detections": [
                {"box": [round(side, 2) for side in box], "label": name, "score": round(score, 6)}
                for box, name, score in zip(
                    self.boxes.tolist(), self.names, self.scores.tolist(), strict=True
                )
            ],
            "counts": self.counts(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], class_names: Iterable[str] | None = None) -> Self:
        """Detections from what `to_dict` gave; the class order is that of its counts unless given.

        Raises DataError where a key is missing or a class is unknown.
        """
        needed = (
            "It needs image, width, height, counts and detections with box, label and score, as "
            "`detect --json` writes them."
        )
        with valid("a detection record", needed):
            names = tuple(class_names if class_names is not None else values["counts"])
            found = values["detections"]
            return cls(
                [item["box"] for item in found],
                [item["score"] for item in found],
                [names.index(item["label"]) + 1 for item in found],
                (values["width"], values["height"]),
                names,
                str(values["image"]),
            )


def _tensor(values: Any, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(values).detach().to("cpu", dtype).as_subclass(Tensor)


class Detector(Protocol):
    """What finds the cells of an image: any predictor of `ssdlib.inference.engines.open_predictor`."""

    class_names: tuple[str, ...]
    """Without background."""
    batch_size: int
    """The number of images that the network takes at once."""

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Detections]:
        """The detections of each image in order, in pixels of that image; `images` may be endless."""
        ...
