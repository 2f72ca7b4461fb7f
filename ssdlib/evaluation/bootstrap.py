"""How far to trust a figure: percentile intervals over images drawn again (Efron 1979).

Images, not objects, are drawn with replacement, because the cells of one field share stain, focus and whoever
labeled them. Matching detections to objects does not depend on which images are drawn, so it is done once;
a draw is then only a count of each image, and every draw's figure a weighted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ssdlib.evaluation.matching import as_array, check_pairs, coco_boxes, iou_matrix, quotient, threshold_of
from ssdlib.evaluation.metrics import (
    COCO_IOU_THRESHOLDS,
    COCO_RECALLS,
    precision_recall,
)
from ssdlib.evaluation.tables import Interval
from ssdlib.inference.detections import Detections

LEVEL = 0.95
PER_CLASS_LIMIT = 100
"""COCO looks at the 100 best detections of a class in an image."""
_CHUNK = 64  # draws at once: (K, 64) numbers stay in the processor's cache for a few thousand detections
_MEANS = {
    "map_50": "ap_50",
    "map": "ap",
    "voc07_map": "voc07_ap",
    "voc12_map": "voc12_ap",
    "mar_100": "ar_100",
}
"""Each mean of `Metrics` and the figure of a class that it is the mean of."""


@dataclass(frozen=True)
class ClassIntervals:
    """The figures of `ClassMetrics`. Precision and recall are those at the working threshold."""

    ap_50: Interval
    ap: Interval
    voc07_ap: Interval
    voc12_ap: Interval
    precision: Interval
    recall: Interval


@dataclass(frozen=True)
class Intervals:
    """Every figure of `Metrics` with its interval over the images."""

    map_50: Interval
    map: Interval
    voc07_map: Interval
    voc12_map: Interval
    mar_100: Interval
    classes: dict[str, ClassIntervals]
    images: int
    samples: int
    seed: int
    level: float = LEVEL

    @property
    def per_class(self) -> dict[str, Interval]:
        """COCO's AP at IoU 0.5 of each class."""
        return {name: figures.ap_50 for name, figures in self.classes.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `per_class` among them."""
        return {**asdict(self), "per_class": {name: asdict(one) for name, one in self.per_class.items()}}


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """One class on N images: its K detections, highest score first, each judged at T IoU thresholds."""

    true_positive: np.ndarray
    """(T, K) bool."""
    image_index: np.ndarray
    """(K,) int64: which image each detection is in."""
    objects: np.ndarray
    """(N,) int64: ground-truth objects in each image."""

    def right(self, select: slice | np.ndarray = slice(None)) -> np.ndarray:
        """(T, N) float64: true positives in each image, of the selected detections."""
        images = self.image_index[select]
        found = [np.bincount(images, row[select], len(self.objects)) for row in self.true_positive]
        return np.array(found, dtype=np.float64)


def bootstrap_map(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    score_threshold: float | Mapping[str, float] = 0.5,
    samples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> Intervals:
    """Every figure as `evaluate_detections` gives it, with percentile intervals.

    `detections` and `targets` are those of the same images in the same order; the same seed and number of
    images give the same draws, whichever detector is judged. Draws without an object of a class say nothing
    about that class, and their mean is over the classes they have. One image drawn again is the same image:
    it has figures, but no interval. Raises DataError where the lengths differ.
    """
    counts = draws_after_the_whole(len(targets), samples, seed)
    figures = draw_figures(detections, targets, class_names, counts, score_threshold=score_threshold)
    return Intervals(
        **{name: percentile_interval(figures[name], level) for name in _MEANS},
        classes={
            name: ClassIntervals(
                **{f.name: percentile_interval(figures[f.name][k], level) for f in fields(ClassIntervals)}
            )
            for k, name in enumerate(class_names)
        },
        images=len(targets),
        samples=samples,
        seed=seed,
        level=level,
    )


def draw_images(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """(samples, images) int64: how often each image comes in each draw of as many, with replacement."""
    if not images:
        return np.zeros((samples, 0), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)


def draws_after_the_whole(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """(1 + samples, images) int64: every image once, then the draws; of a single image there are none."""
    whole = np.ones((1, images), dtype=np.int64)
    return np.concatenate([whole, draw_images(images, samples if images > 1 else 0, seed)])


def percentile_interval(figures: np.ndarray, level: float = LEVEL) -> Interval:
    """The interval of one figure (1 + S,): of all images, then of each draw; NaN is undefined."""
    value, drawn = figures[0], figures[1:]
    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(value):
        return Interval(None, None, None)
    if not len(drawn):
        return Interval(float(value), None, None)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def draw_figures(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    counts: np.ndarray,
    *,
    score_threshold: float | Mapping[str, float] = 0.5,
) -> dict[str, np.ndarray]:
    """Every figure of `Metrics` on each draw of `counts` (S, N), float64, NaN where undefined.

    The figures of classes, by the names in `ClassMetrics` and COCO's recall `ar_100`, are (classes, S); the
    means, by the names in `Metrics`, are (S,). They equal those of `evaluate_detections` on a list that
    holds every image as often as it was drawn (where a class's scores are equal within an image, the order
    of the copies, and so the figure, may differ). Raises DataError where the lengths differ.
    """
    check_pairs(detections, targets)
    names = [*(f.name for f in fields(ClassIntervals)), "ar_100"]
    figures = {name: np.full((len(class_names), len(counts)), np.nan) for name in names}
    for k, name in enumerate(class_names):
        own = _class_figures(detections, targets, k + 1, counts, threshold_of(name, score_threshold))
        for figure, values in own.items():
            figures[figure][k] = values
    return {**figures, **{mean: _mean_over_classes(figures[of]) for mean, of in _MEANS.items()}}


def _class_figures(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    label: int,
    counts: np.ndarray,
    threshold: float,
) -> dict[str, np.ndarray]:
    """Each figure of one class on each draw, (S,)."""
    coco = _match_coco(detections, targets, label)
    curve = precision_recall(detections, targets, label)
    voc = ClassMatches(curve.true_positive[None], curve.image_index, coco.objects)
    objects = counts @ coco.objects
    coco_aps = _average_precisions(coco, counts, _coco_levels)
    shown = slice(curve.at(threshold)[2])
    right = counts @ voc.right(shown)[0]
    ratios = {
        "ap_50": coco_aps[0],
        "ap": coco_aps.mean(axis=0),
        "voc07_ap": _average_precisions(voc, counts, _voc07_levels)[0],
        "voc12_ap": _average_precisions(voc, counts, lambda recall: recall)[0],
        "recall": quotient(right, objects),
        "ar_100": quotient((counts @ coco.right().T).mean(axis=1), objects),
    }
    figures = {name: np.where(objects > 0, values, np.nan) for name, values in ratios.items()}
    detected = counts @ np.bincount(curve.image_index[shown], minlength=len(targets))
    return {**figures, "precision": quotient(right, detected)}


def _average_precisions(
    matches: ClassMatches, counts: np.ndarray, levels: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """(T, S) average precision at each IoU threshold on each draw; 0 where there are no objects.

    `levels` tells which share of all recall levels a recall reaches. The precision of a level is the best at
    this recall or a higher one, so a right detection is worth the best precision from it on, times the share
    of levels that it adds. In this form one drawn twice counts as two.
    """
    results = np.zeros((len(matches.true_positive), len(counts)))
    rows = [np.flatnonzero(row) for row in matches.true_positive]
    for start in range(0, len(counts), _CHUNK):
        part = slice(start, start + _CHUNK)
        drawn = np.ascontiguousarray(counts[part].T, dtype=np.float64)  # (N, s)
        weights = drawn[matches.image_index]  # (K, s)
        so_far = np.maximum(weights.cumsum(axis=0), 1.0)
        objects = np.maximum(matches.objects @ drawn, 1.0)
        for threshold, right in enumerate(rows):
            found = weights[right].cumsum(axis=0)  # (R, s)
            # The curve only matters where a detection is right: elsewhere precision falls and recall stays.
            envelope = np.maximum.accumulate((found / so_far[right])[::-1], axis=0)[::-1]
            added = np.diff(levels(found / objects), axis=0, prepend=0.0)
            results[threshold, part] = np.einsum("rs,rs->s", envelope, added)
    return results


def _coco_levels(recall: np.ndarray) -> np.ndarray:
    """COCO's 101 levels, compared as its code does: 7 of 100 found do not reach its 0.07000000000000001."""
    below = np.floor(100 * recall + 1e-9).astype(np.intp)  # whole hundredths, however the product was rounded
    return (below + (recall >= COCO_RECALLS[below])) / len(COCO_RECALLS)


def _voc07_levels(recall: np.ndarray) -> np.ndarray:
    """Eleven levels, each reached by a recall that equals it."""
    return (np.floor(10 * recall + 1e-9) + 1) / 11


def _match_coco(
    detections: Sequence[Detections], targets: Sequence[Mapping[str, Any]], label: int
) -> ClassMatches:
    """Match one class as COCO does at its ten IoU thresholds. Lin et al. 2014.

    In its image, highest score first, a detection takes the free object that it overlaps most (where two
    are equal the later, as in COCO's code).
    """
    scores, rights, objects = [np.empty(0)], [np.empty((len(COCO_IOU_THRESHOLDS), 0), bool)], []
    for found, target in zip(detections, targets, strict=True):
        own = np.flatnonzero((found.labels == label).numpy())[:PER_CLASS_LIMIT]
        truth = coco_boxes(as_array(target["boxes"]).reshape(-1, 4)[as_array(target["labels"]) == label])
        rights.append(_match_image(coco_boxes(found.boxes.numpy()[own]), truth))
        scores.append(found.scores.numpy()[own])
        objects.append(len(truth))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    images = np.repeat(np.arange(len(objects)), [len(part) for part in scores[1:]])
    return ClassMatches(
        np.concatenate(rights, axis=1)[:, order], images[order], np.array(objects, dtype=np.int64)
    )


def _match_image(boxes_xyxy: np.ndarray, truth_xyxy: np.ndarray) -> np.ndarray:
    """(T, D) bool: which detections, highest score first, find a free object at each IoU threshold."""
    thresholds = np.arange(len(COCO_IOU_THRESHOLDS))
    right = np.zeros((len(thresholds), len(boxes_xyxy)), dtype=bool)
    if not len(truth_xyxy):
        return right
    overlap = iou_matrix(boxes_xyxy, truth_xyxy)[:, ::-1]  # (D, G), later objects first: they win a tie
    free = np.ones((len(thresholds), len(truth_xyxy)), dtype=bool)
    for d in np.flatnonzero(overlap.max(axis=1) >= COCO_IOU_THRESHOLDS[0]):
        still = np.where(free, overlap[d], -1.0)  # (T, G)
        best = still.argmax(axis=1)
        hit = still[thresholds, best] >= COCO_IOU_THRESHOLDS
        right[hit, d] = True
        free[thresholds[hit], best[hit]] = False
    return right


def _mean_over_classes(figures: np.ndarray) -> np.ndarray:
    """(classes, S) -> (S,) mean over the classes that a draw has; NaN where it has none."""
    there = ~np.isnan(figures)
    return quotient(np.where(there, figures, 0.0).sum(axis=0), there.sum(axis=0))
