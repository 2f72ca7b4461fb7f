"""What kind of error each false positive and each miss is, and what each kind costs in mAP (TIDE).

Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors". Average precision is
COCO's at IoU 0.5 with 101 recalls, so `map_50` is that of `evaluate_detections`. Details that the paper
leaves open follow its authors' package tidecv: a detection that fits several kinds is of the first in
`FALSE_POSITIVE_KINDS`' order of questions (see `classify`), and where several detections could be mended into
the same object, the highest-scored of them is and the others are taken away.

A detection's kind depends on those with a higher score alone, so it is the same at every score threshold.
Which objects are missed is not: pass detections `above` a working threshold to see what a user would miss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssdlib.evaluation.bootstrap import PER_CLASS_LIMIT
from ssdlib.evaluation.matching import as_array, check_pairs, coco_boxes, iou_matrix, mean_of_known
from ssdlib.evaluation.metrics import COCO_RECALLS, PrecisionRecall
from ssdlib.inference.detections import Detections

RIGHT = "right"
FALSE_POSITIVE_KINDS = ("class", "localization", "both", "duplicate", "background")
MISSED = "missed"
KINDS = (*FALSE_POSITIVE_KINDS, MISSED)
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """The D detections and G objects of one image, each judged."""

    kinds: np.ndarray
    """(D,) str: "right", one of FALSE_POSITIVE_KINDS, or "" past COCO's 100 detections of a class."""
    objects: np.ndarray
    """(D,) int64: the object found, confused, badly located, found twice or touched; -1 for none."""
    mends: np.ndarray
    """(D,) bool: a class or localization error that, mended, finds an object which nothing else finds."""
    found: np.ndarray
    """(G,) bool: objects that a right detection found."""
    missed: np.ndarray
    """(G,) bool: objects not found that no class or localization error concerns either."""


@dataclass(frozen=True)
class ErrorCost:
    """How many errors, and the AP or mAP (0 to 1) that mending them, and nothing else, would add."""

    count: int
    cost: float | None


@dataclass(frozen=True)
class ClassErrors:
    """One class. Class errors are counted for the class that was said; mending one may help two classes."""

    ap_50: float | None
    objects: int
    detections: int
    kinds: dict[str, ErrorCost]
    false_positives: ErrorCost
    misses: ErrorCost
    """All objects not found: more than those of the kind "missed"."""


@dataclass(frozen=True)
class TideErrors:
    """Errors of a detector by kind. A cost is None for a class without objects, which no mean counts."""

    images: int
    map_50: float | None
    kinds: dict[str, ErrorCost]
    false_positives: ErrorCost
    misses: ErrorCost
    per_class: dict[str, ClassErrors]
    foreground_iou: float = FOREGROUND_IOU
    background_iou: float = BACKGROUND_IOU

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class WorstError:
    """One error to look at."""

    image_index: int
    image: str
    kind: str
    name: str
    """The class that was said, or that of the missed object."""
    score: float | None
    """Of a missed object: the best score of its class at its place, below the threshold; None for none."""
    box: tuple[float, float, float, float]
    """xyxy pixels of the false positive or of the missed object."""
    true_box: tuple[float, float, float, float] | None
    """The object that a false positive concerns."""
    true_name: str | None


