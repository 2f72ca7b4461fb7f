"""Pascal VOC annotations: one XML file for each image, with class names and pixel boxes.

XML from strangers is parsed without entities, DTDs or network, and a file that declares any is refused.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lxml import etree

from ssdlib.common.errors import DataError
from ssdlib.common.files import MAX_BYTES, files_below, read_limited, shortened, write_bytes, write_text
from ssdlib.data.formats.lookup import Files, folded, folder_split
from ssdlib.data.formats.records import (
    MAX_OBJECTS,
    SPLIT_WORDS,
    Corners,
    LabeledFolder,
    LabeledImage,
    image_ids,
    is_name,
    read_text,
    relative,
)
from ssdlib.data.images import IMAGE_SUFFIXES
from ssdlib.data.splits import SHARES_TEXT, SPLITS, complete, divide

LAYOUT = "Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/{train,val,test}.txt"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_MAX_PIXELS = 10**9


# --- folders ---------------------------------------------------------------------------------------------


def find_root(path: Path) -> Path | None:
    """The folder with Annotations and JPEGImages: `path` itself or `path`/BCCD; None if neither has them."""
    for root in (path, path / "BCCD"):
        if (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir():
            return root.resolve()
    return None


def read_voc_folder(path: Path) -> LabeledFolder | None:
    """Read a folder in the layout of Pascal VOC; None if it is not one.

    Images belong to the annotation of the same name, in the same sub-folder (CVAT). Splits that cannot be
    read are a finding; where val or test is missing, a share of train is set aside for it.
    """
    root = find_root(path)
    if root is None:
        return None
    places = root / "Annotations", root / "JPEGImages"
    annotations = {_key(file, places[0]): file for file in _xml_below(places[0])}
    pictures = Files(files_below(places[1]), places[1])
    found: dict[str, list[Path]] = defaultdict(list)
    for file in pictures.all:
        found[_key(file, places[1])].append(file)
    for key in [key for key in annotations if key not in found]:  # in other sub-folders, or in other letters
        other = pictures.find(key, places[1])
        if other and (own := _key(other, places[1])) not in annotations and own in found:
            found[key] = found.pop(own)
    folder = LabeledFolder("voc", root, (), [], [*annotations.values(), *_lists(root), *pictures.all])
    ids = _ids(list(dict.fromkeys([*annotations, *found])))
    _read_splits(folder, ids, list(annotations))
    listed = {image_id for names in folder.splits.values() for image_id in names}

    def image_of(key: str, image_id: str) -> LabeledImage:
        picture = found[key][0] if key in found else places[1] / f"{key}.jpg"
        label_file = annotations.get(key, places[0] / f"{key}.xml")
        folder.images.append(LabeledImage(picture, label_file, image_id))
        return folder.images[-1]

    for key in annotations:
        image = image_of(key, ids[key])

        def named(stated: str, key: str = key) -> Path | None:
            """The picture that the annotation names, unless it is another annotation's."""
            near = (places[1] / key).parent
            here = Files(found[key], places[1]).find(stated, near) if key in found else None
            other = None if key in found else pictures.find(stated, near)
            return here or (None if other and _key(other, places[1]) in annotations else other)

        _read_or_report(image, "error" if ids[key] in listed else "warning", named)
        _report_spare(image, found.get(key, ()), root)
    used = {image.path for image in folder.images}
    for key in sorted(found.keys() - annotations.keys()):
        if found[key][0] not in used or ids[key] in listed:
            image, severity = image_of(key, ids[key]), "error" if ids[key] in listed else "warning"
            remedy = "Label it (an empty annotation will do), or remove it and its line in ImageSets."
            image.report("image_without_annotation", severity, f"{image.path} has no annotation.", remedy)
            image.complete = False
    for image_id in sorted(listed - set(ids.values())):
        image = image_of(image_id, image_id)
        message = f"a split lists it, but there is neither an image nor an annotation {image.label_file}."
        image.report("missing_file", "error", message, "Restore them, or take it out of ImageSets.")
        image.complete = False
    folder.class_names = tuple(sorted({o.name for image in folder.images for o in image.objects}))
    return folder


def _xml_below(folder: Path, depth: int | None = None) -> list[Path]:
    return [file for file in files_below(folder, depth) if file.suffix.lower() == ".xml"]


def _key(file: Path, place: Path) -> str:
    """What an image and its annotation have in common: the path below their place, without ending."""
    return file.relative_to(place).with_suffix("").as_posix()


def _ids(keys: Sequence[str]) -> dict[str, str]:
    """An image id for each key: its last part; where several have the same, with the folders before it."""
    return dict(zip(keys, image_ids([(key.rpartition("/")[2], key) for key in keys]), strict=True))


def _lists(root: Path) -> list[Path]:
    """The lists of images in ImageSets/Main, or in ImageSets where there is no such folder."""
    place = root / "ImageSets" / "Main"
    place = place if place.is_dir() else place.parent
    files = files_below(place, depth=0) if place.is_dir() else []
    return [file for file in files if file.suffix.lower() == ".txt"]


