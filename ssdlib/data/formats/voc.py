"""Pascal VOC annotations: one XML file for each image, with class names and pixel boxes.

XML from strangers is parsed without entities, DTDs or network, and a file that declares any is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lxml import etree

from ssdlib.common.errors import DataError
from ssdlib.common.files import write_bytes, write_text
from ssdlib.data.formats.records import (
    SPLIT_WORDS,
    Corners,
    LabeledFolder,
    LabeledImage,
    inner_path,
    read_limited,
)
from ssdlib.data.images import IMAGE_SUFFIXES, list_images
from ssdlib.data.splits import SHARES_TEXT, SPLITS, divide

LAYOUT = "Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/{train,val,test}.txt"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


# --- folders ---------------------------------------------------------------------------------------------


def find_root(path: Path) -> Path | None:
    """The folder with Annotations and JPEGImages: `path` itself or `path`/BCCD; None if neither has them."""
    for root in (path, path / "BCCD"):
        if (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir():
            return root.resolve()
    return None


def read_voc_folder(path: Path) -> LabeledFolder | None:
    """Read a folder in the layout of Pascal VOC; None if it is not one.

    Images belong to the annotation of the same name. Splits that cannot be read are a finding.
    """
    root = find_root(path)
    if root is None:
        return None
    annotations = {file.stem: file for file in sorted((root / "Annotations").glob("*.xml"))}
    pictures = list_images(root / "JPEGImages")
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    folder = LabeledFolder("voc", root, (), [], [*annotations.values(), *lists, *pictures])
    _read_splits(folder, list(annotations))
    listed = {image_id for ids in folder.splits.values() for image_id in ids}
    found = {file.stem: file for file in pictures}

    def image_of(image_id: str) -> LabeledImage:
        picture = found.get(image_id, root / f"JPEGImages/{image_id}.jpg")
        folder.images.append(LabeledImage(picture, root / f"Annotations/{image_id}.xml", image_id))
        return folder.images[-1]

    for image_id in annotations:
        _read_or_report(image_of(image_id), "error" if image_id in listed else "warning")
    used = {image.path for image in folder.images}
    for image_id in sorted(found.keys() - annotations.keys()):
        if found[image_id] not in used or image_id in listed:
            image, severity = image_of(image_id), "error" if image_id in listed else "warning"
            remedy = "Label it (an empty annotation will do), or remove it and its line in ImageSets."
            image.report("image_without_annotation", severity, f"{image.path} has no annotation.", remedy)
            image.complete = False
    for image_id in sorted(listed - annotations.keys() - found.keys()):
        image = image_of(image_id)
        message = f"a split lists it, but there is neither an image nor an annotation {image.label_file}."
        image.report("missing_file", "error", message, "Restore them, or take it out of ImageSets.")
        image.complete = False
    folder.class_names = tuple(sorted({o.name for image in folder.images for o in image.objects}))
    return folder


def _read_splits(folder: LabeledFolder, image_ids: Sequence[str]) -> None:
    files = {split: folder.root / "ImageSets" / "Main" / f"{split}.txt" for split in SPLITS}
    if not any(file.is_file() for file in files.values()):
        folder.splits = divide(image_ids)
        folder.notice = (
            f"{folder.root} has no ImageSets/Main: its images are divided by a fixed seed ({SHARES_TEXT})."
        )
        return
    try:
        folder.splits = {split: _read_ids(file) for split, file in files.items()}
    except DataError as error:
        folder.splits = {split: [] for split in SPLITS}
        folder.report("bad_split", "error", str(error))
    if not folder.splits["trainval"]:
        folder.splits["trainval"] = folder.splits["train"] + folder.splits["val"]


def read_beside(root: Path) -> LabeledFolder | None:
    """Read a folder with VOC annotations beside the images (labelImg, Roboflow), in the folder itself or in
    one for each split. None if there are none."""
    places = [(None, root), *((split, root / word) for word, split in SPLIT_WORDS.items())]
    files = [(s, file) for s, place in places if place.is_dir() for file in sorted(place.glob("*.xml"))]
    images = []
    for split, file in files:
        found = [path for path in map(file.with_suffix, _SUFFIXES) if path.is_file()]
        images.append(LabeledImage(found[0] if found else file.with_suffix(".jpg"), file, split=split))
        _read_or_report(images[-1], "error")
    if not any(image.path.is_file() for image in images):
        return None
    names = sorted({o.name for image in images for o in image.objects})
    return LabeledFolder("voc", root, tuple(names), images, [file for _, file in files])


_SUFFIXES = [case for suffix in IMAGE_SUFFIXES for case in (suffix, suffix.upper())]


def _read_or_report(image: LabeledImage, severity: str) -> None:
    """`read_voc`, what is wrong going to the image's findings; `severity` is that of a missing image."""
    try:
        read_voc(image)
    except DataError as error:
        image.report("damaged_annotation", "error", str(error))
        return
    finally:
        image.complete = image.path.is_file()
    if not image.complete:
        message = f"{image.label_file} has no image: there is no {image.path} (or .png, .tif, ...)."
        remedy = "Restore the image, or remove the annotation and its line in ImageSets."
        image.report("annotation_without_image", severity, message, remedy)


def _read_ids(file: Path) -> list[str]:
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    ids = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    for image_id in ids:
        if "/" in image_id or "\\" in image_id or image_id in (".", ".."):
            raise DataError(f"{file} lists {image_id!r}: a plain image name without a folder is expected.")
    return ids


# --- files -----------------------------------------------------------------------------------------------


