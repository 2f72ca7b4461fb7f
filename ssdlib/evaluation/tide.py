"""The kind of error of each false positive and each missed object, and what each kind costs in mAP (TIDE).

Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors". Average precision is
COCO's at IoU 0.5 with 101 recalls, so `map_50` is that of `evaluate_detections`. Details that the paper
leaves open follow its authors' package tidecv: a detection that fits several kinds is of the first in the
order of `classify`, and where several detections could be fixed to match the same object, the one with the
highest score is and the others are taken away.

A detection's kind depends on those with a higher score alone, so it is the same at every score threshold.
Which objects are missed is not: pass detections `above` a score threshold to see what a user would miss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdlib.data.formats.records import iou_matrix
from ssdlib.evaluation.matching import COCO, Target, check_pairs, ground_truth, match
from ssdlib.evaluation.metrics import average_precision, coco_levels, mean_of_defined, value_or_none
from ssdlib.inference.detections import Detections

TRUE_POSITIVE = "true positive"
FALSE_POSITIVE_KINDS = ("class", "localization", "both", "duplicate", "background")
MISSED = "missed"
KINDS = (*FALSE_POSITIVE_KINDS, MISSED)
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """The errors among the D detections and G objects of one image."""

    kinds: np.ndarray
    """(D,) str: "true positive", one of FALSE_POSITIVE_KINDS, or "" past COCO's 100 detections of a class."""
    objects: np.ndarray
    """(D,) int64: the object matched, confused, badly located, found twice or touched; -1 for none."""
    fixes: np.ndarray
    """(D,) bool: a class or localization error that, once fixed, matches an object that nothing else does."""
    found: np.ndarray
    """(G,) bool: the objects that a true positive matches."""
    missed: np.ndarray
    """(G,) bool: the objects not found that no class or localization error concerns either."""


@dataclass(frozen=True)
class ErrorImpact:
    """The number of errors, and the AP or mAP (0 to 1) that fixing them, and nothing else, would add."""

    count: int
    delta_ap: float | None


@dataclass(frozen=True)
class ClassErrors:
    """One class. Class errors count for the detected class; fixing one may help two classes."""

    ap_50: float | None
    objects: int
    detections: int
    kinds: dict[str, ErrorImpact]
    false_positives: ErrorImpact
    misses: ErrorImpact
    """All objects not found: more than those of the kind "missed"."""


@dataclass(frozen=True)
class TideErrors:
    """Errors of a detector by kind. `delta_ap` is None for a class without objects, which no mean counts."""

    images: int
    map_50: float | None
    kinds: dict[str, ErrorImpact]
    false_positives: ErrorImpact
    misses: ErrorImpact
    per_class: dict[str, ClassErrors]
    foreground_iou: float = FOREGROUND_IOU
    background_iou: float = BACKGROUND_IOU


@dataclass(frozen=True)
class WorstError:
    """One error to look at."""

    image_index: int
    image: str
    kind: str
    name: str
    """The detected class, or that of the missed object."""
    score: float | None
    """Of a missed object: the best score of its class at its place, below the threshold; None for none."""
    box: tuple[float, float, float, float]
    """xyxy pixels of the false positive or of the missed object."""
    true_box: tuple[float, float, float, float] | None
    """The object that a false positive concerns."""
    true_name: str | None


