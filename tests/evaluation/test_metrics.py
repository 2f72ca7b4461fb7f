"""Metrics of nothing, of one image and of weighted images; score thresholds; the confusion matrix."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import numpy as np
import pytest

from ssdlib.common.errors import ConfigError
from ssdlib.evaluation.metrics import (
    confusion_matrix,
    evaluate_detections,
    precision_recall,
    weighted_metrics,
)
from tests.evaluation.cases import NAMES, found, random_case, truth


def test_scores_are_ranked_over_all_images():
    result = precision_recall(
        [found((0, 1, 0.3)), found((0, 1, 0.9), (500, 1, 0.5))], [truth((0, 1)), truth((0, 1), (990, 1))], 1
    )
    assert result.scores.tolist() == pytest.approx([0.9, 0.5, 0.3])
    assert result.true_positive.tolist() == [True, False, True]
    assert result.ground_truth == 3
    assert result.recall.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert result.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])


def numbers(values) -> list:
    return [values[key] for key in ("map_50", "map", "voc07_map", "voc12_map", "mar_100")]


@pytest.mark.parametrize(
    ("detections", "targets", "means"),
    [
        pytest.param([], [], [None] * 5, id="no images"),
        pytest.param([found()], [truth()], [None] * 5, id="one empty image"),
        pytest.param([found((0, 1, 0.9))], [truth()], [None] * 5, id="no ground truth"),
        pytest.param([found()], [truth((0, 1))], [0.0] * 5, id="no detections"),
        pytest.param([found((0, 1, 0.9))], [truth((0, 1))], [1.0] * 5, id="one perfect image"),
        pytest.param(
            [found(), found((0, 1, 0.9))], [truth(), truth((0, 1))], [1.0] * 5, id="and an empty one"
        ),
        pytest.param(
            [found((0, 1, 0.9), (500, 3, 0.8))], [truth((0, 1))], [1.0] * 5, id="an absent class is no 0"
        ),
    ],
)
def test_degenerate_sets_are_defined(detections, targets, means):
    result = evaluate_detections(detections, targets, NAMES)
    values = json.loads(json.dumps(asdict(result), allow_nan=False))
    assert values["images"] == len(targets)
    assert numbers(values) == [None if mean is None else pytest.approx(mean) for mean in means]
    assert set(values["per_class"]) == set(NAMES)
    for own in values["per_class"].values():
        absent = own["ground_truth"] == 0
        for key in ("ap_50", "ap", "voc07_ap", "voc12_ap", "recall"):
            assert (own[key] is None) == absent
        assert (own["precision"] is None) == (own["detections"] == 0)
    assert confusion_matrix(detections, targets, 4).sum() == max(
        sum(len(t["labels"]) for t in targets), sum(map(len, detections))
    )


@pytest.mark.parametrize(
    ("threshold", "precision", "recall", "count"),
    [
        (1.0, None, 0.0, 0),
        (0.7, 1.0, 1 / 2, 1),
        (0.6, 1 / 2, 1 / 2, 2),
        ({"WBC": 0.1, "RBC": 0.9, "Platelets": 0.9}, 2 / 3, 1.0, 3),
    ],
)
def test_precision_and_recall_at_the_score_threshold(threshold, precision, recall, count):
    detections = [found((0, 1, 0.7), (900, 1, 0.6), (500, 1, 0.2))]
    result = evaluate_detections(
        detections, [truth((0, 1), (500, 1))], NAMES, score_threshold=threshold
    ).per_class["WBC"]
    assert (result.precision, result.recall, result.detections) == (precision, recall, count)


@pytest.mark.parametrize("threshold", [{"WBC": 0.5}, 1.5])
def test_impossible_thresholds_are_refused(threshold):
    with pytest.raises(ConfigError, match="score threshold"):
        evaluate_detections([], [], NAMES, score_threshold=threshold)


@pytest.mark.parametrize(
    ("detections", "target", "cells"),
    [
        (found(), truth(), {}),
        (found(), truth((0, 2)), {(2, 0): 1}),
        (found((0, 2, 0.9)), truth(), {(0, 2): 1}),
        (found((0, 2, 0.4)), truth(), {}),
        (found((0, 3, 0.9)), truth((0, 2)), {(2, 3): 1}),
        # Two on one object: the better overlap is matched, whatever its score; the other is a false positive.
        (found((0, 2, 0.6), (20, 1, 0.9)), truth((0, 2)), {(2, 2): 1, (0, 1): 1}),
        (found((0, 2, 0.9), (20, 1, 0.6)), truth((0, 2)), {(2, 2): 1, (0, 1): 1}),
        (found((0, 1, 0.9), (400, 2, 0.9)), truth((10, 1), (800, 3)), {(1, 1): 1, (0, 2): 1, (3, 0): 1}),
    ],
)
def test_confusion_matrix_by_hand(detections, target, cells):
    expected = np.zeros((4, 4), dtype=np.int64)
    for cell, count in cells.items():
        expected[cell] = count
    assert confusion_matrix([detections], [target], 4, 0.5).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_confusion_matrix_accounts_for_everything(seed):
    detections, targets = random_case(seed)
    matrix = confusion_matrix(detections, targets, 4, 0.3)
    assert matrix[1:].sum() == sum(len(t["labels"]) for t in targets)
    assert matrix[:, 1:].sum() == sum(len(d.above(0.3)) for d in detections)
    assert matrix[0, 0] == 0


@pytest.mark.parametrize("seed", range(3))
def test_an_image_of_weight_two_counts_as_two(seed):
    """Weights of many rows: they are worked through 64 at a time."""
    detections, targets = random_case(seed)
    thresholds = {"WBC": 0.5, "RBC": 0.7, "Platelets": 0.2}
    weights = np.random.default_rng(seed).integers(0, 4, (130, len(targets)))
    figures = weighted_metrics(detections, targets, NAMES, weights, score_threshold=thresholds)
    for row in (0, 63, 64, 129):
        listed = np.repeat(np.arange(len(targets)), weights[row])
        again = [detections[i] for i in listed], [targets[i] for i in listed]
        metrics = asdict(evaluate_detections(*again, NAMES, score_threshold=thresholds))
        for name, values in figures.items():
            if name in metrics:
                assert values[row] == nearly(metrics[name]), name
            elif name != "ar_100":
                exact = [nearly(entry[name]) for entry in metrics["per_class"].values()]
                assert values[:, row].tolist() == exact, name


def nearly(value):
    return pytest.approx(np.nan if value is None else value, abs=1e-9, nan_ok=True)


def test_72_images_of_200_detections_in_two_seconds():
    detections, targets = random_case(0, images=72, extra=190)
    started = time.process_time()
    evaluate_detections(detections, targets, NAMES)
    assert time.process_time() - started < 2
