"""From raw outputs to final boxes as in `ssdlib.detector.nms`, in NumPy: where PyTorch need not be there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssdlib.config import CANDIDATES, MAX_LOG_RATIO, NMS_IOU


def nms(
    boxes_xyxy: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    iou_threshold: float | np.ndarray = NMS_IOU,
) -> np.ndarray:
    """(K,) indices of the boxes that greedy NMS within each group keeps, best first.

    boxes (D, 4), scores (D,), groups (D,) whole numbers (a class, or an image and class); one IoU threshold
    for all, or one for each box (D,) that is the same within a group.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, groups = boxes_xyxy[order].astype(np.float64), groups[order]
    thresholds = np.broadcast_to(iou_threshold, scores.shape)[order]
    better, worse = _near(boxes, groups)
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    high = np.minimum(bottom[better], bottom[worse]) - np.maximum(top[better], top[worse])
    overlap = high > 0  # most pairs have none, and are done with
    better, worse, high = better[overlap], worse[overlap], high[overlap]
    wide = np.minimum(right[better], right[worse]) - np.maximum(left[better], left[worse])
    shared, areas = wide * high, (right - left) * (bottom - top)
    # IoU above the threshold, without a division by the area of two boxes that have none.
    removes = shared > thresholds[better] * (areas[better] + areas[worse] - shared)
    better, worse = better[removes], worse[removes]
    # A box stays if no better one that stays removes it: found as in ssdlib.detector.nms.batched_nms.
    kept = np.ones(len(scores), dtype=bool)
    while True:
        now = np.ones_like(kept)
        now[worse[kept[better]]] = False
        if np.array_equal(now, kept):
            return order[kept]
        kept = now


def _near(boxes: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (i, j), i < j, of boxes of one group that share an interval across: two (K,) arrays."""
    # Each group has a stretch of its own, so that one order serves all.
    begin = groups * (np.ptp(boxes[:, ::2]) + 1.0) if len(boxes) else groups
    by_place = np.argsort(begin + boxes[:, 0])
    ends = np.searchsorted((begin + boxes[:, 0])[by_place], (begin + boxes[:, 2])[by_place])
    number = np.arange(len(boxes))
    counts = np.maximum(ends - number - 1, 0)
    one = np.repeat(number, counts)
    other = np.arange(len(one)) - np.repeat(counts.cumsum() - counts, counts) + one + 1
    one, other = by_place[one], by_place[other]
    return np.minimum(one, other), np.maximum(one, other)


def detect_objects(
    locs: np.ndarray,
    logits: np.ndarray,
    priors_cxcywh: np.ndarray,
    *,
    variances: tuple[float, float],
    score_threshold: float,
    iou_threshold: Sequence[float],
    top_k: int | None = None,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The detections of a batch as `ssdlib.detector.nms.detect_objects` gives them, as arrays.

    locs (N, P, 4), logits (N, P, C), priors (P, 4) -> for each image boxes (D, 4) fractional xyxy, scores
    (D,), labels (D,) int64 in 1..C-1, best first. `iou_threshold` has one value for each class.
    """
    found = []
    limits = np.array([0.0, *iou_threshold])
    for offsets, values in zip(locs.astype(np.float32), logits.astype(np.float32), strict=True):
        exponents = np.exp(values - values.max(axis=1, keepdims=True))
        scores = exponents / exponents.sum(axis=1, keepdims=True)  # (P, C)
        scores[:, 0] = 0.0
        prior, label = np.nonzero(scores > score_threshold)
        certain = scores[prior, label]
        chosen = np.lexsort((-certain, label))  # by class, best first
        place = np.arange(len(chosen)) - np.searchsorted(label[chosen], label[chosen])
        chosen = chosen[place < CANDIDATES]
        prior, label, certain = prior[chosen], label[chosen], certain[chosen]
        boxes = _decode(offsets[prior], priors_cxcywh[prior], variances)
        best = nms(boxes, certain, label, limits[label])[:top_k]
        found.append((boxes[best], certain[best], label[best]))
    return found


def _decode(offsets: np.ndarray, priors: np.ndarray, variances: tuple[float, float]) -> np.ndarray:
    """Boxes (D, 4) xyxy in the image: `ssdlib.detector.boxes.decode`, clipped to 0..1."""
    center = priors[:, :2] + offsets[:, :2] * np.float32(variances[0]) * priors[:, 2:]
    growth = np.minimum(offsets[:, 2:] * np.float32(variances[1]), np.float32(MAX_LOG_RATIO))
    half = priors[:, 2:] * np.exp(growth) / 2
    return np.concatenate([center - half, center + half], axis=1).clip(0.0, 1.0)
