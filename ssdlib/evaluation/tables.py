"""Tables of measured results, as the report, the command line, the model card and notebooks show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssdlib.common.tables import Table, number

LEVEL = 0.95
"""The share of the bootstrap resamples that every interval holds."""


@dataclass(frozen=True)
class Interval:
    """A figure and the interval of the middle 95 % of its bootstrap resamples; None where undefined."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Such as `0.902 [0.88, 0.92]`."""
        return self.to_text(".3f", ".2f")

    def to_text(self, form: str, form_of_ends: str) -> str:
        """The figure and, where there are any, the ends of its interval in formats of `format`."""
        if self.low is None or self.high is None:
            return number(self.value, form)
        ends = f"[{number(self.low, form_of_ends)}, {number(self.high, form_of_ends)}]"
        return f"{number(self.value, form)} {ends}"


_FIGURES = {
    "ap_50": ("COCO AP at IoU 0.5", "map_50"),
    "ap": ("COCO AP", "map"),
    "voc07_ap": ("VOC07 AP", "voc07_map"),
    "voc12_ap": ("VOC12 AP", "voc12_map"),
    "precision": ("precision", ""),
    "recall": ("recall", ""),
    "ar_100": ("COCO AR at 100", "mar_100"),
}
"""Each figure of a class: its name and the mean over the classes."""


def result_sections(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The sections of metrics.json that hold detection results, that is, have `per_class`."""
    return {
        name: section
        for name, section in metrics.items()
        if isinstance(section, Mapping) and isinstance(section.get("per_class"), dict)
    }


def result_table(section: Mapping[str, Any]) -> Table:
    """The table of one results section: a row for each class, then all classes together.

    AP50 comes with its interval where the section has `intervals` (`Intervals.to_dict`).
    """
    known = {
        "ap_50": "AP50",
        "ap": "AP",
        "voc07_ap": "VOC07 AP",
        "precision": "precision",
        "recall": "recall",
        "ground_truth": "objects",
        "detections": "detections",
    }
    counts = ("ground_truth", "detections")
    per_class = section["per_class"]
    columns = [name for name in known if any(name in values for values in per_class.values())]
    together = {name: section.get(_FIGURES[name][1], "") for name in columns if name not in counts}
    for name in counts:
        together[name] = sum(values.get(name) or 0 for values in per_class.values())
    rows = [
        [row, *(_cell(values.get(name)) for name in columns)]
        for row, values in [*per_class.items(), ("all", together)]
    ]
    if "ap_50" in columns and (intervals := section.get("intervals")):
        place = 1 + columns.index("ap_50")
        for row, interval in zip(rows, [*intervals["per_class"].values(), intervals["map_50"]], strict=True):
            row[place] = str(Interval(**interval))
    return Table(["class", *(known[name] for name in columns)], rows, total=True)


def _cell(value: float | str | None) -> str:
    return str(value) if isinstance(value, int | str) else number(value)


def interval_table(intervals: Mapping[str, Any]) -> Table:
    """The table of `Intervals.to_dict`: a row for each figure, a column for each class and their mean."""
    classes = intervals["classes"]
    rows = []
    for figure, (words, mean) in _FIGURES.items():
        cells = [*(of_class.get(figure) for of_class in classes.values()), intervals.get(mean)]
        rows.append([words, *(str(Interval(**cell)) if cell else "" for cell in cells)])
    return Table(["", *classes, "mean"], rows)


def error_table(errors: Mapping[str, Any]) -> Table:
    """The table of `TideErrors` as a dict: the AP points that fixing each kind adds, and the numbers."""
    classes = errors["per_class"].values()
    kinds = {
        kind: [*(one["kinds"][kind] for one in classes), total] for kind, total in errors["kinds"].items()
    }
    for name in ("false_positives", "misses"):
        kinds[f"all {name.replace('_', ' ')}"] = [*(one[name] for one in classes), errors[name]]
    rows = [[kind, *map(_impact, cells)] for kind, cells in kinds.items()]
    return Table(["AP points to gain (errors)", *errors["per_class"], "mAP"], rows)


def _impact(one: Mapping[str, Any]) -> str:
    points = None if one["delta_ap"] is None else 100 * one["delta_ap"]
    return f"{number(points, '.1f')} ({one['count']:,})"


def counting_table(counting: Mapping[str, Any]) -> Table:
    """The table of `CountReport` as a dict: a row for each class and one for all cells together."""
    header = [
        "", "score from", "true", "counted", "accuracy %", "mean |difference|", "bias", "95 % of differences",
        "R²", "images exact",
    ]  # fmt: skip
    rows = [
        [
            name,
            "" if one["threshold"] is None else f"{one['threshold']:.2f}",
            str(one["true"]),
            str(one["counted"]),
            Interval(**one["accuracy"]).to_text(".1f", ".1f"),
            Interval(**one["mae"]).to_text(".2f", ".2f"),
            Interval(**one["bias"]).to_text("+.2f", "+.2f"),
            " to ".join(number(one[end]["value"], "+.1f") for end in ("lower_limit", "upper_limit")),
            Interval(**one["r2"]).to_text(".2f", ".2f"),
            number(one["exact"]["value"], ".0%"),
        ]
        for name, one in {**counting["per_class"], "all": counting["together"]}.items()
    ]
    return Table(header, rows, total=True)


def calibration_table(calibration: Mapping[str, Any]) -> Table:
    """The table of `CalibrationReport` as a dict: each class and all, before and after scaling."""
    header = ["", "detections", "mean score", "precision", "ECE", "ECE, scaled", "largest gap"]

    def rows_of(one: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        return {**one["per_class"], "all": one["together"]}

    after = rows_of(calibration["after"]) if calibration["after"] else {}
    rows = []
    for name, one in rows_of(calibration["before"]).items():
        scaled = after[name]["ece"] if after else None
        figures = (one["mean_score"], one["precision"], one["ece"], scaled, one["mce"])
        rows.append([name, str(one["count"]), *map(number, figures)])
    return Table(header, rows, total=True)


def notices(metrics: Mapping[str, Any]) -> list[str]:
    """What is to be said before any figure of metrics: of its data, and of weights that are not the run's."""
    found = [notice] if (notice := metrics.get("data", {}).get("notice")) else []
    borrowed = metrics.get("borrowed")
    if borrowed and isinstance(borrowed, Mapping):
        which = " and ".join(sorted({str(name) for name in borrowed.values()}))
        found.append(
            f"Measured on the shipped weights {which}, not on a training of this run: {', '.join(borrowed)}."
        )
    return found


def results_text(metrics: Mapping[str, Any]) -> str:
    """The results sections of metrics as plain tables, under what is to be said of data and weights."""
    blocks = notices(metrics)
    for name, section in result_sections(metrics).items():
        blocks.append(f"{name} ({section.get('images', '?')} images)\n{result_table(section).to_text()}")
        if intervals := section.get("intervals"):
            blocks.append(f"with 95 % intervals over the images\n{interval_table(intervals).to_text()}")
    return "\n\n".join(blocks) if blocks else "no results yet"


def analysis_text(section: Mapping[str, Any], split: str) -> str:
    """Errors by kind, counts and calibration as plain tables."""
    chosen = "chosen on val" + (", which is evaluated here: optimistic" if split == "val" else "")
    tables = {
        "errors by kind, of all detections": error_table(section["errors"]),
        f"counts; thresholds {chosen}": counting_table(section["counting"]),
        f"calibration; temperature {chosen}": calibration_table(section["calibration"]),
    }
    return "".join(f"\n{title}\n{table.to_text()}\n" for title, table in tables.items())
