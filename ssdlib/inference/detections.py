"""What a detector says about one image, in the one form that every consumer takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.common.runtime import need_extra

if TYPE_CHECKING:
    import pandas
    import supervision

FRAME_COLUMNS = ("image", "class", "score", "xmin", "ymin", "xmax", "ymax", "width", "height")
"""Of `Detections.to_frame` and of the first columns of `ssdlib detect`'s cells.csv; sizes in pixels."""


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


@dataclass(frozen=True, eq=False)
class Detections:
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

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label - 1] for label in self.labels.tolist()]

    def above(self, threshold: float | Mapping[str, float]) -> Detections:
        """Those with score >= threshold: one number, or one for each class name.

        Raises ConfigError where a mapping lacks a class or names one that does not exist.
        """
        least = torch.tensor(list(class_thresholds(threshold, self.class_names).values()))  # (classes,)
        return self._select(self.scores >= least[self.labels - 1])

    def _select(self, keep: Tensor) -> Detections:
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep])

    def counts(self) -> dict[str, int]:
        """How many of each class; a class without detections counts 0."""
        numbers = torch.bincount(self.labels, minlength=len(self.class_names) + 1)[1:]
        return dict(zip(self.class_names, numbers.tolist(), strict=True))

    def mean_scores(self) -> dict[str, float | None]:
        """Mean score of each class; None for a class without detections."""
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
        """Read what `to_dict` wrote; the class order is that of its counts unless given.

        Raises DataError where a key is missing or a class is unknown.
        """
        try:
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
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"not a detection record: {error!r}. It needs image, width, height, counts and detections "
                "with box, label and score, as `detect --json` writes them."
            ) from error

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results: category_id is our label and bbox is [x, y, width, height] in pixels.

        https://cocodataset.org/#format-results
        """
        corner = self.boxes.double()  # differences of float32 numbers are exact in float64
        bbox = torch.cat([corner[:, :2], corner[:, 2:] - corner[:, :2]], dim=1)
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
        """Read COCO results of one image; with image_id, the others in a list of many are passed over."""
        try:
            own = [item for item in results if image_id is None or item["image_id"] == image_id]
            bbox = torch.tensor([item["bbox"] for item in own], dtype=torch.float64).reshape(-1, 4)
            boxes = torch.cat([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], dim=1)
            scores, labels = [item["score"] for item in own], [item["category_id"] for item in own]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"not COCO results: {error!r}. "
                "Each needs image_id, category_id, bbox (four numbers) and score."
            ) from error
        return cls(boxes, scores, labels, image_size, tuple(class_names), image)

    def to_supervision(self) -> supervision.Detections:
        """As `supervision.Detections`, with our labels as class_id and the names in data["class_name"].

        Raises ConfigError if supervision is not installed.
        """
        return need_extra("supervision", "supervision").Detections(
            xyxy=self.boxes.numpy().copy(),
            confidence=self.scores.numpy().copy(),
            class_id=self.labels.numpy().copy(),
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
        """From `supervision.Detections` whose class_id is our label; missing scores count as 1.

        Raises DataError where class_id is missing.
        """
        count = len(detections.xyxy)
        if count and detections.class_id is None:
            raise DataError(f"detections of {image or 'an image'} lack class_id: give each box its label.")
        scores = np.ones(count) if detections.confidence is None else detections.confidence
        labels = [] if detections.class_id is None else detections.class_id
        return cls(detections.xyxy, scores, labels, image_size, tuple(class_names), image)

    def to_fiftyone(self) -> list[dict[str, Any]]:
        """FiftyOne's labels of one image: label, bounding_box [x, y, width, height] as shares of the image,
        confidence. `[fiftyone.Detection(**item) for item in detections.to_fiftyone()]` makes its objects.

        https://docs.voxel51.com/user_guide/using_datasets.html#object-detection
        """
        relative = (self.boxes.double() / torch.tensor(self.image_size * 2)).tolist()
        rows = zip(relative, self.names, self.scores.tolist(), strict=True)
        return [
            {"label": name, "bounding_box": [x1, y1, x2 - x1, y2 - y1], "confidence": score}
            for (x1, y1, x2, y2), name, score in rows
        ]

    @classmethod
    def from_fiftyone(
        cls,
        labels: Iterable[Mapping[str, Any]] | None,
        image_size: tuple[int, int],
        class_names: Iterable[str],
        image: str = "",
    ) -> Self:
        """From such labels (None: an image without any); a missing confidence counts as 1, as for a person's.

        Raises DataError where a key is missing or a class is unknown.
        """
        names, items = tuple(class_names), list(labels or ())
        try:
            bbox = torch.tensor([item["bounding_box"] for item in items], dtype=torch.float64).reshape(-1, 4)
            boxes = torch.cat([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], dim=1) * torch.tensor(image_size * 2)
            scores = [1.0 if item.get("confidence") is None else item["confidence"] for item in items]
            found = [names.index(item["label"]) + 1 for item in items]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"not FiftyOne's labels: {error!r}. Each needs bounding_box (four numbers) and a label of "
                f"{', '.join(names)}."
            ) from error
        return cls(boxes, scores, found, image_size, names, image)

    def to_frame(self) -> pandas.DataFrame:
        """A `pandas.DataFrame` with a row for each detection and the columns `FRAME_COLUMNS`.

        Raises ConfigError if pandas is not installed.
        """
        corners = self.boxes.double()
        sides = corners[:, 2:] - corners[:, :2]
        columns = [
            [self.image] * len(self),
            self.names,
            self.scores.double().numpy(),
            *corners.T.numpy(),
            *sides.T.numpy(),
        ]
        return need_extra("pandas", "pandas").DataFrame(dict(zip(FRAME_COLUMNS, columns, strict=True)))

    @classmethod
    def from_frame(
        cls,
        frame: pandas.DataFrame,
        image_size: tuple[int, int],
        class_names: Iterable[str],
        image: str | None = None,
    ) -> Self:
        """Of one image, from the columns class, score, xmin, ymin, xmax and ymax of a `pandas.DataFrame`.

        With `image`, rows of other images are passed over; without, all rows must be of the same. Raises
        DataError for a missing column, an unknown class or several images.
        """
        names = tuple(class_names)
        needed = (
            "class",
            "score",
            "xmin",
            "ymin",
            "xmax",
            "ymax",
            *(("image",) if image is not None else ()),
        )
        if lacking := [name for name in needed if name not in frame]:
            raise DataError(f"the table lacks {', '.join(lacking)}; it has {', '.join(map(str, frame))}.")
        if image is not None:
            frame = frame[frame["image"] == image]
        images = list(frame["image"].unique()) if "image" in frame else []
        if len(images) > 1:
            raise DataError(f"the table holds {len(images)} images: name the one you mean.")
        if unknown := set(frame["class"]) - set(names):
            raise DataError(f"the table names {', '.join(map(str, unknown))}; known are {', '.join(names)}.")
        labels = [names.index(name) + 1 for name in frame["class"]]
        boxes = frame[["xmin", "ymin", "xmax", "ymax"]].to_numpy(float, copy=True)
        scores = frame["score"].to_numpy(float, copy=True)
        return cls(boxes, scores, labels, image_size, names, str(images[0]) if images else image or "")


def fiftyone_labels(found: Iterable[tuple[str, Detections]]) -> dict[str, Any]:
    """labels.json of a FiftyOneImageDetectionDataset: plain values from (key, detections) of each image.

    The key is the image's file name in the data set's folder data/ without its ending; an image without
    detections has the value None there. Write it with `ssdlib.common.files.write_json` beside data/ and open
    it with `fiftyone.Dataset.from_dir(folder, fiftyone.types.FiftyOneImageDetectionDataset)`.
    Format: https://docs.voxel51.com/user_guide/import_datasets.html#fiftyoneimagedetectiondataset
    """
    return {"labels": {key: detections.to_fiftyone() or None for key, detections in found}}


def _tensor(values: Any, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(values).detach().to("cpu", dtype).as_subclass(Tensor)
