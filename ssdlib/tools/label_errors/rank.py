"""Labels against out-of-fold detections: what is missing, what is doubtful, the surest first.

A detection and a label are paired one to one within an image, those that agree best first. What stays
unpaired on either side, or is paired and yet disagrees, is a issue.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.data.source import DataSource
from ssdlib.detector.boxes import iou
from ssdlib.inference.detections import Detections

KINDS = {
    "unlabeled": "an object that the detector finds and no label covers",
    "no_detection": "a label where the detector finds nothing",
    "badly_located": "a label whose object the detector finds elsewhere",
    "other_class": "a label whose object the detector takes for another class",
    "duplicate_box": "two labels of a class on one object",
    "point_box": "a label without an area",
    "outside_box": "a label outside the image",
    "tiny_box": "a label far smaller than its class",
}
"""Every kind of issue and what it means, in the order in which they are shown."""

ACTIONS = {"add": "add this box", "remove": "remove the label", "move": "move the label", "rename": "rename"}

COVERED_IOU = 0.5
"""A detection that overlaps a label this much is about that label."""

PAIRED_IOU = 0.1
"""With less overlap than this a detection is not even a badly located one of the label."""

DUPLICATE_IOU = 0.7
"""Two labels of a class with more overlap are two on one object; neighbors in BCCD stay below."""

TINY = 0.1
"""A label whose area is less than this share of its class's median, and that no image border cuts off."""


@dataclass(frozen=True)
class LabelIssue:
    """One label to look at, or one object to label."""

    id: str
    """The same whenever the same place is found again, so that decisions outlive a new ranking."""
    image: str
    kind: str
    """One of KINDS."""
    class_name: str
    """Class of the label or, where there is none, of the detection."""
    box: tuple[float, float, float, float]
    """xyxy pixels: the label as written or, where there is none, the detection."""
    score: float
    """How sure it is that something is wrong, 0 to 1; comparable within a kind."""
    action: str
    """What accepting it does: add, remove, move or rename."""
    object: int | None
    """Which object of the annotation file the label is, counted from 1; None where there is none."""
    proposed_class: str | None
    proposed_box: tuple[float, float, float, float] | None
    """What the label should be; None where it should go."""
    detector_class: str | None
    """The nearest detection: its class, score and IoU with the label (with the nearest one); None if none."""
    detector_score: float | None
    detector_iou: float | None
    second_opinion: float | None
    """How doubtful cleanlab finds the label, 0 to 1; None where it is not installed or there is no label."""
    image_path: str
    annotation_path: str
    """The file with the image's labels: XML, COCO or YOLO."""
    labels: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()
    """(class name, box as written) of every label of the image."""

    @property
    def evidence(self) -> str:
        """What speaks against the label, in words."""
        found = "the detector finds nothing here"
        if self.detector_class is not None:
            found = f"the detector finds {self.detector_class} {self.detector_score:.2f}"
        if self.kind == "unlabeled":
            return f"{found}; the nearest label overlaps it by {self.detector_iou:.2f}"
        if self.kind == "duplicate_box":
            return f"two {self.class_name} labels overlap by {self.score:.2f}"
        return found if self.detector_class is None else f"{found}, IoU {self.detector_iou:.2f}"

    def under(self, source: DataSource) -> Self:
        """The same issue with the paths that its image has in `source` now."""
        image = source.labels.by_id[self.image]
        return replace(self, image_path=str(image.path), annotation_path=str(image.label_file))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **asdict(self),
            "box": list(self.box),
            "proposed_box": list(self.proposed_box) if self.proposed_box else None,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote. Raises DataError for anything else."""
        try:
            boxes = {"box": tuple(values["box"])}
            boxes["proposed_box"] = tuple(values["proposed_box"]) if values["proposed_box"] else None
            labels = tuple((name, tuple(box)) for name, box in values.get("labels", ()))
            issue = cls(**{**values, **boxes, "labels": labels})
        except (KeyError, TypeError) as error:
            raise DataError(f"not a issue as `ssdlib data issues` writes it: {error!r}") from error
        if issue.kind not in KINDS or issue.action not in ACTIONS:
            raise DataError(f"issue {issue.id} has an unknown kind or action: {issue.kind}")
        return issue


@dataclass(frozen=True)
class Label:
    """One object of an annotation file."""

    number: int
    """From 1, in the file's order."""
    name: str
    written: tuple[float, float, float, float]
    box: tuple[float, float, float, float] | None
    """Inside the image and with an area; None if nothing is left."""
    repairs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Pairing:
    """One image: its labels that have a box, its detections, and who belongs to whom."""

    labels: list[Label]
    detections: Detections
    overlap: np.ndarray
    """(labels, detections) IoU."""
    partner: dict[int, int]
    """label -> detection, both as indices."""

    @property
    def free(self) -> list[int]:
        """Detections without a partner that no label covers."""
        taken = set(self.partner.values())
        covered = self.overlap.max(0) >= COVERED_IOU if len(self.labels) else np.zeros(len(self.detections))
        return [d for d in range(len(self.detections)) if d not in taken and not covered[d]]


