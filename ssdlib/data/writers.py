"""A data source written as a new folder in the layout that another tool wants."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.common.files import new_folder, read_json, write_json, write_text
from ssdlib.data.formats import coco, yolo
from ssdlib.data.formats.records import AddedObject, LabeledImage, read_text
from ssdlib.data.formats.voc import (
    add_object,
    find_root,
    read_tree,
    whole_box,
    write_splits,
    write_tree,
    write_voc,
)
from ssdlib.data.images import copy_image
from ssdlib.data.source import DataSource
from ssdlib.data.splits import PARTS

FORMATS = ("voc", "coco", "yolo", "csv")

ADDED = "added"
"""<pose> of a label that was added to an annotation; VOC's own values are Left, Frontal and such."""

Splits = Mapping[str, Sequence[LabeledImage]]


def write_layout(source: DataSource, out: str | Path, layout: str, *, fractions: bool = False) -> Path:
    """The new folder `out` with a copy of images and labels as Pascal VOC, COCO, YOLO or CSV tables.

    Boxes are those that training sees: repaired, points left out. In VOC and CSV they have whole pixels,
    all that many readers take, or with `fractions` thousandths. Pictures are upright. Splits are kept; images
    of no split, for which VOC alone has a place, are left out of the others. Raises ConfigError for another
    layout, DataError for damaged data or where `out` holds something.
    """
    if layout not in FORMATS:
        raise ConfigError(f"there is no layout {layout!r}; choose one of: {', '.join(FORMATS)}")
    parts = source.parts.values() or [source]
    if any(Path(out).resolve().is_relative_to(part.folder.resolve()) for part in parts):
        raise ConfigError(f"{out} lies in the data, which are not to be touched: name a folder elsewhere")
    for finding in source.labels.findings:
        if finding.severity == "error":  # such as a split that cannot be read, which would be lost
            raise DataError(str(finding))
    with new_folder(out) as folder:
        images = {s.image_id: source.labels.by_id[s.image_id] for s in source.dataset("all").samples}
        splits = {split: [i for i in ids if i in images] for split, ids in source.labels.splits.items()}
        if layout == "voc":
            for image in images.values():
                _write_voc(folder, image, image.boxes, image.names, fractions=fractions)
            write_splits(folder, splits)
            _copy_marker(source, folder)
        else:
            parts = {split: [images[image_id] for image_id in splits[split]] for split in PARTS}
            if layout == "csv":
                _write_tables(folder, parts, fractions=fractions)
            else:
                (_write_coco if layout == "coco" else _write_yolo)(folder, parts, source.class_names)
    return Path(out)


def copy_as_voc(source: DataSource, folder: Path) -> None:
    """Fill `folder` with a copy of the data as Pascal VOC, the labels exactly as they are written.

    A source in this layout, its annotations named as its images, is copied file by file. Of another one,
    every image that is there gets an annotation with its objects in the order of its label file, so that an
    object keeps its number.
    """
    own = source.folder / "Annotations"
    named = all(image.label_file == own / f"{image.image_id}.xml" for image in source.labels.images)
    if find_root(source.folder) == source.folder and named:
        _refuse_stored(source)
        for name in ("Annotations", "JPEGImages", "ImageSets"):
            if (source.folder / name).is_dir():
                shutil.copytree(source.folder / name, folder / name)
        _copy_marker(source, folder)
        return
    for image in source.labels.images:
        if image.complete:
            boxes, names = [o.written for o in image.objects], [o.name for o in image.objects]
            _write_voc(folder, image, boxes, names, fractions=True)
    write_splits(folder, source.labels.splits)


def copy_with_added(source: DataSource, folder: Path, added: Mapping[str, Sequence[AddedObject]]) -> None:
    """Fill `folder` with a copy of the data in their own layout, file by file, with objects added to images.

    They follow the labels that are there, which stay as they are written. Pascal VOC marks them
    <pose>added</pose>, COCO with a key "added"; in YOLO's lines there is no place for a mark. Raises
    DataError for a class that a COCO or YOLO folder does not list.
    """
    _refuse_stored(source)
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
            there = read_text(file).rstrip() if file.exists() else ""
            write_text(file, f"{there}\n{lines}" if there else lines)


def _refuse_stored(source: DataSource) -> None:
    """Raise DataError where boxes to add, which are of upright pictures, would get among others."""
    stored = [image for image in source.labels.images if image.on_raster]
    if stored:
        raise DataError(
            f"{stored[0].path}, the first of {len(stored)}, is turned by EXIF and labeled as it is stored. "
            "Write upright pictures first (python -m ssdlib data convert), and give those."
        )


def _copy_marker(source: DataSource, folder: Path) -> None:
    """The mark of drawn data must travel with them."""
    if (source.folder / "smears.json").is_file():
        shutil.copyfile(source.folder / "smears.json", folder / "smears.json")


def _write_voc(root: Path, image: LabeledImage, boxes: Any, names: Sequence[str], *, fractions: bool) -> None:
    write_voc(
        root / "Annotations" / f"{image.image_id}.xml",
        width=image.width,
        height=image.height,
        boxes=boxes,
        names=names,
        filename=copy_image(image.path, root / "JPEGImages", image.image_id),
        fractions=fractions,
    )


def _write_coco(root: Path, splits: Splits, class_names: Sequence[str]) -> None:
    categories = [{"id": k, "name": name} for k, name in enumerate(class_names, 1)]
    for split, members in splits.items():
        images, annotations = [], []
        for number, image in enumerate(members, 1):
            size = {"width": image.width, "height": image.height}
            name = copy_image(image.path, root / split, image.image_id)
            images.append({"id": number, "file_name": name, **size})
            labels = image.labels(class_names).tolist()
            for box, label in zip(image.boxes.tolist(), labels, strict=True):
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": label}
                annotations.append({**entry, **coco.shape_of(box)})
        if images:
            content = {"images": images, "annotations": annotations, "categories": categories}
            write_json(root / "annotations" / f"instances_{split}.json", content)


def _write_yolo(root: Path, splits: Splits, class_names: Sequence[str]) -> None:
    about: dict[str, object] = {split: f"images/{split}" for split in splits if splits[split]}
    for split, members in splits.items():
        for image in members:
            copy_image(image.path, root / "images" / split, image.image_id)
            numbers = image.labels(class_names) - 1
            lines = yolo.label_lines(image.boxes.tolist(), numbers.tolist(), image.width, image.height)
            write_text(root / "labels" / split / f"{image.image_id}.txt", lines)
    about["names"] = dict(enumerate(class_names))
    write_text(root / "data.yaml", yaml.safe_dump(about, allow_unicode=True, sort_keys=False))


TABLE_COLUMNS = ("image", "xmin", "ymin", "xmax", "ymax", "label")
"""Of a table of labels: a file name beside the table, xyxy pixels and a class name."""


def _write_tables(root: Path, splits: Splits, *, fractions: bool) -> None:
    """A table for each split, beside the images: a row for each box; an image without one has empty cells."""
    for split, members in splits.items():
        rows: list[Sequence[Any]] = []
        for image in members:
            name = copy_image(image.path, root, image.image_id)
            boxes = [[round(side, 3) for side in box] for box in image.boxes.tolist()]
            labeled = zip(boxes if fractions else map(whole_box, boxes), image.names, strict=True)
            rows += [[name, *box, label] for box, label in labeled] or [[name, *[None] * 5]]
        if rows:
            table = io.StringIO()
            csv.writer(table, lineterminator="\n").writerows([TABLE_COLUMNS, *rows])
            write_text(root / f"{split}.csv", table.getvalue())
