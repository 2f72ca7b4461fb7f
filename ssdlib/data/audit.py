"""What is in a dataset and what is wrong with it: damaged files, odd boxes, leaks between splits."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from ssdlib.common.errors import DataError
from ssdlib.data import download
from ssdlib.data.duplicates import (
    MAX_IMAGES,
    Picture,
    near_duplicates,
    overlapping_fields,
    read_pictures,
)
from ssdlib.data.formats import layouts
from ssdlib.data.formats.voc import VocAnnotation, read_voc
from ssdlib.data.images import image_size
from ssdlib.data.source import SPLITS, DataSource, annotation_files, find_image, images_by_id, read_splits

DUPLICATE_BOX_IOU = 0.9
"""Two boxes of one image that overlap this much mark one cell twice."""


_REPAIRS = ("point_box", "box_outside", "swapped_corners", "size_mismatch")
_SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing. Errors stop training, warnings distort results, infos are neither."""

    kind: str
    severity: str
    image_id: str
    """Empty where it concerns the whole dataset."""
    message: str
    remedy: str = ""


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
        """The whole account as lines to print."""
        names = list(self.box_sizes)
        lines = [f"{'split':<10}{'images':>8}" + "".join(f"{name:>12}" for name in names)]
        for split, counts in self.classes.items():
            row = "".join(f"{counts[name]:>12}" for name in names)
            lines.append(f"{split:<10}{self.images[split]:>8}{row}")
        lines += ["image sizes: " + ", ".join(f"{w} x {h} ({n})" for w, h, n in self.image_sizes), ""]
        for finding in self.findings:
            where = f" {finding.image_id}:" if finding.image_id else ""
            lines.append(
                f"{finding.severity:<8}{finding.kind}:{where} {finding.message} {finding.remedy}".rstrip()
            )
        return "\n".join(lines)


def audit(source: DataSource, *, progress: bool = False) -> Audit:
    """Read every file of a dataset and report. Damage is listed, never raised, and nothing is changed."""
    findings: list[Finding] = []
    splits = _splits(source, findings)
    images = images_by_id(source.root)
    annotations = _read_annotations(source, images, findings)
    pictures, damaged = read_pictures(images, progress=progress)
    findings += [Finding("damaged_image", "error", image_id, str(why)) for image_id, why in damaged.items()]
    found = list(_file_findings(source, splits, images, annotations))
    for annotation in annotations.values():
        found += _annotation_findings(annotation, source.class_names)
    if converted := layouts.read_marker(source.root):
        # What is wrong with labels was noted of the file that their owner can mend.
        noted = converted.notes
        findings += [Finding(n.kind, n.severity, where, n.message, n.remedy) for where, n in noted]
        found = [f for f in found if f.kind not in _REPAIRS and f.image_id not in converted.errors]
    findings += found
    split_of = {image_id: split for split in ("train", "val", "test") for image_id in splits[split]}
    findings += _split_findings(splits, split_of, annotations)
    findings += _copies(pictures, split_of, progress)
    if source.kind == "bccd":
        findings += [
            Finding(
                "differs_from_published", "info", "", line + ".", "Download BCCD anew to compare results."
            )
            for line in download.differences(source.root)
        ]
    groups = {**{split: splits[split] for split in SPLITS}, "all": list(annotations)}
    classes = {split: _count(ids, annotations, source.class_names) for split, ids in groups.items()}
    findings += _class_findings(classes)
    order = {severity: rank for rank, severity in enumerate(_SEVERITIES)}
    sizes = Counter(picture.size for picture in pictures.values())
    return Audit(
        source=source.describe(),
        images={split: len(ids) for split, ids in groups.items()},
        classes=classes,
        image_sizes=tuple((*size, count) for size, count in sizes.most_common()),
        box_sizes=_box_sizes(annotations, source.class_names),
        findings=tuple(sorted(findings, key=lambda finding: order[finding.severity])),
    )


def _splits(source: DataSource, findings: list[Finding]) -> dict[str, list[str]]:
    try:
        return read_splits(source.root)
    except DataError as error:
        findings.append(Finding("bad_split", "error", "", str(error)))
        return {split: [] for split in SPLITS}


def _read_annotations(
    source: DataSource, images: dict[str, Path], findings: list[Finding]
) -> dict[str, VocAnnotation]:
    annotations = {}
    for file in annotation_files(source.root):
        size = None
        if file.stem in images:
            with suppress(DataError):  # a damaged image is a finding of its own
                size = image_size(images[file.stem])
        try:
            annotations[file.stem] = read_voc(file, size)
        except DataError as error:
            findings.append(Finding("damaged_annotation", "error", file.stem, str(error)))
    return annotations