def classify(detections: Detections, target: Target) -> ImageErrors:
    """The errors of one image. Bolya et al. 2020, section 2.2, in the order of their code.

    Matching is COCO's: highest score first, a detection takes the free object of its class that it overlaps
    most. One that finds none at IoU >= 0.5 is a *localization* error if it overlaps an object of its class by
    at least 0.1 and less than 0.5; else a *class* error if it overlaps one of another class by 0.5; else a
    *duplicate* if it overlaps one of its class that much, which is then taken; else *background* if it
    overlaps nothing by more than 0.1; else *both*.
    """
    boxes, labels = ground_truth(target)
    detected = detections.labels
    overlap = COCO.iou(detections.boxes, boxes)
    same = detected[:, None] == labels
    counted = _within_limit(detected, labels)
    matched = match(np.where(same & counted[:, None], overlap, -1.0), [FOREGROUND_IOU])[0]
    # One more column, of an object that overlaps nothing, makes the best of no object at all defined.
    every, own, other = (
        np.pad(part, ((0, 0), (0, 1))) for part in (overlap, overlap * same, overlap * ~same)
    )
    best_own, best_other = own.max(axis=1), other.max(axis=1)
    questions = {
        "": ~counted,
        TRUE_POSITIVE: matched >= 0,
        "localization": (best_own >= BACKGROUND_IOU) & (best_own < FOREGROUND_IOU),
        "class": best_other >= FOREGROUND_IOU,
        "duplicate": best_own >= FOREGROUND_IOU,
        "background": every.max(axis=1) <= BACKGROUND_IOU,
    }
    kinds = np.select(list(questions.values()), list(questions), "both")
    objects = np.select(
        [
            kinds == TRUE_POSITIVE,
            np.isin(kinds, ("localization", "duplicate")),
            kinds == "class",
            kinds == "both",
        ],
        [matched, own.argmax(axis=1), other.argmax(axis=1), every.argmax(axis=1)],
        -1,
    )
    found = np.zeros(len(labels), dtype=bool)
    found[matched[matched >= 0]] = True
    fixable = np.flatnonzero(np.isin(kinds, ("localization", "class")))
    fixable = fixable[~found[objects[fixable]]]
    concerned, first = np.unique(objects[fixable], return_index=True)  # highest score first
    fixes = np.zeros(len(detected), dtype=bool)
    fixes[fixable[first]] = True
    missed = ~found
    missed[concerned] = False
    return ImageErrors(kinds, objects, fixes, found, missed)


