"""COCO-JSON annotations, the other common layout, for data of your own.

The format: https://cocodataset.org/#format-data. Boxes there are [x, y, width, height] in pixels.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssdlib.common.errors import DataError, SsdError
from ssdlib.common.files import files_below, read_json, shortened
from ssdlib.data.formats.lookup import Files, folder_split, missing_image, split_of
from ssdlib.data.formats.records import (
    MAX_IMAGES,
    SPLIT_WORDS,
    AddedObject,
    Corners,
    LabeledFolder,
    LabeledImage,
    check_names,
    relative,
    rounded,
)

LAYOUT = "a COCO file (annotations/*.json, or _annotations.coco.json in each split's folder) and its images"

_KEYS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id"),
}


def read_coco_folder(root: Path) -> LabeledFolder | None:
    """Read a folder with COCO files: one for all images, or one a split, as COCO and Roboflow lay them out.

    The split is told by the file's name (instances_train2017.json) or its folder's (valid/). Images are
    looked for by their names anywhere in the folder. None if there is no COCO file. Raises DataError for one
    that is damaged as a whole, and where no annotation is of use.
    """
    files = coco_files(root)
    if not files:
        return None
    folder = LabeledFolder("coco", root, (), [], list(files))
    pictures, unused = Files(files_below(root), root), Counter()
    for file, content in files.items():
        unused.update(_read_file(file, content, folder, pictures))
    if not folder.images:
        raise DataError(f"{', '.join(map(str, files))}: no image is listed. Export the labels anew.")
    if unused and not any(image.objects or image.error for image in folder.images):
        reasons = "; ".join(f"{count} {reason}" for reason, count in unused.most_common())
        raise DataError(
            f"none of the {unused.total()} annotations in {', '.join(map(str, files))} is of use: {reasons}. "
            "Export the labels anew with a box for each object."
        )
    listed = {image.path for image in folder.images}
    places = {path.parent for path in listed}
    if spare := [path for path in pictures.all if path.parent in places and path not in listed]:
        message = f"{len(spare)} images are in no COCO file, {relative(spare[0], root)} first: not used."
        folder.report("image_not_listed", "info", message, "Label them to make use of them.")
    return folder


def coco_files(root: Path) -> dict[Path, Any]:
    """The content of the COCO files directly in the folder, in annotations, and in the splits' folders.

    Anything named like one must be one; of others, those with images and annotations are.
    """
    words = {"annotations", *SPLIT_WORDS}
    places = [root, *(place for place in sorted(root.iterdir()) if place.name.lower() in words)]
    places += [place / "annotations" for place in places[1:]]
    files = [file for place in places if place.is_dir() for file in files_below(place, depth=0)]
    files = [file for file in files if file.suffix.lower() == ".json"]
    passed = ("captions_", "panoptic_", "image_info_")
    if any(file.name.startswith("instances_") for file in files):
        passed += ("person_keypoints_",)  # the same objects once more
    found = {}
    for file in files:
        if file.name.startswith(passed):
            continue
        named = file.name.startswith(("_annotations.coco", "instances_"))
        named |= file.parent.name.lower() == "annotations"
        try:
            content = read_json(file, hint="A COCO annotation file is needed.")
        except SsdError as error:
            if named:
                raise DataError(str(error)) from error
            continue
        if named or (isinstance(content, dict) and content.keys() >= {*_KEYS}):
            found[file] = content
    return found


def add_annotations(content: dict[str, Any], image: LabeledImage, added: Iterable[AddedObject]) -> None:
    """Append objects to an image's annotations in a COCO file's content, each with its marks as "added".

    Raises DataError for a class that the file does not list.
    """
    if isinstance(content["annotations"], dict):
        content["annotations"] = list(content["annotations"].values())
    annotations = content["annotations"]
    used = {_id(entry["category_id"]) for entry in annotations}
    categories = sorted(content["categories"], key=lambda entry: _id(entry["id"]) in used)
    categories = {str(entry["name"]).strip(): entry["id"] for entry in categories}
    last = max((e["id"] for e in annotations if isinstance(e.get("id"), int)), default=0)
    for number, one in enumerate(added, last + 1):
        if one.name not in categories:
            raise DataError(
                f"{image.label_file} does not list the class {one.name}: add it to the categories."
            )
        about = {"id": number, "image_id": image.entry_id, "category_id": categories[one.name]}
        annotations.append({**about, **shape_of(one.box), "added": dict(one.marks)})


def shape_of(box: Sequence[float], digits: int = 3) -> dict[str, Any]:
    """What an annotation says of its box of xyxy pixels: bbox, area, iscrowd and an empty segmentation.

    pycocotools shows no annotation without that key. The outline of the box in its place would be taken for
    the label: CVAT then makes a polygon of each box, and Label Studio one more besides.
    """
    x1, y1, x2, y2 = box
    width, height = round(x2 - x1, digits), round(y2 - y1, digits)
    bbox = [round(x1, digits), round(y1, digits), width, height]
    return {"bbox": bbox, "area": round(width * height, digits), "iscrowd": 0, "segmentation": []}


# --- one file --------------------------------------------------------------------------------------------


def _read_file(path: Path, content: Any, folder: LabeledFolder, pictures: Files) -> Counter[str]:
    """Add the images and classes of one COCO file; how many annotations are of no use, by the reason."""
    shown = relative(path, folder.root)
    split, word = split_of(path, folder.root)
    subset = re.sub(r"^(instances|person_keypoints)_", "", path.stem)
    entries, categories, annotations = (_entries(content, key, path) for key in _KEYS)
    names = _class_names(categories, annotations, path)
    folder.class_names = tuple(dict.fromkeys((*folder.class_names, *names.values())))
    stated = [str(entry["file_name"]) for entry in entries]
    found = pictures.find_all(stated, path.parent, split, [subset, word])
    images: dict[str, LabeledImage] = {}
    for entry, place, name in zip(entries, found, stated, strict=True):
        if (key := _id(entry["id"])) in images:
            raise DataError(
                f"{path}: two images have the id {shortened(entry['id'])}. Export the labels anew."
            )
        if place is None:
            place = missing_image(name, path, folder.root)
        own = split or folder_split(place, folder.root)
        image = images[key] = folder.add_image(place, path, own, entry["id"])
        if not image.joined and image.measure():
            _compare_size(image, entry, shown)
    unused: Counter[str] = Counter()
    crowds: Counter[LabeledImage] = Counter()
    for number, entry in enumerate(annotations):
        where = f"{shown}: annotation {str(entry.get('id', f'number {number}'))[:40]}"
        image = images.get(_id(entry["image_id"]))
        if image is None:
            message = (
                f"{where} has image_id {shortened(entry['image_id'])}, not in the file: its box is lost."
            )
            folder.report("unknown_image", "warning", message, "List the image, or delete it.")
            known = ", ".join(shortened(one["id"]) for one in entries[:3])
            unused[f"have an image_id that no image has (the images have {known}, ...)"] += 1
        elif str(entry.get("iscrowd") or 0) not in ("0", "0.0", "False", "false"):
            crowds[image] += 1
            unused["are crowd regions (iscrowd is 1), which are passed over"] += 1
        else:
            _add(image, entry, names, where)
    for image, count in crowds.items():
        message = f"{count} crowd regions in {shown} are passed over: what is in them counts as background."
        image.report("crowd", "info", message)
    return unused


def _id(value: Any) -> str:
    """An id for comparison: some tools write 1 here and "1" or 1.0 there."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _class_names(categories: list[dict], annotations: list[dict], path: Path) -> dict[str, str]:
    """Class names by id, in the ids' order. Only those in use must be distinct: Roboflow adds a root."""
    used = {_id(entry["category_id"]) for entry in annotations}
    categories = sorted(categories, key=lambda entry: (isinstance(entry["id"], str), entry["id"]))
    named = [entry for entry in categories if _id(entry["id"]) in used] or categories
    names = check_names([str(entry["name"]) for entry in named], path)
    by_id = {_id(entry["id"]): name for entry, name in zip(named, names, strict=True)}
    return {
        key: by_id.get(key, str(entry["name"]).strip())
        for entry in categories
        if (key := _id(entry["id"])) in by_id or str(entry["name"]).strip() not in names
    }


