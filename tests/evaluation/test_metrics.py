"""Average precision by hand, by a slow second implementation, and by torchmetrics' own summary."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.evaluation import metrics
from ssdlib.evaluation.metrics import (
    PrecisionRecall,
    confusion_matrix,
    evaluate_detections,
    precision_recall,
)
from ssdlib.inference.detections import Detections

NAMES = ("WBC", "RBC", "Platelets")
SIZE = (640, 480)


def found(*rows) -> Detections:
    """Rows of (x, label, score): boxes of 10 x 10 pixels at (x, 0)."""
    boxes = [[x, 0, x + 10, 10] for x, _, _ in rows]
    return Detections(boxes, [row[2] for row in rows], [row[1] for row in rows], SIZE, NAMES)


def truth(*rows) -> dict:
    """Rows of (x, label)."""
    boxes = torch.tensor([[x, 0, x + 10, 10] for x, _ in rows], dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor([label for _, label in rows], dtype=torch.int64)}


def curve(hits: str, objects: int) -> PrecisionRecall:
    """From a string such as "TFT", highest score first."""
    right = np.array([hit == "T" for hit in hits], dtype=bool)
    return PrecisionRecall(np.linspace(1, 0.1, len(hits)), right, objects, np.zeros(len(hits), dtype=int))


@pytest.mark.parametrize(
    ("hits", "objects", "voc12", "voc07"),
    [
        ("", 0, None, None),
        ("FF", 0, None, None),
        ("", 3, 0.0, 0.0),
        ("FFF", 2, 0.0, 0.0),
        ("T", 1, 1.0, 1.0),
        ("TT", 2, 1.0, 1.0),
        ("FT", 1, 1 / 2, 1 / 2),
        # Half the objects found at precision 1: recalls 0 ... 0.5 are six of eleven points.
        ("T", 2, 1 / 2, 6 / 11),
        # Precisions 1, 1/2, 2/3: the envelope is 1 up to recall 1/2, then 2/3.
        ("TFT", 2, 1 / 2 + (2 / 3) / 2, (6 + 5 * 2 / 3) / 11),
        # 3 of 10 objects: a recall of exactly 0.3 must count for the point 0.3.
        ("TTT", 10, 3 / 10, 4 / 11),
        # Precision rises again later: the envelope takes 3/4 from the start.
        ("FTTT", 4, 3 * (3 / 4) / 4, 8 * (3 / 4) / 11),
    ],
)
def test_average_precision_by_hand(hits, objects, voc12, voc07):
    result = curve(hits, objects)
    assert result.voc12_ap == (None if voc12 is None else pytest.approx(voc12, abs=1e-12))
    assert result.voc07_ap == (None if voc07 is None else pytest.approx(voc07, abs=1e-12))
    assert len(result.precision) == len(result.recall) == len(hits)


@pytest.mark.parametrize(
    ("detections", "target", "right"),
    [
        (found(), truth(), []),
        (found((0, 1, 0.9)), truth(), [False]),
        (found((0, 1, 0.9)), truth((0, 1)), [True]),
        (found((0, 1, 0.9)), truth((0, 2)), [False]),
        # Twice the same object: only the higher score is right.
        (found((1, 1, 0.8), (0, 1, 0.9)), truth((0, 1)), [True, False]),
        # The second detection overlaps object 0 most (IoU 8 / 12), which is taken; that it reaches the free
        # object 1 too (IoU 7 / 13) does not help it.
        (found((0, 1, 0.9), (2, 1, 0.8)), truth((0, 1), (5, 1)), [True, False]),
        # IoU of exactly one half: 20 x 10 against 10 x 10.
        (
            Detections([[0, 0, 20, 10]], [0.9], [1], SIZE, NAMES),
            truth((0, 1)),
            [True],
        ),
        (Detections([[0, 0, 20.01, 10]], [0.9], [1], SIZE, NAMES), truth((0, 1)), [False]),
        # A detection without area never matches, not even an object without area.
        (
            Detections([[3, 3, 3, 3]], [0.9], [1], SIZE, NAMES),
            {"boxes": torch.tensor([[3.0, 3, 3, 3]]), "labels": torch.tensor([1])},
            [False],
        ),
    ],
)
def test_matching_by_hand(detections, target, right):
    assert precision_recall([detections], [target], 1).true_positive.tolist() == right


def test_scores_are_ranked_over_all_images():
    result = precision_recall(
        [found((0, 1, 0.3)), found((0, 1, 0.9), (50, 1, 0.5))], [truth((0, 1)), truth((0, 1), (99, 1))], 1
    )
    assert result.image_index.tolist() == [1, 1, 0]
    assert result.true_positive.tolist() == [True, False, True]
    assert result.ground_truth == 3
    assert result.recall.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert result.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])


def random_case(seed: int, images: int = 6, spurious: int = 20) -> tuple[list[Detections], list[dict]]:
    """Crowded little images with jittered, doubled and invented detections; some images have no objects."""
    rng = np.random.default_rng(seed)
    detections, targets = [], []
    for _ in range(images):
        objects = int(rng.integers(0, 8))
        corner = rng.uniform(0, 60, (objects, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(10, 40, (objects, 2))], axis=1)
        labels = rng.integers(1, 4, objects)
        targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)})
        near = np.repeat(boxes, 2, axis=0) + rng.normal(0, 4, (2 * objects, 4))
        corner = rng.uniform(0, 60, (spurious, 2))
        far = np.concatenate([corner, corner + rng.uniform(1, 40, (spurious, 2))], axis=1)
        both = np.concatenate([near, far])
        said = np.concatenate([np.repeat(labels, 2), rng.integers(1, 4, spurious)])
        scores = rng.permutation(len(both)) / len(both) + rng.uniform(0, 1e-3)  # distinct over images
        detections.append(Detections(both, scores, said, SIZE, NAMES))
    return detections, targets


def slow_iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_curve(detections, targets, label):
    """The devkit's loop, one detection after another: (hits, objects)."""
    ranked = sorted(
        (-score, image, box)
        for image, one in enumerate(detections)
        for box, score, own in zip(one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True)
        if own == label
    )
    taken, hits = set(), []
    for _, image, box in ranked:
        best, best_iou = None, 0.0
        for index, other in enumerate(targets[image]["boxes"].tolist()):
            if int(targets[image]["labels"][index]) == label and slow_iou(box, other) > best_iou:
                best, best_iou = index, slow_iou(box, other)
        hit = best_iou >= 0.5 and (image, best) not in taken
        if hit:
            taken.add((image, best))
        hits.append(hit)
    return hits, sum(int((one["labels"] == label).sum()) for one in targets)


