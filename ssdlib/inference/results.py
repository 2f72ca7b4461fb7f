"""The files that `ssdlib detect` makes of its records: tables, pictures, data sets, and shapes for QuPath and
ImageJ.

Nothing here holds the results of more than one image, so that an archive of any length needs the same memory.
"""

from __future__ import annotations

import codecs
import json
import textwrap
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ssdlib.common.errors import ConfigError
from ssdlib.common.files import atomic_open, write_text
from ssdlib.common.runtime import need_extra
from ssdlib.common.tables import csv_lines
from ssdlib.data.formats.coco import shape_of
from ssdlib.data.formats.voc import whole_box, write_voc
from ssdlib.data.images import copy_image, is_turned, write_image
from ssdlib.inference.detections import Detections
from ssdlib.inference.draw import annotate, color_of
from ssdlib.inference.inputs import ImageTask
from ssdlib.inference.interop import FRAME_COLUMNS
from ssdlib.inference.quality import quality_text
from ssdlib.inference.slides import Slide, slide_rows

FORMATS = ("pictures", "csv", "json", "report", "coco", "voc", "geojson", "imagej")
"""What `detect --format` takes; docs/detect.md says which files each one is."""
DEFAULT_FORMATS = ("pictures", "csv", "json", "report")
OF_EACH_IMAGE = ("pictures", "coco", "voc", "geojson", "imagej")
"""Those of which each image has a file of its own, written when it is looked at."""

DONE, UNREADABLE = "done", "unreadable"
DATABASE = "found by ssdlib, not checked"

Record = dict[str, Any]
"""Plain values about one image. If it could be read: `Detections.to_dict()` with state, tiles (their number),
view (width and height of a tile in pixels), scale (where it is from: `ssdlib.inference.fields.SCALES`),
um_per_pixel, measured_um (the same, but None where it was derived from the cells), border (the rule for
the cells that it cuts), quality (some of `ssdlib.inference.quality.NOTES`) and copy (its name in coco/ and
voc/, or None); else: image, state and message."""


def parse_formats(text: str) -> tuple[str, ...]:
    """Names of `FORMATS` from a list with commas.

    Raises ConfigError for an unknown one, and for one that needs an extra which is not installed.
    """
    asked = [word.strip().lower() for word in text.split(",") if word.strip()]
    if not asked or not set(asked) <= set(FORMATS):
        raise ConfigError(f"--format takes {', '.join(FORMATS)}, joined by commas, not {text!r}")
    if "imagej" in asked:
        need_extra("imagej", "roifile")
    return tuple(name for name in FORMATS if name in asked)


# --- files of one image ----------------------------------------------------------------------------------


def save_pictures(
    task: ImageTask,
    image: np.ndarray,
    found: Detections,
    out: Path,
    formats: Sequence[str],
    *,
    fractions: bool = False,
) -> str | None:
    """Write the files of one image, of pixels (H, W, 3), that `formats` names of `OF_EACH_IMAGE`.

    Boxes in voc/ have whole pixels, or with `fractions` hundredths. The cells are drawn into the pixels
    themselves: a copy of a large image would fill the memory. Returns the file name of the image's copy in
    coco/ and voc/, None without one.
    """
    copy = None
    if "coco" in formats:
        copy = copy_image(task.path, out / "coco" / "data", task.image_id, image)
    if "voc" in formats:
        copy = copy_image(task.path, out / "voc" / "JPEGImages", task.image_id, image)
        write_voc(
            out / "voc" / "Annotations" / f"{task.image_id}.xml",
            width=found.image_size[0],
            height=found.image_size[1],
            boxes=found.boxes.astype(np.float64).round(2),
            names=found.names,
            filename=copy,
            database=DATABASE,
            fractions=fractions,
        )
    for name, suffix, write in (("geojson", "geojson", _write_geojson), ("imagej", "zip", _write_rois)):
        if name in formats:
            write(out / name / f"{task.image_id}.{suffix}", found)
            if is_turned(task.path):  # of which these programs show the raw raster
                copy_image(task.path, out / name, task.image_id, image)
    if "pictures" in formats:
        write_image(out / picture_name(task), annotate(image, found, scratch=True), scratch=True)
    return copy


