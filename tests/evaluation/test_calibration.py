"""Calibration: bins by hand, scores that are calibrated by construction, and a temperature that is known."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from ssdlib.common.errors import ConfigError
from ssdlib.evaluation.calibration import (
    calibration,
    calibration_report,
    fit_temperature,
    reliability,
    scale_scores,
)
from ssdlib.inference.detections import Detections
from tests.evaluation.cases import NAMES

SIZE = (10000, 480)


def split(scores, right, label=1, images=1):
    """(detections, targets) of (K,) detections side by side, each right or wrong, dealt out to the images."""
    detections, targets = [], []
    for image in range(images):
        s, r = np.asarray(scores)[image::images], np.asarray(right, dtype=bool)[image::images]
        x = 20.0 * np.arange(len(s))
        boxes = np.stack([x, 0 * x, x + 10, 0 * x + 10], axis=1).reshape(-1, 4)
        labels = np.full(len(s), label)
        detections.append(Detections(boxes, s, labels, SIZE, NAMES))
        targets.append({"boxes": torch.from_numpy(boxes[r]), "labels": torch.from_numpy(labels[r])})
    return detections, targets


def drawn(count, temperature=1.0, seed=0):
    """Calibrated scores made too sure (temperature > 1) or too unsure, which that temperature corrects."""
    rng = np.random.default_rng(seed)
    calibrated = rng.uniform(0.02, 0.98, count)
    return scale_scores(calibrated, 1 / temperature), rng.random(count) < calibrated


def test_bins_by_hand():
    result = reliability([0.05, 0.15, 0.15, 0.95, 1.0], [False, True, False, True, True])
    counts = [one.count for one in result.bins]
    assert counts == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert [(one.mean_score, one.precision) for one in result.bins[:3]] == [
        (0.05, 0),
        (0.15, 0.5),
        (None, None),
    ]
    assert result.bins[9].mean_score == pytest.approx(0.975) and result.bins[9].precision == 1
    assert (result.bins[9].low, result.bins[9].high) == (0.9, 1.0)
    assert result.ece == pytest.approx((1 * 0.05 + 2 * 0.35 + 2 * 0.025) / 5)
    assert result.mce == pytest.approx(0.35)
    assert (result.count, result.precision) == (5, pytest.approx(0.6))
    assert result.mean_score == pytest.approx(2.3 / 5)
    assert result.nll == pytest.approx(-np.log([0.95, 0.15, 0.85, 0.95, 1.0]).mean(), abs=1e-5)


@pytest.mark.parametrize(
    ("scores", "right", "ece"),
    [
        ([], [], None),
        ([0.0], [False], 0.0),
        ([1.0], [True], 0.0),
        ([1.0], [False], 1.0),
        ([0.5, 0.5], [True, False], 0.0),
        # Calibrated on the whole, but no bin is: the distances of different bins do not cancel.
        ([0.2, 0.8], [True, False], 0.8),
    ],
)
def test_expected_calibration_error(scores, right, ece):
    result = reliability(scores, right)
    assert result.ece == (None if ece is None else pytest.approx(ece))
    assert (result.mce is None) == (result.nll is None) == (ece is None)


def test_calibrated_scores_have_little_error():
    assert reliability(*drawn(20_000)).ece < 0.015 < 0.08 < reliability(*drawn(20_000, 0.4)).ece


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_found_again(temperature):
    scores, right = drawn(20_000, temperature)
    fitted = fit_temperature(scores, right)
    assert fitted == pytest.approx(temperature, rel=0.05)
    least = [reliability(scale_scores(scores, t), right).nll for t in (0.98 * fitted, fitted, 1.02 * fitted)]
    assert least[1] < min(least[0], least[2])


@pytest.mark.parametrize(
    ("scores", "right"),
    [
        ([], []),
        ([0.9, 0.8], [True, True]),  # as sure as one likes
        ([0.9, 0.2], [True, False]),
        ([0.9, 0.2], [False, True]),  # worse than saying nothing
        ([0.5, 0.5], [True, False]),  # says nothing
    ],
)
def test_no_temperature_fits(scores, right):
    assert fit_temperature(scores, right) is None


def test_scaling_keeps_order_and_one_half():
    scores = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    for temperature in (0.05, 1.0, 20.0):
        scaled = scale_scores(scores, temperature)
        assert (np.diff(scaled) >= 0).all() and scaled[2] == pytest.approx(0.5)
        assert ((scaled >= 0) & (scaled <= 1)).all()
    assert scale_scores(scores, 1.0) == pytest.approx(scores, abs=1e-5)
    assert abs(scale_scores(scores, 3.0) - 0.5).max() < 0.5
    with pytest.raises(ConfigError, match="greater than 0"):
        scale_scores(scores, 0.0)


def test_classes_floor_and_matching():
    """One white cell is found twice: the second is wrong; what lies below the floor is only counted."""
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [50, 0, 60, 10], [90, 0, 95, 10]]
    one = Detections(boxes, [0.9, 0.7, 0.6, 0.02], [1, 1, 2, 3], SIZE, NAMES)
    target = {"boxes": [[0, 0, 10, 10], [50, 0, 60, 10]], "labels": [1, 2]}
    result = calibration([one], [target], NAMES)
    assert (result.left_out, result.floor, result.temperature) == (1, 0.05, 1.0)
    wbc, rbc, platelets = result.per_class.values()
    assert (wbc.count, wbc.precision, rbc.count, rbc.precision) == (2, 0.5, 1, 1.0)
    assert wbc.ece == pytest.approx((0.1 + 0.7) / 2)
    assert platelets.count == 0 and platelets.ece is platelets.mce is platelets.nll is None
    assert result.together.count == 3 and result.together.precision == pytest.approx(2 / 3)
    # Scaling moves scores, not which detections are looked at.
    assert calibration([one], [target], NAMES, temperature=5.0).left_out == 1


def test_fitted_on_one_split_and_better_on_another():
    val, test = (split(*drawn(2000, 2.5, seed), images=8) for seed in (1, 2))
    report = calibration_report(val, test, NAMES)
    assert report.temperature == pytest.approx(2.5, rel=0.15)
    before, after = report.before.together, report.after.together
    assert after.ece < before.ece / 2 and after.nll < before.nll and after.count == before.count
    assert report.before.temperature == 1 and report.after.temperature == report.temperature


@pytest.mark.parametrize(
    "case", [([], []), split([], []), split([0.9], [True]), split([0.01], [False]), split([], [], images=3)]
)
def test_nothing_to_fit(case):
    report = calibration_report(case, case, NAMES)
    assert report.temperature is None and report.after is None
    assert report.before.per_class["RBC"].ece is None
    json.dumps(asdict(report), allow_nan=False)
