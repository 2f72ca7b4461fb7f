"""COCO's figures against pycocotools itself, fed by hand with plain dictionaries."""

from __future__ import annotations

import numpy as np
import pytest

from ssdlib.evaluation.bootstrap import bootstrap_map
from ssdlib.evaluation.metrics import evaluate_detections
from tests.evaluation.test_bootstrap import NAMES, SIZE, many_in_one_image, random_case

coco = pytest.importorskip("pycocotools.coco")
cocoeval = pytest.importorskip("pycocotools.cocoeval")


def pycocotools_figures(detections, targets) -> tuple[dict, dict]:
    """({mean: value}, {label: (AP, AP at IoU 0.5)}) of the summary and of the precision array."""
    truth = coco.COCO()
    annotations = [
        {"image_id": image, "category_id": int(label), "bbox": [x, y, right - x, bottom - y]}
        for image, target in enumerate(targets)
        for (x, y, right, bottom), label in zip(
            np.asarray(target["boxes"]).tolist(), np.asarray(target["labels"]), strict=True
        )
    ]
    truth.dataset = {
        "images": [{"id": image, "width": SIZE[0], "height": SIZE[1]} for image in range(len(targets))],
        "categories": [{"id": label, "name": name} for label, name in enumerate(NAMES, start=1)],
        "annotations": [
            {**one, "id": number, "iscrowd": 0, "area": one["bbox"][2] * one["bbox"][3]}
            for number, one in enumerate(annotations, start=1)
        ],
    }
    truth.createIndex()
    found = truth.loadRes([row for image, one in enumerate(detections) for row in one.to_coco(image)])
    judge = cocoeval.COCOeval(truth, found, "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    precision = judge.eval["precision"][:, :, :, 0, -1]  # (IoU thresholds, recalls, classes)
    labels = range(1, len(NAMES) + 1)
    per_label = {
        label: (precision[..., label - 1].mean(), precision[0, :, label - 1].mean())
        for label in labels
        if (precision[..., label - 1] > -1).all()
    }
    return {"map": judge.stats[0], "map_50": judge.stats[1], "mar_100": judge.stats[8]}, per_label


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(random_case(0), id="crowded"),
        pytest.param(random_case(1, images=40, objects=14, extra=48), id="as BCCD"),
        pytest.param(random_case(2, images=1, empty=0), id="one image"),
        pytest.param(random_case(3, classes=1), id="two classes absent"),
        pytest.param(random_case(4, objects=0), id="no objects"),
        pytest.param(many_in_one_image(), id="over 100 in an image"),
    ],
)
def test_the_figures_are_those_of_pycocotools(case, capsys):
    means, per_label = pycocotools_figures(*case)
    metrics, intervals = evaluate_detections(*case, NAMES), bootstrap_map(*case, NAMES, samples=5)
    for name, exact in means.items():
        expected = pytest.approx(exact, abs=1e-6) if exact > -1 else None  # -1 is how COCO writes n/a
        assert getattr(metrics, name) == expected and getattr(intervals, name).value == expected, name
    for label, name in enumerate(NAMES, start=1):
        expected = pytest.approx(per_label[label], abs=1e-6) if label in per_label else (None, None)
        entry, bounds = metrics.per_class[name], intervals.classes[name]
        assert (entry.ap, entry.ap_50) == expected
        assert (bounds.ap.value, bounds.ap_50.value) == expected
