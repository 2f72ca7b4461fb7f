"""COCO-JSON annotations, the other common layout, for data of your own.

The format: https://cocodataset.org/#format-data. Boxes there are [x, y, width, height] in pixels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ssdlib.common.errors import DataError, SsdError
from ssdlib.common.files import read_json
from ssdlib.data.formats.records import (
    SPLIT_WORDS,
    AddedObject,
    Corners,
    LabeledFolder,
    LabeledImage,
    check_names,
    inner_path,
    relative,
    rounded,
)
from ssdlib.data.images import list_images

LAYOUT = "a COCO file (annotations/*.json, or _annotations.coco.json in each split's folder) and its images"

_KEYS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id"),
}


def read_coco_folder(root: Path) -> LabeledFolder | None:
    """Read a folder with COCO files: one for all images, or one a split, as COCO and Roboflow lay them out.

    The split is told by the file's name (instances_train2017.json) or its folder's (valid/). Images are
    looked for beside the file, in the folder, in images, data, and in the split's folder of these. None if
    there is no COCO file. Raises DataError for one that is damaged as a whole.
    """
    files = _coco_files(root)
    if not files:
        return None
    folder = LabeledFolder("coco", root, (), [], list(files))
    for file, content in files.items():
        _read_file(file, content, folder)
    if not folder.images:
        raise DataError(f"{', '.join(map(str, files))}: no image is listed. Export the labels anew.")
    listed = {image.path for image in folder.images}
    places = sorted({path.parent for path in listed if path.parent.is_dir()})
    if spare := [path for place in places for path in list_images(place) if path not in listed]:
        message = f"{len(spare)} images are in no COCO file, {relative(spare[0], root)} first: not used."
        folder.report("image_not_listed", "info", message, "Label them to make use of them.")
    return folder


def _coco_files(root: Path) -> dict[Path, Any]:
    """The content of the COCO files directly in the folder, in annotations, and in the splits' folders.

    Anything named like one must be one; of others, those with images and annotations are.
    """
    places = [root, root / "annotations", *(root / word for word in SPLIT_WORDS)]
    found = {}
    for file in (file for place in places if place.is_dir() for file in sorted(place.glob("*.json"))):
        if file.name.startswith(("captions_", "person_keypoints_", "panoptic_", "image_info_")):
            continue
        named = file.name.startswith(("_annotations.coco", "instances_")) or file.parent.name == "annotations"
        try:
            content = read_json(file, hint="A COCO annotation file is needed.")
        except SsdError as error:
            if named:
                raise DataError(str(error)) from error
            continue
        if named or (isinstance(content, dict) and content.keys() >= {*_KEYS}):
            found[file] = content
    return found


def _split_of(file: Path, root: Path) -> tuple[str | None, str]:
    """(train, val, test or None; the word that says so) from the file's folder or name."""
    if file.parent != root and file.parent.name in SPLIT_WORDS:
        return SPLIT_WORDS[file.parent.name], file.parent.name
    for word in re.split(r"[^a-z0-9]+", file.stem.lower()):
        if (plain := word.rstrip("0123456789")) in SPLIT_WORDS:
            return SPLIT_WORDS[plain], word
    return None, ""


def _find(name: str, places: list[Path]) -> Path:
    # Some exports write the path on the machine they were made on.
    trials = [place / one for one in (name, PurePosixPath(name).name) for place in places]
    return next((trial for trial in trials if trial.is_file()), trials[0])


def add_annotations(content: dict[str, Any], image: LabeledImage, added: Iterable[AddedObject]) -> None:
    """Append objects to an image's annotations in a COCO file's content, each with its marks as "added".

    Raises DataError for a class that the file does not list.
    """
    categories = {str(entry["name"]).strip(): entry["id"] for entry in content["categories"]}
    annotations = content["annotations"]
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


