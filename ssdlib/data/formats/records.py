"""What every reader of a labeled folder returns: images with their objects, and what is odd about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssdlib.common.errors import DataError
from ssdlib.common.files import decode_text, read_limited, short_name, shortened
from ssdlib.data.images import fields_in, image_header

Corners = tuple[float, float, float, float]
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLIT_WORDS |= {"dev": "val", "test": "test", "testing": "test"}
"""How folders and files call the splits."""

MAX_OBJECTS = 20_000
"""No image has more objects."""
MAX_IMAGES = 200_000
"""No list or file names more images."""
MAX_NAME = 200
"""No class has a longer name, in characters."""
MAX_FINDINGS = 1000
"""Of one image, or of the folder as a whole: more help nobody, and a damaged file may have millions."""

_TOLERANCE = 0.05
"""Pixels. A box that reaches this little outside was rounded (fractions with six digits), not misplaced."""


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing about the data.

    Errors stop training, warnings distort results, infos do neither. `str(finding)` is message and remedy.
    """

    kind: str
    severity: str
    """error, warning or info."""
    image_id: str
    """Empty where it concerns the whole dataset."""
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


class LabeledObject(NamedTuple):
    """One object of a label file. Boxes are xyxy pixels of the upright image."""

    name: str
    written: Corners
    """The box as the file has it, but always of the upright image."""
    box: Corners | None
    """The box with its corners in order and inside the image; None if nothing is left of it."""
    repairs: tuple[str, ...]
    """The kinds of findings about what had to be repaired: swapped_corners, point_box, box_outside."""


class AddedObject(NamedTuple):
    """An object to add to a label file."""

    name: str
    box: Corners
    """xyxy pixels."""
    marks: Mapping[str, float]
    """What is noted beside it where the format has a place: score and precision."""


@dataclass(eq=False)
class LabeledImage:
    """One image and the objects that its label file lists, in the file's order."""

    path: Path
    """The image, or where it should be."""
    label_file: Path
    """The file with its labels, or where it should be."""
    image_id: str = ""
    """Unique in its folder. Readers that leave it empty have it chosen by `read_folder`."""
    split: str | None = None
    """train, val, test, or None where the folder does not say."""
    source: str = ""
    """The name of the source it comes from, where several are joined; else empty."""
    entry_id: int | str | None = None
    """How a label file for several images (COCO) calls this one."""
    width: int = 0
    height: int = 0
    """Those of the real image, upright; those that the label file states, or 0, if it cannot be read."""
    orientation: int = 1
    """How EXIF turns the picture: 1 (upright) to 8."""
    on_raster: bool | None = None
    """Whether the labels of a turned picture are of its raster as it is stored; None where no size tells."""
    complete: bool = True
    """False where the image is missing, or the annotation that it needs to be used."""
    full: bool = False
    """Whether more objects were listed than `MAX_OBJECTS`."""
    joined: bool = False
    """Whether label files list it more than once: then an object that is written twice counts once."""
    objects: list[LabeledObject] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    _written: set[tuple[str, Corners]] = field(default_factory=set, repr=False)
    """Of a joined image: its objects, by name and box."""

    @property
    def boxes(self) -> np.ndarray:
        """(G, 4) float32 xyxy pixels: the boxes of which something is left."""
        return np.array([o.box for o in self.objects if o.box is not None], np.float32).reshape(-1, 4)

    @property
    def names(self) -> list[str]:
        """The class name of each of `boxes`."""
        return [o.name for o in self.objects if o.box is not None]

    def labels(self, class_names: Sequence[str]) -> np.ndarray:
        """(G,) int64: the label of each of `boxes`, from 1, in the order of `class_names`."""
        index = {name: label for label, name in enumerate(class_names, 1)}
        return np.array([index[name] for name in self.names], np.int64)

    @property
    def error(self) -> Finding | None:
        """The first thing that makes the image unusable."""
        return next((finding for finding in self.findings if finding.severity == "error"), None)

    def report(self, kind: str, severity: str, message: str, remedy: str = "") -> None:
        """Add a finding, see `add_finding`."""
        add_finding(self.findings, Finding(kind, severity, self.image_id, message, remedy))

    def measure(self) -> bool:
        """Read width and height from the image. False, with an error among the findings, where impossible."""
        try:
            (self.width, self.height), self.orientation = image_header(self.path)
        except DataError as error:
            self.complete = self.path.is_file()
            if self.complete:
                self.report("damaged_image", "error", str(error))
            else:
                remedy = "It cannot be used: restore it, or take it out of the labels."
                self.report("missing_image", "error", str(error), remedy)
            return False
        if (count := len(fields_in(self.path))) > 1:
            remedy = "Save the others as files of their own to make use of them."
            self.report(
                "several_fields", "warning", f"{self.path} holds {count} pictures: the first is used.", remedy
            )
        return True

    def fits(self, width: float, height: float) -> bool:
        """Whether a stated size is the image's, upright or, where EXIF turns it, as it is stored."""
        sides = (self.width, self.height)
        if self.orientation in (5, 6, 7, 8) and self.width != self.height and {width, height} == {*sides}:
            self.on_raster = (width, height) != sides
            return True
        return (width, height) == sides

    def add(self, name: str, corners: Corners, where: str) -> None:
        """Add an object, its box repaired, and a finding for each repair that names `where` it is written."""
        if len(self.objects) == MAX_OBJECTS:
            if not self.full:
                self.full = True
                message = f"more than {MAX_OBJECTS:,} objects are listed: no picture shows as many cells."
                self.report("damaged_labels", "error", message, f"Correct {self.label_file}.")
            return
        if self.joined:
            self._written = self._written or {(o.name, o.written) for o in self.objects}
            if (name, corners) in self._written:
                return
            self._written.add((name, corners))
        box, repairs = repair_box(corners, self.width, self.height)
        self.objects.append(LabeledObject(name, corners, box, tuple(kind for kind, _ in repairs)))
        for kind, what in repairs:
            shown = ", ".join(f"{value:g}" for value in corners)
            message = f"{where} ({name}) [{shown}]: {what}."
            self.report(kind, "warning", message, f"To fix it for good, edit {self.label_file}.")


