"""Compares labels with out-of-fold detections and ranks what may be wrong, the most certain first.

Within an image, labels and detections are paired one to one, those that agree best first. A label or a
detection that stays without a partner, or a pair that disagrees, is an issue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np

from ssdlib.common.errors import DataError
from ssdlib.common.files import check_shape, shortened
from ssdlib.common.tables import Table, csv_lines
from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.data.formats.records import Corners, LabeledObject, iou_matrix
from ssdlib.evaluation.matching import match
from ssdlib.inference.detections import Detections

Item = TypeVar("Item")

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

ACTIONS = {
    "add": "add the box",
    "remove": "remove the label",
    "move": "move the label",
    "rename": "rename the label",
}
"""What can be done about an issue, in words."""

COVERED_IOU = 0.5
"""A detection that overlaps a label this much is about that label."""

PAIRED_IOU = 0.1
"""With less overlap than this, a detection is not even a badly located one of the label."""

DUPLICATE_IOU = 0.7
"""Two labels of a class with more overlap are two on one object; neighbors in BCCD stay below."""

TINY = 0.1
"""A label whose area is less than this share of its class's median is tiny, unless the border cuts it off."""

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
"""Least score of each kind that is listed by default. How they were chosen: docs/label_errors.md."""


@dataclass(frozen=True)
class LabelIssue:
    """A label that may be wrong, or an object that may lack one."""

    id: str
    """The same whenever the same place is found again, so that decisions outlive a new ranking."""
    image: str
    """Id of the image."""
    kind: str
    """One of KINDS."""
    class_name: str
    """Class of the label or, where there is none, of the detection."""
    box: Corners
    """xyxy pixels: the label as written or, where there is none, the detection."""
    score: float
    """How certain it is that something is wrong, 0 to 1."""
    object: int | None
    """Position of the label in its annotation, counted from 1; None where there is no label."""
    proposed_class: str | None
    """Class that the label should have; None if it should be removed."""
    proposed_box: Corners | None
    """Box that the label should have, xyxy pixels; None if it should be removed."""
    detector_class: str | None
    """Class of the nearest detection; None, as the next two, where there is none."""
    detector_score: float | None
    detector_iou: float | None
    """IoU of that detection with the label or, where there is none, with the nearest label."""

    @property
    def action(self) -> str:
        """What accepting the issue does: one of ACTIONS."""
        if self.object is None:
            return "add"
        if self.proposed_box is None:
            return "remove"
        return "move" if self.proposed_class == self.class_name else "rename"

    @property
    def heading(self) -> str:
        """Class and score, such as "RBC 0.93" or "RBC -> WBC 0.93"."""
        change = f" -> {self.proposed_class}" if self.action == "rename" else ""
        return f"{self.class_name}{change} {self.score:.2f}"

    @property
    def evidence(self) -> str:
        """What speaks against the label, in words."""
        if self.kind == "duplicate_box":
            return f"two {self.class_name} labels overlap by {self.score:.2f}"
        if self.detector_class is None:
            return "the detector finds nothing here"
        found = f"the detector finds {self.detector_class} {self.detector_score:.2f}"
        if self.kind == "unlabeled":
            return f"{found}; the nearest label overlaps it by {self.detector_iou:.2f}"
        return f"{found}, IoU {self.detector_iou:.2f}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave, after JSON too. Raises DataError for anything else."""
        try:
            issue = check_shape(cls(**values).to_dict(), cls)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"not an issue as `ssdlib data label-errors` writes it: {str(error)[:300]}. Find the label "
                "errors again."
            ) from error
        if issue.kind not in KINDS:
            raise DataError(f"issue {shortened(issue.id)} has an unknown kind {shortened(issue.kind)}.")
        numbers = (*issue.box, *(issue.proposed_box or ()), issue.score)
        proposed = (issue.proposed_class or "").isprintable() and bool(issue.proposed_class)
        if not np.isfinite(numbers).all() or (
            issue.action != "remove" and not (issue.proposed_box and proposed)
        ):
            raise DataError(
                f"issue {shortened(issue.id)} needs finite numbers, and a class and a box where it is not to "
                "be removed."
            )
        return issue


