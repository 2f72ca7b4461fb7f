"""The job behind `ssdlib detect`: many images, some of them damaged or large, stopped and gone on with.

Images are taken in groups of a batch, the unit of going on: a group that was not finished is done again as a
whole, so that each image is computed in the same batch, to the same bits, however often the job was stopped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.inference.detections import Detections
from ssdlib.inference.engines import Engine
from ssdlib.inference.inputs import ImageTask, read_ahead
from ssdlib.inference.results import (
    DONE,
    UNREADABLE,
    Journal,
    Record,
    open_journal,
    save_pictures,
    write_json_list,
    write_tables,
)
from ssdlib.inference.tiling import TRAINING_FIELD, TRAINING_RED_CELL, Tiling, View, crop, merge

DEFAULT_THRESHOLD = 0.5
ROWS_TOLD = 100
"""Images that a `Summary` speaks of one by one; all are in the tables."""
RED_CELL_UM = 7.5
"""Diameter of a red cell on a dried smear, in micrometers: 7 to 8."""
_ENOUGH_CELLS = 20
_PLAUSIBLE = (0.7, 1.4)


@dataclass(frozen=True)
class DetectJob:
    """What to do with which images."""

    tasks: Sequence[ImageTask]
    thresholds: Mapping[str, float]
    """Least score of each class; other names than the predictor's are refused."""
    tiling: Tiling = field(default_factory=Tiling)
    out: Path | None = None
    """Folder for everything `formats` name, and for the journal; without it nothing is kept."""
    formats: Sequence[str] = ()
    """Of `ssdlib.inference.results.FORMATS`."""
    json_file: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the results, such as the weights' SHA-256: plain values for JSON."""

    def settings(self) -> dict[str, Any]:
        """All that must be the same for going on."""
        return {
            **self.identity,
            "threshold": dict(self.thresholds),
            "tile": self.tiling.mode,
            "um_per_pixel": self.tiling.um_per_pixel,
            "files": [name for name in self.formats if name in ("pictures", "coco", "voc")],
        }


@dataclass
class Summary:
    """How a job went, in as much memory for a million images as for a hundred."""

    class_names: tuple[str, ...]
    images: int = 0
    """That could be read."""
    counts: list[int] = field(default_factory=list)
    """Cells of each class in all of them."""
    rows: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    """Image and its counts, of the first `ROWS_TOLD`."""
    unreadable: int = 0
    failures: list[str] = field(default_factory=list)
    """Why, of the first `ROWS_TOLD`."""
    resumed: int = 0
    """Images that an earlier call had done."""
    scale_warning: str = ""

    def add(self, image: str, counts: Sequence[int]) -> None:
        """An image that could be read."""
        self.images += 1
        before = self.counts or [0] * len(counts)
        self.counts = [total + count for total, count in zip(before, counts, strict=True)]
        if len(self.rows) < ROWS_TOLD:
            self.rows.append((image, tuple(counts)))

    def add_failure(self, message: str) -> None:
        """An image that could not."""
        self.unreadable += 1
        if len(self.failures) < ROWS_TOLD:
            self.failures.append(message)


