"""What the formats of other tools need: columns of tables, FiftyOne's labels of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ssdlib.common.errors import DataError

if TYPE_CHECKING:
    from ssdlib.inference.detections import Detections

FRAME_COLUMNS = ("image", "class", "score", "xmin", "ymin", "xmax", "ymax", "width", "height")
"""The columns of `Detections.to_frame` and the first ones of cells.csv; sizes in pixels."""


@contextmanager
def valid(what: str, needed: str) -> Iterator[None]:
    """Raises DataError, naming `what` is read and what is `needed`, for the errors of malformed values."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"not {what}: {error!r}. {needed}") from error


def fiftyone_labels(found: Iterable[tuple[str, Detections]]) -> dict[str, Any]:
    """labels.json of a FiftyOneImageDetectionDataset: plain values from (key, detections) of each image.

    The key is the image's file name in the data set's folder data/ without its ending; an image without
    detections has the value None there. Write it with `ssdlib.common.files.write_json` beside data/ and open
    it with `fiftyone.Dataset.from_dir(folder, fiftyone.types.FiftyOneImageDetectionDataset)`.
    Format: https://docs.voxel51.com/user_guide/import_datasets.html#fiftyoneimagedetectiondataset
    """
    return {"labels": {key: detections.to_fiftyone() or None for key, detections in found}}