def read_voc(image: LabeledImage) -> None:
    """Read `image.label_file` into `image`: size and objects, repaired, with a finding for each repair.

    Where `image.path` is missing, the image of the name that the file states is taken, from the same folder.
    The size of the real image wins over the stated one. Raises DataError, naming the file and the object, for
    XML that is broken, declares a DOCTYPE or entities, is no VOC annotation, or names an image outside its
    folder.
    """
    tree = read_tree(image.label_file)
    stated = image.path.parent / inner_path((tree.findtext("filename") or "").strip(), image.label_file)
    if not image.path.is_file() and stated.suffix.lower() in IMAGE_SUFFIXES and stated.is_file():
        image.path = stated
    sides = (tree.findtext(f"size/{side}") or "0" for side in ("width", "height"))
    width, height = (_number(side, image.label_file, "size") for side in sides)
    if not (image.path.is_file() and image.measure()):
        image.width, image.height = int(width), int(height)
    elif (width, height) != (image.width, image.height):
        states = f"{width:g} x {height:g}" if width or height else "no size"
        message = f"the file states {states}, the image is {image.width} x {image.height}."
        image.report("size_mismatch", "warning", message, f"To mend it for good, edit {image.label_file}.")
    for number, (name, corners) in enumerate(_objects(tree, image.label_file), 1):
        image.add(name, corners, f"object {number}")


def read_objects(path: str | Path) -> list[tuple[str, Corners]]:
    """(class name, xyxy corners) of every object exactly as the file has it, in its order.

    Raises DataError as `read_voc` does.
    """
    path = Path(path)
    return _objects(read_tree(path), path)


def voc_tree(
    filename: str,
    *,
    width: int,
    height: int,
    boxes: np.ndarray,
    names: Sequence[str],
    database: str = "Unknown",
    fractions: bool = False,
) -> etree._Element:
    """The root element of a new annotation, in the layout of BCCD's files.

    Boxes are (G, 4) xyxy pixels, written as `set_box` does.
    """
    root = etree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", filename)
    _add(etree.SubElement(root, "source"), "database", database)
    size = etree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, tag, value)
    _add(root, "segmented", 0)
    for box, name in zip(np.asarray(boxes, np.float64).reshape(-1, 4), names, strict=True):
        add_object(root, name, box, fractions=fractions)
    return root


def add_object(
    root: etree._Element,
    name: str,
    box: Sequence[float],
    pose: str = "Unspecified",
    *,
    fractions: bool = False,
) -> None:
    """Append an object with the class `name` and a box of xyxy pixels to an annotation's tree, written as
    `set_box` does.
    """
    node = etree.SubElement(root, "object")
    for tag, value in (("name", name), ("pose", pose), ("truncated", 0), ("difficult", 0)):
        _add(node, tag, value)
    set_box(etree.SubElement(node, "bndbox"), box, fractions=fractions)


def set_box(corners: etree._Element, box: Sequence[float], *, fractions: bool = False) -> None:
    """Write xyxy pixels into a <bndbox> element: whole ones, as `whole_box` rounds them, which is all that
    many readers take, or with `fractions` thousandths."""
    for tag, value in zip(_CORNERS, map(float, box) if fractions else whole_box(box), strict=True):
        node = corners.find(tag)
        node = etree.SubElement(corners, tag) if node is None else node
        node.text = str(round(value, 3)).removesuffix(".0")


def whole_box(box: Sequence[float]) -> tuple[int, int, int, int]:
    """The box of xyxy pixels, rounded to whole ones. A side that it has keeps at least one of them, and a box
    that is inside an image stays there."""
    xmin, ymin, xmax, ymax = map(float, box)
    (left, right), (top, bottom) = _whole_side(xmin, xmax), _whole_side(ymin, ymax)
    return left, top, right, bottom


def _whole_side(low: float, high: float) -> tuple[int, int]:
    if low < high and round(low) == round(high):
        return math.floor(low), math.floor(low) + 1
    return round(low), round(high)


def write_voc(path: str | Path, *, filename: str | None = None, **content: Any) -> None:
    """Atomically write one annotation; `content` is what `voc_tree` takes.

    `filename` is the image's; by default the same name ending in .jpg.
    """
    write_tree(path, voc_tree(filename or f"{Path(path).stem}.jpg", **content))


def write_tree(path: str | Path, root: etree._Element) -> None:
    """Atomically write the tree of an annotation, indented."""
    etree.indent(root, "\t")
    write_bytes(path, etree.tostring(root, encoding="utf-8") + b"\n")


def write_splits(root: Path, splits: Mapping[str, Sequence[str]]) -> None:
    """Write the image ids of each split to its list in ImageSets/Main of the folder `root`."""
    for split, image_ids in splits.items():
        lines = "".join(f"{image_id}\n" for image_id in image_ids)
        write_text(root / "ImageSets" / "Main" / f"{split}.txt", lines)


def read_tree(path: Path) -> etree._Element:
    """The root element of an annotation, safe to edit. Raises DataError as `read_voc` does."""
    if not path.exists():
        raise DataError(f"there is no annotation {path}. Restore it, or take its name out of the split.")
    content = read_limited(path)
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


def _objects(tree: etree._Element, path: Path) -> list[tuple[str, Corners]]:
    objects = []
    for number, node in enumerate(tree.iterfind("object"), 1):
        name = (node.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{path}: object {number} has no <name>. Name its class, or delete the object.")
        corners = tuple(
            _number(node.findtext(f"bndbox/{tag}"), path, f"object {number} ({name}) <{tag}>")
            for tag in _CORNERS
        )
        objects.append((name, corners))
    return objects


def _number(text: str | None, path: Path, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: {where} must be a number, not {text!r}. Correct it, or delete the object.")
    return value


def _add(parent: etree._Element, tag: str, value: object) -> None:
    etree.SubElement(parent, tag).text = str(value)
