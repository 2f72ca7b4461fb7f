"""Average precision in the ways of VOC 2007, VOC 2012 and COCO, precision and recall, the confusion matrix.

All boxes are xyxy pixels; a target is a dict with "boxes" (G, 4) and "labels" (G,), as datasets give them.
What cannot be computed (0 / 0) is None, never NaN and never a silent 0: a class without ground truth has no
average precision and no recall, one without detections at the score threshold has no precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ssdlib.evaluation.matching import (
    COCO,
    VOC,
    ClassMatches,
    Target,
    check_pairs,
    ground_truth,
    iou_matrix,
    match,
    match_class,
)
from ssdlib.inference.detections import Detections, class_thresholds

COCO_IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_RECALLS = np.linspace(0.0, 1.0, 101)
CLASS_FIGURES = ("ap_50", "ap", "voc07_ap", "voc12_ap", "precision", "recall")
"""The figures of `ClassMetrics` that are shares, and so have an interval."""
MEANS = {
    "map_50": "ap_50", "map": "ap", "voc07_map": "voc07_ap", "voc12_map": "voc12_ap", "mar_100": "ar_100",
}  # fmt: skip
"""Each mean of `Metrics` and the figure of a class that it is the mean of."""
_CHUNK = 64  # weightings at once: (K, 64) numbers of a few thousand detections stay in the processor's cache


@dataclass(frozen=True)
class ClassMetrics:
    """One class. `detections`, `precision` and `recall` are those at the score threshold, IoU 0.5."""

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


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """The precision-recall curve of one class: K detections of all images, highest score first.

    After the k-th detection, `precision[k]` of those so far are true positives and `recall[k]` of the objects
    are found; recall is NaN where there is no object to find.
    """

    scores: np.ndarray
    """(K,) float64."""
    true_positive: np.ndarray
    """(K,) bool."""
    ground_truth: int
    """The number of objects of this class in all images."""

    @cached_property
    def precision(self) -> np.ndarray:
        """(K,) float64."""
        return np.cumsum(self.true_positive) / np.arange(1, len(self.true_positive) + 1)

    @cached_property
    def recall(self) -> np.ndarray:
        """(K,) float64."""
        return np.cumsum(self.true_positive) / (self.ground_truth or np.nan)

    @property
    def envelope(self) -> np.ndarray:
        """The (K,) best precision at this recall or any higher one."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]

    @property
    def voc12_ap(self) -> float | None:
        """The area under the envelope (VOC 2010-2012). Everingham et al. 2015, section 4."""
        return average_precision(self.true_positive, self.ground_truth, voc12_levels)

    @property
    def voc07_ap(self) -> float | None:
        """The mean of the envelope at recalls 0, 0.1, ... 1. Everingham et al. 2010, section 4.2."""
        return average_precision(self.true_positive, self.ground_truth, voc07_levels)

    def at(self, threshold: float) -> tuple[float | None, float | None, int]:
        """Precision, recall and number of the detections with score >= threshold."""
        # Scores are float32: so must the threshold be, or 0.7 would not reach 0.7.
        count = int(np.count_nonzero(self.scores >= np.float32(threshold)))
        found = int(np.count_nonzero(self.true_positive[:count]))
        recall = found / self.ground_truth if self.ground_truth else None
        return (found / count if count else None), recall, count


def evaluate_detections(
    detections: Sequence[Detections],
    targets: Sequence[Target],
    class_names: Sequence[str],
    *,
    score_threshold: float | Mapping[str, float] = 0.5,
) -> Metrics:
    """The metrics of each image's detections against its target, in the same order.

    `score_threshold` is the score from which a detection is shown to the user: one number or one for each
    class name. Raises ConfigError for a bad threshold.
    """
    once = np.ones((1, len(targets)), dtype=np.int64)
    figures = weighted_metrics(detections, targets, class_names, once, score_threshold=score_threshold)
    per_class = {
        name: ClassMetrics(
            **{figure: value_or_none(figures[figure][k, 0]) for figure in CLASS_FIGURES},
            ground_truth=int(figures["ground_truth"][k, 0]),
            detections=int(figures["detections"][k, 0]),
        )
        for k, name in enumerate(class_names)
    }
    return Metrics(
        images=len(targets),
        **{mean: value_or_none(figures[mean][0]) for mean in MEANS},
        per_class=per_class,
        score_threshold=dict(score_threshold)
        if isinstance(score_threshold, Mapping)
        else float(score_threshold),
    )