def classify(
    detections: Detections,
    target: Mapping[str, Any],
    *,
    foreground: float = FOREGROUND_IOU,
    background: float = BACKGROUND_IOU,
) -> ImageErrors:
    """Judge one image. Bolya et al. 2020, section 2.2, asked in the order of their code.

    Matching is COCO's: highest score first, a detection takes the free object of its class that it overlaps
    most. One that finds none at IoU >= `foreground` is a *localization* error if it overlaps an object of its
    class by `background` at least and less than `foreground`; else a *class* error if it overlaps one of
    another class by `foreground`; else a *duplicate* if it overlaps one of its class that much, which is then
    taken; else *background* if it overlaps nothing by more than `background`; else *both*.
    """
    said, labels = detections.labels.numpy(), as_array(target["labels"]).astype(np.int64).reshape(-1)
    overlap = iou_matrix(
        coco_boxes(detections.boxes.numpy()), coco_boxes(as_array(target["boxes"]).reshape(-1, 4))
    )
    same = said[:, None] == labels[None, :]
    judged = _within_limit(said)
    partner = _match(np.where(same & judged[:, None], overlap, -1.0), foreground)
    # One more column, of an object that overlaps nothing, makes the best of no object at all defined.
    every, own, other = (
        np.pad(part, ((0, 0), (0, 1))) for part in (overlap, overlap * same, overlap * ~same)
    )
    best_own, best_other = own.max(axis=1), other.max(axis=1)
    questions = {
        "": ~judged,
        RIGHT: partner >= 0,
        "localization": (best_own >= background) & (best_own < foreground),
        "class": best_other >= foreground,
        "duplicate": best_own >= foreground,
        "background": every.max(axis=1) <= background,
    }
    kinds = np.select(list(questions.values()), list(questions), "both")
    objects = np.select(
        [kinds == RIGHT, np.isin(kinds, ("localization", "duplicate")), kinds == "class", kinds == "both"],
        [partner, own.argmax(axis=1), other.argmax(axis=1), every.argmax(axis=1)],
        -1,
    )
    found = np.zeros(len(labels), dtype=bool)
    found[partner[partner >= 0]] = True
    mendable = np.flatnonzero(np.isin(kinds, ("localization", "class")))
    mendable = mendable[~found[objects[mendable]]]
    concerned, first = np.unique(objects[mendable], return_index=True)  # highest score first
    mends = np.zeros(len(said), dtype=bool)
    mends[mendable[first]] = True
    missed = ~found
    missed[concerned] = False
    return ImageErrors(kinds, objects, mends, found, missed)


def _within_limit(said: np.ndarray) -> np.ndarray:
    """(D,) bool: the 100 best of each class, which are all that COCO looks at."""
    within = np.ones(len(said), dtype=bool)
    for label in np.unique(said):
        within[np.flatnonzero(said == label)[PER_CLASS_LIMIT:]] = False
    return within


def _match(overlap: np.ndarray, least: float) -> np.ndarray:
    """(D, G) overlaps, highest score first -> (D,) the object that each finds, or -1."""
    partner = np.full(len(overlap), -1, dtype=np.int64)
    free = overlap[:, ::-1].copy()  # of two equal overlaps the later object's counts, as in COCO's code
    for d in np.flatnonzero((free >= least).any(axis=1)):
        best = free[d].argmax()
        if free[d, best] >= least:
            partner[d] = free.shape[1] - 1 - best
            free[:, best] = -1.0
    return partner


def tide_errors(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    foreground: float = FOREGROUND_IOU,
    background: float = BACKGROUND_IOU,
) -> TideErrors:
    """Count every error by kind, and what each kind costs: the mAP with that kind alone mended, less the mAP.

    Mending puts a class error's label right and a localization error's box, takes duplicates, background and
    both away, and missed objects out of the ground truth (so that recall counts without them). All false
    positives are mended by taking them away, all misses by taking every object not found out. A class of
    which nothing was found has everything to gain from mending its misses (tidecv says nothing).
    Costs are not additive: kinds mended together may give more or less than the sum.
    Raises DataError where the two sequences differ in length.
    """
    check_pairs(detections, targets)
    errors = [
        classify(found, target, foreground=foreground, background=background)
        for found, target in zip(detections, targets, strict=True)
    ]
    return _Oracle(detections, targets, errors, len(class_names)).report(class_names, foreground, background)


