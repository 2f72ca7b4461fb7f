"""The job behind `ssdlib detect`: many images, some damaged or large; it can be stopped and resumed.

Images are taken in groups of a batch. A group that was not finished is done again as a whole, so that each
image is computed in the same batch, to the same bits, however often the job was stopped.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.config import Appearance
from ssdlib.data.images import read_image
from ssdlib.inference.detections import DEFAULT_THRESHOLD, Detections, Detector, class_thresholds
from ssdlib.inference.inputs import ImageTask, pixels_of, read_ahead
from ssdlib.inference.journal import Journal, open_journal
from ssdlib.inference.quality import quality_notes
from ssdlib.inference.report import write_report
from ssdlib.inference.results import DONE, UNREADABLE, Record, save_pictures, write_json_list, write_tables
from ssdlib.inference.slides import slides_of
from ssdlib.inference.tiling import TRAINING_FIELD, TRAINING_RED_CELL, Tiling, detect_image

MAX_ROWS = 100
"""The most images that a `Summary` holds one by one; all are in the tables."""
RED_CELL_UM = 7.5
"""Diameter of a red cell on a dried smear, in micrometers: 7 to 8."""
_ENOUGH_CELLS = 20
_PLAUSIBLE = (0.7, 1.4)


@dataclass(frozen=True)
class DetectJob:
    """The images of a job, what decides its results, and where they are written."""

    tasks: Sequence[ImageTask]
    thresholds: Mapping[str, float]
    """Score threshold of each class; other names than the predictor's are refused."""
    tiling: Tiling = field(default_factory=Tiling)
    out: Path | None = None
    """Folder for everything `formats` name, and for the journal; without it nothing is kept."""
    formats: Sequence[str] = ()
    """Names from `ssdlib.inference.results.FORMATS`."""
    json_file: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the results, such as the weights' SHA-256: plain values for JSON."""
    appearance: Appearance | None = None
    """What the weights' training images looked like, for the notes on quality."""
    group: re.Pattern[str] | None = None
    """What names an image's slide: see `ssdlib.inference.slides.slide_of`."""
    weights: str = ""
    """What the report calls the weights."""

    def settings(self) -> dict[str, Any]:
        """All that must be the same for the job to be resumed."""
        return {
            **self.identity,
            "threshold": dict(self.thresholds),
            "tile": self.tiling.mode,
            "um_per_pixel": self.tiling.um_per_pixel,
            "files": [name for name in self.formats if name in ("pictures", "coco", "voc")],
        }

    def described(self) -> dict[str, str]:
        """The settings in words, for the report."""
        scale = self.tiling.um_per_pixel
        return {
            "Weights": self.weights or "not named",
            "Their SHA-256": str(self.identity.get("weights", "not known")),
            "Least score": ", ".join(f"{name} {least:g}" for name, least in self.thresholds.items()),
            "Scale": f"{scale:g} µm per pixel" if scale else "not given",
            "Tiles": str(self.tiling.mode),
            **{name.capitalize(): str(value) for name, value in self.identity.items() if name != "weights"},
        }


@dataclass
class Summary:
    """The outcome of a job, of the same size for a million images as for a hundred."""

    class_names: tuple[str, ...]
    images: int = 0
    """The number of images that could be read."""
    counts: list[int] = field(default_factory=list)
    """The number of cells of each class in all of them."""
    rows: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    """The first `MAX_ROWS` images with their counts."""
    unreadable: int = 0
    failures: list[str] = field(default_factory=list)
    """The reasons for the first `MAX_ROWS` of them."""
    resumed: int = 0
    """The number of images that an earlier call had done."""
    scale_warning: str = ""
    notes: Counter[str] = field(default_factory=Counter)
    """The number of images with each note on quality."""

    def add(self, image: str, counts: Sequence[int], notes: Iterable[str] = ()) -> None:
        """Count an image that could be read."""
        self.images += 1
        self.notes.update(notes)
        self.counts = np.add(self.counts or 0, counts).tolist()
        if len(self.rows) < MAX_ROWS:
            self.rows.append((image, tuple(counts)))

    def add_failure(self, message: str) -> None:
        """Count an image that could not be read."""
        self.unreadable += 1
        if len(self.failures) < MAX_ROWS:
            self.failures.append(message)


def parse_thresholds(text: str, class_names: Sequence[str]) -> dict[str, float]:
    """The threshold of each class, from `0.5`, `WBC=0.4,RBC=0.6` (others have the default) or `0.3,WBC=0.4`.

    Raises ConfigError for anything else, for other classes, and for numbers outside 0 to 1.
    """
    given: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.rpartition("="))
        try:
            if bool(name) != bool(equals) or name in given:
                raise ValueError
            given[name] = float(number)
        except ValueError as error:
            raise ConfigError(
                f"--threshold takes 0.5 or WBC=0.4,RBC=0.6, numbers from 0 to 1, not {text!r}"
            ) from error
    general = given.pop("", DEFAULT_THRESHOLD)
    return class_thresholds({**dict.fromkeys(class_names, general), **given}, class_names)


def run_detection(
    predictor: Detector, job: DetectJob, *, restart: bool = False, progress: bool = True
) -> Summary:
    """The summary of a job, after doing the images that are not done yet and writing tables of all.

    An unreadable image stops nothing. Raises ConfigError if `job.out` holds results of other settings (unless
    `restart`), and SsdError where something cannot be written; what is finished stays finished.
    """
    with tempfile.TemporaryDirectory(prefix="ssdlib-detect-") as scratch:
        folder = Path(scratch) if job.out is None else job.out / "job"
        with open_journal(folder, job.settings(), restart=restart) as journal:
            resumed = _finish(predictor, job, journal, progress)

            records = partial(journal.read, job.tasks)
            if job.out is not None:
                um, names = job.tiling.um_per_pixel, predictor.class_names
                slides, together = slides_of(records(), names, um, job.group)
                write_tables(job.out, records, names, job.formats, um, slides)
                if "report" in job.formats:
                    write_report(
                        job.out,
                        lambda: ((task, record) for task in job.tasks for record in journal.read([task])),
                        slides,
                        together,
                        job.described(),
                        group=job.group,
                        pictures="pictures" in job.formats,
                    )
            if job.json_file is not None:
                write_json_list(job.json_file, records())
            return _summary(records(), predictor.class_names, resumed)