def precision_recall(
    detections: Sequence[Detections], targets: Sequence[Target], label: int, iou_threshold: float = 0.5
) -> PrecisionRecall:
    """The precision-recall curve of one class, matched by the rule of VOC (see `matching.match_image`)."""
    matches = match_class(detections, targets, label, VOC, [iou_threshold])
    return PrecisionRecall(matches.scores, matches.true_positive[0], int(matches.objects.sum()))


def confusion_matrix(
    detections: Sequence[Detections],
    targets: Sequence[Target],
    num_classes: int,
    score_threshold: float | Mapping[str, float] = 0.5,
) -> np.ndarray:
    """The (C, C) int64 counts: row = true class, column = detected class, 0 = background (C counts it).

    In each image, objects and detections (score >= threshold) of whatever class are matched one to one,
    highest IoU first, down to 0.5. Column 0 holds missed objects, row 0 false positives without an object.
    """
    check_pairs(detections, targets)
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    for found, target in zip(detections, targets, strict=True):
        kept = found.above(score_threshold)
        boxes, labels = ground_truth(target)
        overlap = iou_matrix(kept.boxes, boxes)
        objects = match(overlap, [0.5], priority=overlap)[0]
        np.add.at(matrix, (np.append(labels, 0)[objects], kept.labels), 1)  # [-1] is the background
        np.add.at(matrix, (np.delete(labels, objects[objects >= 0]), 0), 1)
    return matrix


def weighted_metrics(
    detections: Sequence[Detections],
    targets: Sequence[Target],
    class_names: Sequence[str],
    weights: np.ndarray,
    *,
    score_threshold: float | Mapping[str, float] = 0.5,
) -> dict[str, np.ndarray]:
    """Every figure of `Metrics` for each of S weightings of the N images, NaN where it is undefined.

    `weights` (S, N) int64 says how often each image counts: the figures equal those of `evaluate_detections`
    on a list that holds every image so often. (Where scores of a class are equal within an image, the order
    of the copies, and so the figure, may differ.) The figures of classes, by the names in `ClassMetrics` and
    COCO's recall `ar_100`, are (classes, S) float64; the means, by the names in `Metrics`, are (S,).
    Raises ConfigError for a bad threshold.
    """
    check_pairs(detections, targets)
    names = (*CLASS_FIGURES, "ar_100", "ground_truth", "detections")
    figures = {name: np.full((len(class_names), len(weights)), np.nan) for name in names}
    for k, threshold in enumerate(class_thresholds(score_threshold, class_names).values()):
        own = _class_figures(detections, targets, k + 1, weights, threshold)
        for name, values in own.items():
            figures[name][k] = values
    return figures | {mean: mean_of_defined(figures[figure]) for mean, figure in MEANS.items()}


def _class_figures(
    detections: Sequence[Detections],
    targets: Sequence[Target],
    label: int,
    weights: np.ndarray,
    threshold: float,
) -> dict[str, np.ndarray]:
    """The (S,) values of each figure of one class."""
    coco = match_class(detections, targets, label, COCO, COCO_IOU_THRESHOLDS)
    voc = match_class(detections, targets, label, VOC, [0.5])
    objects = weights @ voc.objects
    shown = int(np.count_nonzero(voc.scores >= np.float32(threshold)))
    detected = weights @ np.bincount(voc.image_index[:shown], minlength=len(targets))
    found = weights @ voc.true_positives(shown)[0]
    coco_aps = _average_precisions(coco, weights, coco_levels)
    of_objects = {
        "ap_50": coco_aps[0],
        "ap": coco_aps.mean(axis=0),
        "voc07_ap": _average_precisions(voc, weights, voc07_levels)[0],
        "voc12_ap": _average_precisions(voc, weights, voc12_levels)[0],
        "recall": quotient(found, objects),
        "ar_100": quotient((weights @ coco.true_positives().T).mean(axis=1), objects),
    }
    return {
        **{name: np.where(objects > 0, values, np.nan) for name, values in of_objects.items()},
        "precision": quotient(found, detected),
        "ground_truth": objects,
        "detections": detected,
    }


