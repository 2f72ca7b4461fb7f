"""How good detections are: average precision in the VOC 2007, VOC 2012 and COCO ways, and at one threshold.

All boxes are xyxy pixels; a target is a dict with "boxes" (G, 4) and "labels" (G,), as datasets give them.
What cannot be computed (0 / 0) is None, never NaN and never a silent 0: a class without ground truth has no
average precision and no recall, one without detections at the working threshold has no precision.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ssdlib.evaluation.matching import as_array, check_pairs, iou_matrix, mean_of_known, threshold_of
from ssdlib.inference.detections import Detections

COCO_IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_RECALLS = np.linspace(0.0, 1.0, 101)
COCO_BACKEND = "faster_coco_eval" if importlib.util.find_spec("faster_coco_eval") else "pycocotools"
"""The same numbers from either; the first is four times faster."""


@dataclass(frozen=True)
class ClassMetrics:
    """One class. `detections`, `precision` and `recall` are those at the working threshold, IoU 0.5."""

    ap_50: float | None
    ap: float | None
    voc07_ap: float | None
    voc12_ap: float | None
    precision: float | None
    recall: float | None
    ground_truth: int
    detections: int


@dataclass(frozen=True)
class Metrics:
    """One evaluation. The means are over the classes that have ground truth; None where there is none."""

    images: int
    map_50: float | None
    map: float | None
    voc07_map: float | None
    voc12_map: float | None
    mar_100: float | None
    per_class: dict[str, ClassMetrics]
    score_threshold: float | dict[str, float] = 0.5

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """The precision-recall curve of one class: K detections of all images, highest score first.

    After the k-th detection, `precision[k]` of those so far are right and `recall[k]` of the objects found;
    recall is NaN where there is no object to find.
    """

    scores: np.ndarray
    """(K,) float64."""
    true_positive: np.ndarray
    """(K,) bool."""
    ground_truth: int
    """Objects of this class in all images."""
    image_index: np.ndarray
    """(K,) int64: which image each detection is in."""
    precision: np.ndarray = field(init=False)
    """(K,) float64."""
    recall: np.ndarray = field(init=False)
    """(K,) float64."""

    def __post_init__(self) -> None:
        found = np.cumsum(self.true_positive, dtype=np.int64)
        object.__setattr__(self, "precision", found / np.arange(1, len(found) + 1))
        recall = found / self.ground_truth if self.ground_truth else np.full(len(found), np.nan)
        object.__setattr__(self, "recall", recall)

    @property
    def envelope(self) -> np.ndarray:
        """(K,) the best precision at this recall or any higher one."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]

    @property
    def voc12_ap(self) -> float | None:
        """Area under the envelope, all points (VOC 2010-2012). Everingham et al. 2015, section 4."""
        if not self.ground_truth:
            return None
        return float(self.envelope[self.true_positive].sum() / self.ground_truth)

    @property
    def voc07_ap(self) -> float | None:
        """Mean of the envelope at recalls 0, 0.1, ... 1 (VOC 2007). Everingham et al. 2010, section 4.2."""
        if not self.ground_truth:
            return None
        # Counted in whole objects: k / 10 as a float may come out above a recall that equals it.
        found = np.cumsum(self.true_positive, dtype=np.int64)
        first = np.searchsorted(10 * found, np.arange(11) * self.ground_truth)
        return float(np.append(self.envelope, 0.0)[first].mean())

    @property
    def ap(self) -> float | None:
        """The VOC 2012 average precision."""
        return self.voc12_ap

    def at(self, threshold: float) -> tuple[float | None, float | None, int]:
        """Precision, recall and number of the detections with score >= threshold."""
        # Scores are float32: so must the threshold be, or 0.7 would not reach 0.7.
        count = int(np.count_nonzero(self.scores >= np.float32(threshold)))
        right = int(np.count_nonzero(self.true_positive[:count]))
        recall = right / self.ground_truth if self.ground_truth else None
        return (right / count if count else None), recall, count


def evaluate_detections(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    score_threshold: float | Mapping[str, float] = 0.5,
) -> Metrics:
    """Judge the detections of each image against its target, in the same order.

    `score_threshold` is the score from which a detection is shown to the user: one number or one for each
    class name. Raises DataError where the two sequences differ in length.
    """
    check_pairs(detections, targets)
    coco, mar_100 = _coco(detections, targets)
    per_class: dict[str, ClassMetrics] = {}
    for label, name in enumerate(class_names, start=1):
        curve = precision_recall(detections, targets, label)
        precision, recall, count = curve.at(threshold_of(name, score_threshold))
        ap, ap_50 = coco.get(label, (None, None))
        per_class[name] = ClassMetrics(
            ap_50, ap, curve.voc07_ap, curve.voc12_ap, precision, recall, curve.ground_truth, count
        )
    return Metrics(
        images=len(targets),
        map_50=mean_of_known(item.ap_50 for item in per_class.values()),
        map=mean_of_known(item.ap for item in per_class.values()),
        voc07_map=mean_of_known(item.voc07_ap for item in per_class.values()),
        voc12_map=mean_of_known(item.voc12_ap for item in per_class.values()),
        mar_100=mar_100,
        per_class=per_class,
        score_threshold=dict(score_threshold)
        if isinstance(score_threshold, Mapping)
        else float(score_threshold),
    )


