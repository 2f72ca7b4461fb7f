"""Errors, counts and calibration side by side: the section of metrics.json and the tables made of it."""

from __future__ import annotations

import json

import pytest
import torch

from ssdlib.evaluation.analysis import analysis_section
from ssdlib.evaluation.tables import calibration_rows, counting_rows, error_rows
from ssdlib.inference.detections import Detections

NAMES = ("WBC", "RBC", "Platelets")
SIZE = (200, 100)


def truth(*objects):
    """Objects as (label, column): 20 x 20 boxes 40 pixels apart."""
    boxes = [[40.0 * column, 10, 40 * column + 20, 30] for _, column in objects]
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor([label for label, _ in objects], dtype=torch.int64),
    }


def found(*objects):
    """Detections as (label, column, score)."""
    boxes = truth(*((label, column) for label, column, _ in objects))["boxes"]
    return Detections(boxes, [s for *_, s in objects], [label for label, *_ in objects], SIZE, NAMES)


NOTHING = ([], [])
EMPTY = ([found()], [truth()])
VAL = (
    [found((2, 0, 0.9), (2, 1, 0.4), (1, 3, 0.8)), found((2, 0, 0.9), (2, 2, 0.3))],
    [truth((2, 0), (1, 3)), truth((2, 0))],
)


@pytest.mark.parametrize("judged", [NOTHING, EMPTY, VAL], ids=["no images", "empty image", "two images"])
def test_section_is_plain_and_every_table_has_full_rows(judged):
    section = json.loads(json.dumps(analysis_section(judged, judged, NAMES, samples=20), allow_nan=False))
    assert section["images"] == len(judged[1])
    tables = (
        error_rows(section["errors"]),
        counting_rows(section["counting"]),
        calibration_rows(section["calibration"]),
    )
    for header, rows in tables:
        assert rows and all(len(row) == len(header) for row in rows)
        assert not any("None" in cell or "nan" in cell for row in rows for cell in row)


def test_thresholds_come_from_the_first_split_and_figures_from_the_second():
    test = ([found((2, 0, 0.9), (2, 1, 0.45))], [truth((2, 0), (2, 1))])
    section = analysis_section(VAL, test, NAMES, samples=20)
    header, rows = counting_rows(section["counting"])
    rbc = dict(zip(header, rows[1], strict=True))
    # On val 0.41 and more count right; there 0.5 is the nearest to the middle, and misses one here.
    assert (rbc["score from"], rbc["true"], rbc["counted"], rbc["accuracy %"]) == (
        "0.50", "2", "1", "50.0",
    )  # fmt: skip
    assert rbc["95 % of differences"] == "n/a to n/a", "one image has no spread"


def test_what_an_error_costs_stands_in_the_table():
    judged = ([found((2, 1, 0.9), (2, 0, 0.8))], [truth((2, 0))])
    header, rows = error_rows(analysis_section(judged, judged, NAMES, samples=5)["errors"])
    table = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    assert table["background"] == {
        "WBC": "n/a (0)",
        "RBC": "50.0 (1)",
        "Platelets": "n/a (0)",
        "mAP": "50.0 (1)",
    }
    assert table["all false positives"]["RBC"] == "50.0 (1)" and table["missed"]["mAP"] == "0.0 (0)"


def test_calibration_before_and_after_one_temperature():
    section = analysis_section(VAL, VAL, NAMES, samples=5)
    header, rows = calibration_rows(section["calibration"])
    assert [row[0] for row in rows] == [*NAMES, "all"]
    every = dict(zip(header, rows[-1], strict=True))
    assert every["detections"] == "5" and every["share right"] == "0.600" and every["mean score"] == "0.660"
    assert rows[2][1:] == ["0", "n/a", "n/a", "n/a", "n/a", "n/a"], "no platelet was found"