def average_precision(
    true_positive: np.ndarray, objects: int, levels: Callable[[np.ndarray], np.ndarray]
) -> float | None:
    """The average precision of (K,) detections, highest score first; None without objects.

    `levels` is one of `voc07_levels`, `voc12_levels` and `coco_levels`.
    """
    if not objects:
        return None
    nowhere = np.zeros(len(true_positive), dtype=np.int64)
    matches = ClassMatches(nowhere, true_positive[None], nowhere, np.array([objects]))
    return float(_average_precisions(matches, np.ones((1, 1)), levels)[0, 0])


def _average_precisions(
    matches: ClassMatches, weights: np.ndarray, levels: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The (T, S) average precisions at each IoU threshold for each weighting; 0 where there are no objects.

    `levels` tells which share of all recall levels a recall reaches. The precision of a level is the best at
    this recall or a higher one, so a true positive adds the best precision from it on, times the share of
    levels that it adds. In this form an image of weight two counts as two.
    """
    results = np.zeros((len(matches.true_positive), len(weights)))
    rows = [np.flatnonzero(row) for row in matches.true_positive]
    for start in range(0, len(weights), _CHUNK):
        part = slice(start, start + _CHUNK)
        of_images = np.ascontiguousarray(weights[part].T, dtype=np.float64)  # (N, s)
        of_detections = of_images[matches.image_index]  # (K, s)
        so_far = np.maximum(of_detections.cumsum(axis=0), 1.0)
        objects = np.maximum(matches.objects @ of_images, 1.0)
        for threshold, row in enumerate(rows):
            found = of_detections[row].cumsum(axis=0)  # (R, s)
            # Only true positives matter: elsewhere the precision falls and the recall stays.
            envelope = np.maximum.accumulate((found / so_far[row])[::-1], axis=0)[::-1]
            added = np.diff(levels(found / objects), axis=0, prepend=0.0)
            results[threshold, part] = np.einsum("rs,rs->s", envelope, added)
    return results


def voc12_levels(recall: np.ndarray) -> np.ndarray:
    """The share of recall levels that each recall reaches, where every recall is a level."""
    return recall


def voc07_levels(recall: np.ndarray) -> np.ndarray:
    """The share of the levels 0, 0.1, ... 1 that each recall reaches; one that equals it counts."""
    return (np.floor(10 * recall + 1e-9) + 1) / 11  # k / 10 as a float may be above a recall that equals it


def coco_levels(recall: np.ndarray) -> np.ndarray:
    """The share of COCO's 101 levels that each recall reaches, compared as in its code.

    7 of 100 objects do not reach its level 0.07000000000000001.
    """
    below = np.floor(100 * recall + 1e-9).astype(np.intp)  # whole hundredths, however the product was rounded
    return (below + (recall >= COCO_RECALLS[below])) / len(COCO_RECALLS)


def quotient(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The (S,) float64 quotients; NaN where the divisor is not positive."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def mean_of_defined(figures: np.ndarray) -> np.ndarray:
    """The (S,) means of (classes, S) figures over the classes where they are defined; NaN where none is."""
    defined = ~np.isnan(figures)
    return quotient(np.where(defined, figures, 0.0).sum(axis=0), defined.sum(axis=0))


def value_or_none(figure: np.floating[Any]) -> float | None:
    """The figure as a Python number; None for NaN."""
    return None if np.isnan(figure) else float(figure)
