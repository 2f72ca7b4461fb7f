"""Slides: the fields of one smear taken together, from the records of a detect job.

Everything here counts records one at a time, so that a slide of any length needs the same memory.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from ssdlib.common.errors import ConfigError
from ssdlib.common.tables import Table, number
from ssdlib.inference.tiling import clear_of_border

REFERENCE = "RBC"
"""The class that others are counted per 100 of, and whose diameters are measured."""

UNMATCHED = "(other images)"
"""The slide of images that the pattern of `--group` does not fit."""

BORDER_RULES = {
    "all": "every cell counts, also where the border of the image cuts it",
    "two-sides": "of the cells that the border cuts, those at the left and the upper side count, as in a "
    "counting chamber",
}
"""What the rule that a record names in `border` means; a record without the key is of the first."""

LEVEL = 0.95


class Estimate(NamedTuple):
    """A figure with the ends of its 95 % interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_text(self, form: str) -> str:
        """Such as `22.0 (17.0 to 27.0)`, in a format of `format`."""
        if self.low is None or self.high is None:
            return number(self.value, form)
        return f"{number(self.value, form)} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True)
class Diameters:
    """The diameters of red cells clear of the border: the mean of a box's width and height."""

    unit: str
    """µm where the scale of every field is known, else px."""
    cells: int
    median: float
    low: float
    """5th percentile."""
    high: float
    """95th percentile."""
    variation: float | None
    """Coefficient of variation, standard deviation / mean: the measure of anisocytosis. None for one cell."""
    edges: tuple[float, ...]
    """Of the histogram's bars, one more than there are."""
    bars: tuple[int, ...]
    """The number of cells in each; what lies beyond the first or last edge is in the first or last bar."""


@dataclass(frozen=True)
class Slide:
    """The figures of one slide."""

    name: str
    fields: int
    """The number of its images that could be read."""
    unreadable: int
    counts: dict[str, int]
    """All cells of each class."""
    per_field: dict[str, Estimate]
    """The mean number of each class in a field; its interval is over fields."""
    per_100: dict[str, Estimate]
    """Cells of each other class per 100 red ones; empty without the class `REFERENCE`."""
    diameters: Diameters | None
    notes: dict[str, int]
    """The number of fields with each note on quality."""
    noted: int
    """The number of fields with any."""
    um_per_pixel: tuple[float, float] | None
    """The smallest and largest scale of its fields; None where one is not known."""
    border: tuple[str, ...]
    """The rules by which cells at the border were counted: one, unless results were mixed."""


def parse_group(text: str) -> re.Pattern[str]:
    """The pattern of `--group`. Raises ConfigError if it does not compile or has not exactly one group."""
    example = r"such as --group '([^/]+)/[^/]+$' for the folder or --group '(S\d+)_' for S12 of S12_03.jpg"
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:  # the two for nested and large repeats
        raise ConfigError(
            f"--group {text[:200]!r} is not a regular expression ({error}): give one, {example}"
        ) from error
    if pattern.groups != 1:
        raise ConfigError(
            f"--group {text[:200]!r} has {pattern.groups} groups in brackets: put exactly one around what "
            f"names the slide, {example}"
        )
    return pattern


def slide_of(image: str, group: re.Pattern[str] | None = None) -> str:
    """The name of an image's slide: its folder, or what the pattern's group finds anywhere in the path.

    The path is the one that records and tables show, with `/` between folders on every system.
    """
    path = PurePath(image)
    if group is None:
        return path.parent.as_posix()
    match = group.search(path.as_posix())
    return (match and match[1]) or UNMATCHED


