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
from ssdlib.common.files import tidy
from ssdlib.config import Appearance, ModelConfig
from ssdlib.data.images import read_image, read_um_per_pixel
from ssdlib.inference.detections import Detections, Detector, class_thresholds
from ssdlib.inference.fields import detect_fields
from ssdlib.inference.inputs import PIXELS_AHEAD, ImageTask, pixels_of, read_ahead
from ssdlib.inference.journal import Journal, open_journal
from ssdlib.inference.quality import quality_notes
from ssdlib.inference.results import (
    DONE,
    OF_EACH_IMAGE,
    UNREADABLE,
    Record,
    save_pictures,
    write_json_list,
    write_tables,
)
from ssdlib.inference.slides import BORDER_RULES, slides_of
from ssdlib.inference.tiling import RED_CELL_UM, Tiling

MAX_ROWS = 100
"""The most images that a `Summary` holds one by one; all are in the tables."""


@dataclass(frozen=True)
class DetectJob:
    """The images of a job, what decides its results, and where they are written.

    Raises ConfigError for an unknown `border`.
    """

    tasks: Sequence[ImageTask]
    thresholds: Mapping[str, float]
    """Score threshold of each class; other names than the predictor's are refused."""
    tiling: Tiling = field(default_factory=Tiling)
    border: str = "all"
    """Which cells that the image's border cuts are counted: one of `ssdlib.inference.slides.BORDER_RULES`."""
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
    fractions: bool = False
    """Whether corners in voc/ are fractions of a pixel."""
    decimal_comma: bool = False
    """How numbers stand in CSV files: see `ssdlib.common.tables.csv_lines`."""

    def __post_init__(self) -> None:
        if self.border not in BORDER_RULES:
            raise ConfigError(f"--border takes {' or '.join(BORDER_RULES)}, not {self.border!r}")

    def settings(self) -> dict[str, Any]:
        """All that must be the same for the job to be resumed."""
        return {
            **self.identity,
            "threshold": dict(self.thresholds),
            "tile": self.tiling.mode,
            "um_per_pixel": self.tiling.um_per_pixel,
            "border": self.border,
            "files": [name for name in self.formats if name in OF_EACH_IMAGE],
            **({"voc": "fractions" if self.fractions else "whole pixels"} if "voc" in self.formats else {}),
        }

    def described(self) -> dict[str, str]:
        """The settings in words, for the report."""
        scale = self.tiling.um_per_pixel
        return {
            "Weights": self.weights or "not named",
            "Their SHA-256": str(self.identity.get("weights", "not known")),
            "Least score": ", ".join(f"{name} {least:g}" for name, least in self.thresholds.items()),
            "Scale": f"{scale:g} µm per pixel" if scale else "by each file's tags or its red cells",
            "Cells at the border": BORDER_RULES[self.border],
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
    notes: Counter[str] = field(default_factory=Counter)
    """The number of images with each note on quality."""
    scales: dict[str, int] = field(default_factory=dict)
    """The number of images for each source of the scale, one of `ssdlib.inference.fields.SCALES`."""
    um_per_pixel: list[float] = field(default_factory=list)
    """The least and the greatest scale found by cells or in files; empty if there was none."""

    def add_scale(self, scale: str, um_per_pixel: float | None) -> None:
        """Count where the scale of an image is from."""
        self.scales[scale] = self.scales.get(scale, 0) + 1
        if scale in ("cells", "file") and um_per_pixel:
            known = [*self.um_per_pixel, um_per_pixel]
            self.um_per_pixel = [min(known), max(known)]

    @property
    def scale_note(self) -> str:
        """What scales were found, and where; empty if all images have the given one, or fit training's."""
        said = {"cells": f"by their red cells, taken for {RED_CELL_UM} um", "file": "in their files"}
        parts = [f"of {self.scales[name]:,} {words}" for name, words in said.items() if name in self.scales]
        if not parts or not self.um_per_pixel:
            return ""
        low, high = self.um_per_pixel
        span = f"{low:.3f}" if round(low, 3) == round(high, 3) else f"{low:.3f} to {high:.3f}"
        found = f"scales found: {', '.join(parts)} images, {span} um per pixel"
        return f"{found}. If that is wrong, give --um-per-pixel."

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


def parse_thresholds(text: str | None, config: ModelConfig) -> dict[str, float]:
    """The threshold of each class, from `0.5`, `WBC=0.4,RBC=0.6` or `0.3,WBC=0.4`; for others the weights'.

    Raises ConfigError for anything else, for other classes, and for numbers outside 0 to 1.
    """
    given: dict[str, float] = {}
    for part in text.split(",") if text is not None else ():
        name, equals, number = (word.strip() for word in part.rpartition("="))
        try:
            if bool(name) != bool(equals) or name in given:
                raise ValueError
            given[name] = float(number)
        except ValueError as error:
            raise ConfigError(
                f"--threshold takes 0.5 or WBC=0.4,RBC=0.6, numbers from 0 to 1, not {text!r}"
            ) from error
    names, general = config.class_names, given.pop("", None)
    others = config.thresholds if general is None else dict.fromkeys(names, general)
    return class_thresholds({**others, **given}, names)


_TOUCHES = 1.0
"""Pixels: a box nearer to the border is of a cell that the border cuts."""


def apply_border(found: Detections, border: str) -> Detections:
    """The detections that the border rule, one of `BORDER_RULES`, counts."""
    if border == "all":
        return found
    width, height = found.image_size
    inside = (found.boxes[:, 2] < width - _TOUCHES) & (found.boxes[:, 3] < height - _TOUCHES)
    return replace(found, boxes=found.boxes[inside], scores=found.scores[inside], labels=found.labels[inside])


def run_detection(
    predictor: Detector, job: DetectJob, *, restart: bool = False, progress: bool = True
) -> Summary:
    """The summary of a job, after doing the images that are not done yet and writing tables of all.

    An unreadable image stops nothing. Raises ConfigError if `job.out` holds results of other settings (unless
    `restart`), and SsdError where something cannot be written; what is finished stays finished.
    """
    with tempfile.TemporaryDirectory(prefix="ssdlib-detect-") as scratch:
        folder = Path(scratch) if job.out is None else job.out / "job"
        if job.out is not None:
            tidy(job.out, (*OF_EACH_IMAGE, "voc", "job"))
        with open_journal(folder, job.settings(), predictor.class_names, restart=restart) as journal:
            resumed = _finish(predictor, job, journal, progress)

            records = partial(journal.read, job.tasks)
            if job.out is not None:
                names = predictor.class_names
                slides, together = slides_of(records(), names, job.group)
                write_tables(job.out, records, names, job.formats, slides, decimal_comma=job.decimal_comma)
                if "report" in job.formats:
                    from ssdlib.inference.report import write_report  # with templates, slow to import

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
    done = {task for task in job.tasks if task in journal}  # each is asked for before any is read
    groups = [group for group in groups if not done.issuperset(group)]
    resumed = len(job.tasks) - sum(map(len, groups))
    with tqdm(total=len(job.tasks), initial=resumed, unit="img", disable=not progress) as bar:
        for seen in detect_images(predictor, groups, job):
            if job.out is not None and seen.image is not None:
                seen.record["copy"] = save_pictures(
                    seen.task, seen.image, seen.found, job.out, job.formats, fractions=job.fractions
                )
            journal.append(seen.task, seen.record)
            bar.update(1)
            del seen  # a large image, while the next one is read
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

    Each is looked at as `ssdlib.inference.fields.detect_fields` says.
    """
    paths = (task.path for group in groups for task in group)
    images = read_ahead(_read_field, paths, ahead=2 * predictor.batch_size, pixels=pixels_of)
    for group in groups:
        readable: list[_Field] = []
        for task in group:
            field = next(images)
            if isinstance(field, DataError):
                record = {"image": task.shown, "state": UNREADABLE, "message": str(field)}
                yield DetectedImage(task, record)
                continue
            readable.append((task, *field))
            del field
            if sum(image.size for _, image, _ in readable) >= 3 * PIXELS_AHEAD:  # more would fill the memory
                yield from _detected(predictor, readable, job)
                readable = []
        yield from _detected(predictor, readable, job)


_Field = tuple[ImageTask, np.ndarray, float | None]


def _detected(predictor: Detector, readable: Sequence[_Field], job: DetectJob) -> Iterator[DetectedImage]:
    """These images, each with its micrometers per pixel as far as the file says, with their detections."""
    fields = ((image, um) for _, image, um in readable)
    results = detect_fields(predictor, fields, job.tiling)
    for (task, image, _), seen in zip(readable, results, strict=True):
        quality = quality_notes(image, seen.found, seen.view, job.appearance, thresholds=job.thresholds)
        sure = apply_border(replace(seen.found, image=task.shown).above(job.thresholds), job.border)
        record = {
            "state": DONE,
            **sure.to_dict(),
            "tiles": seen.tiles,
            "view": list(seen.view),
            "scale": seen.scale,
            "um_per_pixel": seen.um_per_pixel,
            "measured_um": seen.measured_um,
            "border": job.border,
            "quality": list(quality),
            "copy": None,
        }
        yield DetectedImage(task, record, image, sure)


def _read_field(path: Path) -> tuple[np.ndarray, float | None]:
    """The image (H, W, 3), and its micrometers per pixel where the file says so."""
    return read_image(path), read_um_per_pixel(path)


def _summary(records: Iterator[Record], class_names: tuple[str, ...], resumed: int) -> Summary:
    summary = Summary(class_names, resumed=resumed)
    for record in records:
        if record["state"] == DONE:
            counts = [record["counts"][name] for name in class_names]
            summary.add(record["image"], counts, record["quality"])
            summary.add_scale(record["scale"], record["um_per_pixel"])
        else:
            summary.add_failure(record["message"])
    return summary