def slow_average_precision(hits, objects):
    """(VOC 2012, VOC 2007) by scanning every later precision for each recall."""
    if not objects:
        return None, None
    points = [(sum(hits[: k + 1]), sum(hits[: k + 1]) / (k + 1)) for k in range(len(hits))]
    area = sum(
        max((precision for right, precision in points if right >= level), default=0.0) / objects
        for level in range(1, objects + 1)
    )
    eleven = [
        max((precision for right, precision in points if 10 * right >= k * objects), default=0.0)
        for k in range(11)
    ]
    return area, sum(eleven) / 11


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_slow_implementation(seed):
    detections, targets = random_case(seed, images=1 + seed % 7)
    result = evaluate_detections(detections, targets, NAMES)
    for label, name in enumerate(NAMES, start=1):
        hits, objects = slow_curve(detections, targets, label)
        assert precision_recall(detections, targets, label).true_positive.tolist() == hits
        voc12, voc07 = slow_average_precision(hits, objects)
        own = result.per_class[name]
        assert own.voc12_ap == (None if voc12 is None else pytest.approx(voc12, abs=1e-12))
        assert own.voc07_ap == (None if voc07 is None else pytest.approx(voc07, abs=1e-12))
        assert own.ground_truth == objects


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
def test_coco_numbers_are_those_of_torchmetrics_summary(backend, monkeypatch):
    pytest.importorskip(backend)
    monkeypatch.setattr(metrics, "COCO_BACKEND", backend)
    detections, targets = random_case(5, images=12)
    metric = MeanAveragePrecision(class_metrics=True)
    metric.update([{"boxes": d.boxes, "scores": d.scores, "labels": d.labels} for d in detections], targets)
    summary = metric.compute()
    result = evaluate_detections(detections, targets, NAMES)
    for name in ("map", "map_50", "mar_100"):
        assert getattr(result, name) == pytest.approx(float(summary[name]), abs=1e-6)
    assert [result.per_class[name].ap for name in NAMES] == pytest.approx(
        summary["map_per_class"].tolist(), abs=1e-6
    )


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
    ],
)
def test_degenerate_sets_are_defined(detections, targets, means):
    result = evaluate_detections(detections, targets, NAMES)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
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


