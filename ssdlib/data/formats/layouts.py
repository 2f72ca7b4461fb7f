"""The one way to read a folder of labeled images, whatever its layout: a list of readers, tried in turn."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ssdlib.common.errors import DataError
from ssdlib.common.files import files_below, is_hidden
from ssdlib.data.formats import coco, tables, voc, yolo
from ssdlib.data.formats.records import SPLIT_WORDS, LabeledFolder, image_ids, relative, report_fractions
from ssdlib.data.formats.turned import settle_turned
from ssdlib.data.images import IMAGE_SUFFIXES
from ssdlib.data.splits import complete

READERS = (yolo.read_yolo, coco.read_coco_folder, voc.read_beside, tables.read_tables)
"""Readers of the layouts that may leave image ids and splits open, tried in turn; add further ones here.

Each returns None for a folder of another kind, and raises DataError for one of its kind that is damaged as a
whole; what is wrong with single images goes to their findings."""


def read_folder(path: Path) -> LabeledFolder | None:
    """The images, labels and splits of a folder in VOC's, COCO's or YOLO's layout, or with XML or CSV files.

    None if the folder is none of these. Nothing is written. Raises DataError where it is damaged as a whole.
    """
    folder = voc.read_voc_folder(path)
    if folder is None or not any(image.label_file.is_file() for image in folder.images):
        root = path.resolve()
        readers = (reader(root) for reader in READERS if root.is_dir())
        if other := next((one for one in readers if one is not None), None):
            folder = other
            _complete(folder)
    if folder is None:
        return None
    settle_turned(folder)
    if folder.kind != "yolo":
        report_fractions(folder)
    return folder


def folder_of(file: Path) -> Path:
    """The folder that a file with labels belongs to, where it alone decides what is read of it.

    Raises DataError that says what to give for any other file.
    """
    if file.suffix.lower() in (".yaml", ".yml", ".json", ".csv", ".data", ".names", ".txt"):
        inside = file.parent.name.lower() in ("annotations", "labels", "data", *SPLIT_WORDS)
        for place in [file.parent.parent, file.parent][not inside :]:
            folder, own = read_folder(place), place.resolve() / file.relative_to(place)
            others = (".yaml", ".yml", ".json", ".csv")
            if folder and own in folder.files:
                if all(one == own for one in folder.files if one.suffix.lower() in others):
                    return place
                raise DataError(f"{file} is one of several files with labels: give their folder, {place}.")
    if file.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        raise DataError(f"{file} is an archive. Unpack it, and give the folder.")
    raise DataError(f"{file} is a file: give the folder that holds the images and their labels.")


def what_to_give(path: Path) -> str:
    """A sentence that says what is in a folder that is no dataset, or which folder is one."""
    if not path.is_dir():
        return "there is no such folder"
    if _holds_labels(path.absolute().parent):
        return f"it is a part of one. Give {path.absolute().parent}"
    inner = [one for one in _folders(path.absolute()) if _holds_labels(one)]
    if inner := [one for one in inner if not any(other in one.parents for other in inner)]:
        several = f", or several of them with commas between: {', '.join(map(str, inner[:9]))}"
        return f"the data are further below. Give {inner[0]}{several if len(inner) > 1 else ''}"
    files = files_below(path, depth=3)
    kinds = Counter(file.suffix.lower() for file in files)
    pictures = sum(kinds[suffix] for suffix in IMAGE_SUFFIXES)
    archives = [file for file in files if file.suffix.lower() in (".zip", ".tgz", ".7z", ".rar")]
    if archives and not pictures:
        return f"it holds {archives[0].name}: unpack it"
    suffixes = [suffix for suffix in (".xml", ".json", ".csv", ".txt") if kinds[suffix]]
    labels = ", ".join(f"{kinds[one]} {one} file{'s' * (kinds[one] > 1)}" for one in suffixes)
    if labels and pictures:
        why = "in no layout that is known"
        if kinds[".xml"]:
            try:
                voc.read_tree(next(file for file in files if file.suffix.lower() == ".xml"))
                why = "which belong to none of the images"
            except DataError as error:
                why = str(error).rstrip(".")
        elif kinds[".txt"]:
            why = "and no list of class names (data.yaml, classes.txt)"
        return f"it holds {pictures} images and {labels}, {why}"
    lacking = f"{labels} and no image" if labels else f"{pictures or 'no'} images and no file with labels"
    return f"it holds {lacking}"


def _folders(path: Path) -> list[Path]:
    """The folders in it, and those in these."""
    level = [one for one in sorted(path.iterdir()) if one.is_dir() and not is_hidden(one)][:50]
    with suppress(OSError):  # of the system's, if the path was wrong
        level += [one for place in level for one in sorted(place.iterdir()) if one.is_dir()][:200]
    return level


def _holds_labels(folder: Path) -> bool:
    if voc.find_root(folder):
        return voc.find_root(folder) == folder.resolve()
    try:
        return bool(yolo.names_file(folder) or coco.coco_files(folder) or tables.csv_files(folder))
    except DataError:
        return True
    except OSError:
        return False


def _complete(folder: LabeledFolder) -> None:
    """Give the folder image ids, all splits, and only the classes that an object has."""
    folder.files += [image.path for image in folder.images if image.path.is_file()]
    given: dict[str | None, list[str]] = {}
    names = [
        (image.path.stem, re.sub(r"[/.]", "_", relative(image.path, folder.root))) for image in folder.images
    ]
    for image_id, image in zip(image_ids(names), folder.images, strict=True):
        image.image_id = image_id
        image.findings = [replace(finding, image_id=image_id) for finding in image.findings]
        given.setdefault(image.split, []).append(image_id)
    folder.images.sort(key=lambda image: image.image_id)
    if given.keys() > {None} and "train" not in given:
        given["train"] = given.pop(None)
    # Where train is given, images of no split stay in none.
    folder.splits, done = complete({s: ids for s, ids in given.items() if s} or {"": given[None]})
    folder.notice = f"{folder.root} {done}" if done else ""
    used = {o.name for image in folder.images for o in image.objects}
    for name in folder.class_names:
        if name not in used:
            folder.report("unused_class", "info", f"class {name!r} has no object: it is left out.")
    folder.class_names = tuple(name for name in folder.class_names if name in used)