class Tally:
    """What is kept of the records of one slide: a few numbers, and how often each diameter occurs."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.fields = self.unreadable = self.noted = 0
        self.notes: Counter[str] = Counter()
        self._sum = np.zeros(len(self.class_names))
        self._products = np.zeros((len(self.class_names),) * 2)
        """Sums over fields of the products of two classes' counts: all that variances need."""
        self._diameters = {"px": Counter[float](), "µm": Counter[float]()}
        self._scales: tuple[float, float] | None = None
        self._unscaled = False
        self._border: dict[str, None] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Count a record, of an image that could be read or not."""
        if "detections" not in record:
            self.unreadable += 1
            return
        self.fields += 1
        quality = record["quality"]
        self.notes.update(quality)
        self.noted += bool(quality)
        counts = np.array([record["counts"][name] for name in self.class_names], float)
        self._sum += counts
        self._products += np.outer(counts, counts)
        self._border[record.get("border", next(iter(BORDER_RULES)))] = None
        scale = record.get("measured_um")
        boxes = np.reshape([c["box"] for c in record["detections"] if c["label"] == REFERENCE], (-1, 4))
        size = record["width"], record["height"]
        boxes = boxes[clear_of_border(boxes, size, record.get("view", size))]
        pixels = (boxes[:, 2:] - boxes[:, :2]).mean(axis=1)
        self._diameters["px"].update(pixels.round(1).tolist())
        if scale is None:
            self._unscaled = True
        else:
            low, high = self._scales or (scale, scale)
            self._scales = min(low, scale), max(high, scale)
            self._diameters["µm"].update((pixels * scale).round(2).tolist())

    def slide(self, name: str) -> Slide:
        """The figures of all records so far."""
        scales = None if self._unscaled else self._scales
        unit = "µm" if scales else "px"
        totals = dict(zip(self.class_names, self._sum.astype(int).tolist(), strict=True))
        squares = np.diag(self._products)
        per_100 = {}
        if REFERENCE in self.class_names:
            red = self.class_names.index(REFERENCE)
            for label, other in enumerate(self.class_names):
                if label != red:
                    pair = np.ix_([label, red], [label, red])
                    per_100[other] = per_100_interval(
                        self.fields, self._sum[[label, red]], self._products[pair]
                    )
        return Slide(
            name=name,
            fields=self.fields,
            unreadable=self.unreadable,
            counts=totals,
            per_field={
                one: mean_interval(self.fields, total, square)
                for one, total, square in zip(self.class_names, self._sum, squares, strict=True)
            },
            per_100=per_100,
            diameters=_diameters(self._diameters[unit], unit),
            notes=dict(sorted(self.notes.items())),
            noted=self.noted,
            um_per_pixel=scales,
            border=tuple(self._border) or (next(iter(BORDER_RULES)),),
        )


def slides_of(
    records: Iterable[dict[str, Any]],
    class_names: Sequence[str],
    group: re.Pattern[str] | None = None,
) -> tuple[list[Slide], Slide]:
    """The slides in the order of their first images, and all images as one slide."""
    everything, tallies = Tally(class_names), {}
    for record in records:
        name = slide_of(record["image"], group)
        for tally in (everything, tallies.setdefault(name, Tally(class_names))):
            tally.add(record)
    return [tally.slide(name) for name, tally in tallies.items()], everything.slide("all")


def mean_interval(fields: int, total: float, squares: float) -> Estimate:
    """The mean count of a field, with the interval of Student's t over fields, not below 0.

    From the number of fields, the sum of their counts and of the counts' squares. One field has no interval.
    """
    from scipy.special import stdtrit  # slow to import

    if not fields:
        return Estimate(None)
    mean = total / fields
    if fields == 1:
        return Estimate(mean)
    deviation = math.sqrt(max(squares - total * mean, 0) / (fields - 1))
    half = float(stdtrit(fields - 1, (1 + LEVEL) / 2)) * deviation / math.sqrt(fields)
    return Estimate(mean, max(mean - half, 0), mean + half)


def per_100_interval(fields: int, totals: np.ndarray, products: np.ndarray) -> Estimate:
    """Cells of one kind per 100 red ones, with an interval that holds for few cells and uneven fields.

    The share p of the kind among both is a proportion, whose interval by Clopper and Pearson is exact for
    independent cells, however few; 100 p / (1 - p) is the ratio asked for. Where cells gather in some fields
    each tells less, and the interval is that of the smaller number of independent cells which would vary as
    much: Korn and Graubard 1998, Survey Methodology 24:193-201. One field says nothing about that and has the
    exact interval. `totals` (2,) are the sums over fields of the kind and of red cells, `products` (2, 2) the
    sums of their products. Without red cells there is no value.
    """
    from scipy.special import betaincinv, stdtrit

    kind, red = map(float, totals)
    cells = kind + red
    if not red:
        return Estimate(None)
    share = kind / cells
    independent = cells
    if fields > 1 and kind:
        # Variance of the ratio of two sums over fields, linearized: that of kind - share * (kind + red).
        contrast = np.array([1 - share, -share])
        variance = fields / (fields - 1) * float(contrast @ products @ contrast) / cells**2
        if variance > 0:
            shrink = stdtrit(cells - 1, (1 + LEVEL) / 2) / stdtrit(fields - 1, (1 + LEVEL) / 2)
            independent = min(cells, share * (1 - share) / variance * float(shrink) ** 2)
    found = share * independent
    low = float(betaincinv(found, independent - found + 1, (1 - LEVEL) / 2)) if found else 0.0
    high = float(betaincinv(found + 1, independent - found, (1 + LEVEL) / 2))
    return Estimate(*(100 * p / (1 - p) for p in (share, low, high)))


def _diameters(counted: Counter[float], unit: str) -> Diameters | None:
    if not counted:
        return None
    values, weights = np.array(sorted(counted.items())).T
    cells = int(weights.sum())
    low, median, high = np.percentile(values, [5, 50, 95], weights=weights, method="inverted_cdf").tolist()
    mean = float(np.average(values, weights=weights))
    variance = float(weights @ (values - mean) ** 2) / (cells - 1) if cells > 1 else None
    ends = np.percentile(values, [0.5, 99.5], weights=weights, method="inverted_cdf")
    step = nice_step(float(ends[1] - ends[0]) / 20 or median / 20 or 1.0)
    first, last = math.floor(ends[0] / step), math.floor(ends[1] / step) + 1
    edges = np.arange(first, last + 1) * step
    bars, _ = np.histogram(values.clip(edges[0], edges[-1]), edges, weights=weights)
    return Diameters(
        unit=unit,
        cells=cells,
        median=median,
        low=low,
        high=high,
        variation=math.sqrt(variance) / mean if variance is not None and mean else None,
        edges=tuple(edges.round(9).tolist()),
        bars=tuple(bars.astype(int).tolist()),
    )


def nice_step(least: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is at least `least`: a bar of a histogram."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * 0.999)


# --- as text ---------------------------------------------------------------------------------------------


def class_table(slide: Slide) -> Table:
    """A row for each class: its number, and with intervals the mean per field and the number per 100 red."""
    header = ["", "cells", "per field (95 %)"]
    rows = [
        [name, f"{count:,}", slide.per_field[name].to_text(".1f")] for name, count in slide.counts.items()
    ]
    if slide.per_100:
        header.append(f"per 100 {REFERENCE} (95 %)")
        for row in rows:
            row.append(slide.per_100[row[0]].to_text(".2f") if row[0] in slide.per_100 else "")
    return Table(header, rows)


def diameter_text(slide: Slide) -> str:
    """The red cells' diameters in a sentence."""
    found = slide.diameters
    if found is None:
        return "No red cell lies clear of the border, so none was measured."
    form = ".2f" if found.unit == "µm" else ".0f"
    return (
        f"Red cells measure {found.median:{form}} {found.unit} (median; 5th to 95th percentile "
        f"{found.low:{form}} to {found.high:{form}}); anisocytosis, their coefficient of variation, is "
        f"{number(found.variation, '.1%')}. {found.cells:,} of {slide.counts[REFERENCE]:,} lie clear of the "
        "border and were measured."
    )


