"""What a laboratory asks of a detector: which errors, how good the counts, how honest the scores.

`laboratory_section` measures, as plain values for metrics.json; the `*_rows` functions turn these into the
tables that the report, the command line and notebook 5 show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssdlib.detections import Detections
from ssdlib.evaluation.bootstrap import Interval
from ssdlib.evaluation.calibration import calibration_report
from ssdlib.evaluation.counting import count_report, count_thresholds
from ssdlib.evaluation.tide import tide_errors

Judged = tuple[Sequence[Detections], Sequence[Mapping[str, Any]]]
"""Detections and ground truth of the same images in the same order."""
Table = tuple[list[str], list[list[str]]]
"""A header, and rows of as many cells."""

ALL = "all"


def laboratory_section(
    choose_on: Judged, report_on: Judged, class_names: Sequence[str], *, samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Errors by kind, counts and calibration of `report_on`, as plain values.

    Thresholds to count with and the temperature are chosen on `choose_on` (val), so that test remains a test.
    Raises DataError where detections and ground truth differ in length.
    """
    thresholds = count_thresholds(*choose_on, class_names)
    counting = count_report(*report_on, class_names, thresholds, samples=samples, seed=seed).to_dict()
    for one in (*counting["per_class"].values(), counting["together"]):
        del one["true_per_image"], one["counted_per_image"]  # hundreds of numbers that no table shows
    return {
        "images": len(report_on[1]),
        "errors": tide_errors(*report_on, class_names).to_dict(),
        "counting": counting,
        "calibration": calibration_report(choose_on, report_on, class_names).to_dict(),
    }


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