def _add(image: LabeledImage, entry: dict[str, Any], names: dict[str, str], where: str) -> None:
    """Add one annotation to its image, or a note that says why not."""
    category = _id(entry["category_id"])
    if category not in names:
        wrong, known = shortened(entry["category_id"]), shortened(names, 400)
        message = f"{where} has category_id {wrong}, not in the file, which has {known}."
        image.report("unknown_class", "error", message, "List the category, or delete it.")
        return
    corners = _corners(entry.get("bbox"))
    if corners is None or corners[:2] == corners[2:]:
        others = _outline(entry.get("segmentation")), _mask(entry.get("segmentation")), _visible(entry)
        corners = next(filter(None, others), corners)
    if corners is None:
        shape = "; its mask or outline cannot be read either" if entry.get("segmentation") else ""
        message = f"{where} ({names[category]}) must have a bbox of four numbers"
        message += f", not {shortened(entry.get('bbox'))}"
        remedy = "Correct it, or delete the annotation."
        image.report("damaged_labels", "error", f"{message}{shape}.", remedy)
        return
    if image.width:
        image.add(names[category], rounded(corners), where)


def _compare_size(image: LabeledImage, entry: dict[str, Any], shown: str) -> None:
    size = image.width, image.height
    stated = entry.get("width") or size[0], entry.get("height") or size[1]  # some write null or 0
    try:
        fits = image.fits(*map(float, stated))
    except (TypeError, ValueError):
        fits = False
    if not fits:
        message = f"{shown} states {str(stated[0])[:40]} x {str(stated[1])[:40]}, "
        message += f"the image is {size[0]} x {size[1]}"
        message += ": if it was resized, its boxes are in wrong places."
        remedy = "Export the labels for the images as they are."
        image.report("size_mismatch", "warning", message, remedy)


