"""What is in a dataset and what is wrong with it: damaged files, odd boxes, leaks between splits."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdlib.common.tables import Table
from ssdlib.data import download, duplicates, txl_pbc
from ssdlib.data.duplicates import Picture, find_pairs, read_pictures
from ssdlib.data.formats.records import Finding, LabeledImage, add_finding, iou_matrix
from ssdlib.data.source import DataSource
from ssdlib.data.splits import PARTS, SPLITS

DUPLICATE_BOX_IOU = 0.9
"""Two boxes of one image that overlap this much mark one cell twice."""


_UNLABELED = {"damaged_annotation", "image_without_annotation", "missing_file", "missing_image"}
"""Findings of images of whose labels nothing can be said."""

_PUBLISHED = {"bccd": download.BCCD.differences, "txl-pbc": txl_pbc.differences}
"""What differs from the published files, of the sources that are published."""

_SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Audit:
    """What `audit` found."""

    source: dict[str, Any]
    """`DataSource.describe()`."""
    images: dict[str, int]
    """Images by split."""
    classes: dict[str, dict[str, int]]
    """Objects as the annotations list them, point boxes included, by split ("all" too) and class."""
    image_sizes: tuple[tuple[int, int, int], ...]
    """(width, height, how many), most frequent first."""
    box_sizes: dict[str, dict[str, float]]
    """Per class: boxes, and the median, least and greatest width and height in pixels."""
    findings: tuple[Finding, ...]
    """Errors first."""

    def of_kind(self, *kinds: str) -> list[Finding]:
        """Findings of some kinds."""
        return [finding for finding in self.findings if finding.kind in kinds]

    def kinds(self) -> dict[str, int]:
        """How many findings of each kind there are."""
        return dict(Counter(finding.kind for finding in self.findings))

    @property
    def errors(self) -> list[Finding]:
        """Findings that stop a dataset from loading."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "kinds": self.kinds()}

    def to_text(self) -> str:
        """The account as lines to print, with the first findings of each kind."""
        names = list(self.box_sizes)
        rows = [
            [split, str(self.images[split]), *(str(counts[name]) for name in names)]
            for split, counts in self.classes.items()
        ]
        lines = [Table(["split", "images", *names], rows).to_text()]
        lines += ["image sizes: " + ", ".join(f"{w} x {h} ({n})" for w, h, n in self.image_sizes), ""]
        shown: Counter[str] = Counter()
        for finding in self.findings:
            shown[finding.kind] += 1
            if shown[finding.kind] <= _MOST_SHOWN:
                where = f" {finding.image_id}:" if finding.image_id else ""
                lines.append(f"{finding.severity:<8}{finding.kind}:{where} {finding}")
        more = [f"{n - _MOST_SHOWN:,} more of {kind}" for kind, n in shown.items() if n > _MOST_SHOWN]
        if more:
            lines.append(f"... and {', '.join(more)}: --json FILE has them all")
        return "\n".join(lines)


_MOST_SHOWN = 100
"""Findings of one kind that are printed; nobody reads more."""


def audit(source: DataSource, *, progress: bool = False) -> Audit:
    """Read every image of a dataset and report. Damage is listed, never raised, and nothing is changed."""
    images, splits = source.labels.images, source.labels.splits
    listed = set(itertools.chain.from_iterable(splits.values()))
    paths = {image.image_id: image.path for image in images if image.path.is_file()}
    pictures, damaged = read_pictures(paths, progress=progress)
    findings = list(source.labels.findings)
    labeled = {image.image_id: image for image in images if not _UNLABELED & {f.kind for f in image.findings}}
    for image in images:
        findings += image.findings
        if image.image_id in damaged and all(f.kind != "damaged_image" for f in image.findings):
            why = str(damaged[image.image_id])
            findings.append(Finding("damaged_image", "error", image.image_id, why))
        if image.complete and image.image_id not in listed:
            remedy = "Add it to one to make use of it."
            findings.append(Finding("in_no_split", "info", image.image_id, "no split lists it.", remedy))
        if image.image_id in labeled:
            own: list[Finding] = []
            for finding in _label_findings(source, image):
                add_finding(own, finding)
            findings += own
    split_of = {image_id: split for split in PARTS for image_id in splits[split]}
    findings += _split_findings(splits)
    source_of = {image.image_id: image.source for image in images}
    findings += _copies(pictures, split_of, source_of, progress)
    for part in source.parts.values() or [source]:
        if part.kind in _PUBLISHED:
            remedy = "Download the published files anew to compare results."
            findings += [
                Finding("differs_from_published", "info", "", f"{line}.", remedy)
                for line in _PUBLISHED[part.kind](part.folder)
            ]
    groups = {**{split: splits[split] for split in SPLITS}, "all": list(labeled)}
    classes = {split: _count(ids, labeled, source.class_names) for split, ids in groups.items()}
    findings += _class_findings(classes)
    sizes = Counter(picture.size for picture in pictures.values())
    return Audit(
        source=source.describe(),
        images={split: len(ids) for split, ids in groups.items()},
        classes=classes,
        image_sizes=tuple((*size, count) for size, count in sizes.most_common()),
        box_sizes=_box_sizes(images, source.class_names),
        findings=tuple(sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))),
    )


