"""The one way to read a folder of labeled images, whatever its layout: a list of readers, tried in turn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ssdlib.data.formats import coco, voc, yolo
from ssdlib.data.formats.records import LabeledFolder, relative
from ssdlib.data.formats.turned import settle_turned
from ssdlib.data.splits import complete

READERS = (yolo.read_yolo, coco.read_coco_folder, voc.read_beside)
"""Readers of the layouts that may leave image ids and splits open, tried in turn; add further ones here.

Each returns None for a folder of another kind, and raises DataError for one of its kind that is damaged as a
whole; what is wrong with single images goes to their findings."""


def read_folder(path: Path) -> LabeledFolder | None:
    """The images, labels and splits of a VOC, COCO or YOLO folder, or of images with XML files beside them.

    None if the folder is none of these. Nothing is written. Raises DataError where it is damaged as a whole.
    """
    if folder := voc.read_voc_folder(path):
        settle_turned(folder)
        return folder
    root = path.resolve()
    found = (reader(root) for reader in READERS if root.is_dir())
    folder = next((one for one in found if one is not None), None)
    return folder and _completed(folder)


def _completed(folder: LabeledFolder) -> LabeledFolder:
    """The folder with image ids, all splits, and only the classes that an object has."""
    settle_turned(folder)
    folder.files += [image.path for image in folder.images if image.path.is_file()]
    given: dict[str | None, list[str]] = {}
    image_ids = _image_ids([image.path for image in folder.images], folder.root)
    for image_id, image in zip(image_ids, folder.images, strict=True):
        image.image_id = image_id
        image.findings = [replace(finding, image_id=image_id) for finding in image.findings]
        given.setdefault(image.split, []).append(image_id)
    folder.images.sort(key=lambda image: image.image_id)
    # Where some images have a split, those without stay in none.
    folder.splits, done = complete({s: ids for s, ids in given.items() if s} or {"": given[None]})
    folder.notice = f"{folder.root} {done}" if done else ""
    used = {o.name for image in folder.images for o in image.objects}
    for name in folder.class_names:
        if name not in used:
            folder.report("unused_class", "info", f"class {name!r} has no object: it is left out.")
    folder.class_names = tuple(name for name in folder.class_names if name in used)
    return folder


def _image_ids(paths: Sequence[Path], root: Path) -> list[str]:
    """A name for each image: its file's without ending; where two have the same, with their folders."""
    plain = [_id(path.stem) for path in paths]
    often = Counter(plain)
    ids, taken = [], {name for name, count in often.items() if count == 1}
    for path, name in zip(paths, plain, strict=True):
        if often[name] > 1:
            name = whole = _id(re.sub(r"[/.]", "_", relative(path, root)))
            number = 1
            while name in taken:
                number += 1
                name = f"{whole}-{number}"
            taken.add(name)
        ids.append(name)
    return ids


def _id(text: str) -> str:
    """Fit for a file's name and a line of a list."""
    return "".join(c if c.isprintable() and c not in "/\\" else "_" for c in text).strip() or "_"
