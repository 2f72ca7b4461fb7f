"""A data source written as a new folder in the layout that another tool wants."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssdlib.common.errors import ConfigError
from ssdlib.common.files import new_folder, write_json, write_text
from ssdlib.data.formats.records import LabeledImage
from ssdlib.data.formats.voc import find_root, write_splits, write_voc
from ssdlib.data.source import DataSource
from ssdlib.data.splits import PARTS

FORMATS = ("voc", "coco", "yolo")

Splits = Mapping[str, Sequence[LabeledImage]]


def write_layout(source: DataSource, out: str | Path, layout: str) -> Path:
    """The new folder `out` with a copy of images and labels as Pascal VOC, COCO or YOLO.

    Boxes are those that training sees: repaired, points left out. Splits are kept; in COCO and YOLO, which
    have no place for them, images of no split are left out. Raises ConfigError for another layout, DataError
    for damaged data or where `out` holds something.
    """
    if layout not in FORMATS:
        raise ConfigError(f"there is no layout {layout!r}; choose one of: {', '.join(FORMATS)}")
    with new_folder(out) as folder:
        images = {s.image_id: source.labels.by_id[s.image_id] for s in source.dataset("all").samples}
        splits = {split: [i for i in ids if i in images] for split, ids in source.labels.splits.items()}
        if layout == "voc":
            for image in images.values():
                _write_voc(folder, image, image.boxes, image.names)
            write_splits(folder, splits)
            _copy_marker(source, folder)
        else:
            parts = {split: [images[image_id] for image_id in splits[split]] for split in PARTS}
            (_write_coco if layout == "coco" else _write_yolo)(folder, parts, source.class_names)
    return Path(out)


def copy_as_voc(source: DataSource, folder: Path) -> None:
    """Fill `folder` with a copy of the data as Pascal VOC, the labels exactly as they are written.

    A source in this layout is copied file by file. Of another one, every image that is there gets an
    annotation with its objects in the order of its label file, so that an object keeps its number.
    """
    if find_root(source.folder) == source.folder:
        for name in ("Annotations", "JPEGImages", "ImageSets"):
            if (source.folder / name).is_dir():
                shutil.copytree(source.folder / name, folder / name)
        _copy_marker(source, folder)
        return
    for image in source.labels.images:
        if image.complete:
            _write_voc(folder, image, [o.written for o in image.objects], [o.name for o in image.objects])
    write_splits(folder, source.labels.splits)


def _copy_marker(source: DataSource, folder: Path) -> None:
    """The mark of drawn data must travel with them."""
    if (source.folder / "smears.json").is_file():
        shutil.copyfile(source.folder / "smears.json", folder / "smears.json")


def _copy_image(image: LabeledImage, folder: Path) -> str:
    """The name of the copy."""
    name = f"{image.image_id}{image.path.suffix.lower()}"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image.path, folder / name)
    return name


def _write_voc(root: Path, image: LabeledImage, boxes: Any, names: Sequence[str]) -> None:
    write_voc(
        root / "Annotations" / f"{image.image_id}.xml",
        width=image.width,
        height=image.height,
        boxes=boxes,
        names=names,
        filename=_copy_image(image, root / "JPEGImages"),
    )


def _write_coco(root: Path, splits: Splits, class_names: Sequence[str]) -> None:
    categories = [{"id": k, "name": name} for k, name in enumerate(class_names, 1)]
    for split, members in splits.items():
        images, annotations = [], []
        for number, image in enumerate(members, 1):
            size = {"width": image.width, "height": image.height}
            images.append({"id": number, "file_name": _copy_image(image, root / split), **size})
            labels = image.labels(class_names).tolist()
            for (x1, y1, x2, y2), label in zip(image.boxes.tolist(), labels, strict=True):
                box = [x1, y1, x2 - x1, y2 - y1]
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box}
                annotations.append({**entry, "area": box[2] * box[3], "iscrowd": 0})
        if images:
            content = {"images": images, "annotations": annotations, "categories": categories}
            write_json(root / "annotations" / f"instances_{split}.json", content)


def _write_yolo(root: Path, splits: Splits, class_names: Sequence[str]) -> None:
    about: dict[str, object] = {split: f"images/{split}" for split in splits if splits[split]}
    for split, members in splits.items():
        for image in members:
            _copy_image(image, root / "images" / split)
            sides = (image.width, image.height)
            labels = image.labels(class_names).tolist()
            lines = []
            for (x1, y1, x2, y2), label in zip(image.boxes.tolist(), labels, strict=True):
                box = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
                fractions = " ".join(f"{v / side:.6f}" for v, side in zip(box, 2 * sides, strict=True))
                lines.append(f"{label - 1} {fractions}\n")
            write_text(root / "labels" / split / f"{image.image_id}.txt", "".join(lines))
    about["names"] = dict(enumerate(class_names))
    write_text(root / "data.yaml", yaml.safe_dump(about, allow_unicode=True, sort_keys=False))