def parse_thresholds(text: str) -> dict[str, float]:
    """`0.5`, or `WBC=0.4,RBC=0.6`; the key "" is for the classes that are not named.

    Raises ConfigError for anything else, and for numbers outside 0 to 1.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1 or ("=" in part) != bool(name.strip()) or name.strip() in found:
            raise ConfigError(f"--threshold takes 0.5 or WBC=0.4,RBC=0.6, numbers from 0 to 1, not {text!r}")
        found[name.strip()] = value
    return {"": DEFAULT_THRESHOLD, **found}


def thresholds_of(parsed: Mapping[str, float], class_names: Sequence[str]) -> dict[str, float]:
    """The threshold of each class. Raises ConfigError for a class that the weights do not know."""
    unknown = [name for name in parsed if name and name not in class_names]
    if unknown:
        raise ConfigError(
            f"--threshold names {', '.join(unknown)}; the weights find {', '.join(class_names)}"
        )
    return {name: parsed.get(name, parsed[""]) for name in class_names}


def run_detection(
    predictor: Engine, job: DetectJob, *, restart: bool = False, progress: bool = True
) -> Summary:
    """Do the images that are not done yet, then write tables of all; an unreadable image stops nothing.

    Raises ConfigError if `job.out` holds results of other settings (unless `restart`), and SsdError where
    something cannot be written; what is finished stays finished.
    """
    with tempfile.TemporaryDirectory(prefix="ssdlib-detect-") as scratch:
        folder = Path(scratch) if job.out is None else job.out / "job"
        with open_journal(folder, job.settings(), restart=restart) as journal:
            resumed = _finish(predictor, job, journal, progress)

            def records() -> Iterator[Record]:
                return journal.read(job.tasks)

            if job.out is not None:
                um = job.tiling.um_per_pixel
                write_tables(job.out, records, predictor.class_names, job.formats, um)
            if job.json_file is not None:
                write_json_list(job.json_file, records)
            return _summary(records(), predictor.class_names, resumed)


def _finish(predictor: Engine, job: DetectJob, journal: Journal, progress: bool) -> int:
    """Do what is not done; returns the number of images that were."""
    groups = in_groups(job.tasks, predictor.batch_size)
    groups = [group for group in groups if not all(task in journal for task in group)]
    resumed = len(job.tasks) - sum(map(len, groups))
    with tqdm(total=len(job.tasks), initial=resumed, unit="img", disable=not progress) as bar:
        for look in look_at(predictor, groups, job.thresholds, job.tiling):
            if job.out is not None and look.image is not None:
                look.record["copy"] = save_pictures(look.task, look.image, look.found, job.out, job.formats)
            journal.append(look.task, look.record)
            bar.update(1)
    return resumed


def in_groups(tasks: Sequence[ImageTask], size: int) -> list[Sequence[ImageTask]]:
    """As many images at once as a batch holds."""
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


@dataclass(frozen=True)
class Look:
    """What was seen in one image: `image` (H, W, 3) and `found` are None if it could not be read."""

    task: ImageTask
    record: Record
    image: np.ndarray | None = None
    found: Detections | None = None


def look_at(
    predictor: Engine, groups: Sequence[Sequence[ImageTask]], thresholds: Mapping[str, float], tiling: Tiling
) -> Iterator[Look]:
    """Each image, those of a group in any order, decoded before its turn; `found` is above `thresholds`."""
    images = read_ahead((task.path for group in groups for task in group), ahead=2 * predictor.batch_size)
    for group in groups:
        for task, image, views, found in _detect_group(predictor, group, images, tiling):
            if isinstance(found, DataError):
                yield Look(task, {"image": task.shown, "state": UNREADABLE, "message": str(found)})
            else:
                sure = replace(found, image=task.shown).above(thresholds)
                yield Look(task, _record(sure, views), image, sure)


def _record(found: Detections, views: Sequence[View]) -> Record:
    left, top, right, bottom = views[0]
    seen = {"tiles": len(views), "view": [right - left, bottom - top], "copy": None}
    return {"state": DONE, **found.to_dict(), **seen}


def _detect_group(
    predictor: Engine, group: Sequence[ImageTask], images: Iterator[np.ndarray | DataError], tiling: Tiling
) -> Iterator[tuple[ImageTask, np.ndarray | None, list[View], Detections | DataError]]:
    """Each image of a group with its detections: those of one view in one batch, tiled ones by themselves."""
    whole: list[tuple[ImageTask, np.ndarray]] = []
    for task in group:
        image = next(images)
        if isinstance(image, DataError):
            yield task, None, [], image
            continue
        height, width = image.shape[:2]
        views = tiling.views(width, height)
        if views == [(0, 0, width, height)]:
            whole.append((task, image))
            continue
        parts = list(predictor.stream(crop(image, view) for view in views))
        yield task, image, views, merge(parts, views, (width, height))
    found = predictor.stream([image for _, image in whole])
    for (task, image), detections in zip(whole, found, strict=True):
        yield task, image, [(0, 0, *detections.image_size)], detections


def _summary(records: Iterator[Record], class_names: tuple[str, ...], resumed: int) -> Summary:
    summary = Summary(class_names, resumed=resumed)
    sizes = RedCellSizes()
    for record in records:
        if record["state"] == DONE:
            summary.add(record["image"], [record["counts"][name] for name in class_names])
            sizes.add(_red_cell_sides(record), record["view"])
        else:
            summary.add_failure(record["message"])
    summary.scale_warning = sizes.warning()
    return summary


def _red_cell_sides(record: Record) -> np.ndarray:
    boxes = [cell["box"] for cell in record["detections"] if cell["label"] == "RBC"]
    xmin, ymin, xmax, ymax = np.reshape(boxes, (-1, 4)).T
    return np.sqrt((xmax - xmin) * (ymax - ymin))


class RedCellSizes:
    """Whether red cells come at the size known from training: a histogram, whatever the number of cells."""

    def __init__(self) -> None:
        self._seen = np.zeros(1000, np.int64)
        """Sides as the network sees them, in pixels of the training field."""
        self._original = np.zeros(4000, np.int64)

    @property
    def count(self) -> int:
        """Red cells so far."""
        return int(self._seen.sum())

    def add(self, sides: np.ndarray, view: tuple[int, int]) -> None:
        """Square roots of boxes' areas, in pixels of an image whose views have this width and height."""
        across, down = (training / seen for training, seen in zip(TRAINING_FIELD, view, strict=True))
        for histogram, scaled in ((self._original, sides), (self._seen, sides * (across * down) ** 0.5)):
            np.add.at(histogram, np.minimum(scaled.astype(int), len(histogram) - 1), 1)

    def warning(self) -> str:
        """Empty where too few cells were found, or cells of a plausible size."""
        if self.count < _ENOUGH_CELLS:
            return ""
        seen, original = _median(self._seen), _median(self._original)
        low, high = (share * TRAINING_RED_CELL for share in _PLAUSIBLE)
        if low <= seen <= high:
            return ""
        return (
            f"red cells measure {seen:.0f} pixels as the network sees them, {TRAINING_RED_CELL} in training, "
            "so that many may be missed. Give the images' scale: --um-per-pixel, "
            f"{RED_CELL_UM / original:.3f} if these are {RED_CELL_UM} micrometers."
        )


def _median(histogram: np.ndarray) -> float:
    return float(np.searchsorted(histogram.cumsum(), histogram.sum() / 2)) + 0.5