def _within_limit(detected: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(D,) bool: the detections of each class that COCO's rule looks at; `labels` (G,) are the objects'."""
    within = np.ones(len(detected), dtype=bool)
    for label in np.unique(detected):
        limit = COCO.limit(np.count_nonzero(labels == label))
        if limit is not None:
            within[np.flatnonzero(detected == label)[limit:]] = False
    return within


def tide_errors(
    detections: Sequence[Detections], targets: Sequence[Target], class_names: Sequence[str]
) -> TideErrors:
    """The number of errors of each kind, and the mAP that fixing one kind alone would add.

    A fix corrects the label of a class error and the box of a localization error, takes duplicates,
    background and both away, and missed objects out of the ground truth (so that recall counts without them).
    All false positives are fixed by taking them away, all misses by taking every object not found out. A
    class of which nothing was found gains everything from fixing its misses (tidecv says nothing).
    The gains do not add up: kinds fixed together may give more or less than the sum.
    """
    check_pairs(detections, targets)
    errors = [classify(*pair) for pair in zip(detections, targets, strict=True)]
    truths = [ground_truth(target)[1] for target in targets]
    kinds, labels, fixes, true_labels = _ranked(detections, truths, errors)
    matched = kinds == TRUE_POSITIVE

    def per_class(values: np.ndarray) -> np.ndarray:
        return np.bincount(values, minlength=len(class_names) + 1)[1:]

    pairs = list(zip(truths, errors, strict=True))
    objects = per_class(_joined(truths, np.int64))
    missed = per_class(_joined([truth[one.missed] for truth, one in pairs], np.int64))
    not_found = per_class(_joined([truth[~one.found] for truth, one in pairs], np.int64))
    detected = per_class(labels)
    now = np.where(objects > 0, _class_aps(matched, labels, objects), np.nan)

    # Of each kind: the number in each class, and the APs with it fixed.
    fixed: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for kind in FALSE_POSITIVE_KINDS:
        wrong = kinds == kind
        corrected = wrong & fixes
        kept = ~wrong | corrected
        new_labels = np.where(corrected, true_labels, labels)
        fixed[kind] = (
            per_class(labels[wrong]),
            _class_aps((matched | corrected)[kept], new_labels[kept], objects),
        )
    fixed[MISSED] = missed, _class_aps(matched, labels, objects - missed)
    false_positives = per_class(labels[~matched]), _class_aps(matched[matched], labels[matched], objects)
    misses = not_found, _class_aps(matched, labels, objects - not_found)

    def impact(counts: np.ndarray, after: np.ndarray, chosen: slice) -> ErrorImpact:
        gain = mean_of_defined((after - now)[chosen, None])[0]  # the mAP is the mean of the classes' APs
        return ErrorImpact(int(counts[chosen].sum()), value_or_none(gain))

    def impacts(chosen: slice) -> dict[str, Any]:
        return {
            "kinds": {kind: impact(*pair, chosen) for kind, pair in fixed.items()},
            "false_positives": impact(*false_positives, chosen),
            "misses": impact(*misses, chosen),
        }

    return TideErrors(
        images=len(targets),
        map_50=value_or_none(mean_of_defined(now[:, None])[0]),
        **impacts(slice(None)),
        per_class={
            name: ClassErrors(
                ap_50=value_or_none(now[k]),
                objects=int(objects[k]),
                detections=int(detected[k]),
                **impacts(slice(k, k + 1)),
            )
            for k, name in enumerate(class_names)
        },
    )


def _ranked(
    detections: Sequence[Detections], truths: Sequence[np.ndarray], errors: Sequence[ImageErrors]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(K,) kinds, labels, fixes and labels of their objects (0 without one) of all images' detections.

    Those that COCO counts, highest score first.
    """
    scores = _joined([one.scores for one in detections], np.float32)
    kinds = _joined([one.kinds for one in errors], np.str_)
    order = np.argsort(-scores, kind="stable")
    order = order[kinds[order] != ""]
    labels = _joined([one.labels for one in detections], np.int64)
    fixes = _joined([one.fixes for one in errors], bool)
    # The object -1 of a detection without one is the 0 at the end.
    pairs = zip(truths, errors, strict=True)
    true_labels = _joined([np.append(truth, 0)[one.objects] for truth, one in pairs], np.int64)
    return kinds[order], labels[order], fixes[order], true_labels[order]


def _class_aps(matched: np.ndarray, labels: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """COCO's AP at IoU 0.5 of each class, from (K,) detections and (classes,) objects; 1 without objects."""
    aps = [
        average_precision(matched[labels == label], int(count), coco_levels)
        for label, count in enumerate(objects, start=1)
    ]
    return np.array([1.0 if ap is None else ap for ap in aps])


def _joined(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts])


def worst_errors(
    detections: Sequence[Detections],
    targets: Sequence[Target],
    class_names: Sequence[str],
    *,
    threshold: float | Mapping[str, float] = 0.5,
    false_positives: int = 12,
    misses: int = 12,
) -> list[WorstError]:
    """The errors most worth looking at among what a user sees at a score threshold, false positives first.

    False positives are ranked by score. Missed objects by (1 - s) a, where s is the best score of their class
    at their place (IoU >= 0.5), 0 without any, and a their area over the median of their class: on top are
    large objects that the detector is sure are not there. `threshold` is a number or one for each class name.
    """
    check_pairs(detections, targets)
    truths = [ground_truth(target) for target in targets]
    all_labels = _joined([labels for _, labels in truths], np.int64)
    all_areas = _joined([_areas(boxes) for boxes, _ in truths], np.float64)
    usual = {label: max(np.median(all_areas[all_labels == label]), 1.0) for label in np.unique(all_labels)}
    wrong: list[WorstError] = []
    lost: list[tuple[float, WorstError]] = []
    for index, (image, target, (boxes, labels)) in enumerate(zip(detections, targets, truths, strict=True)):
        kept = image.above(threshold)
        errors = classify(kept, target)
        names, detected = [class_names[label - 1] for label in labels], kept.names
        for d in np.flatnonzero(np.isin(errors.kinds, FALSE_POSITIVE_KINDS)):
            g, score = errors.objects[d], float(kept.scores[d])
            true_box, true_name = (_corners(boxes[g]), names[g]) if g >= 0 else (None, None)
            kind, box = str(errors.kinds[d]), _corners(kept.boxes[d])
            wrong.append(WorstError(index, image.image, kind, detected[d], score, box, true_box, true_name))
        for g in np.flatnonzero(errors.missed):
            here = iou_matrix(image.boxes, boxes[g : g + 1])[:, 0] >= FOREGROUND_IOU
            scores = image.scores[here & (image.labels == labels[g])]
            best = float(scores[0]) if len(scores) else None  # whatever else this detection may match
            error = WorstError(index, image.image, MISSED, names[g], best, _corners(boxes[g]), None, None)
            rank = (1 - (best or 0.0)) * _areas(boxes)[g] / usual[labels[g]]
            lost.append((rank, error))
    wrong.sort(key=lambda error: -error.score)
    lost.sort(key=lambda pair: -pair[0])
    return wrong[:false_positives] + [error for _, error in lost[:misses]]


def _areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)


def _corners(box_xyxy: Any) -> tuple[float, float, float, float]:
    return tuple(float(side) for side in box_xyxy)  # type: ignore[return-value]
