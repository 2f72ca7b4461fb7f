"""A data source written as a new folder in the layout that another tool wants."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import yaml

from ssdlib.common.errors import ConfigError, DataError, SsdError
from ssdlib.common.files import write_json, write_text
from ssdlib.data.dataset import Sample
from ssdlib.data.formats.voc import write_voc
from ssdlib.data.source import DataSource, read_splits

FORMATS = ("voc", "coco", "yolo")
_PARTS = ("train", "val", "test")


def write_layout(source: DataSource, out: str | Path, layout: str) -> Path:
    """Copy images and labels to the new folder `out` as Pascal VOC, COCO or YOLO; returns it.

    Boxes are those that training sees: repaired, points left out. Splits are kept; in COCO and YOLO, which
    have no place for them, images of no split are left out. The folder is built beside and renamed when
    whole. Raises ConfigError for another layout, DataError for damaged data or where `out` holds something.
    """
    if layout not in FORMATS:
        raise ConfigError(f"there is no layout {layout!r}; choose one of: {', '.join(FORMATS)}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} already holds something: name a new folder.")
    samples = {sample.image_id: sample for sample in source.dataset("all").samples}
    splits = {
        split: [samples[i] for i in ids if i in samples] for split, ids in read_splits(source.root).items()
    }
    temporary = out.parent / f".{out.name}.{uuid4().hex[:8]}.partial"
    try:
        temporary.mkdir(parents=True)
        writer = {"voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo}[layout]
        writer(temporary, list(samples.values()), splits, source.class_names)
        if source.synthetic and layout == "voc" and (source.root / "smears.json").is_file():
            shutil.copyfile(source.root / "smears.json", temporary / "smears.json")
        with suppress(OSError):
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise SsdError(
            f"cannot write {out}: {error.strerror or error}. Free some space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


Splits = Mapping[str, Sequence[Sample]]


def _file_name(sample: Sample) -> str:
    return f"{sample.image_id}{sample.image_path.suffix.lower()}"


def _copy(sample: Sample, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sample.image_path, folder / _file_name(sample))


def _names(sample: Sample, class_names: Sequence[str]) -> list[str]:
    return [class_names[label - 1] for label in sample.labels]


def _write_voc(root: Path, samples: Sequence[Sample], splits: Splits, class_names: Sequence[str]) -> None:
    for sample in samples:
        _copy(sample, root / "JPEGImages")
        write_voc(
            root / "Annotations" / f"{sample.image_id}.xml",
            width=sample.width,
            height=sample.height,
            boxes=sample.boxes,
            names=_names(sample, class_names),
            filename=_file_name(sample),
        )
    for split, members in splits.items():
        lines = "".join(f"{sample.image_id}\n" for sample in members)
        write_text(root / "ImageSets" / "Main" / f"{split}.txt", lines)


def _write_coco(root: Path, samples: Sequence[Sample], splits: Splits, class_names: Sequence[str]) -> None:
    categories = [{"id": k, "name": name} for k, name in enumerate(class_names, 1)]
    for split in _PARTS:
        images, annotations = [], []
        for number, sample in enumerate(splits.get(split, ()), 1):
            _copy(sample, root / split)
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
            _copy(sample, root / "images" / split)
            sides = (sample.width, sample.height)
            lines = []
            for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
                box = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
                fractions = " ".join(f"{v / side:.6f}" for v, side in zip(box, 2 * sides, strict=True))
                lines.append(f"{label - 1} {fractions}\n")
            write_text(root / "labels" / split / f"{sample.image_id}.txt", "".join(lines))
    about["names"] = dict(enumerate(class_names))
    write_text(root / "data.yaml", yaml.safe_dump(about, allow_unicode=True, sort_keys=False))