def read_labels(sample: Sample) -> list[Label]:
    """Every object of the label file, those without an area too."""
    return [Label(number, *labeled) for number, labeled in enumerate(sample.objects, 1)]


def pair(labels: Sequence[Label], detections: Detections) -> Pairing:
    """Pair labels and detections one to one: highest IoU times score first, the same class before another."""
    labels = [label for label in labels if label.box is not None]
    boxes = torch.tensor([label.box for label in labels], dtype=torch.float32).reshape(-1, 4)
    overlap = iou(boxes, detections.boxes).numpy()
    names = np.array([label.name for label in labels], dtype=object)
    same = names[:, None] == np.array(detections.names, dtype=object)[None, :]
    # A platelet upon a red cell overlaps it a little and is no badly located red cell.
    worth = overlap * detections.scores.numpy()[None, :] * np.where(same, 1.0, 0.5)
    worth[overlap < np.where(same, PAIRED_IOU, COVERED_IOU)] = 0
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for flat in np.argsort(-worth, axis=None, kind="stable"):
        g, d = divmod(int(flat), max(1, len(detections)))
        if worth.size == 0 or worth[g, d] <= 0:
            break
        if g not in partner and d not in taken:
            partner[g] = d
            taken.add(d)
    return Pairing(labels, detections, overlap, partner)


CUTS = {
    "unlabeled": 0.5,
    "no_detection": 0.5,
    "badly_located": 0.4,
    "other_class": 0.4,
    "duplicate_box": DUPLICATE_IOU,
    "point_box": 0.0,
    "outside_box": 0.05,
    "tiny_box": 0.0,
}
"""Least score of each kind that is listed, unless asked otherwise. How they were chosen: docs/issues.md."""


def find_issues(
    dataset: DetectionDataset,
    detections: Sequence[Detections],
    *,
    min_score: float | Mapping[str, float] | None = None,
) -> list[LabelIssue]:
    """Everything doubtful about the labels of `dataset`, by kind (in the order of KINDS), surest first.

    detections: one for each image, in its order, by a network that never saw these labels. `min_score`, a
    number for the kind "unlabeled" or one for each of some kinds, stands in for the cuts. An image without
    labels gives only "unlabeled", one without detections none of those. Raises DataError where images and
    detections are not as many, ConfigError for an impossible `min_score`.
    """
    if len(dataset) != len(detections):
        raise DataError(f"{len(dataset)} images and {len(detections)} predictions: one for each is needed.")
    cuts = _cuts(min_score)
    images = [_Image(sample, found) for sample, found in zip(dataset.samples, detections, strict=True)]
    opinions = second_opinions([image.pairing for image in images], dataset.class_names)
    for image, scores in zip(images, opinions, strict=True):
        image.opinions = scores
    areas = _median_areas(images)
    found = [issue for image in images for issue in image.issues(areas)]
    order = {kind: rank for rank, kind in enumerate(KINDS)}
    listed = [issue for issue in found if issue.score >= cuts[issue.kind]]
    return sorted(listed, key=lambda s: (order[s.kind], -s.score, s.id))


def _cuts(min_score: float | Mapping[str, float] | None) -> dict[str, float]:
    if min_score is None:
        return CUTS
    changes = min_score if isinstance(min_score, Mapping) else {"unlabeled": min_score}
    for kind, score in changes.items():
        if kind not in KINDS or not 0 <= score <= 1:
            raise ConfigError(
                f"the least score of {kind} cannot be {score}: give a number in 0 to 1 for some of "
                f"{', '.join(KINDS)}."
            )
    return {**CUTS, **changes}


