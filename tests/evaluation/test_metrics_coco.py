"""COCO's figures against pycocotools and faster-coco-eval, alone and through torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssdlib.evaluation.metrics import COCO_IOU_THRESHOLDS, COCO_RECALLS, evaluate_detections
from ssdlib.inference.detections import Detections
from tests.evaluation.cases import NAMES, SIZE, random_case

coco = pytest.importorskip("pycocotools.coco")
cocoeval = pytest.importorskip("pycocotools.cocoeval")
torchmetrics = pytest.importorskip("torchmetrics.detection")

EMPTY = Detections.empty(SIZE, NAMES)
NO_OBJECTS = {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)}
ONE = {"boxes": [[10, 10, 60, 60]], "labels": [1]}
CASES = {
    "nothing anywhere": ([EMPTY] * 2, [NO_OBJECTS] * 2),
    "nothing found": ([EMPTY] * 2, [ONE, NO_OBJECTS]),
    "false positives alone": ([Detections([[1, 1, 9, 9]], [0.5], [1], SIZE, NAMES)], [NO_OBJECTS]),
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
    "one class": random_case(1, classes=1),
    "one image": random_case(2, images=1, empty=0),
    "as BCCD": random_case(1, images=40, objects=14, extra=48),
    **{f"random {seed}": random_case(seed) for seed in range(4)},
}


def of_torchmetrics(detections, targets, backend) -> tuple[dict, dict]:
    """({mean: value}, {label: (AP, AP at IoU 0.5)}); -1 is how COCO writes n/a."""
    metric = torchmetrics.MeanAveragePrecision(
        iou_thresholds=COCO_IOU_THRESHOLDS.tolist(),
        rec_thresholds=COCO_RECALLS.tolist(),  # its own levels are rounded to float32
        backend=backend,
        extended_summary=True,
    )
    metric.warn_on_many_detections = False
    metric.update(
        [
            {name: torch.from_numpy(getattr(one, name)) for name in ("boxes", "scores", "labels")}
            for one in detections
        ],
        [
            {
                "boxes": torch.as_tensor(target["boxes"]).float().reshape(-1, 4),
                "labels": torch.as_tensor(target["labels"]).long(),
            }
            for target in targets
        ],
    )
    summary = metric.compute()
    precision = summary["precision"][:, :, :, 0, -1].double()  # (IoU thresholds, recalls, classes)
    per_label = {
        int(label): (float(precision[..., k].mean()), float(precision[0, :, k].mean()))
        for k, label in enumerate(summary["classes"].reshape(-1))
        if (precision[..., k] > -1).all()
    }
    return {name: float(summary[name]) for name in ("map", "map_50", "mar_100")}, per_label


def of_pycocotools(detections, targets) -> tuple[dict, dict]:
    """The same, fed by hand with plain dictionaries."""
    objects = coco.COCO()
    annotations = [
        {"image_id": image, "category_id": int(label), "bbox": [x, y, right - x, bottom - y]}
        for image, target in enumerate(targets)
        for (x, y, right, bottom), label in zip(
            np.asarray(target["boxes"]).tolist(), np.asarray(target["labels"]), strict=True
        )
    ]
    objects.dataset = {
        "images": [{"id": image, "width": SIZE[0], "height": SIZE[1]} for image in range(len(targets))],
        "categories": [{"id": label, "name": name} for label, name in enumerate(NAMES, start=1)],
        "annotations": [
            {**one, "id": number, "iscrowd": 0, "area": one["bbox"][2] * one["bbox"][3]}
            for number, one in enumerate(annotations, start=1)
        ],
    }
    objects.createIndex()
    results = objects.loadRes([row for image, one in enumerate(detections) for row in one.to_coco(image)])
    evaluation = cocoeval.COCOeval(objects, results, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_label = {
        label: (precision[..., label - 1].mean(), precision[0, :, label - 1].mean())
        for label in range(1, len(NAMES) + 1)
        if (precision[..., label - 1] > -1).all()
    }
    stats = evaluation.stats
    return {"map": stats[0], "map_50": stats[1], "mar_100": stats[8]}, per_label


def check(case, means, per_label):
    metrics = evaluate_detections(*case, NAMES)
    for name, exact in means.items():
        assert getattr(metrics, name) == (pytest.approx(exact, abs=1e-6) if exact > -1 else None), name
    for label, entry in enumerate(metrics.per_class.values(), start=1):
        expected = pytest.approx(per_label[label], abs=1e-6) if label in per_label else (None, None)
        assert (entry.ap, entry.ap_50) == expected


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize("name", CASES)
def test_the_figures_are_those_of_torchmetrics(name, backend):
    pytest.importorskip(backend)
    check(CASES[name], *of_torchmetrics(*CASES[name], backend))


@pytest.mark.parametrize("name", ["random 0", "as BCCD", "one image", "one class"])
def test_the_figures_are_those_of_pycocotools(name, capsys):
    check(CASES[name], *of_pycocotools(*CASES[name]))


@pytest.mark.parametrize("objects", [7, 10, 29, 58, 100])
def test_a_recall_of_whole_hundredths_counts_as_in_coco(objects):
    """7 of 100 found: whether that reaches the level 0.07 is a matter of rounding, and COCO's rounding."""
    boxes = [[6 * x, 0, 6 * x + 5, 5] for x in range(objects)]
    for number in range(1, objects, max(1, objects // 10)):
        right = Detections(boxes[:number], np.linspace(1, 0.5, number), [1] * number, SIZE, NAMES)
        case = [right], [{"boxes": boxes, "labels": [1] * objects}]
        check(case, *of_torchmetrics(*case, "faster_coco_eval"))


def test_an_image_with_more_objects_than_cocos_limit_has_none():
    """A perfect detector of 150 cells is perfect; COCO's code would look at the first 100 and say 0.663."""
    boxes = [[6 * (k % 50), 10 * (k // 50), 6 * (k % 50) + 5, 10 * (k // 50) + 5] for k in range(150)]
    found = Detections(boxes, np.linspace(1, 0.5, 150), [2] * 150, SIZE, NAMES)
    case = [found], [{"boxes": boxes, "labels": [2] * 150}]
    metrics = evaluate_detections(*case, NAMES)
    assert metrics.map == metrics.map_50 == metrics.mar_100 == 1
    assert of_pycocotools(*case)[0]["map_50"] == pytest.approx(0.663, abs=1e-3)
