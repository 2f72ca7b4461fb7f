"""The files that `ssdlib detect` makes of its records: tables, pictures, COCO and VOC data sets.

Nothing here holds the results of more than one image, so that an archive of any length needs the same memory.
"""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.common.files import atomic_open, write_bytes
from ssdlib.data.formats.voc import write_voc
from ssdlib.data.images import IMAGE_SUFFIXES, is_turned, write_image
from ssdlib.inference.detections import Detections
from ssdlib.inference.draw import annotate
from ssdlib.inference.inputs import ImageTask
from ssdlib.inference.interop import FRAME_COLUMNS, to_cell
from ssdlib.inference.quality import quality_text
from ssdlib.inference.slides import Slide, slide_rows

FORMATS = ("pictures", "csv", "json", "report", "coco", "voc")
"""What `detect --format` takes; docs/detect.md says which files each one is."""
DEFAULT_FORMATS = ("pictures", "csv", "json", "report")

DONE, UNREADABLE = "done", "unreadable"
DATABASE = "found by ssdlib, not checked"

Record = dict[str, Any]
"""Plain values about one image. If it could be read: `Detections.to_dict()` with state, tiles (their number),
view (width and height of a tile in pixels), scale (where it is from: `ssdlib.inference.fields.SCALES`),
um_per_pixel, measured_um (the same, but None where it was derived from the cells), border (the rule for
the cells that it cuts), quality (some of `ssdlib.inference.quality.NOTES`) and copy (its name in coco/ and
voc/, or None); else: image, state and message."""


def parse_formats(text: str) -> tuple[str, ...]:
    """Names of `FORMATS` from a list with commas. Raises ConfigError for an unknown one."""
    asked = [word.strip().lower() for word in text.split(",") if word.strip()]
    if not asked or not set(asked) <= set(FORMATS):
        raise ConfigError(f"--format takes {', '.join(FORMATS)}, joined by commas, not {text!r}")
    return tuple(name for name in FORMATS if name in asked)


# --- files of one image ----------------------------------------------------------------------------------


def save_pictures(
    task: ImageTask, image: np.ndarray, found: Detections, out: Path, formats: Sequence[str]
) -> str | None:
    """Write whatever needs the pixels (H, W, 3) of an image: its picture, and its place in coco/ and voc/.

    Returns the file name of the copy there, None without one.
    """
    copy = None
    if "pictures" in formats:
        write_image(out / picture_name(task), annotate(image, found))
    if "coco" in formats:
        copy = _copy(task, image, out / "coco" / "data")
    if "voc" in formats:
        copy = _copy(task, image, out / "voc" / "JPEGImages")
        write_voc(
            out / "voc" / "Annotations" / f"{task.image_id}.xml",
            width=found.image_size[0],
            height=found.image_size[1],
            boxes=found.boxes.double().numpy().round(2),
            names=found.names,
            filename=copy,
            database=DATABASE,
        )
    return copy


def picture_name(task: ImageTask) -> str:
    """The path of an image's picture with its cells outlined, below the output folder."""
    suffix = task.path.suffix.lower()
    return f"pictures/{task.name}{suffix if suffix in ('.jpg', '.jpeg', '.png') else '.png'}"


def _copy(task: ImageTask, image: np.ndarray, folder: Path) -> str:
    """The name of a copy, byte for byte; of an upright PNG where EXIF, which few tools heed, turns it."""
    suffix = task.path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES or is_turned(task.path):
        name = f"{task.image_id}.png"
        write_image(folder / name, image)
        return name
    name = f"{task.image_id}{suffix}"
    try:
        content = task.path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {task.shown}: {error.strerror or error}") from error
    write_bytes(folder / name, content)
    return name


# --- tables of all images --------------------------------------------------------------------------------


def write_tables(
    out: Path,
    records: Callable[[], Iterator[Record]],
    class_names: Sequence[str],
    formats: Sequence[str],
    slides: Sequence[Slide],
) -> None:
    """Write cells.csv, images.csv, slides.csv, cells.json and coco/labels.json, those that `formats` name.

    `records` reads all records anew, in the order of the images.
    """
    if "csv" in formats:
        _write_csv(out / "slides.csv", slide_rows(slides, class_names))
        _write_csv(out / "cells.csv", cell_rows(records()))
        _write_csv(out / "images.csv", image_rows(records(), class_names))
    if "json" in formats:
        write_json_list(out / "cells.json", records())
    if "coco" in formats:
        _write_coco(out / "coco" / "labels.json", records, class_names)