def second_opinions(pairings: Sequence[Pairing], class_names: Sequence[str]) -> list[dict[int, float]]:
    """label number -> cleanlab's doubt, 0 to 1, for each image; empty where cleanlab is not installed.

    One minus the lesser of cleanlab's scores for bad location and for swapped class (ObjectLab, Tkachenko et
    al. 2023). It is shown, not ranked by: docs/issues.md has the comparison.
    """
    try:
        from cleanlab.object_detection.rank import compute_badloc_box_scores, compute_swap_box_scores
    except ImportError:
        return [{} for _ in pairings]
    # It cannot do with images that lack either side.
    usable = [p for p in pairings if p.labels and len(p.detections)]
    if not usable:
        return [{} for _ in pairings]
    arguments = {
        "labels": [
            {
                "bboxes": np.array([label.box for label in p.labels]),
                "labels": np.array([class_names.index(label.name) for label in p.labels]),
            }
            for p in usable
        ],
        "predictions": [_by_class(p.detections) for p in usable],
    }
    scores = zip(compute_badloc_box_scores(**arguments), compute_swap_box_scores(**arguments), strict=True)
    doubts = {
        id(p): {
            label.number: round(1 - float(least), 4)
            for label, least in zip(p.labels, np.fmin(*both), strict=True)
            if np.isfinite(least)
        }
        for p, both in zip(usable, scores, strict=True)
    }
    return [doubts.get(id(p), {}) for p in pairings]


def _by_class(detections: Detections) -> np.ndarray:
    """cleanlab's form: an object array with (k, 5) boxes and scores for each class."""
    rows = torch.cat([detections.boxes, detections.scores[:, None]], dim=1).numpy()
    parts = np.empty(len(detections.class_names), dtype=object)
    for k in range(len(parts)):
        parts[k] = rows[detections.labels.numpy() == k + 1]
    return parts