def find_label_issues(
    dataset: DetectionDataset,
    detections: Sequence[Detections],
    cuts: Mapping[str, float] = CUTS,
) -> list[LabelIssue]:
    """Everything doubtful about the labels of `dataset`, by kind (in the order of KINDS), by falling score.

    `detections` has one for each image, in order, by a network that was not trained on these labels; `cuts`
    the least score that is listed of each of KINDS. Raises DataError where images and detections are not as
    many.
    """
    if len(dataset) != len(detections):
        raise DataError(f"{len(dataset)} images and {len(detections)} predictions: one for each is needed.")
    areas = median_areas(dataset.samples)
    images = map(ImageLabels, dataset.samples, detections)
    found = (issue for image in images for issue in image.issues(areas))
    listed = [issue for issue in found if issue.score >= cuts[issue.kind]]
    return sorted(listed, key=lambda issue: (list(KINDS).index(issue.kind), -issue.score, issue.id))


class ImageLabels:
    """The G labels of one image beside its D detections, paired one to one: `partner` is label -> detection.

    Labels count as in the annotation, from 0. Those without an area overlap nothing.
    """

    def __init__(self, sample: Sample, detections: Detections) -> None:
        self.sample, self.labels = sample, sample.objects
        boxes = np.array([label.box or (0, 0, 0, 0) for label in self.labels]).reshape(-1, 4)
        self.found = detections.boxes.astype(np.float64)
        self.scores = detections.scores.astype(np.float64)
        self.names = detections.names
        self.between_labels = iou_matrix(boxes, boxes)
        self.overlap = iou_matrix(boxes, self.found)  # (G, D)
        classes = np.array([label.name for label in self.labels], dtype=object)
        self.same = classes[:, None] == np.array(self.names, dtype=object)[None, :]  # (G, D)
        # A platelet upon a red cell overlaps it a little and is no badly located red cell.
        possible = self.overlap >= np.where(self.same, PAIRED_IOU, COVERED_IOU)
        worth = self.overlap * self.scores * np.where(self.same, 1.0, 0.5)
        label_of = match(np.where(possible, self.overlap, -1).T, [PAIRED_IOU], priority=worth.T)[0]
        self.partner = {g: d for d, g in enumerate(label_of.tolist()) if g >= 0}

    @cached_property
    def between_found(self) -> np.ndarray:
        """(D, D) IoU; a network that has learned little may find ten thousand cells in an image."""
        return iou_matrix(self.found, self.found)

    def issues(self, median_areas: Mapping[str, float]) -> Iterator[LabelIssue]:
        yield from self._unlabeled()
        yield from self._duplicates()
        for g, label in enumerate(self.labels):
            if label.box is not None:
                yield from self._doubtful(g, label)
            yield from self._impossible(g, label, median_areas)

    def _unlabeled(self) -> Iterator[LabelIssue]:
        covered = self.overlap.max(axis=0, initial=0.0)
        paired, listed = set(self.partner.values()), []
        for d in range(len(self.found)):  # the highest score first
            # An object is listed once, under the class that the detector is surest of.
            if d in paired or covered[d] >= COVERED_IOU:
                continue
            if iou_matrix(self.found[d : d + 1], self.found[listed]).max(initial=0.0) < COVERED_IOU:
                listed.append(d)
                score = self.scores[d] * (1 - covered[d])
                yield self.issue("unlabeled", score, None, d, (self.names[d], self.box(d)))

    def _doubtful(self, g: int, label: LabeledObject) -> Iterator[LabelIssue]:
        agreement = self.scores * np.minimum(1, self.overlap[g] / COVERED_IOU)
        support = agreement[self.same[g]].max(initial=0.0)
        d = self.partner.get(g)
        if d is None:
            near = int(agreement.argmax()) if agreement.max(initial=0.0) > 0 else None
            yield self.issue("no_detection", 1 - support, g, near)
        elif not self.same[g, d]:
            score = self.scores[d] * (1 - support)
            yield self.issue("other_class", score, g, d, (self.names[d], label.box))
        elif self.overlap[g, d] < COVERED_IOU:
            score = self.scores[d] * (1 - self.overlap[g, d])
            yield self.issue("badly_located", score, g, d, (label.name, self.box(d)))

    def _duplicates(self) -> Iterator[LabelIssue]:
        for a, b in np.argwhere(np.triu(self.between_labels, 1) >= DUPLICATE_IOU).tolist():
            if self.labels[a].name == self.labels[b].name:
                # Of two, the one that the detector did not choose.
                extra = a if b in self.partner and a not in self.partner else b
                yield self.issue("duplicate_box", self.between_labels[a, b], extra)

    def _impossible(
        self, g: int, label: LabeledObject, median_areas: Mapping[str, float]
    ) -> Iterator[LabelIssue]:
        if "point_box" in label.repairs:
            yield self.issue("point_box", 1.0, g)
        elif label.box is None:
            yield self.issue("outside_box", 1.0, g)
        elif "box_outside" in label.repairs:
            outside = 1 - _area(label.box) / _area(label.written)
            yield self.issue("outside_box", outside, g, proposal=(label.name, label.box))
        else:
            xmin, ymin, xmax, ymax = label.box
            cut_off = min(xmin, ymin) <= 1 or xmax >= self.sample.width - 1 or ymax >= self.sample.height - 1
            share = _area(label.box) / median_areas[label.name]
            if share < TINY and not cut_off:
                yield self.issue("tiny_box", 1 - share, g)

    def box(self, d: int) -> Corners:
        """The box of a detection to a hundredth of a pixel."""
        return tuple(round(side, 2) for side in self.found[d].tolist())

    def issue(
        self,
        kind: str,
        score: float,
        g: int | None,
        d: int | None = None,
        proposal: tuple[str | None, Corners | None] = (None, None),
    ) -> LabelIssue:
        """An issue about label `g` (None: about the proposal, for which there is none) and detection `d`."""
        image = self.sample.image_id
        name, box = proposal if g is None else self.labels[g][:2]
        identifier = f"{image}/{kind}/{name}/{'-'.join(f'{side:.0f}' for side in box)}"
        number = None if g is None else g + 1
        certain = round(float(np.clip(score, 0.0, 1.0)), 4)
        detector = (None, None, None)
        if d is not None:
            nearest = self.overlap[:, d].max(initial=0.0) if g is None else self.overlap[g, d]
            detector = self.names[d], round(float(self.scores[d]), 4), round(float(nearest), 4)
        return LabelIssue(identifier, image, kind, name, tuple(box), certain, number, *proposal, *detector)


