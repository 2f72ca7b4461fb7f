"""Detections: order, thresholds, counts, what is impossible, and their form as plain values."""

from __future__ import annotations

import json

import pytest
import torch

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.inference.detections import Detections
from tests.inference.cases import EXAMPLES, NAMES, SIZE, assert_same, random_detections


@pytest.mark.parametrize("detections", EXAMPLES)
def test_plain_values_and_back(detections):
    values = detections.to_dict()
    back = Detections.from_dict(json.loads(json.dumps(values, allow_nan=False)))
    assert_same(back, detections, atol=0.0051)
    assert back.to_dict() == values
    assert set(values) == {"image", "width", "height", "detections", "counts"}
    assert (values["width"], values["height"]) == SIZE
    assert sum(values["counts"].values()) == len(values["detections"]) == len(detections)


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ([], "(640 x 480): 0 WBC, 0 RBC, 0 Platelets at score >= 0.5>"),
        ([0.5, 0.9], "(640 x 480): 0 WBC, 2 RBC, 0 Platelets at score >= 0.5>"),
        ([0.5, 0.4], "(640 x 480): 0 WBC, 1 RBC, 0 Platelets at score >= 0.5, and 1 below>"),
    ],
)
def test_a_prompt_shows_the_counts(scores, shown):
    found = Detections(torch.zeros(len(scores), 4), scores, [2] * len(scores), SIZE, NAMES, "field.jpg")
    assert repr(found) == f"<Detections in field.jpg {shown}"


def test_sorted_by_score_and_ties_keep_their_order():
    boxes = [[i, 0, i + 1, 1] for i in range(4)]
    found = Detections(boxes, [0.2, 0.9, 0.2, 0.5], [1, 2, 3, 1], SIZE, NAMES)
    assert found.boxes[:, 0].tolist() == [1, 3, 0, 2]
    assert found.names == ["RBC", "WBC", "WBC", "Platelets"]


@pytest.mark.parametrize(
    ("scores", "labels", "threshold", "left"),
    [
        ([], [], 0.5, 0),
        ([0.5, 0.49], [1, 1], 0.5, 1),
        ([0.7, 0.7], [1, 2], 0.7, 2),
        ([0.7, 0.7], [1, 2], {"WBC": 0.8, "RBC": 0.7, "Platelets": 0.1}, 1),
    ],
)
def test_above(scores, labels, threshold, left):
    found = Detections(torch.zeros(len(scores), 4), scores, labels, SIZE, NAMES)
    assert len(found.above(threshold)) == left


@pytest.mark.parametrize(
    "threshold", [{}, {"WBC": 0.5}, {"WBC": 0.5, "RBC": 0.5, "Platelets": 0.5, "Giraffe": 0.5}]
)
def test_above_wants_exactly_the_classes(threshold):
    with pytest.raises(ConfigError, match="WBC, RBC, Platelets"):
        random_detections(2).above(threshold)


@pytest.mark.parametrize(
    ("scores", "labels", "counts", "means"),
    [
        ([], [], (0, 0, 0), (None, None, None)),
        ([0.5], [3], (0, 0, 1), (None, None, 0.5)),
        ([0.75, 0.25, 1.0], [1, 1, 2], (2, 1, 0), (0.5, 1.0, None)),
    ],
)
def test_counts_and_mean_scores(scores, labels, counts, means):
    found = Detections(torch.zeros(len(scores), 4), scores, labels, SIZE, NAMES)
    assert found.counts() == dict(zip(NAMES, counts, strict=True))
    assert found.mean_scores() == dict(zip(NAMES, means, strict=True))


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "message"),
    [
        ([], [0.5], [1], "0 boxes, 1 scores"),
        ([[0, 0, 1, 1]], [0.5], [0], "label outside"),
        ([[0, 0, 1, 1]], [0.5], [4], "label outside"),
        ([[0, 0, 1, float("nan")]], [0.5], [1], "finite"),
        ([[0, 0, 1, 1]], [float("inf")], [1], "finite"),
    ],
)
def test_impossible_values_name_the_image(boxes, scores, labels, message):
    with pytest.raises(DataError, match=rf"(?s)field\.jpg.*{message}"):
        Detections(boxes, scores, labels, SIZE, NAMES, "field.jpg")


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: {},
        lambda values: values | {"detections": [{"box": [1, 2, 3], "label": "RBC", "score": 0.5}]},
        lambda values: values | {"detections": [{"box": [1, 2, 3, 4], "label": "Giraffe", "score": 0.5}]},
        lambda values: values | {"detections": [{"box": [1, 2, 3, 4], "score": 0.5}]},
    ],
)
def test_damaged_records_are_refused(damage):
    with pytest.raises(DataError):
        Detections.from_dict(damage(random_detections(2).to_dict()))