def cells_csv(seen: Iterable[tuple[Detections, float | None]]) -> str:
    """The text of a cells.csv with the detections of these images, each with its measured um per pixel."""
    records = ({**found.to_dict(), "measured_um": um} for found, um in seen)
    return "".join(_csv_lines(cell_rows(records)))


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with atomic_open(path) as stream:
        stream.writelines(line.encode() for line in _csv_lines(rows))


def _csv_lines(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    for row in rows:
        line = io.StringIO()
        cells = [to_cell(value) if isinstance(value, str) else value for value in row]
        csv.writer(line, lineterminator="\n").writerow(cells)
        yield line.getvalue()


def cell_rows(records: Iterable[Record]) -> Iterator[Sequence[Any]]:
    """The names of the columns, then a row for each cell; None where there is no value."""
    yield (*FRAME_COLUMNS, "width_um", "height_um")
    for record in _readable(records):
        um_per_pixel = record["measured_um"]
        for cell in record["detections"]:
            xmin, ymin, xmax, ymax = cell["box"]
            sides = [round(xmax - xmin, 2), round(ymax - ymin, 2)]
            um = [round(side * um_per_pixel, 3) for side in sides] if um_per_pixel else [None, None]
            yield [record["image"], cell["label"], cell["score"], xmin, ymin, xmax, ymax, *sides, *um]


def image_rows(records: Iterable[Record], class_names: Sequence[str]) -> Iterator[Sequence[Any]]:
    """The names of the columns, then a row for each image; None where there is no value."""
    yield (
        "image",
        "state",
        "width",
        "height",
        "um_per_pixel",
        "scale",
        "tiles",
        *class_names,
        "quality",
        "message",
    )
    for record in records:
        known = [None] * (6 + len(class_names))
        if record["state"] == DONE:
            um = record["um_per_pixel"]
            scale = [None if um is None else round(um, 5), record["scale"]]
            size = [record["width"], record["height"], *scale, record["tiles"]]
            counts = (record["counts"][name] for name in class_names)
            known = [*size, *counts, quality_text(record["quality"])]
        yield [record["image"], record["state"], *known, record.get("message")]


def _readable(records: Iterable[Record]) -> Iterator[Record]:
    return (record for record in records if "detections" in record)


def write_json_list(path: Path, records: Iterable[Record]) -> None:
    """Write a list of `Detections.to_dict()`, one for each image that could be read."""
    keys = ("image", "width", "height", "detections", "counts")
    items = ({key: record[key] for key in keys} for record in _readable(records))
    with atomic_open(path) as stream:
        _write_items(stream, items, indent=2)
        stream.write(b"\n")


def _write_items(stream: BinaryIO, items: Iterable[Any], indent: int | None = None) -> None:
    """Write a JSON list, item by item, as `json.dumps` would write it whole."""
    before = "[\n"
    for item in items:
        text = json.dumps(item, indent=indent, ensure_ascii=False, allow_nan=False)
        stream.write((before + textwrap.indent(text, "  ")).encode())
        before = ",\n"
    stream.write(b"[]" if before == "[\n" else b"\n]")


def _write_coco(path: Path, records: Callable[[], Iterator[Record]], class_names: Sequence[str]) -> None:
    """https://cocodataset.org/#format-data, with each annotation's score besides."""
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names, 1)]
    head = {"info": {"description": DATABASE}, "licenses": [], "categories": categories}
    images = (
        {"id": number, "file_name": record["copy"], "width": record["width"], "height": record["height"]}
        for number, record in enumerate(_readable(records()), 1)
    )
    with atomic_open(path) as stream:
        stream.write(json.dumps(head, ensure_ascii=False)[:-1].encode() + b',\n"images": ')
        _write_items(stream, images)
        stream.write(b',\n"annotations": ')
        _write_items(stream, _coco_annotations(records(), class_names))
        stream.write(b"}\n")


def _coco_annotations(records: Iterable[Record], class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    identifiers = count(1)
    for number, record in enumerate(_readable(records), 1):
        for result in Detections.from_dict(record, class_names).to_coco(number):
            box, score = [round(side, 2) for side in result["bbox"]], round(result["score"], 6)
            more = {"area": round(box[2] * box[3], 2), "iscrowd": 0, "segmentation": []}
            yield {"id": next(identifiers), **result, "bbox": box, "score": score, **more}