def notes_text(notes: dict[str, int]) -> str:
    """Each note with the number of its fields, such as `out of focus 3; too dark 1`; empty without any."""
    return "; ".join(f"{note} {count}" for note, count in notes.items())


def slide_rows(slides: Iterable[Slide], class_names: Sequence[str]) -> Iterator[Sequence[Any]]:
    """The names of the columns of slides.csv, then a row for each slide; None where there is no value."""
    others = [name for name in class_names if name != REFERENCE] if REFERENCE in class_names else []
    ends = ("", "_low", "_high")
    yield (
        "slide", "fields", "unreadable", *class_names,
        *(f"{name}_per_field{end}" for name in class_names for end in ends),
        *(f"{name}_per_100_{REFERENCE}{end}" for name in others for end in ends),
        "diameter_unit", "diameter_cells", "diameter_median", "diameter_p5", "diameter_p95", "diameter_cv",
        "border", "noted_fields", "notes",
    )  # fmt: skip
    for slide in slides:
        estimates = [
            *(slide.per_field[name] for name in class_names),
            *(slide.per_100[name] for name in others),
        ]
        d = slide.diameters
        measured = [d.unit, d.cells, d.median, d.low, d.high, _rounded(d.variation)] if d else [None] * 6
        yield [
            slide.name, slide.fields, slide.unreadable, *slide.counts.values(),
            *(_rounded(value) for one in estimates for value in one),
            *measured,
            " and ".join(slide.border), slide.noted, notes_text(slide.notes) or None,
        ]  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