class _Oracle:
    """All detections of all images, highest score first, and average precision with some errors mended."""

    def __init__(
        self,
        detections: Sequence[Detections],
        targets: Sequence[Mapping[str, Any]],
        errors: Sequence[ImageErrors],
        classes: int,
    ) -> None:
        truths = [as_array(target["labels"]).astype(np.int64).reshape(-1) for target in targets]
        scores = _joined([one.scores.numpy() for one in detections], np.float32)
        kinds = _joined([one.kinds for one in errors], np.str_)
        order = np.argsort(-scores, kind="stable")
        order = order[kinds[order] != ""]
        self.kinds = kinds[order]
        self.said = _joined([one.labels.numpy() for one in detections], np.int64)[order]
        self.mends = _joined([one.mends for one in errors], bool)[order]
        # The label of each detection's object; 0 stands at the end for those without one.
        meant = [np.append(truth, 0)[one.objects] for truth, one in zip(truths, errors, strict=True)]
        self.meant = _joined(meant, np.int64)[order]
        self.labels = range(1, classes + 1)
        self.images = len(targets)
        self.objects = self._per_class(_joined(truths, np.int64))
        pairs = list(zip(truths, errors, strict=True))
        self.missed = self._per_class(_joined([truth[one.missed] for truth, one in pairs], np.int64))
        self.unfound = self._per_class(_joined([truth[~one.found] for truth, one in pairs], np.int64))

    def _per_class(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels, minlength=len(self.labels) + 1)[1:]

    def aps(
        self, right: np.ndarray, said: np.ndarray, keep: np.ndarray, objects: np.ndarray
    ) -> list[float | None]:
        """COCO's AP of each class; None for a class without objects in the ground truth."""
        results: list[float | None] = []
        for label, count, in_truth in zip(self.labels, objects, self.objects, strict=True):
            own = right[keep & (said == label)]
            ap = _coco_ap(own, int(count)) if count else 1.0
            results.append(ap if in_truth else None)
        return results

    def mended(self, kind: str) -> list[float | None]:
        """With one kind mended."""
        right, wrong = self.kinds == RIGHT, self.kinds == kind
        if kind == MISSED:
            return self.aps(right, self.said, right | True, self.objects - self.missed)
        said = np.where(wrong & self.mends, self.meant, self.said)
        return self.aps(right | (wrong & self.mends), said, ~wrong | self.mends, self.objects)

    def report(self, class_names: Sequence[str], foreground: float, background: float) -> TideErrors:
        right = self.kinds == RIGHT
        now = self.aps(right, self.said, right | True, self.objects)
        after = {kind: self.mended(kind) for kind in KINDS}
        counts = {kind: self._per_class(self.said[self.kinds == kind]) for kind in FALSE_POSITIVE_KINDS}
        counts[MISSED] = self.missed
        alarms = self._per_class(self.said[~right])
        no_alarms = self.aps(right, self.said, right, self.objects)
        no_misses = self.aps(right, self.said, right | True, self.objects - self.unfound)
        costs = {kind: _costs(counts[kind], now, after[kind]) for kind in KINDS}
        alarm_costs, miss_costs = _costs(alarms, now, no_alarms), _costs(self.unfound, now, no_misses)
        detections = self._per_class(self.said)
        return TideErrors(
            images=self.images,
            map_50=mean_of_known(now),
            kinds={kind: _total(costs[kind]) for kind in KINDS},
            false_positives=_total(alarm_costs),
            misses=_total(miss_costs),
            per_class={
                name: ClassErrors(
                    ap_50=now[k],
                    objects=int(self.objects[k]),
                    detections=int(detections[k]),
                    kinds={kind: costs[kind][k] for kind in KINDS},
                    false_positives=alarm_costs[k],
                    misses=miss_costs[k],
                )
                for k, name in enumerate(class_names)
            },
            foreground_iou=foreground,
            background_iou=background,
        )


def _coco_ap(right: np.ndarray, objects: int) -> float:
    """Of (K,) detections, highest score first, and at least one object: mean over 101 recalls."""
    nowhere = np.zeros(len(right), dtype=np.int64)
    curve = PrecisionRecall(nowhere.astype(np.float64), right, objects, nowhere)
    first = np.searchsorted(curve.recall, COCO_RECALLS)
    return float(np.append(curve.envelope, 0.0)[first].mean())