def precision_recall(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    label: int,
    iou_threshold: float = 0.5,
) -> PrecisionRecall:
    """The curve of one class, matched as the VOC devkit does.

    Highest score first, each detection looks at the object of its class and image that it overlaps most. It
    is right if their IoU reaches the threshold and no higher-scored detection has claimed that object; it
    never falls back on another object. Pixels are continuous (the devkit adds 1 to widths and heights).
    """
    check_pairs(detections, targets)
    scores, claims, images = [], [], []
    objects = 0
    for index, (found, target) in enumerate(zip(detections, targets, strict=True)):
        own = (found.labels == label).numpy()
        truth = as_array(target["boxes"]).reshape(-1, 4)[as_array(target["labels"]) == label]
        boxes = found.boxes.numpy()[own].astype(np.float64)
        claim = np.full(len(boxes), -1)
        if len(boxes) and len(truth):
            overlap = iou_matrix(boxes, truth)
            best = overlap.argmax(axis=1)
            reached = overlap[np.arange(len(boxes)), best] >= iou_threshold
            claim[reached] = objects + best[reached]
        objects += len(truth)
        scores.append(found.scores.numpy()[own].astype(np.float64))
        claims.append(claim)
        images.append(np.full(len(boxes), index))
    score, claim, image = (
        np.concatenate([np.empty(0, dtype), *parts])
        for dtype, parts in ((np.float64, scores), (np.int64, claims), (np.int64, images))
    )
    order = np.argsort(-score, kind="stable")
    claim = claim[order]
    # The first claim on each object, in order of score, is the one that counts.
    claimed, first = np.unique(claim, return_index=True)
    right = np.zeros(len(claim), dtype=bool)
    right[first[claimed >= 0]] = True
    return PrecisionRecall(score[order], right, objects, image[order])


def confusion_matrix(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    num_classes: int,
    score_threshold: float | Mapping[str, float] = 0.5,
    iou_threshold: float = 0.5,
) -> np.ndarray:
    """(C, C) int64: row = true class, column = detected class, 0 = background (C counts it).

    In each image, objects and detections (score >= threshold) of whatever class are paired one to one,
    highest IoU first, down to the IoU threshold. Column 0 holds missed objects, row 0 false alarms.
    """
    check_pairs(detections, targets)
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    for found, target in zip(detections, targets, strict=True):
        kept = found.above(score_threshold)
        true, said = as_array(target["labels"]).astype(np.int64), kept.labels.numpy()
        overlap = iou_matrix(as_array(target["boxes"]).reshape(-1, 4), kept.boxes.numpy().astype(np.float64))
        rows, columns = np.nonzero(overlap >= iou_threshold)
        free_true, free_said = np.ones(len(true), dtype=bool), np.ones(len(said), dtype=bool)
        for pair in np.argsort(-overlap[rows, columns], kind="stable"):
            row, column = rows[pair], columns[pair]
            if free_true[row] and free_said[column]:
                free_true[row] = free_said[column] = False
                matrix[true[row], said[column]] += 1
        np.add.at(matrix, (true[free_true], 0), 1)
        np.add.at(matrix, (0, said[free_said]), 1)
    return matrix


def _coco(
    detections: Sequence[Detections], targets: Sequence[Mapping[str, Any]]
) -> tuple[dict[int, tuple[float | None, float | None]], float | None]:
    """COCO's {label: (AP, AP at IoU 0.5)} and mean recall at 100 detections an image. Lin et al. 2014."""
    if not targets:
        return {}, None
    # Not at the top: it is slow to import, and training and plots need this module without it.
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(
        iou_thresholds=COCO_IOU_THRESHOLDS.tolist(),
        rec_thresholds=COCO_RECALLS.tolist(),
        extended_summary=True,  # the whole precision array: each class for the price of one
        backend=COCO_BACKEND,
        sync_on_compute=False,  # these are all the images: training asks one of its processes alone
    )
    metric.warn_on_many_detections = False  # that only the best 100 of a class count is COCO's definition
    metric.update(
        [{"boxes": item.boxes, "scores": item.scores, "labels": item.labels} for item in detections],
        [
            {
                "boxes": torch.from_numpy(as_array(item["boxes"]).reshape(-1, 4)).float(),
                "labels": torch.from_numpy(as_array(item["labels"]).astype(np.int64).reshape(-1)),
            }
            for item in targets
        ],
    )
    result = metric.compute()
    # precision: (IoU thresholds, recalls, classes, areas, limits); recall: the same without recalls.
    # Area 0 is all sizes, the last limit 100 detections; -1 stands for a class without ground truth.
    precision = result["precision"][:, :, :, 0, -1].double().numpy()
    recall = result["recall"][:, :, 0, -1].double().numpy()
    per_label = {
        int(label): (_valid_mean(precision[:, :, k]), _valid_mean(precision[0, :, k]))
        for k, label in enumerate(result["classes"].reshape(-1).tolist())
    }
    return per_label, _valid_mean(recall)


def _valid_mean(values: np.ndarray) -> float | None:
    return mean_of_known(values[values > -1].tolist())