def test_an_absent_class_does_not_pull_the_mean_down():
    detections, targets = [found((0, 1, 0.9), (50, 3, 0.8))], [truth((0, 1))]
    result = evaluate_detections(detections, targets, NAMES)
    assert numbers(result.to_dict()) == pytest.approx([1.0] * 5)
    assert result.per_class["Platelets"].ap_50 is None
    assert result.per_class["Platelets"].precision == 0.0  # one false alarm: known, and bad


@pytest.mark.parametrize(
    ("threshold", "precision", "recall", "count"),
    [
        (1.0, None, 0.0, 0),
        (0.7, 1.0, 1 / 2, 1),
        (0.6, 1 / 2, 1 / 2, 2),
        ({"WBC": 0.1, "RBC": 0.9, "Platelets": 0.9}, 2 / 3, 1.0, 3),
    ],
)
def test_precision_and_recall_at_the_working_threshold(threshold, precision, recall, count):
    detections = [found((0, 1, 0.7), (90, 1, 0.6), (50, 1, 0.2))]
    result = evaluate_detections(
        detections, [truth((0, 1), (50, 1))], NAMES, score_threshold=threshold
    ).per_class["WBC"]
    assert (result.precision, result.recall, result.detections) == (precision, recall, count)


def test_a_threshold_for_every_class_or_an_error():
    with pytest.raises(ConfigError, match="RBC"):
        evaluate_detections([], [], NAMES, score_threshold={"WBC": 0.5})


@pytest.mark.parametrize(
    ("detections", "target", "cells"),
    [
        (found(), truth(), {}),
        (found(), truth((0, 2)), {(2, 0): 1}),
        (found((0, 2, 0.9)), truth(), {(0, 2): 1}),
        (found((0, 2, 0.4)), truth(), {}),
        (found((0, 3, 0.9)), truth((0, 2)), {(2, 3): 1}),
        # Two on one object: the better overlap is paired, whatever its score; the other is a false alarm.
        (found((0, 2, 0.6), (2, 1, 0.9)), truth((0, 2)), {(2, 2): 1, (0, 1): 1}),
        (found((0, 2, 0.9), (2, 1, 0.6)), truth((0, 2)), {(2, 2): 1, (0, 1): 1}),
        (found((0, 1, 0.9), (40, 2, 0.9)), truth((1, 1), (80, 3)), {(1, 1): 1, (0, 2): 1, (3, 0): 1}),
    ],
)
def test_confusion_matrix_by_hand(detections, target, cells):
    expected = np.zeros((4, 4), dtype=np.int64)
    for cell, count in cells.items():
        expected[cell] = count
    assert confusion_matrix([detections], [target], 4, 0.5, 0.5).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_confusion_matrix_accounts_for_everything(seed):
    detections, targets = random_case(seed)
    matrix = confusion_matrix(detections, targets, 4, 0.3)
    assert matrix[1:].sum() == sum(len(t["labels"]) for t in targets)
    assert matrix[:, 1:].sum() == sum(len(d.above(0.3)) for d in detections)
    assert matrix[0, 0] == 0


def test_different_numbers_of_images_are_refused():
    for judge in (
        lambda: evaluate_detections([found()], [], NAMES),
        lambda: precision_recall([found()], [], 1),
        lambda: confusion_matrix([], [truth()], 4),
    ):
        with pytest.raises(DataError, match="every image"):
            judge()


def test_72_images_of_200_detections_in_two_seconds():
    detections, targets = random_case(0, images=72, spurious=190)
    evaluate_detections(detections[:1], targets[:1], NAMES)  # imports
    started = time.process_time()
    evaluate_detections(detections, targets, NAMES)
    assert time.process_time() - started < 2
