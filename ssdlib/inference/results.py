"""What `ssdlib detect` keeps: a journal of finished images, and the files made from it, one image at a time.

Nothing here holds the results of more than one image, so that an archive of any length needs the same memory.
"""

from __future__ import annotations

import csv
import io
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ssdlib.common.errors import ConfigError, DataError, SsdError
from ssdlib.common.files import atomic_open, read_json, write_bytes, write_json
from ssdlib.data.formats.voc import write_voc
from ssdlib.data.images import IMAGE_SUFFIXES, is_turned, write_image
from ssdlib.inference.detections import FRAME_COLUMNS, Detections
from ssdlib.inference.inputs import ImageTask, stamp_of

FORMATS = {
    "pictures": "pictures/: the images with boxes, classes and scores",
    "csv": "cells.csv, a row for each cell, and images.csv, a row for each image",
    "json": "cells.json",
    "coco": "coco/: labels.json and data/, a data set to correct and train on",
    "voc": "voc/: Annotations/ and JPEGImages/, the same in Pascal VOC layout",
}
DEFAULT_FORMATS = ("pictures", "csv", "json")

DONE, UNREADABLE = "done", "unreadable"

Record = dict[str, Any]
"""Of a finished image: `Detections.to_dict()` with state, tiles (how many views), view (width and height of
one in pixels) and copy (its name in coco/ and voc/, or None); of an unreadable one: image, state, message."""
Records = Callable[[], Iterator[Record]]
"""Read anew at each call, in the order of the images."""


def parse_formats(text: str) -> tuple[str, ...]:
    """Names of `FORMATS` from a list with commas. Raises ConfigError for an unknown one."""
    asked = [word.strip().lower() for word in text.split(",") if word.strip()]
    if not asked or not set(asked) <= set(FORMATS):
        raise ConfigError(f"--format takes {', '.join(FORMATS)}, joined by commas, not {text!r}")
    return tuple(name for name in FORMATS if name in asked)