def _finish(predictor: Detector, job: DetectJob, journal: Journal, progress: bool) -> int:
    """The number of images that had been done, after doing the others."""
    groups = in_groups(job.tasks, predictor.batch_size)
    groups = [group for group in groups if not all(task in journal for task in group)]
    resumed = len(job.tasks) - sum(map(len, groups))
    with tqdm(total=len(job.tasks), initial=resumed, unit="img", disable=not progress) as bar:
        for seen in detect_images(predictor, groups, job):
            if job.out is not None and seen.image is not None:
                seen.record["copy"] = save_pictures(seen.task, seen.image, seen.found, job.out, job.formats)
            journal.append(seen.task, seen.record)
            bar.update(1)
    return resumed


def in_groups(tasks: Sequence[ImageTask], size: int) -> list[Sequence[ImageTask]]:
    """The tasks in groups of a batch."""
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


@dataclass(frozen=True)
class DetectedImage:
    """One image with its detections: `image` (H, W, 3) and `found` are None if it could not be read."""

    task: ImageTask
    record: Record
    image: np.ndarray | None = None
    found: Detections | None = None


def detect_images(
    predictor: Detector, groups: Sequence[Sequence[ImageTask]], job: DetectJob
) -> Iterator[DetectedImage]:
    """Each image with its detections above the job's thresholds, those of a group in any order.

    Images of a group that are not tiled are computed in one batch, tiled ones by themselves.
    """
    tiling = job.tiling

    def detected(task: ImageTask, image: np.ndarray, found: Detections) -> DetectedImage:
        sure = replace(found, image=task.shown).above(job.thresholds)
        tiles = tiling.tiles(*found.image_size)
        left, top, right, bottom = tiles[0]
        view = right - left, bottom - top
        quality = quality_notes(image, found, view, job.appearance, thresholds=job.thresholds)
        more = {"tiles": len(tiles), "view": list(view), "quality": list(quality), "copy": None}
        return DetectedImage(task, {"state": DONE, **sure.to_dict(), **more}, image, sure)

    paths = (task.path for group in groups for task in group)
    images = read_ahead(read_image, paths, ahead=2 * predictor.batch_size, pixels=pixels_of)
    for group in groups:
        whole: list[tuple[ImageTask, np.ndarray]] = []
        for task in group:
            image = next(images)
            if isinstance(image, DataError):
                record = {"image": task.shown, "state": UNREADABLE, "message": str(image)}
                yield DetectedImage(task, record)
            elif tiling.is_one_tile(image.shape[1], image.shape[0]):
                whole.append((task, image))
            else:
                yield detected(task, image, detect_image(predictor, image, tiling))
        results = predictor.stream([image for _, image in whole])
        for (task, image), found in zip(whole, results, strict=True):
            yield detected(task, image, found)


def _summary(records: Iterator[Record], class_names: tuple[str, ...], resumed: int) -> Summary:
    summary = Summary(class_names, resumed=resumed)
    sizes = RedCellSizes()
    for record in records:
        if record["state"] == DONE:
            counts = [record["counts"][name] for name in class_names]
            summary.add(record["image"], counts, record["quality"])
            boxes = [cell["box"] for cell in record["detections"] if cell["label"] == "RBC"]
            xmin, ymin, xmax, ymax = np.reshape(boxes, (-1, 4)).T
            sizes.add(np.sqrt((xmax - xmin) * (ymax - ymin)), record["view"])
        else:
            summary.add_failure(record["message"])
    summary.scale_warning = sizes.warning()
    return summary


class RedCellSizes:
    """Histograms of the sizes of red cells, to see whether they are those of training."""

    def __init__(self) -> None:
        self._histograms = np.zeros((2, 4000), np.int64)
        """Sides in pixels of the image, and in pixels of the training field as the network sees them."""

    @property
    def count(self) -> int:
        """The number of red cells so far."""
        return int(self._histograms[0].sum())

    def add(self, sides: np.ndarray, tile: tuple[int, int]) -> None:
        """Count cells with these sides, in pixels, of an image with tiles of this width and height."""
        across, down = (training / side for training, side in zip(TRAINING_FIELD, tile, strict=True))
        for histogram, scaled in zip(self._histograms, (sides, sides * (across * down) ** 0.5), strict=True):
            np.add.at(histogram, np.minimum(scaled.astype(int), len(histogram) - 1), 1)

    def warning(self) -> str:
        """A warning of implausible sizes; empty for plausible ones and for too few cells."""
        original, seen = (
            float(np.searchsorted(histogram.cumsum(), histogram.sum() / 2)) + 0.5
            for histogram in self._histograms
        )
        low, high = (share * TRAINING_RED_CELL for share in _PLAUSIBLE)
        if self.count < _ENOUGH_CELLS or low <= seen <= high:
            return ""
        return (
            f"red cells measure {seen:.0f} pixels as the network sees them, {TRAINING_RED_CELL} in training, "
            "so that many may be missed. Give the images' scale: --um-per-pixel, "
            f"{RED_CELL_UM / original:.3f} if these are {RED_CELL_UM} micrometers."
        )
