"""What a analysis asks of a detector: which errors, how good the counts, how honest the scores.

`analysis_section` measures, as plain values for metrics.json; the `*_rows` functions turn these into the
tables that the report, the command line and notebook 5 show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssdlib.evaluation.calibration import calibration_report
from ssdlib.evaluation.counting import count_report, count_thresholds
from ssdlib.evaluation.tide import tide_errors
from ssdlib.inference.detections import Detections

Judged = tuple[Sequence[Detections], Sequence[Mapping[str, Any]]]
"""Detections and ground truth of the same images in the same order."""


def analysis_section(
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