class Journal:
    """One line of JSON for each finished image, in a file that only grows.

    A line counts once its end is written: what a killed process left of one is cut off when the file is
    opened again. An image is known by its path, size, time of change and name, so a changed one is done anew.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written without a buffer: one that a full disk has refused would be tried again on closing.
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            self._stream = path.open("rb")
        except OSError as error:
            raise SsdError(
                f"cannot write {path}: {error.strerror or error}. Choose another --out."
            ) from error
        self._path = path
        self._offsets: dict[str, int] = {}
        end = 0
        for line in self._stream:
            try:
                key = json.loads(line)["key"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError):
                key = None
            if key is None:
                break
            self._offsets[json.dumps(key)] = end
            end += len(line)
        os.ftruncate(self._file, end)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        os.close(self._file)

    def __contains__(self, task: ImageTask) -> bool:
        return _key(task) in self._offsets

    def append(self, task: ImageTask, record: Record) -> None:
        """Write the record of an image whose other files are written."""
        key = _key(task)
        line = json.dumps({"key": json.loads(key), **record}, allow_nan=False).encode() + b"\n"
        end, rest = os.fstat(self._file).st_size, memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise SsdError(
                f"cannot write {self._path}: {error.strerror or error}. Free some space and give the same "
                "command again: it goes on."
            ) from error
        self._offsets[key] = end

    def read(self, tasks: Iterable[ImageTask]) -> Iterator[Record]:
        """The record of each task that has one, in the order of the tasks."""
        for task in tasks:
            offset = self._offsets.get(_key(task))
            if offset is not None:
                self._stream.seek(offset)
                record = json.loads(self._stream.readline())
                del record["key"]
                yield record


def _key(task: ImageTask) -> str:
    return json.dumps([task.shown, task.name, stamp_of(task.path)])


def open_journal(folder: Path, settings: Mapping[str, Any], *, restart: bool = False) -> Journal:
    """The journal in `folder`, of a job with these settings (plain values for JSON).

    Raises ConfigError, naming what differs, if the folder holds results of other settings, unless `restart`,
    which forgets what was done.
    """
    path = folder / "journal.jsonl"
    if (folder / "plan.parquet").exists():
        raise ConfigError(f"{folder.parent} holds results of detect --engine-cluster: choose another --out")
    if restart:
        path.unlink(missing_ok=True)
    note_settings(folder, settings, begun=path.exists())
    return Journal(path)


def note_settings(folder: Path, settings: Mapping[str, Any], *, begun: bool) -> None:
    """Write settings.json in `folder`, the settings of a job as plain values.

    Raises ConfigError, naming what differs, if the job has `begun` with other settings.
    """
    path = folder / "settings.json"
    if begun and path.exists():
        before = read_json(path, hint="Give --restart to do all images again.")
        changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if changed:
            what = "; ".join(f"{name} was {before.get(name)}, is {settings.get(name)}" for name in changed)
            raise ConfigError(
                f"{folder.parent} holds results made otherwise ({what}). Choose another --out, or give "
                "--restart to do all images again."
            )
    write_json(path, dict(settings))


def save_pictures(
    task: ImageTask, image: np.ndarray, found: Detections, out: Path, formats: Sequence[str]
) -> str | None:
    """Write whatever needs the pixels (H, W, 3) of an image: its picture, and its place in coco/ and voc/.

    Returns the file name of the copy there, None without one.
    """
    copy = None
    if "pictures" in formats:
        from ssdlib.inference.draw import annotate

        write_image(out / "pictures" / f"{task.name}{task.suffix}", annotate(image, found))
    if "coco" in formats:
        copy = _copy(task, image, out / "coco" / "data")
    if "voc" in formats:
        copy = _copy(task, image, out / "voc" / "JPEGImages")
        width, height = found.image_size
        write_voc(
            out / "voc" / "Annotations" / f"{task.image_id}.xml",
            width=width,
            height=height,
            boxes=found.boxes.double().numpy().round(2),
            names=found.names,
            filename=copy,
            database="found by ssdlib, not checked",
        )
    return copy


def _copy(task: ImageTask, image: np.ndarray, folder: Path) -> str:
    """The file byte for byte; but an upright PNG where EXIF turns it, which not every tool heeds."""
    suffix = task.path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES or is_turned(task.path):
        write_image(folder / f"{task.image_id}.png", image)
        return f"{task.image_id}.png"
    try:
        content = task.path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {task.shown}: {error.strerror or error}") from error
    write_bytes(folder / f"{task.image_id}{suffix}", content)
    return f"{task.image_id}{suffix}"


def write_tables(
    out: Path,
    records: Records,
    class_names: Sequence[str],
    formats: Sequence[str],
    um_per_pixel: float | None,
) -> None:
    """Write cells.csv, images.csv, cells.json and coco/labels.json, those that `formats` name."""
    if "csv" in formats:
        _write_rows(out / "cells.csv", cell_rows(records, um_per_pixel))
        _write_rows(out / "images.csv", image_rows(records, class_names, um_per_pixel))
    if "json" in formats:
        write_json_list(out / "cells.json", records)
    if "coco" in formats:
        _write_coco(out / "coco" / "labels.json", records, class_names)


def write_json_list(path: Path, records: Records) -> None:
    """A list of `Detections.to_dict()`, one for each image that could be read."""
    with atomic_open(path) as stream:
        _write_items(stream, (_plain(record) for record in _done(records)), indent=2, depth=1)
        stream.write(b"\n")


def _done(records: Records) -> Iterator[Record]:
    return (record for record in records() if record["state"] == DONE)


def _plain(record: Record) -> Record:
    return {key: record[key] for key in ("image", "width", "height", "detections", "counts")}


def _write_items(stream: BinaryIO, items: Iterable[Any], *, indent: int | None, depth: int) -> None:
    """A JSON list, item by item, as `json.dumps` would write it whole."""
    pad, first = "  " * depth, True
    for item in items:
        text = textwrap.indent(json.dumps(item, indent=indent, ensure_ascii=False, allow_nan=False), pad)
        stream.write(("[\n" if first else ",\n").encode() + text.encode())
        first = False
    stream.write(b"[]" if first else f"\n{pad[2:]}]".encode())


def cell_rows(records: Records, um_per_pixel: float | None) -> Iterator[Sequence[Any]]:
    """The names of the columns, then a row for each cell; None where there is no value."""
    yield (*FRAME_COLUMNS, "width_um", "height_um")
    for record in _done(records):
        for cell in record["detections"]:
            xmin, ymin, xmax, ymax = cell["box"]
            sides = [round(xmax - xmin, 2), round(ymax - ymin, 2)]
            um = [round(side * um_per_pixel, 3) for side in sides] if um_per_pixel else [None, None]
            yield [record["image"], cell["label"], cell["score"], xmin, ymin, xmax, ymax, *sides, *um]


def image_rows(
    records: Records, class_names: Sequence[str], um_per_pixel: float | None
) -> Iterator[Sequence[Any]]:
    """The names of the columns, then a row for each image; None where there is no value."""
    yield ("image", "state", "width", "height", "um_per_pixel", "tiles", *class_names, "message")
    for record in records():
        if record["state"] == DONE:
            size = [record["width"], record["height"], um_per_pixel, record["tiles"]]
            yield [record["image"], DONE, *size, *(record["counts"][name] for name in class_names), None]
        else:
            empty = [None] * (4 + len(class_names))
            yield [record["image"], record["state"], *empty, record["message"]]


def _write_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with atomic_open(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        csv.writer(text, lineterminator="\n").writerows(rows)
        text.detach()


def _write_coco(path: Path, records: Records, class_names: Sequence[str]) -> None:
    """https://cocodataset.org/#format-data, with each annotation's score besides."""
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names, 1)]
    with atomic_open(path) as stream:
        info = {"description": "found by ssdlib, not checked"}
        head = json.dumps({"info": info, "licenses": [], "categories": categories}, ensure_ascii=False)
        stream.write(head[:-1].encode() + b',\n"images": ')
        _write_items(stream, _coco_images(records), indent=None, depth=1)
        stream.write(b',\n"annotations": ')
        _write_items(stream, _coco_annotations(records, class_names), indent=None, depth=1)
        stream.write(b"}\n")


def _coco_images(records: Records) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(_done(records), 1):
        size = {"width": record["width"], "height": record["height"]}
        yield {"id": number, "file_name": record["copy"], **size}


def _coco_annotations(records: Records, class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    identifier = 0
    for number, record in enumerate(_done(records), 1):
        for result in Detections.from_dict(record, class_names).to_coco(number):
            identifier += 1
            box = [round(side, 2) for side in result["bbox"]]
            more = {"area": round(box[2] * box[3], 2), "iscrowd": 0, "segmentation": []}
            score = round(result["score"], 6)
            yield {"id": identifier, **result, "bbox": box, "score": score, **more}