def _label_findings(source: DataSource, image: LabeledImage) -> Iterator[Finding]:
    """What is odd about the objects of an image, once they are repaired."""
    yield from source.unknown_classes(image)
    if not image.objects and image.error is None:
        message = "no object is labeled: it teaches background only."
        yield Finding("no_objects", "info", image.image_id, message)
    boxes, names = image.boxes, image.names
    if tiny := int(((boxes[:, 2:] - boxes[:, :2]).min(1) < 1).sum()) if len(boxes) else 0:
        boxes_are = "1 box is" if tiny == 1 else f"{tiny} boxes are"
        message = f"{boxes_are} narrower than a pixel: no network can see what is in it."
        yield Finding("tiny_box", "warning", image.image_id, message, "Draw them anew, or delete them.")
    for a, b in _same_places(boxes):
        kind = "duplicate_box" if names[a] == names[b] else "contradicting_boxes"
        corners = ", ".join(f"{value:g}" for value in boxes[b].tolist())
        message = f"{names[a]} and {names[b]} mark the same place, [{corners}]."
        yield Finding(kind, "warning", image.image_id, message, "Delete one of the two.")


def _same_places(boxes: np.ndarray) -> Iterator[tuple[int, int]]:
    """(a, b), a < b, for each box b that marks the place of earlier ones, of which a is the first."""
    for start in range(0, len(boxes), 512):  # so that many boxes do not fill the memory with their pairs
        block = boxes[start : start + 512]
        same = np.tril(iou_matrix(block, boxes[: start + len(block)]) >= DUPLICATE_BOX_IOU, start - 1)
        found = same.any(1).nonzero()[0]
        yield from zip(same[found].argmax(1).tolist(), (found + start).tolist(), strict=True)


def _split_findings(splits: dict[str, list[str]]) -> Iterator[Finding]:
    for split in PARTS:
        if not splits[split]:
            yield Finding("empty_split", "error", "", f"split {split} is empty.", "List some images in it.")
    for a, b in itertools.combinations(PARTS, 2):
        for image_id in sorted(set(splits[a]) & set(splits[b])):
            message = f"it is in {a} and in {b}: what is trained on must not be judged on."
            yield Finding("split_overlap", "warning", image_id, message, f"Take it out of {a}.")
    expected = set(splits["train"]) | set(splits["val"])
    for image_id in sorted(set(splits["trainval"]) ^ expected):
        message = "trainval is not the union of train and val here."
        yield Finding("trainval_mismatch", "info", image_id, message, "Write trainval.txt anew.")


def _class_findings(classes: dict[str, dict[str, int]]) -> Iterator[Finding]:
    for name, count in classes["all"].items():
        if count and any(classes["train"].values()) and not classes["train"][name]:
            message = f"none of the {count} objects of class {name!r} is in train: it cannot be learned."
            remedy = "If it is a misspelt name, correct it; else move some of its images to train."
            yield Finding("class_not_in_train", "warning", "", message, remedy)


def _copies(
    pictures: dict[str, Picture], split_of: dict[str, str], source_of: dict[str, str], progress: bool
) -> Iterator[Finding]:
    """Images that show the same cells; a warning where they are in different splits, of whatever source."""
    for (a, b), (kind, what) in find_pairs(pictures, progress=progress).items():
        first, second = split_of.get(a, "no split"), split_of.get(b, "no split")
        message = f"{a} ({first}) and {b} ({second}) show {what}"
        if source_of[a] != source_of[b]:
            message += f", in {source_of[a]} and {source_of[b]}"
        if first != second and "no split" not in (first, second):
            remedy = "Put both into one split for an honest score."
            yield Finding(kind, "warning", a, f"{message}: a leak between splits.", remedy)
        else:
            yield Finding(kind, "info", a, f"{message}.")
    if len(pictures) > duplicates.MAX_IMAGES:
        message = f"overlapping fields were not looked for: more than {duplicates.MAX_IMAGES} images."
        yield Finding("not_checked", "info", "", message)


def _count(
    ids: Sequence[str], images: Mapping[str, LabeledImage], class_names: Sequence[str]
) -> dict[str, int]:
    counts = Counter(o.name for image_id in ids if image_id in images for o in images[image_id].objects)
    return {name: counts[name] for name in class_names}


def _box_sizes(images: Sequence[LabeledImage], class_names: Sequence[str]) -> dict[str, dict[str, float]]:
    boxes = np.concatenate([np.empty((0, 4), np.float32), *(image.boxes for image in images)])
    number = {name: k for k, name in enumerate(class_names)}
    labels = np.array([number.get(name, -1) for image in images for name in image.names], np.int64)
    sides, sizes = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64), {}
    for k, name in enumerate(class_names):
        values = sides[labels == k]
        sizes[name] = {"boxes": len(values)}
        if len(values):
            for label, function in (("median", np.median), ("min", np.min), ("max", np.max)):
                width, height = function(values, axis=0)
                sizes[name] |= {f"{label}_width": float(width), f"{label}_height": float(height)}
    return sizes
