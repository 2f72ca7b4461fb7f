"""Measured results as rows of text: the report's, the command line's and the notebooks' tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that holds the middle 95 % of it over the draws; None where undefined."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Such as `0.902 [0.88, 0.92]`."""
        if self.value is None:
            return "n/a"
        return f"{self.value:.3f}" + (f" [{self.low:.2f}, {self.high:.2f}]" if self.low is not None else "")


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


def interval_rows(intervals: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of `Intervals.to_dict`: a row for each figure, a column for each class and their mean.

    Sections written before all figures had intervals give the one row that they hold.
    """
    classes = intervals.get("classes") or {
        name: {"ap_50": value} for name, value in intervals["per_class"].items()
    }
    rows = []
    for figure, (words, mean) in _FIGURES.items():
        cells = [of_class.get(figure) for of_class in classes.values()] + [intervals.get(mean)]
        if any(cells):
            rows.append([words, *(str(Interval(**cell)) if cell else "" for cell in cells)])
    return ["", *classes, "mean"], rows


Table = tuple[list[str], list[list[str]]]
"""A header, and rows of as many cells."""

ALL = "all"


def error_rows(errors: Mapping[str, Any]) -> Table:
    """`TideErrors.to_dict` as a table: the AP points (0.01) that each kind costs, and how many."""
    classes = errors["per_class"]
    kinds = {
        kind: (one, [c["kinds"][kind] for c in classes.values()]) for kind, one in errors["kinds"].items()
    }
    for name in ("false_positives", "misses"):
        words = f"{ALL} {name.replace('_', ' ')}"
        kinds[words] = (errors[name], [c[name] for c in classes.values()])
    rows = [[kind, *map(_cost, of_classes), _cost(one)] for kind, (one, of_classes) in kinds.items()]
    return ["AP points to gain (errors)", *classes, "mAP"], rows


def counting_rows(counting: Mapping[str, Any]) -> Table:
    """`CountReport.to_dict` as a table: a row for each class and one for all cells of an image together."""
    header = [
        "", "score from", "true", "counted", "accuracy %", "mean |difference|", "bias", "95 % of differences",
        "R²", "images exact",
    ]  # fmt: skip
    rows = [
        [
            name,
            _text(one["threshold"], "{:.2f}") if one["threshold"] is not None else "",
            str(one["true"]),
            str(one["counted"]),
            _interval(one["accuracy"], "{:.1f}"),
            _interval(one["mae"], "{:.2f}"),
            _interval(one["bias"], "{:+.2f}"),
            " to ".join(_text(one[end]["value"], "{:+.1f}") for end in ("lower_limit", "upper_limit")),
            _interval(one["r2"], "{:.2f}"),
            _text(one["exact"]["value"], "{:.0%}"),
        ]
        for name, one in {**counting["per_class"], ALL: counting["together"]}.items()
    ]
    return header, rows


def calibration_rows(calibration: Mapping[str, Any]) -> Table:
    """`CalibrationReport.to_dict` as a table: before and after the temperature, each class and all."""
    header = ["", "detections", "mean score", "share right", "ECE", "ECE, scaled", "largest gap"]
    before, after = calibration["before"], calibration["after"]
    names = [*before["per_class"], ALL]
    rows = []
    for name in names:
        now, then = (
            None if one is None else one["together"] if name == ALL else one["per_class"][name]
            for one in (before, after)
        )
        assert now is not None
        figures = (now["mean_score"], now["right"], now["ece"], then and then["ece"], now["mce"])
        rows.append([name, str(now["count"]), *(_text(value, "{:.3f}") for value in figures)])
    return header, rows


def _cost(one: Mapping[str, Any]) -> str:
    cost = None if one["cost"] is None else 100 * one["cost"]
    return f"{_text(cost, '{:.1f}')} ({one['count']:,})"


def _interval(values: Mapping[str, Any], form: str) -> str:
    one = Interval(**values)
    if one.value is None or one.low is None or one.high is None:
        return _text(one.value, form)
    return f"{form.format(one.value)} [{form.format(one.low)}, {form.format(one.high)}]"


def _text(value: float | None, form: str) -> str:
    return "n/a" if value is None else form.format(value)


def result_sections(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The sections of metrics.json that hold detection results, that is, have `per_class`."""
    return {
        k: v for k, v in metrics.items() if isinstance(v, Mapping) and isinstance(v.get("per_class"), dict)
    }


def result_rows(section: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of one results section: a row for each class, then all classes together.

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
    per_class = section["per_class"]
    columns = [name for name in known if any(name in values for values in per_class.values())]
    total = {"ap_50": "map_50", "ap": "map", "voc07_ap": "voc07_map"}
    rows = [[label, *(_number(values.get(name)) for name in columns)] for label, values in per_class.items()]
    counted = [
        str(sum(v.get(name) or 0 for v in per_class.values()))
        if name in ("ground_truth", "detections")
        else _number(section[total[name]])
        if total.get(name) in section
        else ""
        for name in columns
    ]
    rows.append(["all", *counted])
    if "ap_50" in columns and (intervals := section.get("intervals")):
        place = 1 + columns.index("ap_50")
        for row, interval in zip(rows, [*intervals["per_class"].values(), intervals["map_50"]], strict=True):
            row[place] = str(Interval(**interval))
    return ["class", *(known[name] for name in columns)], rows


def _number(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def results_text(metrics: dict[str, Any]) -> str:
    """The results sections of metrics as plain tables, under the notice if the data are synthetic."""
    blocks = [notice] if (notice := metrics.get("data", {}).get("notice")) else []
    for name, section in result_sections(metrics).items():
        header, rows = result_rows(section)
        blocks.append(f"{name} ({section.get('images', '?')} images)\n{text_table(header, rows)}")
        if "classes" in (intervals := section.get("intervals") or {}):  # else the table above holds them all
            table = text_table(*interval_rows(intervals), total=False)
            blocks.append(f"with 95 % intervals over the images\n{table}")
    return "\n\n".join(blocks) if blocks else "no results yet"


def analysis_text(section: dict[str, Any], split: str) -> str:
    """Errors by kind, counts and calibration as plain tables."""
    chosen = "chosen on val" + (", which is judged here: too kind" if split == "val" else "")
    tables = {
        "errors by kind, of all detections": error_rows(section["errors"]),
        f"counts; thresholds {chosen}": counting_rows(section["counting"]),
        f"calibration; temperature {chosen}": calibration_rows(section["calibration"]),
    }
    return "".join(
        f"\n{title}\n{text_table(*rows, total=rows[1][-1][0] == ALL)}\n" for title, rows in tables.items()
    )


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = True) -> str:
    """A plain table: first column to the left, numbers to the right, the last row set off as a total."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "  ".join("-" * width for width in widths)

    def line(cells: Sequence[str]) -> str:
        first, *others = (pad for pad in zip(cells, widths, strict=True))
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    body = [line(row) for row in rows]
    return "\n".join(
        [line(header), rule, *body[:-1], *([rule] if total and len(body) > 1 else []), *body[-1:]]
    )