def _file_findings(
    source: DataSource,
    splits: dict[str, list[str]],
    images: dict[str, Path],
    annotations: dict[str, VocAnnotation],
) -> Iterator[Finding]:
    labeled = {file.stem for file in annotation_files(source.root)}
    listed = set(itertools.chain.from_iterable(splits.values()))
    used = set()
    for annotation in annotations.values():
        try:
            used.add(find_image(source.root, annotation, images).stem)
        except DataError as error:
            severity = "error" if annotation.image_id in listed else "warning"
            yield Finding("annotation_without_image", severity, annotation.image_id, str(error))
    for image_id in sorted(set(images) - labeled - used):
        severity = "error" if image_id in listed else "warning"
        yield Finding(
            "image_without_annotation",
            severity,
            image_id,
            f"{images[image_id]} has no annotation.",
            "Label it (an annotation without objects will do), or remove it.",
        )
    for image_id in sorted(listed - labeled - set(images)):
        message = "a split lists it, but there is neither image nor annotation."
        yield Finding(
            "missing_file", "error", image_id, message, "Restore them, or take it out of the split."
        )
    for image_id in sorted(labeled & set(images) - listed):
        yield Finding(
            "in_no_split", "info", image_id, "no split lists it.", "Add it to one to make use of it."
        )


def _annotation_findings(annotation: VocAnnotation, class_names: Sequence[str]) -> Iterator[Finding]:
    image_id = annotation.image_id
    for name in sorted(set(annotation.written_names) - set(class_names)):
        message = f"class {name!r} is unknown; known are {', '.join(class_names)}."
        yield Finding("unknown_class", "error", image_id, message, f"Correct {annotation.path}.")
    for repair in annotation.repairs:
        yield Finding(
            repair.kind, "warning", image_id, f"{repair}.", f"To mend it for good, edit {annotation.path}."
        )
    if not annotation.written_names:
        yield Finding("no_objects", "info", image_id, "no object is labeled: it teaches background only.")
    boxes = torch.from_numpy(annotation.boxes)
    for a, b in (box_iou(boxes, boxes).triu(1) >= DUPLICATE_BOX_IOU).nonzero().tolist():
        kind = "duplicate_box" if annotation.names[a] == annotation.names[b] else "contradicting_boxes"
        corners = ", ".join(f"{value:g}" for value in annotation.boxes[b])
        message = f"{annotation.names[a]} and {annotation.names[b]} mark the same place, [{corners}]."
        yield Finding(kind, "warning", image_id, message, "Delete one of the two.")


def _split_findings(
    splits: dict[str, list[str]], split_of: dict[str, str], annotations: dict[str, VocAnnotation]
) -> Iterator[Finding]:
    for split in ("train", "val", "test"):
        if not splits[split]:
            yield Finding("empty_split", "error", "", f"split {split} is empty.", "List some images in it.")
    for a, b in itertools.combinations(("train", "val", "test"), 2):
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


def _copies(pictures: dict[str, Picture], split_of: dict[str, str], progress: bool) -> Iterator[Finding]:
    """Pairs of images that show the same: bit for bit, nearly, or in part."""
    ids = sorted(pictures)
    exact = defaultdict(list)
    for image_id in ids:
        exact[pictures[image_id].digest].append(image_id)
    seen = set()
    for group in exact.values():
        for pair in itertools.combinations(group, 2):
            seen.add(pair)
            yield _pair("duplicate_image", pair, split_of, "the same picture, pixel for pixel")
    for a, b, distance in near_duplicates(ids, pictures):
        if (a, b) not in seen:
            seen.add((a, b))
            yield _pair(
                "near_duplicate", (a, b), split_of, f"nearly the same picture ({distance} of 256 bits)"
            )
    if len(ids) > MAX_IMAGES:
        message = f"overlapping fields were not looked for: more than {MAX_IMAGES} images."
        yield Finding("not_checked", "info", "", message)
        return
    for a, b, correlation, dx, dy in overlapping_fields(ids, pictures, progress):
        if (a, b) not in seen:
            what = f"the same cells, moved by about {dx}, {dy} pixels (correlation {correlation:.2f})"
            yield _pair("overlapping_fields", (a, b), split_of, what)


def _pair(kind: str, pair: tuple[str, str], split_of: dict[str, str], what: str) -> Finding:
    a, b = pair
    first, second = split_of.get(a, "no split"), split_of.get(b, "no split")
    leak = first != second and "no split" not in (first, second)
    return Finding(
        kind,
        "warning" if leak else "info",
        a,
        f"{a} ({first}) and {b} ({second}) show {what}" + (": a leak between splits." if leak else "."),
        "Put both into one split for an honest score." if leak else "",
    )


def _count(
    ids: Sequence[str], annotations: dict[str, VocAnnotation], class_names: Sequence[str]
) -> dict[str, int]:
    names = (annotations[image_id].written_names for image_id in ids if image_id in annotations)
    counts = Counter(itertools.chain.from_iterable(names))
    return {name: counts[name] for name in class_names}


def _box_sizes(
    annotations: dict[str, VocAnnotation], class_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    sides = defaultdict(list)
    for annotation in annotations.values():
        for name, box in zip(annotation.names, annotation.boxes, strict=True):
            sides[name].append(box[2:] - box[:2])
    sizes = {}
    for name in class_names:
        values = np.array(sides[name], np.float64).reshape(-1, 2)
        sizes[name] = {"boxes": len(values)}
        if len(values):
            for label, function in (("median", np.median), ("min", np.min), ("max", np.max)):
                width, height = function(values, axis=0)
                sizes[name] |= {f"{label}_width": float(width), f"{label}_height": float(height)}
    return sizes
