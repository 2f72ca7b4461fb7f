"""A data source written as a new folder in the layout that another tool wants."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssdlib.common.errors import ConfigError
from ssdlib.common.files import new_folder, read_json, write_json, write_text
from ssdlib.data.formats import coco, yolo
from ssdlib.data.formats.records import AddedObject, LabeledImage
from ssdlib.data.formats.voc import add_object, find_root, read_tree, write_splits, write_tree, write_voc
from ssdlib.data.source import DataSource
from ssdlib.data.splits import PARTS

FORMATS = ("voc", "coco", "yolo")

ADDED = "added"
"""<pose> of a label that was added to an annotation; VOC's own values are Left, Frontal and such."""

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


def copy_with_added(source: DataSource, folder: Path, added: Mapping[str, Sequence[AddedObject]]) -> None:
    """Fill `folder` with a copy of the data in their own layout, file by file, with objects added to images.

    They follow the labels that are there, which stay as they are written. Pascal VOC marks them
    <pose>added</pose>, COCO with a key "added"; in YOLO's lines there is no place for a mark. Raises
    DataError for a class that a COCO or YOLO folder does not list.
    """
    for file in source.labels.files:
        copy = folder / file.relative_to(source.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    _copy_marker(source, folder)
    by_file: dict[Path, list[LabeledImage]] = {}
    for image_id in added:
        image = source.labels.by_id[image_id]
        by_file.setdefault(folder / image.label_file.relative_to(source.folder), []).append(image)
    for file, images in by_file.items():
        if file.suffix == ".json":
            content = read_json(file)
            for image in images:
                coco.add_annotations(content, image, added[image.image_id])
            write_json(file, content)
        elif file.suffix == ".xml":
            tree = read_tree(file)
            for one in added[images[0].image_id]:
                add_object(tree, one.name, one.box, ADDED)
            write_tree(file, tree)
        else:
            own, size = added[images[0].image_id], (images[0].width, images[0].height)
            numbers = [yolo.class_number(source.folder, one.name) for one in own]
            lines = yolo.label_lines([one.box for one in own], numbers, *size)
            there = file.read_text(encoding="utf-8-sig").rstrip() if file.exists() else ""
            write_text(file, f"{there}\n{lines}" if there else lines)


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
            numbers = image.labels(class_names) - 1
            lines = yolo.label_lines(image.boxes.tolist(), numbers.tolist(), image.width, image.height)
            write_text(root / "labels" / split / f"{image.image_id}.txt", lines)
    about["names"] = dict(enumerate(class_names))
    write_text(root / "data.yaml", yaml.safe_dump(about, allow_unicode=True, sort_keys=False))
