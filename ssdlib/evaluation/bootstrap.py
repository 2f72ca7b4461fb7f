"""How far to trust an average precision: percentile intervals over images drawn again (Efron 1979).

Images, not objects, are drawn with replacement, because the cells of one field share stain, focus and whoever
labelled them. Matching detections to objects does not depend on which images are drawn, so it is done once;
a draw is then only a count of each image, and every draw's average precision a weighted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssdlib.detections import Detections
from ssdlib.evaluation.metrics import COCO_RECALLS, _array, _check, _iou, _mean

LEVEL = 0.95
IOU_THRESHOLD = 0.5
PER_CLASS_LIMIT = 100
"""COCO looks at the 100 best detections of a class in an image."""
_CHUNK = 100  # draws at once: (100, K) integers stay in the processor's cache for a few thousand detections


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that holds the middle 95 % of it over the draws; None where undefined."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Such as `0.902 [0.88, 0.92]`."""
        if self.value is None:
            return "n/a"
        return f"{self.value:.3f}" + (f" [{self.low:.2f}, {self.high:.2f}]" if self.low is not None else "")


@dataclass(frozen=True)
class Intervals:
    """mAP@0.5 and each class's AP@0.5, COCO's, with intervals over the images."""

    map_50: Interval
    per_class: dict[str, Interval]
    images: int
    samples: int
    seed: int
    level: float = LEVEL

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """One class on N images: its K detections, highest score first, each judged."""

    true_positive: np.ndarray
    """(K,) bool."""
    image_index: np.ndarray
    """(K,) int64: which image each detection is in."""
    objects: np.ndarray
    """(N,) int64: ground-truth objects in each image."""


def bootstrap_map(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> Intervals:
    """mAP@0.5 and AP@0.5 of each class as `evaluate_detections` gives them, with percentile intervals.

    `detections` and `targets` are those of the same images in the same order; the same seed and number of
    images give the same draws, whichever detector is judged. Draws without an object of a class say nothing
    about that class, and their mean is over the classes they have. Raises DataError where the lengths differ.
    """
    matches = match_classes(detections, targets, len(class_names))
    points = _class_aps(matches, np.ones((1, len(targets)), dtype=np.int64))[:, 0]
    aps = _class_aps(matches, draw_images(len(targets), samples, seed))
    value = _mean(None if np.isnan(point) else point for point in points)
    return Intervals(
        map_50=_interval(value, _mean_over_classes(aps), level),
        per_class={
            name: _interval(None if np.isnan(point) else float(point), drawn, level)
            for name, point, drawn in zip(class_names, points, aps, strict=True)
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


def match_classes(
    detections: Sequence[Detections], targets: Sequence[Mapping[str, Any]], classes: int
) -> list[ClassMatches]:
    """Match each class as COCO does at IoU 0.5; entry k is of label k + 1. Lin et al. 2014.

    In its image, highest score first, a detection takes the free object that it overlaps most (where two
    are equal the later, as in COCO's code). Raises DataError where the two sequences differ in length.
    """
    _check(detections, targets)
    return [_match_class(detections, targets, label) for label in range(1, classes + 1)]


def average_precisions(matches: ClassMatches, counts: np.ndarray) -> np.ndarray:
    """COCO's average precision at 101 recalls, of each draw in `counts` (S, N): (S,) float64.

    NaN for a draw without objects of the class. The same as listing every image as often as it was drawn.
    """
    totals = counts @ matches.objects  # (S,)
    rows = [counts[start : start + _CHUNK] for start in range(0, len(counts), _CHUNK)]
    parts = [_weighted(matches, part) for part in rows]
    precisions = np.concatenate([np.zeros(0), *parts])
    return np.where(totals > 0, precisions, np.nan)


def _weighted(matches: ClassMatches, counts: np.ndarray) -> np.ndarray:
    """`average_precisions` of some draws; 0 where there are no objects."""
    right = np.flatnonzero(matches.true_positive)
    if not len(right):
        return np.zeros(len(counts))
    # The curve only matters where a detection is right: elsewhere precision falls and recall stays.
    weights = counts[:, matches.image_index]  # (S, K)
    found = weights[:, right].cumsum(axis=1)  # (S, T) so far right
    so_far = weights.cumsum(axis=1)[:, right]  # (S, T) so far in all
    precision = found / np.maximum(so_far, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / np.maximum(counts @ matches.objects, 1)[:, None]
    results = np.empty(len(counts))
    for row in range(len(counts)):
        first = np.searchsorted(recall[row], COCO_RECALLS)
        results[row] = envelope[row, first[first < len(right)]].sum() / len(COCO_RECALLS)
    return results


def _match_class(
    detections: Sequence[Detections], targets: Sequence[Mapping[str, Any]], label: int
) -> ClassMatches:
    scores, rights, objects = [np.empty(0)], [np.empty(0, bool)], []
    for found, target in zip(detections, targets, strict=True):
        own = np.flatnonzero((found.labels == label).numpy())[:PER_CLASS_LIMIT]
        truth = _coco_boxes(_array(target["boxes"]).reshape(-1, 4)[_array(target["labels"]) == label])
        rights.append(_match_image(_coco_boxes(found.boxes.numpy()[own]), truth))
        scores.append(found.scores.numpy()[own])
        objects.append(len(truth))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    images = np.repeat(np.arange(len(rights) - 1), [len(part) for part in rights[1:]])
    return ClassMatches(np.concatenate(rights)[order], images[order], np.array(objects, dtype=np.int64))


def _coco_boxes(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Boxes as COCO's code sees them: sides taken off in float32, the rest in float64."""
    corner = boxes_xyxy.astype(np.float32)
    sides = (corner[:, 2:] - corner[:, :2]).astype(np.float64)
    start = corner[:, :2].astype(np.float64)
    return np.concatenate([start, start + sides], axis=1)


def _match_image(boxes_xyxy: np.ndarray, truth_xyxy: np.ndarray) -> np.ndarray:
    """(D,) bool: which detections, highest score first, find a free object."""
    right = np.zeros(len(boxes_xyxy), dtype=bool)
    if not len(truth_xyxy):
        return right
    overlap = _iou(boxes_xyxy, truth_xyxy)[:, ::-1]  # (D, G), later objects first: they win a tie
    candidates = np.flatnonzero((overlap >= IOU_THRESHOLD).any(axis=1))
    for d in candidates:
        best = overlap[d].argmax()
        if overlap[d, best] >= IOU_THRESHOLD:
            right[d] = True
            overlap[:, best] = -1.0
    return right


def _class_aps(matches: Sequence[ClassMatches], counts: np.ndarray) -> np.ndarray:
    """(classes, S) average precisions."""
    return np.stack([average_precisions(one, counts) for one in matches])


def _mean_over_classes(aps: np.ndarray) -> np.ndarray:
    """(classes, S) -> (S,) mean over the classes that a draw has; NaN where it has none."""
    there = ~np.isnan(aps)
    sums = np.where(there, aps, 0.0).sum(axis=0)
    return np.divide(sums, there.sum(axis=0), out=np.full(aps.shape[1], np.nan), where=there.any(axis=0))


def _interval(value: float | None, drawn: np.ndarray, level: float) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if value is None or not len(drawn):
        return Interval(value, None, None)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
