"""A data source written as a new folder in the layout that another tool wants."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from ssdlib.common.errors import ConfigError
from ssdlib.common.files import new_folder, write_json, write_text
from ssdlib.data.dataset import Sample
from ssdlib.data.formats.voc import find_root, write_voc
from ssdlib.data.source import DataSource

FORMATS = ("voc", "coco", "yolo")
_PARTS = ("train", "val", "test")

Splits = Mapping[str, Sequence[Sample]]


def write_layout(source: DataSource, out: str | Path, layout: str) -> Path:
    """Copy images and labels to the new folder `out` as Pascal VOC, COCO or YOLO; returns it.

    Boxes are those that training sees: repaired, points left out. Splits are kept; in COCO and YOLO, which
    have no place for them, images of no split are left out. Raises ConfigError for another layout, DataError
    for damaged data or where `out` holds something.
    """
    writers = {"voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo}
    if layout not in writers:
        raise ConfigError(f"there is no layout {layout!r}; choose one of: {', '.join(FORMATS)}")
    with new_folder(out) as folder:
        samples = {sample.image_id: sample for sample in source.dataset("all").samples}
        splits = {
            split: [samples[i] for i in ids if i in samples] for split, ids in source.labels.splits.items()
        }
        writers[layout](folder, list(samples.values()), splits, source.class_names)
        if layout == "voc":
            _copy_marker(source, folder)
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
            name = f"{image.image_id}{image.path.suffix.lower()}"
            _copy(image.path, folder / "JPEGImages" / name)
            write_voc(
                folder / "Annotations" / f"{image.image_id}.xml",
                width=image.width,
                height=image.height,
                boxes=[o.written for o in image.objects],
                names=[o.name for o in image.objects],
                filename=name,
            )
    _write_lists(folder, source.labels.splits)


def _copy(image: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image, target)


def _copy_marker(source: DataSource, folder: Path) -> None:
    """The mark of drawn data must travel with them."""
    if (source.folder / "smears.json").is_file():
        shutil.copyfile(source.folder / "smears.json", folder / "smears.json")


def _write_lists(folder: Path, splits: Mapping[str, Sequence[str]]) -> None:
    for split, image_ids in splits.items():
        lines = "".join(f"{image_id}\n" for image_id in image_ids)
        write_text(folder / "ImageSets" / "Main" / f"{split}.txt", lines)


def _file_name(sample: Sample) -> str:
    return f"{sample.image_id}{sample.image_path.suffix.lower()}"


def _write_voc(root: Path, samples: Sequence[Sample], splits: Splits, class_names: Sequence[str]) -> None:
    for sample in samples:
        _copy(sample.image_path, root / "JPEGImages" / _file_name(sample))
        write_voc(
            root / "Annotations" / f"{sample.image_id}.xml",
            width=sample.width,
            height=sample.height,
            boxes=sample.boxes,
            names=[class_names[label - 1] for label in sample.labels],
            filename=_file_name(sample),
        )
    _write_lists(root, {split: [sample.image_id for sample in part] for split, part in splits.items()})


def _write_coco(root: Path, samples: Sequence[Sample], splits: Splits, class_names: Sequence[str]) -> None:
    categories = [{"id": k, "name": name} for k, name in enumerate(class_names, 1)]
    for split in _PARTS:
        images, annotations = [], []
        for number, sample in enumerate(splits.get(split, ()), 1):
            _copy(sample.image_path, root / split / _file_name(sample))
            size = {"width": sample.width, "height": sample.height}
            images.append({"id": number, "file_name": _file_name(sample), **size})
            for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
                box = [x1, y1, x2 - x1, y2 - y1]
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box}
                annotations.append({**entry, "area": box[2] * box[3], "iscrowd": 0})
        if images:
            content = {"images": images, "annotations": annotations, "categories": categories}
            write_json(root / "annotations" / f"instances_{split}.json", content)


def _write_yolo(root: Path, samples: Sequence[Sample], splits: Splits, class_names: Sequence[str]) -> None:
    about: dict[str, object] = {}
    for split in _PARTS:
        for sample in splits.get(split, ()):
            about[split] = f"images/{split}"
            _copy(sample.image_path, root / "images" / split / _file_name(sample))
            sides = (sample.width, sample.height)
            lines = []
            for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
                box = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
                fractions = " ".join(f"{v / side:.6f}" for v, side in zip(box, 2 * sides, strict=True))
                lines.append(f"{label - 1} {fractions}\n")
            write_text(root / "labels" / split / f"{sample.image_id}.txt", "".join(lines))
    about["names"] = dict(enumerate(class_names))
    write_text(root / "data.yaml", yaml.safe_dump(about, allow_unicode=True, sort_keys=False))