def picture_name(task: ImageTask) -> str:
    """The path of an image's picture with its cells outlined, below the output folder."""
    suffix = task.path.suffix.lower()
    return f"pictures/{task.name}{suffix if suffix in ('.jpg', '.jpeg', '.png') else '.png'}"


def _write_geojson(path: Path, found: Detections) -> None:
    """The cells as detection objects of QuPath, each with its score among the measurements.

    https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html
    """
    features = []
    for cell, label in zip(found.to_dict()["detections"], found.labels.tolist(), strict=True):
        xmin, ymin, xmax, ymax = cell["box"]
        ring = [[xmin, ymin], [xmax, ymin], [xmax, ymax], [xmin, ymax], [xmin, ymin]]
        kind = {"name": cell["label"], "color": list(bytes.fromhex(color_of(label)[1:]))}
        about = {"objectType": "detection", "classification": kind, "measurements": {"Score": cell["score"]}}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": about})
    content = {"type": "FeatureCollection", "features": features}
    write_text(path, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")


def _write_rois(path: Path, found: Detections) -> None:
    """The cells as rectangles of ImageJ's ROI manager, of whole pixels: the label is the group, the score a
    property. https://imagej.net/ij/source/ij/io/RoiEncoder.java
    """
    roifile = need_extra("imagej", "roifile")
    with atomic_open(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        rows = zip(
            found.boxes.tolist(), found.names, found.labels.tolist(), found.scores.tolist(), strict=True
        )
        for number, (box, name, label, score) in enumerate(rows, 1):
            roi = roifile.ImagejRoi(
                roitype=roifile.ROI_TYPE.RECT,
                version=228,  # the first one with groups
                name=f"{number:04} {name}",
                group=label,
                stroke_color=b"\xff" + bytes.fromhex(color_of(label)[1:]),
                props=f"Score: {score:.6f}\n",
            )
            roi.left, roi.top, roi.right, roi.bottom = whole_box(box)
            # ZipInfo has a fixed time, so that equal cells give equal files.
            archive.writestr(zipfile.ZipInfo(f"{roi.name.replace('/', '-')}.roi"), roi.tobytes())


# --- tables of all images --------------------------------------------------------------------------------


def write_tables(
    out: Path,
    records: Callable[[], Iterator[Record]],
    class_names: Sequence[str],
    formats: Sequence[str],
    slides: Sequence[Slide],
    *,
    decimal_comma: bool = False,
) -> None:
    """Write cells.csv, images.csv, slides.csv, cells.json and coco/labels.json, those that `formats` name.

    `records` reads all records anew, in the order of the images. `decimal_comma` is that of `csv_lines`.
    """
    if "csv" in formats:
        tables = {
            "slides": slide_rows(slides, class_names),
            "cells": cell_rows(records()),
            "images": image_rows(records(), class_names),
        }
        for name, rows in tables.items():
            with atomic_open(out / f"{name}.csv") as stream:
                stream.write(codecs.BOM_UTF8)
                lines = csv_lines(rows, decimal_comma=decimal_comma)
                stream.writelines(line.encode(errors="backslashreplace") for line in lines)
    if "json" in formats:
        write_json_list(out / "cells.json", records())
    if "coco" in formats:
        _write_coco(out / "coco" / "labels.json", records, class_names)


def cells_csv(seen: Iterable[tuple[Detections, float | None]]) -> str:
    """The text of a cells.csv with the detections of these images, each with its measured um per pixel."""
    records = ({**found.to_dict(), "measured_um": um} for found, um in seen)
    return "".join(csv_lines(cell_rows(records)))


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
        stream.write((before + textwrap.indent(text, "  ")).encode(errors="backslashreplace"))
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
        stream.write(
            json.dumps(head, ensure_ascii=False)[:-1].encode(errors="backslashreplace") + b',\n"images": '
        )
        _write_items(stream, images)
        stream.write(b',\n"annotations": ')
        _write_items(stream, _coco_annotations(records(), class_names))
        stream.write(b"}\n")


def _coco_annotations(records: Iterable[Record], class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    identifiers = count(1)
    for number, record in enumerate(_readable(records), 1):
        for cell in record["detections"]:
            about = {"image_id": number, "category_id": class_names.index(cell["label"]) + 1}
            yield {"id": next(identifiers), **about, **shape_of(cell["box"], 2), "score": cell["score"]}
