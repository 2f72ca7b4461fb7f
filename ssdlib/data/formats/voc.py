"""Pascal VOC annotations: one XML file an image, with class names and pixel boxes.

XML from strangers is parsed without entities, DTDs or network, and a file that declares any is refused.
What is repaired on the way is written down in `VocAnnotation.repairs` and shown by the audit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from lxml import etree

from ssdlib.common.errors import DataError
from ssdlib.common.files import write_bytes

MAX_XML_BYTES = 20_000_000
"""No annotation of one image is larger; a file that is, is something else."""


@dataclass(frozen=True)
class Repair:
    """One thing that was put right while reading. `str(repair)` is the message."""

    kind: str
    """point_box, box_outside, swapped_corners or size_mismatch."""
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, eq=False)
class VocAnnotation:
    """The objects of one image, repaired: every box has an area and lies inside the image."""

    path: Path
    image_id: str
    """The file's name without `.xml`."""
    filename: str
    """The image's name as the file states it; may be empty."""
    width: int
    height: int
    boxes: np.ndarray
    """(G, 4) float32, xyxy pixels."""
    names: tuple[str, ...]
    """Class name of each box."""
    repairs: tuple[Repair, ...] = ()
    written_names: tuple[str, ...] = ()
    """Class name of every object in the file, those without an area included."""


def read_voc(path: str | Path, image_size: tuple[int, int] | None = None) -> VocAnnotation:
    """Read one annotation file.

    `image_size` is the (width, height) of the real image: where it contradicts the file, it wins. Corners in
    the wrong order are swapped, boxes are clipped to the image, those without an area are dropped; each is
    noted in `repairs`. Raises DataError, naming the file and the object, for XML that is broken, declares a
    DOCTYPE or entities, is no VOC annotation, or names an image outside its folder.
    """
    path = Path(path)
    root = read_tree(path)
    filename = _safe_filename(root.findtext("filename") or "", path)
    written = tuple(
        _number(root.findtext(f"size/{side}") or "0", path, "size") for side in ("width", "height")
    )
    repairs: list[Repair] = []
    if image_size is not None and written != image_size:
        stated = "no size" if written == (0, 0) else f"{written[0]:g} x {written[1]:g}"
        repairs.append(
            Repair(
                "size_mismatch", f"the file states {stated}, the image is {image_size[0]} x {image_size[1]}"
            )
        )
    width, height = (int(side) for side in image_size or written)
    objects = [_read_object(node, path, number) for number, node in enumerate(root.iterfind("object"), 1)]
    boxes, names = [], []
    for number, (name, corners) in enumerate(objects, 1):
        box = repair_box(corners, width, height, f"object {number} ({name})", repairs)
        if box is not None:
            boxes.append(box)
            names.append(name)
    return VocAnnotation(
        path=path,
        image_id=path.stem,
        filename=filename,
        width=width,
        height=height,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        names=tuple(names),
        repairs=tuple(repairs),
        written_names=tuple(name for name, _ in objects),
    )


def voc_bytes(
    filename: str,
    width: int,
    height: int,
    boxes: np.ndarray,
    names: Sequence[str],
    *,
    database: str = "Unknown",
) -> bytes:
    """The XML of one annotation, in the layout of BCCD's files. Boxes are (G, 4) xyxy pixels."""
    root = etree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", filename)
    _add(etree.SubElement(root, "source"), "database", database)
    size = etree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, tag, value)
    _add(root, "segmented", 0)
    for box, name in zip(np.asarray(boxes, np.float64).reshape(-1, 4), names, strict=True):
        add_object(root, name, box)
    etree.indent(root, "\t")
    return etree.tostring(root, encoding="utf-8") + b"\n"


def read_objects(path: str | Path) -> list[tuple[str, tuple[float, ...]]]:
    """(class name, xyxy corners) of every object exactly as the file has it, in its order. DataError as
    `read_voc`."""
    path = Path(path)
    nodes = read_tree(path).iterfind("object")
    return [_read_object(node, path, number) for number, node in enumerate(nodes, 1)]


def add_object(root: etree._Element, name: str, box: Sequence[float], pose: str = "Unspecified") -> None:
    """Append an object with the class `name` and a box of xyxy pixels to an annotation's tree."""
    node = etree.SubElement(root, "object")
    for tag, value in (("name", name), ("pose", pose), ("truncated", 0), ("difficult", 0)):
        _add(node, tag, value)
    set_box(etree.SubElement(node, "bndbox"), box)


