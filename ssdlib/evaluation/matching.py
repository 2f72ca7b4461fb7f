"""The matching of detections with ground truth, from which every metric of this package is counted.

`match` is the greedy matching itself. `match_image` applies it to one image, `match_class` to one class of
many images. VOC and COCO differ in three details, which `MatchingRule` names.

All functions of this package that take detections and targets want those of the same images in the same
order, and raise DataError where the two differ in length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdlib.common.errors import DataError
from ssdlib.data.formats.records import iou_matrix
from ssdlib.inference.detections import Detections, as_array

Target = Mapping[str, Any]
"""The ground truth of one image: "boxes" (G, 4) in xyxy pixels and "labels" (G,), as datasets give them."""

DetectedImages = tuple[Sequence[Detections], Sequence[Target]]
"""The detections and the ground truth of the same images, in the same order."""


@dataclass(frozen=True)
class MatchingRule:
    """The details in which benchmarks match differently."""

    any_free_object: bool
    """Whether a detection may match any object that is still free, or only the one that it overlaps most."""
    per_class_limit: int | None
    """How many detections of a class count in one image, highest score first; None for all. An image that
    holds more objects of the class than this has no limit, or a perfect detector could not find them."""
    float32_sides: bool
    """Whether widths and heights of boxes are rounded to float32, as COCO's tools do."""

    def iou(self, a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
        """The (A, B) float64 IoU of two sets of boxes under this rule."""
        if self.float32_sides:
            a_xyxy, b_xyxy = _with_float32_sides(a_xyxy), _with_float32_sides(b_xyxy)
        return iou_matrix(a_xyxy, b_xyxy)

    def limit(self, objects: int) -> int | None:
        """How many detections of a class count in an image with so many objects of it; None for all."""
        return (
            None if self.per_class_limit is None or objects > self.per_class_limit else self.per_class_limit
        )


VOC = MatchingRule(any_free_object=False, per_class_limit=None, float32_sides=False)
"""The rule of the VOC devkit, except that it adds 1 to widths and heights. Everingham et al. 2010."""

COCO = MatchingRule(any_free_object=True, per_class_limit=100, float32_sides=True)
"""The rule of COCO's evaluation code (Lin et al. 2014), save in images of over 100 objects of a class."""


@dataclass(frozen=True, eq=False)
class Matches:
    """The D detections of one image matched with its G objects."""

    object_of_detection: np.ndarray
    """(D,) int64: the object that each detection is matched with, or -1 for a false positive."""
    missed: np.ndarray
    """(G,) bool: the objects without a detection, that is, the false negatives."""

    @property
    def true_positive(self) -> np.ndarray:
        """(D,) bool: which detections are matched with an object."""
        return self.object_of_detection >= 0

    @property
    def errors(self) -> int:
        """The number of false positives and false negatives together."""
        return int((~self.true_positive).sum() + self.missed.sum())


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """The K detections of one class in N images, highest score first, matched at T IoU thresholds."""

    scores: np.ndarray
    """(K,) float64."""
    true_positive: np.ndarray
    """(T, K) bool."""
    image_index: np.ndarray
    """(K,) int64: the image of each detection."""
    objects: np.ndarray
    """(N,) int64: the number of ground-truth objects in each image."""

    def true_positives(self, count: int | None = None) -> np.ndarray:
        """The (T, N) int64 numbers of true positives in each image, among the first `count` detections."""
        images = self.image_index[:count]
        found = [np.bincount(images[row[:count]], minlength=len(self.objects)) for row in self.true_positive]
        return np.array(found)


def match(
    overlap: np.ndarray,
    iou_thresholds: Sequence[float] | np.ndarray,
    *,
    any_free_object: bool = True,
    priority: np.ndarray | None = None,
) -> np.ndarray:
    """The (T, D) int64 objects that D detections are matched with at T IoU thresholds; -1 for no object.

    `overlap` (D, G) holds the IoU of each detection, highest score first, with each object; pairs that must
    not be matched, such as those of different classes, hold -1. The matching is greedy and one to one: the
    pairs that reach the threshold are tried in turn, and a pair is matched if both its sides are still free.

    Without `priority` the detections take their turns in order of score. Each tries the objects by IoU, of
    equal ones the later first, as in COCO's code; or, unless `any_free_object`, only the object that it
    overlaps most, whether free or not. A `priority` (D, G) instead orders all pairs, highest first: the IoU
    itself for a confusion matrix, or any other measure of how well the two agree.
    """
    matched = np.full((len(iou_thresholds), len(overlap)), -1, dtype=np.int64)
    candidates = overlap >= min(iou_thresholds)
    if not any_free_object and overlap.size:
        candidates &= np.arange(overlap.shape[1]) == overlap.argmax(axis=1)[:, None]
    d, g = np.nonzero(candidates)
    keys = (-g, -overlap[d, g], d) if priority is None else (d, g, -priority[d, g])
    order = np.lexsort(keys)  # the last key counts first
    d, g = d[order], g[order]
    for row, threshold in zip(matched, iou_thresholds, strict=True):
        reached = overlap[d, g] >= threshold
        object_of: dict[int, int] = {}
        taken: set[int] = set()
        for detection, candidate in zip(d[reached].tolist(), g[reached].tolist(), strict=True):
            if detection not in object_of and candidate not in taken:
                object_of[detection] = candidate
                taken.add(candidate)
        row[list(object_of)] = list(object_of.values())
    return matched


def match_image(detections: Detections, target: Target, iou_threshold: float = 0.5) -> Matches:
    """The matches of one image by the rule of VOC, class by class.

    Highest score first, each detection looks at the object of its class that it overlaps most. It is a true
    positive if their IoU reaches the threshold and no detection before it has claimed that object.
    """
    boxes, labels = ground_truth(target)
    same_class = detections.labels[:, None] == labels
    overlap = np.where(same_class, VOC.iou(detections.boxes, boxes), -1.0)
    found = match(overlap, [iou_threshold], any_free_object=VOC.any_free_object)[0]
    missed = np.ones(len(labels), dtype=bool)
    missed[found[found >= 0]] = False
    return Matches(found, missed)


def match_class(
    detections: Sequence[Detections],
    targets: Sequence[Target],
    label: int,
    rule: MatchingRule,
    iou_thresholds: Sequence[float] | np.ndarray,
) -> ClassMatches:
    """The matches of one class in all images at each IoU threshold."""
    check_pairs(detections, targets)
    scores, found, objects = [np.empty(0)], [np.empty((len(iou_thresholds), 0), bool)], []
    for image, target in zip(detections, targets, strict=True):
        boxes, labels = ground_truth(target)
        limit = rule.limit(np.count_nonzero(labels == label))
        own = np.flatnonzero(image.labels == label)[:limit]
        overlap = rule.iou(image.boxes[own], boxes[labels == label])
        found.append(match(overlap, iou_thresholds, any_free_object=rule.any_free_object) >= 0)
        scores.append(image.scores[own])
        objects.append(overlap.shape[1])
    joined = np.concatenate(scores)
    order = np.argsort(-joined, kind="stable")
    images = np.repeat(np.arange(len(objects)), [len(part) for part in scores[1:]])
    return ClassMatches(
        scores=joined[order],
        true_positive=np.concatenate(found, axis=1)[:, order],
        image_index=images[order],
        objects=np.array(objects, dtype=np.int64),
    )


def _with_float32_sides(boxes_xyxy: np.ndarray) -> np.ndarray:
    """The (B, 4) boxes as COCO's code sees them: widths and heights in float32, the rest in float64."""
    corner = boxes_xyxy.astype(np.float32)
    sides = (corner[:, 2:] - corner[:, :2]).astype(np.float64)
    start = corner[:, :2].astype(np.float64)
    return np.concatenate([start, start + sides], axis=1)


def ground_truth(target: Target) -> tuple[np.ndarray, np.ndarray]:
    """The (G, 4) float64 boxes in xyxy pixels and the (G,) int64 labels of a target's tensors or lists."""
    boxes, labels = as_array(target["boxes"]), as_array(target["labels"])
    return boxes.reshape(-1, 4).astype(np.float64), labels.reshape(-1).astype(np.int64)


def check_pairs(detections: Sequence[Detections], targets: Sequence[Target]) -> None:
    """Raise DataError unless every image has detections and ground truth."""
    if len(detections) != len(targets):
        raise DataError(
            f"{len(detections)} images have detections and {len(targets)} have ground truth: "
            "pass one of each for every image, in the same order."
        )
