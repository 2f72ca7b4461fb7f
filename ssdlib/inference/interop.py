"""Detections to and from the formats of other tools: COCO results, supervision, FiftyOne, pandas and CSV."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from ssdlib.common.errors import DataError
from ssdlib.common.runtime import need_extra

if TYPE_CHECKING:
    import pandas
    import supervision

    from ssdlib.inference.detections import Detections

FRAME_COLUMNS = ("image", "class", "score", "xmin", "ymin", "xmax", "ymax", "width", "height")
"""The columns of `Detections.to_frame` and the first ones of cells.csv; sizes in pixels."""

_FORMULA = re.compile(r"'*[=+\-@]")


def to_cell(text: str) -> str:
    """The text for a cell of a CSV file: an apostrophe keeps a spreadsheet from running it as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


@contextmanager
def valid(what: str, needed: str) -> Iterator[None]:
    """Raises DataError, naming `what` is read and what is `needed`, for the errors of malformed values."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"not {what}: {error!r}. {needed}") from error


class Conversions:
    """The methods of `ssdlib.inference.detections.Detections` for the formats of other tools."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str]
    image_size: tuple[int, int]
    image: str

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results: category_id is our label and bbox is [x, y, width, height] in pixels.

        https://cocodataset.org/#format-results
        """
        bbox = box_convert(self.boxes.double(), "xyxy", "xywh")  # differences of float32 are exact in float64
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
        """`supervision.Detections` with our labels as class_id and the names in data["class_name"].

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
        """Detections from `supervision.Detections` whose class_id is our label; missing scores count as 1.

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
        shares = box_convert(self.boxes.double() / torch.tensor(self.image_size * 2), "xyxy", "xywh")
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
            boxes = _corners([item["bounding_box"] for item in items]) * torch.tensor(image_size * 2)
            scores = [1.0 if item.get("confidence") is None else item["confidence"] for item in items]
            found = [names.index(item["label"]) + 1 for item in items]
        return cls(boxes, scores, found, image_size, names, image)

    def to_frame(self) -> pandas.DataFrame:
        """A `pandas.DataFrame` with a row for each detection and the columns `FRAME_COLUMNS`.

        Raises ConfigError if pandas is not installed.
        """
        corners = self.boxes.double()
        sides = corners[:, 2:] - corners[:, :2]
        numbers = [self.scores.double(), *corners.T, *sides.T]
        columns = [[self.image] * len(numbers[0]), self.names, *(column.numpy() for column in numbers)]
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


def _corners(xywh: list[Any]) -> Tensor:
    """(D, 4) float64, xyxy, of boxes [x, y, width, height]."""
    return box_convert(torch.tensor(xywh, dtype=torch.float64).reshape(-1, 4), "xywh", "xyxy")


def fiftyone_labels(found: Iterable[tuple[str, Detections]]) -> dict[str, Any]:
    """labels.json of a FiftyOneImageDetectionDataset: plain values from (key, detections) of each image.

    The key is the image's file name in the data set's folder data/ without its ending; an image without
    detections has the value None there. Write it with `ssdlib.common.files.write_json` beside data/ and open
    it with `fiftyone.Dataset.from_dir(folder, fiftyone.types.FiftyOneImageDetectionDataset)`.
    Format: https://docs.voxel51.com/user_guide/import_datasets.html#fiftyoneimagedetectiondataset
    """
    return {"labels": {key: detections.to_fiftyone() or None for key, detections in found}}
