"""COCO-JSON annotations, the other common layout, for data of your own.

The format: https://cocodataset.org/#format-data. Boxes there are [x, y, width, height] in pixels.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.data.images import image_size
from ssdlib.data.voc import Repair, repair_box
from ssdlib.errors import DataError, SsdError
from ssdlib.files import read_json

_KEYS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}


def read_coco(json_path: str | Path, image_folder: str | Path) -> DetectionDataset:
    """The images of a COCO file with their boxes; segmentations and crowd regions are passed over.

    Labels 1, 2, ... are the categories in the order of their ids, so that an unused id leaves no gap. Boxes
    are repaired as `read_voc` does. Raises DataError, naming the entry, for a file that is not COCO, a
    missing or damaged image, a path outside `image_folder`, or an annotation of an unknown image or category.
    """
    json_path, image_folder = Path(json_path), Path(image_folder)
    try:
        content = read_json(json_path, hint="A COCO annotation file is needed.")
    except SsdError as error:
        raise DataError(str(error)) from error
    images, categories, annotations = (_entries(content, key, json_path) for key in _KEYS)
    categories = sorted(categories, key=lambda entry: (isinstance(entry["id"], str), entry["id"]))
    class_names = [str(entry["name"]) for entry in categories]
    if not class_names or len(set(class_names)) != len(class_names):
        raise DataError(f"{json_path}: categories need distinct names, at least one; they are {class_names}.")
    labels = {entry["id"]: label for label, entry in enumerate(categories, 1)}
    known = {entry["id"] for entry in images}
    by_image = defaultdict(list)
    for entry in annotations:
        for key, ids in (("image_id", known), ("category_id", labels)):
            if entry[key] not in ids:
                raise DataError(
                    f"{json_path}: annotation {entry.get('id')} has {key} {entry[key]!r}, not in the file. "
                    "List it, or delete the annotation."
                )
        by_image[entry["image_id"]].append(entry)
    samples = [
        _sample(entry, by_image[entry["id"]], labels, class_names, json_path, image_folder)
        for entry in images
    ]
    return DetectionDataset(samples, class_names)


def _entries(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{path} is not a COCO file: it has no list "{key}".')
    for number, entry in enumerate(entries):
        for needed in _KEYS[key]:
            if not isinstance(entry, dict) or not isinstance(entry.get(needed), int | str | list):
                raise DataError(f'{path}: entry {number} of "{key}" has no valid "{needed}".')
            if needed.endswith("id") and isinstance(entry[needed], list):
                raise DataError(f'{path}: entry {number} of "{key}" has no valid "{needed}".')
    return entries


def _sample(
    entry: dict[str, Any],
    annotations: list[dict[str, Any]],
    labels: dict[Any, int],
    class_names: list[str],
    json_path: Path,
    image_folder: Path,
) -> Sample:
    path = image_folder / _safe_name(str(entry["file_name"]), json_path)
    width, height = image_size(path)
    repairs: list[Repair] = []
    stated = entry.get("width", width), entry.get("height", height)
    if stated != (width, height):
        message = f"the file states {stated[0]} x {stated[1]}, the image is {width} x {height}"
        repairs.append(Repair("size_mismatch", message))
    boxes, kept, written = [], [], []
    for annotation in annotations:
        if annotation.get("iscrowd"):
            continue
        label = labels[annotation["category_id"]]
        written.append(class_names[label - 1])
        where = f"annotation {annotation.get('id')} ({written[-1]})"
        box = repair_box(_corners(annotation["bbox"], where, json_path), width, height, where, repairs)
        if box is not None:
            boxes.append(box)
            kept.append(label)
    return Sample(
        image_id=path.stem,
        image_path=path,
        width=width,
        height=height,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(kept, np.int64),
        written_names=tuple(written),
        repairs=tuple(repairs),
    )


def _safe_name(name: str, json_path: Path) -> str:
    windows = PureWindowsPath(name)
    if (
        not name
        or PurePosixPath(name).is_absolute()
        or windows.drive
        or windows.root
        or ".." in windows.parts
    ):
        raise DataError(
            f"{json_path}: file_name {name!r} lies outside the image folder. Use a relative name."
        )
    return name.replace("\\", "/")


def _corners(box: Any, where: str, json_path: Path) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError):
        x = y = width = height = np.nan
    if not np.isfinite([x, y, width, height]).all():
        raise DataError(f"{json_path}: {where} must have a bbox of four numbers, not {box!r}.")
    return x, y, x + width, y + height
