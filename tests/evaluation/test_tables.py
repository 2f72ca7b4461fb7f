"""Tables of metrics, intervals, errors, counts and calibration, made of the sections of metrics.json."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from ssdlib.evaluation.bootstrap import bootstrap_map
from ssdlib.evaluation.evaluate import analysis_section
from ssdlib.evaluation.metrics import evaluate_detections
from ssdlib.evaluation.tables import (
    Interval,
    analysis_text,
    calibration_table,
    counting_table,
    error_table,
    interval_table,
    result_table,
    results_text,
)
from tests.evaluation.cases import NAMES, found, truth

VAL = (
    [found((0, 2, 0.9), (200, 2, 0.4), (600, 1, 0.8)), found((0, 2, 0.9), (400, 2, 0.3))],
    [truth((0, 2), (600, 1)), truth((0, 2))],
)


def section(choose_on, report_on):
    """As read back from a file."""
    values = analysis_section(choose_on, report_on, NAMES, samples=20)
    return json.loads(json.dumps(values, allow_nan=False))


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(None, None, None), "n/a"),
        (Interval(0.5, None, None), "0.500"),
        (Interval(0.9019, 0.88, 0.9213), "0.902 [0.88, 0.92]"),
    ],
)
def test_how_an_interval_is_written(interval, text):
    assert str(interval) == text


def test_results_and_intervals():
    detections, targets = [found((900, 2, 0.9))] * 2, [truth((0, 1))] * 2
    values = asdict(evaluate_detections(detections, targets, NAMES))
    plain = result_table(values)
    assert plain.header == [
        "class", "AP50", "AP", "VOC07 AP", "precision", "recall", "objects", "detections",
    ]  # fmt: skip
    assert plain.rows[0] == ["WBC", "0.000", "0.000", "0.000", "n/a", "0.000", "2", "0"]
    assert plain.rows[-1] == ["all", "0.000", "0.000", "0.000", "", "", "2", "2"] and plain.total
    intervals = json.loads(json.dumps(bootstrap_map(detections, targets, NAMES, samples=9).to_dict()))
    table = interval_table(intervals)
    assert table.header == ["", *NAMES, "mean"]
    assert table.rows[0] == ["COCO AP at IoU 0.5", "0.000 [0.00, 0.00]", "n/a", "n/a", "0.000 [0.00, 0.00]"]
    assert table.rows[4] == ["precision", "n/a", "0.000 [0.00, 0.00]", "n/a", ""]
    assert table.rows[6] == ["COCO AR at 100", "", "", "", "0.000 [0.00, 0.00]"]
    rows = result_table({**values, "intervals": intervals}).rows
    assert [row[1] for row in rows] == table.rows[0][1:]
    text = results_text({"test": {**values, "intervals": intervals}, "data": {"notice": "SYNTHETIC"}})
    assert text.startswith("SYNTHETIC\n\ntest (2 images)\n") and table.to_text() in text


@pytest.mark.parametrize(
    "case", [([], []), ([found()], [truth()]), VAL], ids=["no images", "empty image", "two images"]
)
def test_every_table_has_full_rows(case):
    values = section(case, case)
    assert values["images"] == len(case[1])
    for table in (
        error_table(values["errors"]),
        counting_table(values["counting"]),
        calibration_table(values["calibration"]),
    ):
        assert table.rows and all(len(row) == len(table.header) for row in table.rows)
        assert not any("None" in cell or "nan" in cell for row in table.rows for cell in row)
        assert table.to_text() in analysis_text(values, "val")


def test_what_fixing_an_error_gains():
    case = ([found((200, 2, 0.9), (0, 2, 0.8))], [truth((0, 2))])
    table = error_table(section(case, case)["errors"])
    rows = {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}
    assert rows["background"] == {
        "WBC": "n/a (0)",
        "RBC": "50.0 (1)",
        "Platelets": "n/a (0)",
        "mAP": "50.0 (1)",
    }
    assert rows["all false positives"]["RBC"] == "50.0 (1)" and rows["missed"]["mAP"] == "0.0 (0)"


def test_calibration_before_and_after_one_temperature():
    table = calibration_table(section(VAL, VAL)["calibration"])
    assert [row[0] for row in table.rows] == [*NAMES, "all"] and table.total
    every = dict(zip(table.header, table.rows[-1], strict=True))
    assert every["detections"] == "5" and every["precision"] == "0.600" and every["mean score"] == "0.660"
    assert table.rows[2][1:] == ["0", "n/a", "n/a", "n/a", "n/a", "n/a"], "no platelet was found"


def test_thresholds_come_from_the_first_split_and_figures_from_the_second():
    test = ([found((0, 2, 0.9), (200, 2, 0.45))], [truth((0, 2), (200, 2))])
    table = counting_table(section(VAL, test)["counting"])
    rbc = dict(zip(table.header, table.rows[1], strict=True))
    # On val 0.41 and more count right; there 0.5 is the nearest to the middle, and misses one here.
    assert (rbc["score from"], rbc["true"], rbc["counted"], rbc["accuracy %"]) == (
        "0.50", "2", "1", "50.0",
    )  # fmt: skip
    assert rbc["95 % of differences"] == "n/a to n/a", "one image has no spread"
