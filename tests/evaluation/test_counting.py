"""Counts by hand, thresholds that count best, and intervals that are what listing images again would give."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from ssdlib.common.errors import ConfigError
from ssdlib.evaluation.bootstrap import resample_images
from ssdlib.evaluation.counting import count_curve, count_report, count_thresholds
from ssdlib.evaluation.tables import Interval
from ssdlib.inference.detections import Detections
from tests.evaluation.cases import NAMES, SIZE

UNDEFINED = Interval(None, None, None)
FIGURES = (
    "mae", "bias", "lower_limit", "upper_limit", "r2", "pearson", "accuracy", "ratio", "exact",
)  # fmt: skip


def found(*rows) -> Detections:
    """Rows of (label, score); where the boxes are is of no matter."""
    return Detections(
        [[0, 0, 10, 10]] * len(rows), [row[1] for row in rows], [row[0] for row in rows], SIZE, NAMES
    )


def truth(*labels) -> dict:
    return {"boxes": torch.zeros(len(labels), 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def counted(true, counts, label=2):
    """(detections, targets) with these numbers of one class per image, all of score 0.9."""
    return [found(*[(label, 0.9)] * n) for n in counts], [truth(*[label] * n) for n in true]


def random_split(seed=0, images=72, dense=60):
    rng = np.random.default_rng(seed)
    targets = [truth(*rng.choice([1, 2, 2, 2, 3], rng.integers(0, 25))) for _ in range(images)]
    detections = [found(*zip(rng.integers(1, 4, dense), rng.random(dense), strict=True)) for _ in targets]
    return detections, targets


def test_figures_by_hand():
    report = count_report(*counted([2, 4, 6, 8], [3, 4, 4, 10]), NAMES)
    rbc = report.per_class["RBC"]
    assert (rbc.true, rbc.counted, rbc.threshold) == (20, 21, 0.5)
    assert (rbc.true_per_image, rbc.counted_per_image) == ((2, 4, 6, 8), (3, 4, 4, 10))
    deviation = np.std([1, 0, -2, 2], ddof=1)
    expected = {
        "mae": 5 / 4,
        "bias": 1 / 4,
        "lower_limit": 1 / 4 - 1.96 * deviation,
        "upper_limit": 1 / 4 + 1.96 * deviation,
        "r2": 1 - 9 / 20,  # squares about the mean of 5: 9 + 1 + 1 + 9
        "pearson": np.corrcoef([2, 4, 6, 8], [3, 4, 4, 10])[0, 1],
        "accuracy": 95.0,
        "ratio": 105.0,
        "exact": 1 / 4,
    }
    for name, value in expected.items():
        assert getattr(rbc, name).value == pytest.approx(value), name
        assert getattr(rbc, name).low < getattr(rbc, name).high, name
    # No other class is there, so all cells together are the red ones.
    assert {name: getattr(report.together, name) for name in FIGURES} == {
        name: getattr(rbc, name) for name in FIGURES
    }


@pytest.mark.parametrize(
    ("true", "counts", "defined", "values"),
    [
        ([], [], set(), {}),
        ([0, 0], [0, 0], {"mae", "bias", "lower_limit", "upper_limit", "exact"}, {"mae": 0, "exact": 1}),
        ([0, 0], [1, 0], {"mae", "bias", "lower_limit", "upper_limit", "exact"}, {"mae": 0.5, "bias": 0.5}),
        ([5], [3], {"mae", "bias", "accuracy", "ratio", "exact"}, {"mae": 2, "bias": -2, "accuracy": 60}),
        (
            [5, 5], [3, 9],
            {"mae", "bias", "lower_limit", "upper_limit", "accuracy", "ratio", "exact"},
            {"mae": 3, "bias": 1, "accuracy": 80},
        ),
        (
            [1, 3], [0, 0],
            {"mae", "bias", "lower_limit", "upper_limit", "r2", "accuracy", "ratio", "exact"},
            {"r2": -4, "accuracy": 0},
        ),
        # More than twice too many: below 0 rather than a flattering 0.
        ([1], [4], {"mae", "bias", "accuracy", "ratio", "exact"}, {"accuracy": -200, "ratio": 400}),
    ],
)  # fmt: skip
def test_from_nothing_on(true, counts, defined, values):
    report = count_report(*counted(true, counts), NAMES, samples=50)
    rbc = report.per_class["RBC"]
    for name in FIGURES:
        one = getattr(rbc, name)
        assert (one.value is not None) == (name in defined), name
        if one.value is None:
            assert one == UNDEFINED
        elif len(true) == 1:
            assert one.low is one.high is None, "one image resampled is the same image"
    for name, value in values.items():
        assert getattr(rbc, name).value == pytest.approx(value)
    absent = report.per_class["WBC"]
    assert absent.accuracy == absent.r2 == UNDEFINED and absent.true == absent.counted == 0
    text = json.loads(json.dumps(asdict(report), allow_nan=False))
    assert text["images"] == len(true) and list(text["per_class"]) == list(NAMES)


@pytest.mark.parametrize("seed", range(2))
def test_a_resample_equals_listing_its_images_again(seed):
    detections, targets = random_split(seed, images=9, dense=30)
    report = count_report(detections, targets, NAMES, 0.6, samples=40, seed=seed)
    lists = [np.repeat(np.arange(9), counts) for counts in resample_images(9, 40, seed)[1:]]
    again = [
        count_report([detections[i] for i in one], [targets[i] for i in one], NAMES, 0.6, samples=0)
        for one in lists
    ]
    for name in FIGURES:
        values = [getattr(one.per_class["Platelets"], name).value for one in again]
        low, high = np.quantile([value for value in values if value is not None], [0.025, 0.975])
        interval = getattr(report.per_class["Platelets"], name)
        assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high)), name


def test_together_adds_the_classes_of_each_image():
    detections, targets = random_split()
    thresholds = {"WBC": 0.9, "RBC": 0.7, "Platelets": 0.95}
    report = count_report(detections, targets, NAMES, thresholds)
    kept = [one.above(thresholds) for one in detections]
    assert list(report.together.counted_per_image) == [len(one) for one in kept]
    assert list(report.together.true_per_image) == [len(target["labels"]) for target in targets]
    for name, one in report.per_class.items():
        assert list(one.counted_per_image) == [item.counts()[name] for item in kept]
        assert one.threshold == thresholds[name] and report.together.threshold is None
    assert report.together.mae.value <= sum(one.mae.value for one in report.per_class.values())


def test_the_curve_counts_as_above_does():
    """A score of float32 0.7 reaches a threshold of 0.7."""
    detections, targets = random_split(images=6)
    detections.append(found((2, 0.7), (2, 0.69)))
    targets.append(truth(2))
    curve = count_curve(detections, targets, 2)
    for k in (0, 49, 69, 98):
        kept = [one.above(curve.thresholds[k]).counts()["RBC"] for one in detections]
        difference = np.array(kept) - [int((target["labels"] == 2).sum()) for target in targets]
        assert curve.mae[k] == pytest.approx(np.abs(difference).mean())
        assert curve.bias[k] == pytest.approx(difference.mean())
    exact = count_curve([found((2, 0.7))], [truth(2)], 2)
    assert exact.thresholds[69] == 0.7 and exact.mae[69] == 0 and exact.mae[70] == 1


@pytest.mark.parametrize(
    ("detections", "targets", "threshold"),
    [
        ([], [], 0.5),
        ([found((1, 0.9))], [truth()], 0.5),  # no object to choose by
        ([found()], [truth(1)], 0.5),  # no threshold is better than another
        ([found((1, 0.9))], [truth(1)], 0.5),  # every threshold to 0.9 is as good
        ([found((1, 0.3))], [truth(1)], 0.3),  # of those to 0.3 the nearest to 0.5
        ([found((1, 0.9), (1, 0.6))], [truth(1)], 0.61),
        # To 0.7 one too many, from 0.81 one too few: neither is better, and 0.5 is nearer.
        ([found((1, 0.9), (1, 0.8)), found((1, 0.7))], [truth(1), truth(1)], 0.5),
        (
            [found((1, 0.9), (1, 0.8)), found((1, 0.7)), found((1, 0.6))], [truth(1), truth(1), truth()],
            0.61,
        ),
    ],
)  # fmt: skip
def test_thresholds(detections, targets, threshold):
    assert count_thresholds(detections, targets, NAMES)["WBC"] == pytest.approx(threshold)


def test_equal_errors_are_told_apart_by_bias():
    """To 0.3 the first image has one too many, from 0.31 the second lacks one: the MAE is the same.

    The third image has one too few at any threshold, so one too many elsewhere makes up for it.
    """
    detections = [found((1, 0.3), (1, 0.9)), found((1, 0.9), (1, 0.3)), found()]
    targets = [truth(1), truth(1, 1), truth(1)]
    assert count_thresholds(detections, targets, NAMES)["WBC"] == pytest.approx(0.3)


def test_threshold_of_a_class_that_val_lacks():
    detections, targets = random_split()
    targets = [{**one, "labels": one["labels"].clamp(max=2)} for one in targets]
    chosen = count_thresholds(detections, targets, NAMES)
    assert chosen["Platelets"] == 0.5 and 0 < chosen["RBC"] < 1
    best = count_report(detections, targets, NAMES, chosen).per_class["RBC"].mae.value
    for other in (0.2, 0.5, 0.8):
        assert best <= count_report(detections, targets, NAMES, other).per_class["RBC"].mae.value


def test_impossible_thresholds_are_refused():
    with pytest.raises(ConfigError, match="given for WBC; give one for each of WBC, RBC"):
        count_report([found()], [truth()], NAMES, {"WBC": 0.5})
    with pytest.raises(ConfigError, match="Bacteria"):
        count_report([found()], [truth()], NAMES, {**dict.fromkeys(NAMES, 0.5), "Bacteria": 0.5})
