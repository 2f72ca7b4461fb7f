"""The detections of one image, in the one form that every consumer takes, and what makes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.common.runtime import need_extra
from ssdlib.common.tables import from_cell
from ssdlib.config import DEFAULT_THRESHOLD, ModelConfig
from ssdlib.inference.interop import FRAME_COLUMNS, valid

if TYPE_CHECKING:
    import pandas
    import supervision

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
class Detections:
    """The D detections of one image, highest score first (equal scores keep the order they came in).

    Anything array-like, tensors included, is taken and kept as NumPy arrays. Raises DataError, naming the
    image, where shapes, labels or numbers are impossible.
    """

    boxes: np.ndarray
    """(D, 4) float32, xyxy in pixels of the original image."""
    scores: np.ndarray
    """(D,) float32 in [0, 1]."""
    labels: np.ndarray
    """(D,) int64, from 1 (background, 0, is never detected)."""
    image_size: tuple[int, int]
    """(width, height) of the original image."""
    class_names: tuple[str, ...]
    """Without background: the name of label k is class_names[k - 1]."""
    image: str = ""
    """File name or id of the image."""

    def __post_init__(self) -> None:
        boxes = as_array(self.boxes, np.float32).reshape(-1, 4)
        scores = as_array(self.scores, np.float32).reshape(-1)
        labels = as_array(self.labels, np.int64).reshape(-1)
        names = tuple(self.class_names)
        if not len(boxes) == len(scores) == len(labels):
            raise self._impossible(f"{len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise self._impossible("a box or score that is not a finite number")
        if len(labels) and not (int(labels.min()) >= 1 and int(labels.max()) <= len(names)):
            raise self._impossible(f"a label outside 1..{len(names)} ({', '.join(names)})")
        order = np.argsort(-scores, kind="stable")
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
        return cls([], [], [], image_size, tuple(class_names), image)

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
        of_class = class_thresholds(threshold, self.class_names)
        least = np.array(list(of_class.values()), np.float32)  # (classes,)
        keep = self.scores >= least[self.labels - 1]
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep])

    def counts(self) -> dict[str, int]:
        """The number of detections of each class; a class without detections counts 0."""
        numbers = np.bincount(self.labels, minlength=len(self.class_names) + 1)[1:]
        return dict(zip(self.class_names, numbers.tolist(), strict=True))

    def mean_scores(self) -> dict[str, float | None]:
        """The mean score of each class; None for a class without detections."""
        means: dict[str, float | None] = {}
        for label, name in enumerate(self.class_names, start=1):
            scores = self.scores[self.labels == label]
            means[name] = float(scores.mean(dtype=np.float64)) if len(scores) else None
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

    # --- other tools' formats ------------------------------------------------------------------------------

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results: category_id is our label and bbox is [x, y, width, height] in pixels.

        https://cocodataset.org/#format-results
        """
        bbox = _xywh(self.boxes.astype(np.float64))  # differences of float32 are exact in float64
        rows = zip(bbox.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            for box, score, label in rows
        ]

    @classmethod
    def from_coco(
        cls,
        results: Iterable[Mapping[str, Any]],
        image_size: tuple[int, int],
        class_names: Iterable[str],
        image: str = "",
        image_id: int | None = None,
    ) -> Self:
        """Detections from COCO results of one image; with `image_id`, others in the list are passed over."""
        with valid("COCO results", "Each needs image_id, category_id, bbox (four numbers) and score."):
            own = [item for item in results if image_id is None or item["image_id"] == image_id]
            boxes = _corners([item["bbox"] for item in own])
            scores, labels = [item["score"] for item in own], [item["category_id"] for item in own]
        return cls(boxes, scores, labels, image_size, tuple(class_names), image)

    def to_supervision(self) -> supervision.Detections:
        """`supervision.Detections` with class_id from 0, as it counts, and the names in data["class_name"].

        Raises ConfigError if supervision is not installed.
        """
        return need_extra("supervision", "supervision").Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels - 1,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    @classmethod
    def from_supervision(
        cls,
        detections: supervision.Detections,
        image_size: tuple[int, int],
        class_names: Iterable[str],
        image: str = "",
    ) -> Self:
        """Detections from `supervision.Detections`; missing scores count as 1.

        The class is what data["class_name"] says, or else number class_id, from 0, of `class_names`.
        Raises DataError where neither is there, or the name is unknown.
        """
        count, names = len(detections.xyxy), tuple(class_names)
        scores = np.ones(count) if detections.confidence is None else detections.confidence
        if (named := detections.data.get("class_name")) is not None:
            with valid("detections of these classes", f"Each class_name must be one of {', '.join(names)}."):
                labels = [names.index(str(name)) + 1 for name in named]
        elif count and detections.class_id is None:
            raise DataError(f"detections of {image or 'an image'} lack class_id: give each box its class.")
        else:
            labels = [] if detections.class_id is None else detections.class_id + 1
        return cls(detections.xyxy, scores, labels, image_size, names, image)

    def to_fiftyone(self) -> list[dict[str, Any]]:
        """FiftyOne's labels of one image: label, bounding_box [x, y, width, height] as shares of the image,
        confidence. `[fiftyone.Detection(**item) for item in detections.to_fiftyone()]` makes its objects.

        https://docs.voxel51.com/user_guide/using_datasets.html#object-detection
        """
        shares = _xywh(self.boxes.astype(np.float64) / np.array(self.image_size * 2))
        rows = zip(shares.tolist(), self.names, self.scores.tolist(), strict=True)
        return [{"label": name, "bounding_box": box, "confidence": score} for box, name, score in rows]

    @classmethod
    def from_fiftyone(
        cls,
        labels: Iterable[Mapping[str, Any]] | None,
        image_size: tuple[int, int],
        class_names: Iterable[str],
        image: str = "",
    ) -> Self:
        """Detections from such labels (None: no labels); a missing confidence, as of a person's, counts as 1.

        Raises DataError where a key is missing or a class is unknown.
        """
        names, items = tuple(class_names), list(labels or ())
        needed = f"Each needs bounding_box (four numbers) and a label of {', '.join(names)}."
        with valid("FiftyOne's labels", needed):
            boxes = _corners([item["bounding_box"] for item in items]) * np.array(image_size * 2)
            scores = [1.0 if item.get("confidence") is None else item["confidence"] for item in items]
            found = [names.index(item["label"]) + 1 for item in items]
        return cls(boxes, scores, found, image_size, names, image)

    def to_frame(self) -> pandas.DataFrame:
        """A `pandas.DataFrame` with a row for each detection and the columns `FRAME_COLUMNS`.

        Raises ConfigError if pandas is not installed.
        """
        corners = self.boxes.astype(np.float64)
        sides = corners[:, 2:] - corners[:, :2]
        numbers = [self.scores.astype(np.float64), *corners.T, *sides.T]
        columns = [[self.image] * len(numbers[0]), self.names, *numbers]
        return need_extra("pandas", "pandas").DataFrame(dict(zip(FRAME_COLUMNS, columns, strict=True)))

    @classmethod
    def from_frame(
        cls,
        frame: pandas.DataFrame,
        image_size: tuple[int, int],
        class_names: Iterable[str],
        image: str | None = None,
    ) -> Self:
        """Detections of one image, from the columns class, score, xmin, ymin, xmax and ymax of a
        `pandas.DataFrame`, such as one of `to_frame` or a cells.csv that pandas has read.

        With `image`, rows of other images are passed over; without, all rows must be of the same. Raises
        DataError for a missing column, an unknown class or several images.
        """
        names = tuple(class_names)
        needed = ["class", "score", *FRAME_COLUMNS[3:7], *(["image"] if image is not None else [])]
        if lacking := [name for name in needed if name not in frame]:
            raise DataError(f"the table lacks {', '.join(lacking)}; it has {', '.join(map(str, frame))}.")
        texts = {name: frame[name].astype(str).map(from_cell) for name in ("image", "class") if name in frame}
        frame = frame.assign(**texts)
        if image is not None:
            frame = frame[frame["image"] == image]
        images = list(frame["image"].unique()) if "image" in frame else []
        if len(images) > 1:
            raise DataError(f"the table holds {len(images)} images: name the one you mean.")
        if unknown := set(frame["class"]) - set(names):
            raise DataError(f"the table names {', '.join(unknown)}; known are {', '.join(names)}.")
        labels = [names.index(name) + 1 for name in frame["class"]]
        boxes = frame[list(FRAME_COLUMNS[3:7])].to_numpy(float, copy=True)
        scores = frame["score"].to_numpy(float, copy=True)
        return cls(boxes, scores, labels, image_size, names, images[0] if images else image or "")


def as_array(values: Any, dtype: type[np.generic] | None = None) -> np.ndarray:
    """The NumPy array of a tensor on any device, a list or an array; without `dtype` of the values' own."""
    if hasattr(values, "detach"):  # a tensor; of a type such as bfloat16 that NumPy lacks, in float32
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() and values.itemsize < 4 else values
        values = values.numpy()
    return np.asarray(values, dtype)


def _xywh(xyxy: np.ndarray) -> np.ndarray:
    """(D, 4) of the same boxes as corner, width and height."""
    return np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)


def _corners(xywh: list[Any]) -> np.ndarray:
    """(D, 4) float64, xyxy, of boxes [x, y, width, height]."""
    boxes = np.array(xywh, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


class Detector(Protocol):
    """What finds the cells of an image: any predictor of `ssdlib.inference.engines.open_predictor`."""

    config: ModelConfig
    """The network's settings, which say how it looks at images and counts (`ModelConfig.use`)."""
    class_names: tuple[str, ...]
    """Without background."""
    batch_size: int
    """The number of images that the network takes at once."""

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Detections]:
        """The detections of each image in order, in pixels of that image; `images` may be endless."""
        ...
