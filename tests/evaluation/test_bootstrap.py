"""Intervals: the point is the metric's, a draw is what listing its images again would give."""

import json
import time

import numpy as np
import pytest
import torch

from ssdlib.common.errors import DataError
from ssdlib.evaluation.bootstrap import bootstrap_map, draw_figures, draw_images
from ssdlib.evaluation.metrics import evaluate_detections
from ssdlib.evaluation.tables import Interval, interval_rows
from ssdlib.inference.detections import Detections

NAMES = ("WBC", "RBC", "Platelets")
SIZE = (640, 480)
MEANS = ("map_50", "map", "voc07_map", "voc12_map", "mar_100")
OF_CLASS = ("ap_50", "ap", "voc07_ap", "voc12_ap", "precision", "recall")
THRESHOLDS = {"WBC": 0.5, "RBC": 0.7, "Platelets": 0.2}


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
    # The first detection overlaps both objects by 2 / 3 and takes the later, which the second one is after.
    "a tie between two objects": (
        [Detections([[10, 0, 30, 10], [14, 0, 34, 10]], [0.9, 0.8], [1, 1], SIZE, NAMES)],
        [{"boxes": [[6, 0, 26, 10], [14, 0, 34, 10]], "labels": [1, 1]}],
    ),
    "over the limit": many_in_one_image(),
    "one class": random_case(1, classes=1),
    **{f"random {seed}": random_case(seed) for seed in range(4)},
}


def nearly(value):
    return None if value is None else pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_point_is_the_metric(name):
    detections, targets = CASES[name]
    metrics = evaluate_detections(detections, targets, NAMES, score_threshold=THRESHOLDS)
    intervals = bootstrap_map(detections, targets, NAMES, samples=20, score_threshold=THRESHOLDS)
    pairs = [(getattr(intervals, mean), getattr(metrics, mean)) for mean in MEANS]
    for cls, entry in metrics.per_class.items():
        pairs += [(getattr(intervals.classes[cls], figure), getattr(entry, figure)) for figure in OF_CLASS]
        assert intervals.per_class[cls] is intervals.classes[cls].ap_50
    for interval, exact in pairs:
        assert interval.value == nearly(exact)
        if interval.low is None or interval.high is None:
            assert interval == Interval(interval.value, None, None)
        else:
            assert 0 <= interval.low <= interval.high <= 1
    assert intervals.images == len(targets)


@pytest.mark.parametrize("seed", range(3))
def test_a_draw_equals_listing_its_images_again(seed):
    detections, targets = random_case(seed)
    draws = draw_images(len(targets), 130, seed)
    figures = draw_figures(detections, targets, NAMES, draws, score_threshold=THRESHOLDS)
    for draw in (0, 63, 64, 129):  # they are worked through 64 at a time
        listed = np.repeat(np.arange(len(targets)), draws[draw])
        metrics = evaluate_detections(
            [detections[i] for i in listed],
            [targets[i] for i in listed],
            NAMES,
            score_threshold=THRESHOLDS,
        )
        for mean in MEANS:
            assert figures[mean][draw] == nearly(getattr(metrics, mean)), mean
        for figure in OF_CLASS:
            exact = [getattr(entry, figure) for entry in metrics.per_class.values()]
            assert figures[figure][:, draw].tolist() == [nearly(value) for value in exact], figure