def _costs(counts: np.ndarray, now: Sequence[float | None], after: Sequence[float | None]) -> list[ErrorCost]:
    pairs = zip(counts.tolist(), now, after, strict=True)
    return [ErrorCost(n, None if a is None or b is None else b - a) for n, a, b in pairs]


def _total(costs: Sequence[ErrorCost]) -> ErrorCost:
    """Counts added up; the mAP is the mean of the classes' APs, and so is its change."""
    return ErrorCost(sum(one.count for one in costs), mean_of_known(one.cost for one in costs))


def _joined(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts])


def worst_errors(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    threshold: float | Mapping[str, float] = 0.5,
    false_alarms: int = 12,
    misses: int = 12,
) -> list[WorstError]:
    """The errors most worth looking at among what a user sees at a score threshold, false alarms first.

    False positives are ranked by score. Missed objects by (1 - s) a, where s is the best score of their class
    at their place (IoU >= 0.5), 0 without any, and a their area over the median of their class: on top are
    large objects that the detector is sure are not there. `threshold` is a number or one for each class name.
    Raises DataError where the two sequences differ in length.
    """
    check_pairs(detections, targets)
    wrong: list[tuple[float, WorstError]] = []
    lost: list[tuple[float, WorstError]] = []
    areas = _median_areas(targets)
    for index, (found, target) in enumerate(zip(detections, targets, strict=True)):
        kept = found.above(threshold)
        errors = classify(kept, target)
        truth, labels = as_array(target["boxes"]).reshape(-1, 4), as_array(target["labels"]).tolist()
        names = [class_names[int(label) - 1] for label in labels]
        for d in np.flatnonzero((errors.kinds != RIGHT) & (errors.kinds != "")):
            g, score = errors.objects[d], float(kept.scores[d])
            there = g >= 0
            error = WorstError(
                index, found.image, str(errors.kinds[d]), class_names[kept.labels[d] - 1], score,
                _corners(kept.boxes[d]), _corners(truth[g]) if there else None, names[g] if there else None,
            )  # fmt: skip
            wrong.append((score, error))
        for g in np.flatnonzero(errors.missed):
            hint = _best_score(found, truth[g], labels[g])
            error = WorstError(index, found.image, MISSED, names[g], hint, _corners(truth[g]), None, None)
            lost.append(((1 - (hint or 0.0)) * _area(truth[g]) / areas[labels[g]], error))
    return [*_top(wrong, false_alarms), *_top(lost, misses)]


def _top(ranked: list[tuple[float, WorstError]], count: int) -> list[WorstError]:
    return [error for _, error in sorted(ranked, key=lambda pair: -pair[0])[:count]]


def _median_areas(targets: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    by_label: dict[int, list[float]] = {}
    for target in targets:
        for box, label in zip(
            as_array(target["boxes"]).reshape(-1, 4), as_array(target["labels"]), strict=True
        ):
            by_label.setdefault(int(label), []).append(_area(box))
    return {label: max(float(np.median(sizes)), 1.0) for label, sizes in by_label.items()}


def _area(box_xyxy: np.ndarray) -> float:
    return float((box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1]))


def _best_score(found: Detections, box_xyxy: np.ndarray, label: int) -> float | None:
    """The best score of a class at a place, whatever else the detection may find; None for none."""
    there = iou_matrix(found.boxes.numpy().astype(np.float64), box_xyxy[None])[:, 0] >= FOREGROUND_IOU
    scores = found.scores.numpy()[there & (found.labels.numpy() == label)]
    return float(scores.max()) if len(scores) else None


def _corners(box_xyxy: Any) -> tuple[float, float, float, float]:
    return tuple(float(side) for side in box_xyxy)  # type: ignore[return-value]