def set_box(corners: etree._Element, box: Sequence[float]) -> None:
    """Write xyxy pixels into a <bndbox> element."""
    for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), map(float, box), strict=True):
        node = corners.find(tag)
        node = etree.SubElement(corners, tag) if node is None else node
        node.text = str(int(value) if value.is_integer() else round(value, 3))


def write_voc(
    path: str | Path,
    *,
    width: int,
    height: int,
    boxes: np.ndarray,
    names: Sequence[str],
    filename: str | None = None,
    database: str = "Unknown",
) -> None:
    """Atomically write one annotation. `filename` is the image's; by default the same name ending in .jpg."""
    path = Path(path)
    image = filename or f"{path.stem}.jpg"
    write_bytes(path, voc_bytes(image, width, height, boxes, names, database=database))


def read_tree(path: Path) -> etree._Element:
    """The root element of an annotation, safe to edit. Raises DataError as `read_voc` does."""
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise DataError(
                f"{path} is larger than {MAX_XML_BYTES // 10**6} MB: not an annotation of one image."
            )
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"there is no annotation {path}. Restore it, or take its name out of the split."
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True
    )
    refusal = DataError(
        f"{path} declares a DOCTYPE or entities, which an annotation has no use for and an attacker has. "
        "Remove the declaration if you trust the file."
    )
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise refusal
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise DataError(
            f"{path} is not well-formed XML ({error}). Restore it, or label the image anew."
        ) from error
    # The same question again: in UTF-16 the search above finds nothing.
    if root.getroottree().docinfo.doctype:
        raise refusal
    if root.tag != "annotation":
        raise DataError(f"{path} is not a Pascal VOC annotation: its root is <{root.tag}>, not <annotation>.")
    return root


def _safe_filename(filename: str, path: Path) -> str:
    filename = filename.strip()
    posix, windows = PurePosixPath(filename), PureWindowsPath(filename)
    if posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise DataError(
            f"{path} names the image {filename!r}, outside its own folder. "
            "Put the plain file name into <filename>."
        )
    return filename.replace("\\", "/")


def _read_object(node: etree._Element, path: Path, number: int) -> tuple[str, tuple[float, ...]]:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: object {number} has no <name>. Name its class, or delete the object.")
    where = f"object {number} ({name})"
    return name, tuple(
        _number(node.findtext(f"bndbox/{tag}"), path, f"{where} <{tag}>")
        for tag in ("xmin", "ymin", "xmax", "ymax")
    )


def _number(text: str | None, path: Path, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: {where} must be a number, not {text!r}. Correct it, or delete the object.")
    return value


def repair_box(
    corners: tuple[float, ...], width: int, height: int, where: str, repairs: list[Repair]
) -> tuple[float, ...] | None:
    """The box in order and inside the image, None if nothing is left; what is done goes to `repairs`."""
    written = "[" + ", ".join(f"{value:g}" for value in corners) + "]"
    xmin, ymin, xmax, ymax = corners
    if xmin > xmax or ymin > ymax:
        repairs.append(Repair("swapped_corners", f"{where} {written}: corners in the wrong order, swapped"))
        xmin, xmax, ymin, ymax = min(xmin, xmax), max(xmin, xmax), min(ymin, ymax), max(ymin, ymax)
    if xmin == xmax or ymin == ymax:
        repairs.append(Repair("point_box", f"{where} {written}: a box without an area, dropped"))
        return None
    if not (width and height):
        return xmin, ymin, xmax, ymax
    inside = max(xmin, 0.0), max(ymin, 0.0), min(xmax, float(width)), min(ymax, float(height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        repairs.append(
            Repair("box_outside", f"{where} {written}: wholly outside the {width} x {height} image, dropped")
        )
        return None
    if inside != (xmin, ymin, xmax, ymax):
        repairs.append(
            Repair("box_outside", f"{where} {written}: reaches outside the {width} x {height} image, clipped")
        )
    return inside


def _add(parent: etree._Element, tag: str, value: object) -> None:
    etree.SubElement(parent, tag).text = str(value)