@pytest.mark.parametrize("objects", [7, 10, 29, 58, 100, 300])
def test_a_recall_of_whole_hundredths_counts_as_in_coco(objects):
    """7 of 100 found: whether that reaches the level 0.07 is a matter of rounding, and COCO's rounding."""
    boxes = [[6 * x, 0, 6 * x + 5, 5] for x in range(objects)]
    for found in range(1, objects, max(1, objects // 10)):
        right = Detections(boxes[:found], np.linspace(1, 0.5, found), [1] * found, SIZE, NAMES)
        target = {"boxes": boxes, "labels": [1] * objects}
        exact = evaluate_detections([right], [target], NAMES).map_50
        assert bootstrap_map([right], [target], NAMES).map_50.value == nearly(exact)


# (figures of the means, of the class WBC, of RBC) as (value known, interval known); all else is n/a.
YES, POINT, NO = (True, True), (True, False), (False, False)
RIGHT = Detections([[10, 10, 60, 60]], [0.9], [1], SIZE, NAMES)
FALSE = Detections([[300, 300, 350, 350]], [0.9], [2], SIZE, NAMES)
DEGENERATE = [
    pytest.param([], [], NO, NO, NO, id="no image"),
    pytest.param([EMPTY], [NO_OBJECTS], NO, NO, NO, id="one image without anything"),
    pytest.param([EMPTY] * 3, [NO_OBJECTS] * 3, NO, NO, NO, id="images without anything"),
    pytest.param([EMPTY] * 3, [ONE] * 3, YES, (YES, NO), NO, id="no detections"),
    pytest.param([RIGHT] * 3, [NO_OBJECTS] * 3, NO, (NO, YES), NO, id="no objects"),
    pytest.param([RIGHT], [ONE], POINT, POINT, NO, id="one image"),
    pytest.param([EMPTY], [ONE], POINT, (POINT, NO), NO, id="one image with nothing found"),
    pytest.param([FALSE], [ONE], POINT, (POINT, NO), (NO, POINT), id="one image, a class without objects"),
    pytest.param([RIGHT] * 2, [ONE] * 2, YES, YES, NO, id="a class without objects or detections"),
    pytest.param([FALSE] * 2, [ONE] * 2, YES, (YES, NO), (NO, YES), id="a class of false alarms alone"),
    pytest.param([RIGHT, EMPTY], [ONE, NO_OBJECTS], YES, YES, NO, id="draws without any object"),
]


@pytest.mark.parametrize(("detections", "targets", "means", "wbc", "rbc"), DEGENERATE)
def test_what_cannot_be_known_is_none(detections, targets, means, wbc, rbc):
    """A class's second pair, where given, is that of its precision, which needs detections, not objects."""
    intervals = bootstrap_map(detections, targets, NAMES, samples=30)
    json.dumps(intervals.to_dict(), allow_nan=False)
    for mean in MEANS:
        assert known(getattr(intervals, mean)) == means, mean
    for cls, expected in (("WBC", wbc), ("RBC", rbc), ("Platelets", NO)):
        of_objects, of_detections = expected if isinstance(expected[0], tuple) else (expected, expected)
        for figure in OF_CLASS:
            wanted = of_detections if figure == "precision" else of_objects
            assert known(getattr(intervals.classes[cls], figure)) == wanted, (cls, figure)


def known(interval):
    assert (interval.low is None) == (interval.high is None)
    return interval.value is not None, interval.low is not None


@pytest.mark.parametrize(("images", "names"), [(0, ()), (2, ())])
def test_no_classes(images, names):
    intervals = bootstrap_map([EMPTY] * images, [NO_OBJECTS] * images, names)
    assert intervals.classes == {} and intervals.map_50 == Interval(None, None, None)


def test_the_json_has_every_figure():
    values = bootstrap_map(*random_case(0), NAMES, samples=5).to_dict()
    assert set(values) == {*MEANS, "per_class", "classes", "images", "samples", "seed", "level"}
    for name in NAMES:
        assert set(values["classes"][name]) == set(OF_CLASS)
        assert values["per_class"][name] == values["classes"][name]["ap_50"]
        assert set(values["per_class"][name]) == {"value", "low", "high"}


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
    """72 fields as crowded as BCCD's, all figures, a thousand draws: 0.5 s on one core of 2.1 GHz."""
    detections, targets = random_case(0, images=72, objects=14, extra=48)
    assert 50 < sum(map(len, detections)) / 72 < 70
    evaluate_detections(detections[:1], targets[:1], NAMES)  # imports
    spent = []
    for _ in range(2):
        began = time.process_time()
        evaluate_detections(detections, targets, NAMES)
        bootstrap_map(detections, targets, NAMES, samples=1000)
        spent.append(time.process_time() - began)
    assert min(spent) < 2


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


def test_the_table_of_intervals():
    values = bootstrap_map([FALSE] * 2, [ONE] * 2, NAMES, samples=9).to_dict()
    header, rows = interval_rows(json.loads(json.dumps(values)))
    assert header == ["", *NAMES, "mean"]
    assert rows[0] == ["COCO AP at IoU 0.5", "0.000 [0.00, 0.00]", "n/a", "n/a", "0.000 [0.00, 0.00]"]
    assert rows[4] == ["precision", "n/a", "0.000 [0.00, 0.00]", "n/a", ""]
    assert rows[6] == ["COCO AR at 100", "", "", "", "0.000 [0.00, 0.00]"]
    old = {"map_50": values["map_50"], "per_class": values["per_class"]}
    assert interval_rows(old) == (header, rows[:1]), "what was written before there were more"
    assert interval_rows({"map_50": values["map_50"], "per_class": {}})[0] == ["", "mean"]