class _Image:
    """The issues of one image."""

    def __init__(self, sample: Sample, detections: Detections) -> None:
        self.sample, self.detections = sample, detections
        self.labels = read_labels(sample)
        self.pairing = pair(self.labels, detections)
        self.opinions: dict[int, float] = {}

    def issues(self, areas: dict[str, float]) -> Iterable[LabelIssue]:
        yield from self._unlabeled()
        yield from self._doubtful()
        yield from self._duplicates()
        yield from self._impossible(areas)

    def _unlabeled(self) -> Iterable[LabelIssue]:
        pairing, kept = self.pairing, []
        boxes = self.detections.boxes
        for d in pairing.free:  # the highest score first
            if kept and float(iou(boxes[d : d + 1], boxes[kept]).max()) >= COVERED_IOU:
                continue  # the same object as another class
            kept.append(d)
            overlap = float(pairing.overlap[:, d].max()) if pairing.labels else 0.0
            score = float(self.detections.scores[d]) * (1 - overlap)
            yield self._issue("unlabeled", score, "add", None, d, overlap)

    def _doubtful(self) -> Iterable[LabelIssue]:
        pairing, names = self.pairing, self.detections.names
        scores = self.detections.scores.numpy()
        for g, label in enumerate(pairing.labels):
            same = np.array([name == label.name for name in names], dtype=bool)
            agreement = scores * np.minimum(1, pairing.overlap[g] / COVERED_IOU)
            support = float(agreement[same].max()) if same.any() else 0.0
            d = pairing.partner.get(g)
            overlap = float(pairing.overlap[g, d]) if d is not None else 0.0
            if d is None:
                near = int(agreement.argmax()) if len(agreement) and agreement.max() > 0 else None
                overlap = float(pairing.overlap[g, near]) if near is not None else 0.0
                yield self._issue("no_detection", 1 - support, "remove", label, near, overlap)
            elif names[d] != label.name:
                score = float(scores[d]) * (1 - support)
                yield self._issue("other_class", score, "rename", label, d, overlap)
            elif overlap < COVERED_IOU:
                score = float(scores[d]) * (1 - overlap)
                yield self._issue("badly_located", score, "move", label, d, overlap)

    def _duplicates(self) -> Iterable[LabelIssue]:
        labels, partner = self.pairing.labels, self.pairing.partner
        boxes = torch.tensor([label.box for label in labels]).reshape(-1, 4)
        for a, b in (iou(boxes, boxes).triu(1) >= DUPLICATE_IOU).nonzero().tolist():
            if labels[a].name == labels[b].name:
                # Of two, the one that the detector did not choose.
                extra = a if b in partner and a not in partner else b
                overlap = float(iou(boxes[a : a + 1], boxes[b : b + 1]))
                yield self._issue("duplicate_box", overlap, "remove", labels[extra], None, 0.0)

    def _impossible(self, areas: dict[str, float]) -> Iterable[LabelIssue]:
        for label in self.labels:
            if "point_box" in label.repairs:
                yield self._issue("point_box", 1.0, "remove", label, None, 0.0)
            elif label.box is None:
                yield self._issue("outside_box", 1.0, "remove", label, None, 0.0)
            elif "box_outside" in label.repairs:
                outside = 1 - _area(label.box) / _area(_in_order(label.written))
                yield self._issue("outside_box", outside, "move", label, None, 0.0, label.box)
            elif _area(label.box) < TINY * areas[label.name] and not self._at_border(label.box):
                score = 1 - _area(label.box) / areas[label.name]
                yield self._issue("tiny_box", score, "remove", label, None, 0.0)

    def _at_border(self, box: Sequence[float]) -> bool:
        width, height = self.sample.width, self.sample.height
        return min(box[0], box[1]) <= 1 or box[2] >= width - 1 or box[3] >= height - 1

    def _issue(
        self,
        kind: str,
        score: float,
        action: str,
        label: Label | None,
        detection: int | None,
        overlap: float,
        proposed_box: Sequence[float] | None = None,
    ) -> LabelIssue:
        name, found, proposed_class = label.name if label else "", None, None
        if detection is not None:
            name = name or self.detections.names[detection]
            found = tuple(round(side, 2) for side in self.detections.boxes[detection].tolist())
        if action != "remove":
            proposed_class = self.detections.names[detection] if action == "rename" else name
            proposed_box = proposed_box or (label.box if action == "rename" and label else found)
        box = label.written if label else found
        assert box is not None
        return LabelIssue(
            id=f"{self.sample.image_id}/{kind}/{name}/{'-'.join(f'{side:.0f}' for side in box)}",
            image=self.sample.image_id,
            kind=kind,
            class_name=name,
            box=tuple(box),
            score=round(min(max(score, 0.0), 1.0), 4),
            action=action,
            object=label.number if label else None,
            proposed_class=proposed_class,
            proposed_box=tuple(proposed_box) if proposed_box else None,
            detector_class=self.detections.names[detection] if detection is not None else None,
            detector_score=round(float(self.detections.scores[detection]), 4)
            if detection is not None
            else None,
            detector_iou=round(overlap, 4) if detection is not None else None,
            second_opinion=self.opinions.get(label.number) if label else None,
            image_path=str(self.sample.image_path),
            annotation_path=str(self.sample.label_file),
            labels=tuple((label.name, label.written) for label in self.labels),
        )


def _median_areas(images: Sequence[_Image]) -> dict[str, float]:
    areas: dict[str, list[float]] = {}
    for image in images:
        for label in image.pairing.labels:
            areas.setdefault(label.name, []).append(_area(label.box))
    return {name: float(np.median(values)) for name, values in areas.items()}


def _area(box: Sequence[float] | None) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) if box else 0.0


def _in_order(box: Sequence[float]) -> tuple[float, ...]:
    return min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])


def issues_csv(issues: Iterable[LabelIssue]) -> str:
    """One row for each issue; boxes as four columns."""
    stream = io.StringIO()
    corners = ("xmin", "ymin", "xmax", "ymax")
    nested = ("box", "proposed_box", "labels")
    plain = [name for name in LabelIssue.__dataclass_fields__ if name not in nested]
    fields = [*plain, *corners, *(f"proposed_{corner}" for corner in corners), "evidence"]
    writer = csv.DictWriter(stream, fields, lineterminator="\n")
    writer.writeheader()
    for issue in issues:
        row = issue.to_dict()
        del row["labels"]
        box, proposed = row.pop("box"), row.pop("proposed_box") or [None] * 4
        row |= dict(zip(corners, box, strict=True))
        row |= {f"proposed_{corner}": side for corner, side in zip(corners, proposed, strict=True)}
        writer.writerow({**row, "evidence": issue.evidence})
    return stream.getvalue()


def count_kinds(issues: Iterable[LabelIssue]) -> dict[str, int]:
    """How many of each kind; 0 for those without any."""
    counts = dict.fromkeys(KINDS, 0)
    for issue in issues:
        counts[issue.kind] += 1
    return counts