def _read_splits(folder: LabeledFolder, ids: Mapping[str, str], annotated: Sequence[str]) -> None:
    """Set the splits of a folder, whose image ids are given by key, from its lists or by a fixed seed."""
    words = {**SPLIT_WORDS, "trainval": "trainval"}
    files = _lists(folder.root)
    lists = [(words[file.stem.lower()], file) for file in files if file.stem.lower() in words]
    if not lists:  # RBC_train.txt and so on, as VOC has them for each class, and VoTT nothing else
        ends = [(file.stem.lower().rpartition("_")[2], file) for file in files if "_" in file.stem]
        lists = [(words[end], file) for end, file in ends if end in words]
    if not lists:
        folder.splits = divide([ids[key] for key in annotated])
        names = ", ".join(file.name for file in files)
        lacks = f"only {names} in ImageSets/Main, none of train, val, test" if names else "no ImageSets/Main"
        folder.notice = f"{folder.root} has {lacks}: its images are divided by a fixed seed ({SHARES_TEXT})."
        return
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    try:
        for split, file in lists:
            splits[split] = list(dict.fromkeys([*splits[split], *_read_ids(file, ids)]))
    except DataError as error:
        folder.splits = {split: [] for split in SPLITS}
        folder.report("bad_split", "error", str(error))
        return
    given = set(splits["trainval"])
    for split, other in (("train", "val"), ("val", "train")):  # what trainval has that the other has not
        if given and not splits[split]:
            splits[split] = [name for name in splits["trainval"] if name not in splits[other]]
    if splits["train"] and not (splits["val"] and splits["test"]):
        splits, done = complete({split: splits[split] for split in ("train", "val", "test")})
        folder.notice = f"{folder.root} {done}" if done else ""
    folder.splits = {**splits, "trainval": splits["trainval"] or splits["train"] + splits["val"]}


def read_beside(root: Path) -> LabeledFolder | None:
    """Read a folder with VOC annotations beside the images (labelImg, Roboflow) or in folders of their own.

    An image is looked for beside its annotation, in other folders of the same names, and by the name that the
    annotation states. A folder named after a split, or in one, is that split. None if no image is found.
    """
    files = [file for file in _xml_below(root, depth=4) if not _is_inner(file, root)]
    if not files:
        return None
    pictures = Files(files_below(root), root)
    beside: dict[Path, list[Path]] = defaultdict(list)
    for file in pictures.all:
        beside[file.with_suffix("")].append(file)
    labeled = {file.with_suffix("") for file in files}
    elsewhere = Files((file for file in pictures.all if file.with_suffix("") not in labeled), root)
    images: dict[Path, LabeledImage] = {}
    for file in files:
        name, split = file.with_suffix(""), folder_split(file, root)
        own = beside.get(name, [])
        same = None if own else elsewhere.find(name.relative_to(root).as_posix(), name.parent, split)
        near = Files(own, root) if own else elsewhere
        named = functools.partial(near.find, near=name.parent, split=split)
        image = LabeledImage(own[0] if own else same or file.with_suffix(".jpg"), file)
        _read_or_report(image, "error", (lambda stated: None) if same else named)
        image.split = split or folder_split(image.path, root)
        _report_spare(image, own, root)
        if other := images.get(image.path):
            both = f"{relative(file, root)} and {relative(other.label_file, root)}"
            message = f"{both} are both of {relative(image.path, root)}: the second is not used."
            other.report("same_name", "error", message, "Keep one annotation for each image.")
        else:
            images[image.path] = image
    if not any(path.is_file() for path in images):
        return None
    names = sorted({o.name for image in images.values() for o in image.objects})
    return LabeledFolder("voc", root, tuple(names), list(images.values()), files)


def _is_inner(file: Path, root: Path) -> bool:
    """Whether it lies in a folder with the layout of Pascal VOC further below, which has its own splits."""
    inner = [one for one in file.parents if one.is_relative_to(root) and one.name == "Annotations"]
    return any((one.parent / "JPEGImages").is_dir() and one.parent.name not in SPLIT_WORDS for one in inner)


def _read_or_report(image: LabeledImage, severity: str, named: Callable[[str], Path | None]) -> None:
    """`read_voc`, what is wrong going to the image's findings; `severity` is that of a missing image."""
    try:
        read_voc(image, named)
    except DataError as error:
        image.report("damaged_annotation", "error", str(error))
        return
    finally:
        image.complete = image.path.is_file()
    if not image.complete:
        message = f"{image.label_file} has no image: there is no {image.path} (or .png, .tif, ...)."
        remedy = "Restore the image, or remove the annotation and its line in ImageSets."
        image.report("annotation_without_image", severity, message, remedy)


def _report_spare(image: LabeledImage, same_name: Sequence[Path], root: Path) -> None:
    if spare := [relative(one, root) for one in same_name if one != image.path]:
        taken = relative(image.label_file, root), relative(image.path, root)
        message = "{} is taken to be of {}; {}, of the same name, is not used.".format(*taken, spare[0])
        image.report("same_name", "warning", message, "Give each image a name of its own.")


