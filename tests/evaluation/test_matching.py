"""The matching by hand and by its rules; the VOC and COCO oracles stand in the tests of the metrics."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssdlib.common.errors import DataError
from ssdlib.data.formats.records import iou_matrix
from ssdlib.evaluation.bootstrap import bootstrap_map
from ssdlib.evaluation.calibration import calibration
from ssdlib.evaluation.counting import count_curve, count_report, count_thresholds
from ssdlib.evaluation.matching import COCO, VOC, match, match_class, match_image
from ssdlib.evaluation.metrics import confusion_matrix, evaluate_detections, precision_recall
from ssdlib.evaluation.tide import tide_errors, worst_errors
from ssdlib.inference.detections import Detections
from tests.core_cases import fast
from tests.evaluation.cases import NAMES, SIZE, found, random_case, truth


def at(box, label=1):
    """One detection of score 0.9."""
    return Detections([box], [0.9], [label], SIZE, NAMES)


@pytest.mark.parametrize(
    ("detections", "target", "objects", "missed"),
    [
        (found(), truth(), [], []),
        (found(), truth((0, 1)), [], [True]),
        (found((0, 1, 0.9)), truth(), [-1], []),
        (found((0, 1, 0.9)), truth((0, 1)), [0], [False]),
        (found((0, 1, 0.9)), truth((0, 2)), [-1], [True]),
        # Twice the same object: only the higher score is a true positive, wherever it stands in the list.
        (found((10, 1, 0.8), (0, 1, 0.9)), truth((0, 1)), [0, -1], [False]),
        # The second detection overlaps object 0 most (IoU 80 / 120), which is taken; that it reaches the free
        # object 1 too (IoU 70 / 130) does not help it.
        (found((0, 1, 0.9), (20, 1, 0.8)), truth((0, 1), (50, 1)), [0, -1], [False, True]),
        (found((0, 1, 0.9), (500, 2, 0.8)), truth((500, 2), (0, 1)), [1, 0], [False, False]),
        # IoU of exactly one half: 200 x 10 against 100 x 10.
        (at([0, 0, 200, 10]), truth((0, 1)), [0], [False]),
        (at([0, 0, 200.1, 10]), truth((0, 1)), [-1], [True]),
        # A detection without area never matches, not even an object without area.
        (at([3, 3, 3, 3]), {"boxes": [[3.0, 3, 3, 3]], "labels": [1]}, [-1], [True]),
    ],
)
def test_image_by_hand(detections, target, objects, missed):
    matches = match_image(detections, target)
    assert matches.object_of_detection.tolist() == objects
    assert matches.true_positive.tolist() == [one >= 0 for one in objects]
    assert matches.missed.tolist() == missed
    assert matches.errors == objects.count(-1) + sum(missed)


def test_rules_differ_in_what_they_say_they_do():
    overlap = np.array([[0.8, 0.6], [0.9, 0.7], [0.55, 0.55]])
    assert match(overlap, [0.5, 0.75]).tolist() == [[0, 1, -1], [0, -1, -1]], "COCO: the best free object"
    assert match(overlap, [0.5], any_free_object=False).tolist() == [[0, -1, -1]], "VOC: the best object"
    assert match(overlap, [0.5], priority=overlap).tolist() == [[1, 0, -1]], "the best pairs first"
    tie = np.array([[0.6, 0.6]])
    assert match(tie, [0.5]).tolist() == [[1]], "of equal objects COCO's code takes the later"
    assert match(tie, [0.5], any_free_object=False).tolist() == [[0]], "and VOC's the first"
    many = found(*((0, 1, 0.9 - k / 1000) for k in range(103))), truth((0, 1))
    of_rule = [match_class(*([one] for one in many), 1, rule, [0.5]) for rule in (VOC, COCO)]
    assert [len(one.scores) for one in of_rule] == [103, 100]
    a, b = np.array([[0.1, 0.1, 77.7, 33.3]]), np.array([[0.7, 0.3, 80.1, 40.9]])
    assert COCO.iou(a, b) != VOC.iou(a, b) and COCO.iou(a, b) == pytest.approx(VOC.iou(a, b), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_images_and_classes_are_matched_alike(seed):
    detections, targets = random_case(seed, extra=20)
    of_images = [match_image(*pair, 0.4) for pair in zip(detections, targets, strict=True)]
    for label in (1, 2, 3):
        matches = match_class(detections, targets, label, VOC, [0.4, 0.9])
        assert matches.objects.tolist() == [int((target["labels"] == label).sum()) for target in targets]
        right = [
            int(one.true_positive[image.labels == label].sum())
            for one, image in zip(of_images, detections, strict=True)
        ]
        assert matches.true_positives()[0].tolist() == right
        assert (
            matches.true_positives(3).sum(axis=1).tolist()
            == matches.true_positive[:, :3].sum(axis=1).tolist()
        )
    for one, target in zip(of_images, targets, strict=True):
        assert one.true_positive.sum() + one.missed.sum() == len(target["labels"])


@fast
@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), max_size=6), st.booleans())
def test_matching_is_one_to_one_and_nothing_that_could_match_is_left(rows, by_priority):
    overlap = np.array(rows, dtype=float).reshape(-1, 3) / 9
    for threshold in (0.3, 0.6):
        found = match(overlap, [threshold], priority=overlap if by_priority else None)[0]
        taken = found[found >= 0].tolist()
        assert len(set(taken)) == len(taken)
        for d, g in enumerate(found):
            if g >= 0:
                assert overlap[d, g] >= threshold
            else:
                assert all(overlap[d, other] < threshold or other in taken for other in range(3))


def test_iou_of_nothing_and_of_boxes_without_area():
    assert iou_matrix(np.empty((0, 4)), np.zeros((2, 4))).shape == (0, 2)
    assert iou_matrix(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0.0]]
    assert iou_matrix([[0, 0, 2, 2]], [[1, 1, 3, 3]]) == pytest.approx(np.array([[1 / 7]]))


@pytest.mark.parametrize(
    "evaluate",
    [
        evaluate_detections, bootstrap_map, tide_errors, worst_errors, calibration, count_report,
        count_thresholds, lambda d, t, names: precision_recall(d, t, 1),
        lambda d, t, names: confusion_matrix(d, t, 4), lambda d, t, names: count_curve(d, t, 1),
    ],
)  # fmt: skip
def test_different_numbers_of_images_are_refused(evaluate):
    with pytest.raises(DataError, match="1 images have detections and 0 have ground truth"):
        evaluate([found()], [], NAMES)