@dataclass(eq=False)
class LabeledFolder:
    """A folder of labeled images, as it was when it was read."""

    kind: str
    """voc, coco, yolo, txl-pbc or joined."""
    root: Path
    class_names: tuple[str, ...]
    """In the folder's order; where it has none, by name."""
    images: list[LabeledImage]
    files: list[Path]
    """Every file that decides what is read: images, labels, class names, splits."""
    findings: list[Finding] = field(default_factory=list)
    """What concerns the whole folder."""
    splits: dict[str, list[str]] = field(default_factory=dict)
    """Image ids of train, val, test and trainval."""
    notice: str = ""
    """What everyone who reads a result must know: where the splits are not the folder's own."""
    names: dict[Path, str] = field(default_factory=dict)
    """What the fingerprint calls a file, where it is not by its path below `root`."""
    _listed: dict[Path, LabeledImage] = field(default_factory=dict, repr=False)

    @cached_property
    def by_id(self) -> dict[str, LabeledImage]:
        """The images by their ids."""
        return {image.image_id: image for image in self.images}

    def add_image(
        self, path: Path, label_file: Path, split: str | None = None, entry_id: int | str | None = None
    ) -> LabeledImage:
        """The image at `path`, appended, or, where a label file lists it again, the one that is there."""
        if (image := self._listed.get(path)) is None:
            image = self._listed[path] = LabeledImage(path, label_file, split=split, entry_id=entry_id)
            self.images.append(image)
            return image
        also = (
            f", now for {split}, but it stays in {image.split or 'no split'}" if split != image.split else ""
        )
        message = f"{relative(label_file, self.root)} lists {path.name} again{also}: its objects are joined."
        image.report("listed_twice", "warning", message, "List each image once, with all of its objects.")
        image.joined = True
        return image

    def report(self, kind: str, severity: str, message: str, remedy: str = "") -> None:
        """Add a finding that concerns the whole folder, see `add_finding`."""
        add_finding(self.findings, Finding(kind, severity, "", message, remedy))


def add_finding(findings: list[Finding], new: Finding) -> None:
    """Append a finding, unless `MAX_FINDINGS` are there; the last of them says that there are more."""
    if len(findings) == MAX_FINDINGS - 1:
        message = f"{new.message} There may be more: only {MAX_FINDINGS:,} findings are listed."
        new = replace(new, message=message)
    if len(findings) < MAX_FINDINGS or (len(findings) == MAX_FINDINGS and new.severity == "error"):
        findings.append(new)


def report_fractions(folder: LabeledFolder) -> None:
    """Add an error where boxes that must be pixels are written as fractions of the image."""
    found = [image for image in folder.images if _has_fractions(image)]
    if found:
        first, boxes = found[0], sum(len(image.objects) for image in found)
        file, size = relative(first.label_file, folder.root), f"{first.width} x {first.height}"
        message = f"{file}: the boxes of {first.path.name} ({size}) lie within 0 and 1, as fractions do; "
        message += f"pixels are expected. So it is with {boxes} boxes of {len(found)} images."
        remedy = "Export the labels in pixels, or multiply them by the images' width and height."
        folder.report("fractions", "error", message, remedy)