def _read_ids(file: Path, ids: Mapping[str, str]) -> list[str]:
    """The image ids of a list: names, with or without folders, endings, or the 1 or -1 of a class's list."""
    known = {**{image_id: image_id for image_id in ids.values()}, **ids}
    known = {folded(key): image_id for key, image_id in known.items()} | known
    found = []
    for line in read_text(file).splitlines():
        if not (text := line.strip()):
            continue
        plain = re.sub(r"\s+-?[01]$", "", text)
        names = [one for name in (text, plain) for end in _ends(name) for one in (end, folded(end))]
        image_id = next((known[name] for name in names if name in known), None)
        if image_id is None:
            image_id = _ENDING.sub("", text.replace("\\", "/"))
            if "/" in image_id or image_id in (".", "..") or len(os.fsencode(image_id)) > 250:
                raise DataError(
                    f"{file} lists {shortened(text)}: there is no such image or annotation in the folder."
                )
        found.append(image_id)
    return list(dict.fromkeys(found))


def _ends(name: str) -> list[str]:
    """The name with all of its folders, then with fewer of them, each as it is and without ending."""
    parts = name.replace("\\", "/").split("/")
    ends = ["/".join(parts[k:]) for k in range(len(parts))]
    return [one for end in ends for one in (end, _ENDING.sub("", end))]


_ENDING = re.compile(rf"({'|'.join(map(re.escape, (*IMAGE_SUFFIXES, '.xml')))})$", re.IGNORECASE)


# --- files -----------------------------------------------------------------------------------------------


def read_voc(image: LabeledImage, named: Callable[[str], Path | None] = lambda stated: None) -> None:
    """Read `image.label_file` into `image`: size and objects, repaired, with a finding for each repair.

    named: gives the image of the name that the file states, if it is another one than `image.path`. The size
    of the real image wins over the stated one. Raises DataError, naming the file and the object, for XML that
    is broken, declares a DOCTYPE or entities, or is no VOC annotation.
    """
    tree = read_tree(image.label_file)
    image.path = named((tree.findtext("filename") or "").strip()) or image.path
    sides = (tree.findtext(f"size/{side}") or "0" for side in ("width", "height"))
    width, height = (_number(side, image.label_file, "size") for side in sides)
    if image.path.is_file() and image.measure():
        _compare_size(image, width, height)
    else:
        image.width, image.height = int(width), int(height)
    for number, (name, corners) in enumerate(_objects(tree, image.label_file), 1):
        image.add(name, corners, f"object {number}")


def _compare_size(image: LabeledImage, width: float, height: float) -> None:
    if not image.fits(width, height):
        states = f"{width:g} x {height:g}" if width or height else "no size"
        message = f"the file states {states}, the image is {image.width} x {image.height}."
        image.report("size_mismatch", "warning", message, f"To fix it for good, edit {image.label_file}.")


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
    for split, ids in splits.items():
        lines = "".join(f"{image_id}\n" for image_id in ids)
        write_text(root / "ImageSets" / "Main" / f"{split}.txt", lines)


def read_tree(path: Path) -> etree._Element:
    """The root element of an annotation, safe to edit, with one box in each object.

    Raises DataError as `read_voc` does.
    """
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
        raise DataError(
            f"{path} is not a Pascal VOC annotation: its root is <{root.tag[:80]}>, not <annotation>."
        )
    if (count := len(root.findall("object/bndbox"))) > MAX_OBJECTS:
        raise DataError(f"{path} lists {count:,} objects: no picture shows as many cells. Correct it.")
    copied = 0
    for node in root.findall("object"):  # ybat writes all boxes of a class into one
        others = node.findall("bndbox")[1:]
        for box in others:  # all of them first, so that no copy has any
            node.remove(box)
        copied += len(others) * len(etree.tostring(node)) if others else 0
        if copied > MAX_BYTES:
            raise DataError(f"{path} has an <object> of many boxes and much else: give each its own.")
        for box in reversed(others):
            other = copy.deepcopy(node)
            other.replace(other.find("bndbox"), box)
            node.addnext(other)
    return root


def _objects(tree: etree._Element, path: Path) -> list[tuple[str, Corners]]:
    objects = []
    for number, node in enumerate(tree.iterfind("object"), 1):
        name = (node.findtext("name") or "").strip()
        if not is_name(name):
            what = f"is no name of a class: {shortened(name)}" if name else "is missing"
            raise DataError(
                f"{path}: the <name> of object {number} {what}. Name its class, or delete the object."
            )
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
    if not abs(value) < _MAX_PIXELS:
        raise DataError(
            f"{path}: {where} must be a number of pixels, not {shortened(text)}. Correct it, or delete the "
            "object."
        )
    return value


def _add(parent: etree._Element, tag: str, value: object) -> None:
    etree.SubElement(parent, tag).text = str(value)
