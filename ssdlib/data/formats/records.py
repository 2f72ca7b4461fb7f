"""What the readers of other layouts hand over: images with objects as written, and what was odd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ssdlib.common.errors import DataError
from ssdlib.data.formats.voc import Repair, repair_box
from ssdlib.data.images import image_size

Corners = tuple[float, float, float, float]
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLIT_WORDS |= {"dev": "val", "test": "test", "testing": "test"}
"""How folders and files call the splits."""


@dataclass(frozen=True)
class Note:
    """One thing worth knowing; becomes a finding of the audit. An error makes its image unusable."""

    kind: str
    severity: str
    """error, warning or info, as `ssdlib.data.audit.Finding` has it."""
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".rstrip()


@dataclass(eq=False)
class LabeledImage:
    """One image and the objects that its label file lists, still as written."""

    path: Path
    split: str | None = None
    """train, val, test, or None where the layout does not say."""
    width: int = 0
    height: int = 0
    """Of the real image, upright; 0 where it cannot be read."""
    names: list[str] = field(default_factory=list)
    boxes: list[Corners] = field(default_factory=list)
    """xyxy pixels, one a name; outside the image or without an area if they are written so."""
    notes: list[Note] = field(default_factory=list)

    def measure(self) -> bool:
        """Read width and height from the image. False, with a note if the file is missing, where impossible.

        A damaged image gets no note here: whoever reads its pixels will say it.
        """
        try:
            self.width, self.height = image_size(self.path)
        except DataError as error:
            if not self.path.is_file():
                remedy = "It cannot be used: restore it, or take it out of the labels."
                self.notes.append(Note("missing_image", "error", str(error), remedy))
            return False
        return True

    def add(self, name: str, corners: Corners, where: str) -> None:
        """Add an object; `where` (file and line) is for the notes on what will be repaired."""
        corners = tuple(map(_snap, corners, 2 * (self.width, self.height)))
        self.names.append(name)
        self.boxes.append(corners)
        repairs: list[Repair] = []
        repair_box(corners, self.width, self.height, f"{where} ({name})", repairs)
        for repair in repairs:
            self.notes.append(
                Note(repair.kind, "warning", f"{repair}.", "To mend it for good, edit that file.")
            )


@dataclass(frozen=True, eq=False)
class Layout:
    """A folder that was read."""

    kind: str
    """voc, coco or yolo."""
    class_names: tuple[str, ...]
    """As the folder orders them, those without an object included."""
    images: list[LabeledImage]
    notes: list[Note] = field(default_factory=list)
    """What concerns the whole folder."""


def _snap(value: float, side: int) -> float:
    """Fractions with six digits miss the border by a little; that is no mistake of anyone's."""
    return min(max(value, 0.0), float(side)) if -0.05 < value < side + 0.05 else value


Reader = Callable[[Path], Layout | None]
"""Reads a folder, or says None if it is of another kind. Raises DataError for one of its kind that is damaged
as a whole."""


def relative(path: Path, root: Path) -> str:
    """The path as a user of the folder would say it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def check_names(names: list[str], file: Path) -> tuple[str, ...]:
    """Class names, stripped. Raises DataError unless they are distinct, printable and at least one."""
    stripped = tuple(name.strip() for name in names)
    if not stripped or len(set(stripped)) < len(stripped) or not all(n and n.isprintable() for n in stripped):
        raise DataError(
            f"{file}: class names must be distinct, printable and at least one; they are {list(names)}. "
            "Correct them there."
        )
    return stripped