def _read_file(path: Path, content: Any, folder: LabeledFolder) -> None:
    """Add the images and classes of one COCO file to the folder."""
    shown = relative(path, folder.root)
    split, word = _split_of(path, folder.root)
    places = [path.parent, *(folder.root / name for name in ("", "images", "data", "JPEGImages"))]
    if word:
        places += [folder.root / name / word for name in ("", "images", "data")]
    entries, categories, annotations = (_entries(content, key, path) for key in _KEYS)
    categories = sorted(categories, key=lambda entry: (isinstance(entry["id"], str), entry["id"]))
    class_names = check_names([str(entry["name"]) for entry in categories], path)
    names = {entry["id"]: name for entry, name in zip(categories, class_names, strict=True)}
    folder.class_names = tuple(dict.fromkeys((*folder.class_names, *class_names)))
    images = {}
    for entry in entries:
        if entry["id"] in images:
            raise DataError(f"{path}: two images have the id {entry['id']!r}. Export the labels anew.")
        place = _find(inner_path(str(entry["file_name"]), path), places)
        image = LabeledImage(place, path, split=split, entry_id=entry["id"])
        if image.measure():
            _compare_size(image, entry, shown)
        images[entry["id"]] = image
    folder.images += images.values()
    crowds = Counter()
    for number, entry in enumerate(annotations):
        where = f"{shown}: annotation {entry.get('id', f'number {number}')}"
        image = images.get(entry["image_id"])
        if image is None:
            message = f"{where} has image_id {entry['image_id']!r}, not in the file: its box is lost."
            folder.report("unknown_image", "warning", message, "List the image, or delete it.")
        elif entry.get("iscrowd"):
            crowds[image] += 1
        else:
            _add(image, entry, names, where)
    for image, count in crowds.items():
        message = f"{count} crowd regions in {shown} are passed over: what is in them counts as background."
        image.report("crowd", "info", message)


def _add(image: LabeledImage, entry: dict[str, Any], names: dict[Any, str], where: str) -> None:
    """Add one annotation to its image, or a note that says why not."""
    category = entry["category_id"]
    if category not in names:
        known = ", ".join(f"{number} {name}" for number, name in names.items())
        message = f"{where} has category_id {category!r}, not in the file, which has {known}."
        image.report("unknown_class", "error", message, "List the category, or delete it.")
        return
    corners = _corners(entry.get("bbox")) or _outline(entry.get("segmentation"))
    if corners is None:
        message = f"{where} ({names[category]}) must have a bbox of four numbers, not {entry.get('bbox')!r}."
        image.report("damaged_labels", "error", message, "Correct it, or delete the annotation.")
        return
    if image.width:
        image.add(names[category], rounded(corners), where)


def _compare_size(image: LabeledImage, entry: dict[str, Any], shown: str) -> None:
    size = image.width, image.height
    stated = entry.get("width", size[0]), entry.get("height", size[1])
    if stated != size:
        message = f"{shown} states {stated[0]} x {stated[1]}, the image is {size[0]} x {size[1]}"
        message += ": if it was resized, its boxes are in wrong places."
        remedy = "Export the labels for the images as they are."
        image.report("size_mismatch", "warning", message, remedy)


def _entries(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{path} is not a COCO file: it has no list "{key}".')
    for number, entry in enumerate(entries):
        for needed in _KEYS[key]:
            value = entry.get(needed) if isinstance(entry, dict) else None
            if not isinstance(value, int | str) or value == "":
                raise DataError(f'{path}: entry {number} of "{key}" has no valid "{needed}".')
    return entries


def _corners(box: Any) -> Corners | None:
    """xyxy of [x, y, width, height]; None unless it is four finite numbers."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError):
        return None
    return (x, y, x + width, y + height) if np.isfinite([x, y, width, height]).all() else None


def _outline(segmentation: Any) -> Corners | None:
    """xyxy around polygons [[x, y, x, y, ...], ...], where there is no bbox."""
    try:
        points = np.concatenate([np.asarray(part, float).reshape(-1, 2) for part in segmentation])
    except (TypeError, ValueError):
        return None
    return (*points.min(0).tolist(), *points.max(0).tolist()) if np.isfinite(points).all() else None