def median_areas(samples: Iterable[Sample]) -> dict[str, float]:
    labels = (label for sample in samples for label in sample.objects if label.box is not None)
    by_class = grouped(labels, "name").items()
    return {name: float(np.median([_area(label.box) for label in own])) for name, own in by_class}


def _area(box: Corners) -> float:
    return abs((box[2] - box[0]) * (box[3] - box[1]))


def grouped(items: Iterable[Item], field: str) -> dict[str, list[Item]]:
    """The items by the value of a field, such as "kind" or "image", in the order in which they come."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(getattr(item, field), []).append(item)
    return groups


def issues_csv(issues: Iterable[LabelIssue]) -> str:
    """A CSV file with one row for each issue; boxes as four columns."""
    corners = ["xmin", "ymin", "xmax", "ymax"]
    plain = [field.name for field in fields(LabelIssue) if field.name not in ("box", "proposed_box")]
    rows = [[*plain, "action", *corners, *(f"proposed_{corner}" for corner in corners), "evidence"]]
    for issue in issues:
        boxes = [*issue.box, *(issue.proposed_box or [None] * 4)]
        rows.append([*(getattr(issue, name) for name in plain), issue.action, *boxes, issue.evidence])
    return "".join(csv_lines(rows))


def count_table(issues: Iterable[LabelIssue]) -> Table:
    """How many issues of each kind there are, and of all."""
    counts = Counter(issue.kind for issue in issues)
    rows = [[f"{kind}: {meaning}", str(counts[kind])] for kind, meaning in KINDS.items()]
    return Table(["possible label errors", "number"], [*rows, ["all", str(counts.total())]], total=True)