def _entries(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key) if isinstance(content, dict) else None
    if isinstance(entries, dict):  # LIVECell: by id
        entries = list(entries.values())
    if not isinstance(entries, list):
        raise DataError(f'{path} is not a COCO file: it has no list "{key}".')
    if key == "images" and len(entries) > MAX_IMAGES:
        raise DataError(f"{path} lists {len(entries):,} images: more than {MAX_IMAGES:,} are not read.")
    for number, entry in enumerate(entries):
        for needed in _KEYS[key]:
            value = entry.get(needed) if isinstance(entry, dict) else None
            if not isinstance(value, int | str | float) or value == "":
                raise DataError(f'{path}: entry {number} of "{key}" has no valid "{needed}".')
    return entries


def _corners(box: Any) -> Corners | None:
    """xyxy of [x, y, width, height]; None unless it is four finite numbers."""
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError):
        return None
    corners = (x, y, x + width, y + height)
    return corners if all(map(math.isfinite, corners)) else None


def _outline(segmentation: Any) -> Corners | None:
    """xyxy around polygons [[x, y, x, y, ...], ...], or a single one, where there is no bbox."""
    try:
        parts = segmentation if np.ndim(segmentation[0]) else [segmentation]
        points = np.concatenate([np.asarray(part, float).reshape(-1, 2) for part in parts])
    except (TypeError, ValueError, LookupError):
        return None
    known = len(points) and np.isfinite(points).all()
    return (*points.min(0).tolist(), *points.max(0).tolist()) if known else None


def _mask(segmentation: Any) -> Corners | None:
    """xyxy around a mask {"size": [height, width], "counts": ...} of runs down the columns, or None.

    Runs of 0 and 1 in turn, as numbers or in COCO's text: each in pieces of five bits, from the fourth on as
    the difference to the last but one (https://github.com/cocodataset/cocoapi, maskApi.c).
    """
    try:
        height, _ = segmentation["size"]
        counts = segmentation["counts"]
        runs = _unpacked(counts) if isinstance(counts, str) else counts
        ends = np.cumsum(np.asarray(runs, np.int64))
        if len(ends) < 2 or min(runs) < 0 or ends[-1] != np.prod(segmentation["size"]):
            return None
        starts, ends = ends[:-1:2], ends[1::2] - 1  # first and last pixel of each run of ones
        starts, ends = starts[starts <= ends], ends[starts <= ends]
        (left, top), (right, bottom) = (np.divmod(one, height) for one in (starts, ends))
    except (TypeError, ValueError, LookupError, OverflowError):
        return None
    if not len(starts):
        return None
    if (left != right).any():  # a run over the foot of a column goes on at the head of the next
        top, bottom = np.array([0]), np.array([height - 1])
    return float(left.min()), float(top.min()), float(right.max() + 1), float(bottom.max() + 1)


def _unpacked(text: str) -> list[int]:
    """The runs of a mask in COCO's text."""
    runs: list[int] = []
    value = shift = 0
    for code in (ord(letter) - 48 for letter in text):
        if shift > 60:
            raise ValueError("a run is longer than any picture")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16 and 1) << shift  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _visible(entry: dict[str, Any]) -> Corners | None:
    """xyxy around the visible ones of keypoints [x, y, visible, ...], or None."""
    try:
        points = np.asarray(entry.get("keypoints"), float).reshape(-1, 3)
    except (TypeError, ValueError):
        return None
    points = points[points[:, 2] > 0]
    ok = len(points) and np.isfinite(points).all()
    return (*points[:, :2].min(0).tolist(), *points[:, :2].max(0).tolist()) if ok else None