def _has_fractions(image: LabeledImage) -> bool:
    values = [value for o in image.objects for value in o.written]
    inside = all(-0.25 <= value <= 1.25 for value in values)
    # Whole numbers are a mark in the corner: some tools write 0, 0, 1, 1 for "nothing".
    return min(image.width, image.height) > 8 and inside and any(value % 1 for value in values)


def repair_box(corners: Corners, width: int, height: int) -> tuple[Corners | None, list[tuple[str, str]]]:
    """The box in order and inside the image (None if nothing is left), and (kind, what) of each repair.

    An image of 0 x 0 pixels, whose size is not known, bounds no box.
    """
    xmin, ymin, xmax, ymax = corners
    if 0 <= xmin < xmax <= width and 0 <= ymin < ymax <= height:  # nearly all boxes are
        return corners, []
    repairs = []
    if xmin > xmax or ymin > ymax:
        repairs.append(("swapped_corners", "corners in the wrong order, swapped"))
        xmin, xmax, ymin, ymax = min(xmin, xmax), max(xmin, xmax), min(ymin, ymax), max(ymin, ymax)
    if xmin == xmax or ymin == ymax:
        return None, [*repairs, ("point_box", "a box without an area, dropped")]
    if not (width and height):
        return (xmin, ymin, xmax, ymax), repairs
    inside = max(xmin, 0.0), max(ymin, 0.0), min(xmax, float(width)), min(ymax, float(height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return None, [*repairs, ("box_outside", f"wholly outside the {width} x {height} image, dropped")]
    if max(abs(a - b) for a, b in zip(inside, (xmin, ymin, xmax, ymax), strict=True)) >= _TOLERANCE:
        repairs.append(("box_outside", f"reaches outside the {width} x {height} image, clipped"))
    return inside, repairs


def rounded(corners: Sequence[float]) -> Corners:
    """The corners to a thousandth of a pixel, for formats that only state them by fractions or by sums."""
    xmin, ymin, xmax, ymax = corners
    return round(xmin, 3), round(ymin, 3), round(xmax, 3), round(ymax, 3)


def relative(path: Path, root: Path) -> str:
    """The path as a user of the folder would say it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def read_text(file: Path) -> str:
    """The text of a label file or list. Raises DataError as `read_limited` and `decode_text` do."""
    return decode_text(read_limited(file), file)


def read_names(file: Path) -> list[str]:
    """The class names of a file with one a line. Raises DataError for an empty line between names.

    Some tools number the names by lines, others skip the empty ones, so nobody can say which is meant.
    """
    lines = read_text(file).rstrip().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(
                f"{file}, line {number} is empty: it is not certain which numbers the classes after it have. "
                "Remove the line, or name the class that it stands for."
            )
    return lines


def check_names(names: list[str], file: Path) -> tuple[str, ...]:
    """Class names, stripped. Raises DataError unless they are distinct, at least one, and each `is_name`."""
    stripped = tuple(name.strip() for name in names)
    if not stripped or len(set(stripped)) < len(stripped) or not all(map(is_name, stripped)):
        raise DataError(
            f"{file}: class names must be distinct, printable, at least one and of at most {MAX_NAME} "
            f"characters; they are {shortened(names, 400)}. Correct them there."
        )
    return stripped


def is_name(text: str) -> bool:
    """Whether it can be a class's name: printable, of at most `MAX_NAME` characters."""
    return 0 < len(text) <= MAX_NAME and text.isprintable()


def image_ids(names: Sequence[tuple[str, str]]) -> list[str]:
    """An id for each image of (its name, a longer one with its folders): the name, or where several have the
    same, the longer one. Fit for a file's name and a line of a list, and short enough.
    """
    plain = [_id(name) for name, _ in names]
    often = Counter(plain)
    ids, taken = [], {name for name, count in often.items() if count == 1}
    for (_, longer), name in zip(names, plain, strict=True):
        if often[name] > 1:
            name = whole = _id(longer)
            number = 1
            while name in taken:
                number += 1
                name = f"{whole}-{number}"
            taken.add(name)
        ids.append(name)
    return ids


def _id(text: str) -> str:
    fit = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in text).strip().lstrip(".") or "_"
    return short_name(fit, 240)


def iou_matrix(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """The (A, B) float64 IoU of boxes (A, 4) and (B, 4); 0, never NaN, between two boxes without area."""
    a_xyxy, b_xyxy = (np.asarray(boxes, dtype=np.float64) for boxes in (a_xyxy, b_xyxy))
    corner = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    sides = np.clip(np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:]) - corner, 0.0, None)
    shared = sides.prod(axis=-1)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).prod(axis=-1) for box in (a_xyxy, b_xyxy))
    union = area_a[:, None] + area_b[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
