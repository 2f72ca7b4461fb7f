"""Intervals: the point is the metric's, a draw is what listing its images again would give."""

import json
import time

import numpy as np
import pytest
import torch

from ssdlib.detections import Detections
from ssdlib.errors import DataError
from ssdlib.evaluation.bootstrap import (
    Interval,
    average_precisions,
    bootstrap_map,
    draw_images,
    match_classes,
)
from ssdlib.evaluation.metrics import evaluate_detections

NAMES = ("WBC", "RBC", "Platelets")
SIZE = (640, 480)


def boxes_of(rng, count, spread=200):
    corner = rng.integers(0, spread, (count, 2))
    return np.concatenate([corner, corner + rng.integers(20, 90, (count, 2))], axis=1).astype(np.float32)


def random_case(seed, images=12, objects=12, extra=8, classes=3, empty=0.2):
    """Crowded fields: objects moved a little are found, some twice, some under another class."""
    rng = np.random.default_rng(seed)
    detections, targets = [], []
    for _ in range(images):
        truth = boxes_of(rng, 0 if rng.random() < empty else objects)
        labels = rng.integers(1, classes + 1, len(truth))
        found = np.concatenate([truth, truth[: len(truth) // 2]]) + rng.normal(0, 6, (len(truth) * 3 // 2, 4))
        found = np.concatenate([found, boxes_of(rng, 0 if rng.random() < empty else extra)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        said = np.concatenate([labels, labels[: len(truth) // 2]])
        said = np.concatenate([said, rng.integers(1, classes + 1, len(found) - len(said))])
        detections.append(Detections(found, rng.random(len(found)), said, SIZE, NAMES))
        targets.append({"boxes": torch.from_numpy(truth), "labels": torch.from_numpy(labels)})
    return detections, targets


def many_in_one_image(seed=3):
    """More than COCO's limit of 100 detections of a class."""
    rng = np.random.default_rng(seed)
    truth = boxes_of(rng, 130, spread=500)
    found = Detections(truth + rng.normal(0, 3, truth.shape), rng.random(130), [2] * 130, SIZE, NAMES)
    return [found], [{"boxes": truth, "labels": [2] * 130}]


EMPTY = Detections.empty(SIZE, NAMES)
NO_OBJECTS = {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)}
ONE = {"boxes": [[10, 10, 60, 60]], "labels": [1]}
CASES = {
    "no image": ([], []),
    "nothing anywhere": ([EMPTY] * 2, [NO_OBJECTS] * 2),
    "nothing found": ([EMPTY] * 2, [ONE, NO_OBJECTS]),
    "false alarms alone": ([Detections([[1, 1, 9, 9]], [0.5], [1], SIZE, NAMES)], [NO_OBJECTS]),
    "IoU of exactly 0.5": ([Detections([[10, 10, 60, 35]], [0.5], [1], SIZE, NAMES)], [ONE]),
    "two equal objects": (
        [Detections([[10, 10, 60, 60]] * 3, [0.9, 0.8, 0.7], [1] * 3, SIZE, NAMES)],
        [{"boxes": [[10, 10, 60, 60]] * 2, "labels": [1, 1]}],
    ),
    "over the limit": many_in_one_image(),
    "one class": random_case(1, classes=1),
    **{f"random {seed}": random_case(seed) for seed in range(4)},
}


@pytest.mark.parametrize("name", CASES)
def test_the_point_is_the_metric(name):
    detections, targets = CASES[name]
    metrics = evaluate_detections(detections, targets, NAMES)
    intervals = bootstrap_map(detections, targets, NAMES, samples=20)
    assert intervals.map_50.value == pytest.approx(metrics.map_50, abs=1e-6)
    for cls, entry in metrics.per_class.items():
        interval = intervals.per_class[cls]
        assert interval.value == pytest.approx(entry.ap_50, abs=1e-6)
        if interval.value is None:
            assert interval == Interval(None, None, None) and str(interval) == "n/a"
        else:
            assert 0 <= interval.low <= interval.high <= 1
    assert intervals.images == len(targets)
    json.dumps(intervals.to_dict(), allow_nan=False)


@pytest.mark.parametrize("seed", range(3))
def test_a_draw_equals_listing_its_images_again(seed):
    detections, targets = random_case(seed)
    matches = match_classes(detections, targets, 3)
    for counts in draw_images(len(targets), 3, seed):
        listed = np.repeat(np.arange(len(targets)), counts)
        metrics = evaluate_detections([detections[i] for i in listed], [targets[i] for i in listed], NAMES)
        for one, entry in zip(matches, metrics.per_class.values(), strict=True):
            assert average_precisions(one, counts[None])[0] == pytest.approx(entry.ap_50, abs=1e-6)


def test_draws_are_with_replacement_and_depend_on_the_seed_alone():
    assert draw_images(0, 3).shape == (3, 0)
    counts = draw_images(30, 200, seed=4)
    assert (counts.sum(axis=1) == 30).all() and counts.max() > 2
    assert (counts == 0).mean() == pytest.approx((1 - 1 / 30) ** 30, abs=0.02)
    assert np.array_equal(counts, draw_images(30, 200, seed=4))
    assert not np.array_equal(counts, draw_images(30, 200, seed=5))


def test_a_class_of_few_images_is_left_out_of_the_draws_without_it():
    """One white cell in ten fields: a third of the draws lack it, and none of them counts as 0."""
    right = Detections([[10, 10, 60, 60]], [0.9], [1], SIZE, NAMES)
    intervals = bootstrap_map([right] + [EMPTY] * 9, [ONE] + [NO_OBJECTS] * 9, NAMES)
    assert intervals.per_class["WBC"] == intervals.map_50 == Interval(1.0, 1.0, 1.0)
    assert intervals.per_class["RBC"] == Interval(None, None, None)


def test_more_images_make_a_narrower_interval_that_holds_the_point():
    widths = []
    for images in (10, 160):
        interval = bootstrap_map(*random_case(7, images=images), NAMES).map_50
        assert interval.low < interval.value < interval.high
        widths.append(interval.high - interval.low)
    assert 2.5 < widths[0] / widths[1] < 7, "about the root of sixteen"


def test_as_fast_as_promised():
    """72 fields as crowded as BCCD's, a thousand draws: 0.5 s on one core of 2.1 GHz."""
    detections, targets = random_case(0, images=72, objects=14, extra=80)
    began = time.perf_counter()
    bootstrap_map(detections, targets, NAMES)
    assert time.perf_counter() - began < 4


def test_lengths_must_agree():
    with pytest.raises(DataError, match="1 images have detections and 0"):
        bootstrap_map([EMPTY], [], NAMES)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(None, None, None), "n/a"),
        (Interval(0.5, None, None), "0.500"),
        (Interval(0.9019, 0.88, 0.9213), "0.902 [0.88, 0.92]"),
    ],
)
def test_how_it_is_written(interval, text):
    assert str(interval) == text
