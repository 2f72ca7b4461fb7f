"""Folders in other layouts than Pascal VOC's, read once into a folder that has it.

Everything here works on VOC folders: audit, suspects, training, fingerprints. So COCO and YOLO folders, and
images with XML beside them, are turned into one, in data/cache: annotations of a few hundred bytes an image,
and links to the images, which stay where they are. The folder of the user is only read. A change in any file
there makes another copy; `layout.json` in it says where everything came from and what was odd.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from ssdlib.common.errors import DataError, SsdError
from ssdlib.common.files import read_json, write_json
from ssdlib.data.formats import coco, yolo
from ssdlib.data.formats.records import SPLIT_WORDS, LabeledImage, Layout, Note, Reader, relative
from ssdlib.data.formats.voc import read_objects, voc_bytes
from ssdlib.data.images import IMAGE_SUFFIXES
from ssdlib.data.splits import complete

VERSION = 1  # raise it whenever the same folder would be read otherwise
MARKER = "layout.json"


@dataclass(frozen=True)
class Converted:
    """What is known of a folder that was turned into a VOC one."""

    kind: str
    """voc (XML beside the images), coco or yolo."""
    folder: Path
    """The user's."""
    class_names: tuple[str, ...]
    """Those with an object, in the folder's order."""
    notice: str
    notes: tuple[tuple[str, Note], ...]
    """(image id, note); the id is empty for what concerns the whole folder."""

    @property
    def errors(self) -> dict[str, str]:
        """The first error of each image that cannot be used."""
        found = [(image_id, str(note)) for image_id, note in self.notes if note.severity == "error"]
        return dict(reversed(found))


def read_marker(root: Path) -> Converted | None:
    """What `layout.json` says; None for a folder that was VOC from the start."""
    if not (root / MARKER).is_file():
        return None
    content = read_json(root / MARKER, hint="Delete that folder: it is written anew.")
    notes = tuple((note.pop("image_id"), Note(**note)) for note in content["notes"])
    names = tuple(content["class_names"])
    return Converted(content["kind"], Path(content["folder"]), names, content["notice"], notes)


def convert(folder: Path, cache: Path) -> Path | None:
    """The VOC folder for the COCO, YOLO or XML-beside-image folder `folder`, made below `cache` if need be.

    None if the folder is none of these. Raises DataError where it is damaged as a whole, SsdError where the
    cache cannot be written.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        return None
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    root = cache / f"{_word(folder.name)}-{place}-{_state(folder)}"
    if (root / MARKER).is_file():
        return root
    readers: tuple[Reader, ...] = (yolo.read_yolo, coco.read_coco_folder, read_beside)
    layout = next((found for reader in readers if (found := reader(folder)) is not None), None)
    if layout is None:
        return None
    temporary = root.parent / f".{root.name}.{uuid4().hex[:8]}.partial"
    try:
        temporary.mkdir(parents=True)
        _write(layout, folder, temporary)
        try:
            temporary.rename(root)
        except OSError:
            if not (root / MARKER).is_file():  # else another process was quicker with the same
                raise
    except OSError as error:
        raise SsdError(
            f"cannot write {root}, the labels of {folder} as VOC: {error.strerror or error}. "
            "Free some space; the folder itself is untouched."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def _word(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "data"


def _state(folder: Path) -> str:
    """Changes whenever a file there comes, goes or is written to."""
    lines = [str(VERSION)]
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            with suppress(OSError):  # a dangling link
                stat = (file := Path(place) / name).stat()
                lines.append(f"{relative(file, folder)} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _write(layout: Layout, folder: Path, root: Path) -> None:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    ids = _image_ids([image.path for image in layout.images], folder)
    given: dict[str | None, list[str]] = {}
    notes = [{"image_id": "", **asdict(note)} for note in layout.notes]
    for image_id, image in zip(ids, layout.images, strict=True):
        given.setdefault(image.split, []).append(image_id)
        notes += [{"image_id": image_id, **asdict(note)} for note in image.notes]
        _write_image(image_id, image, root)
    # Where some images have a split, those without stay in none.
    splits, done = complete({split: ids for split, ids in given.items() if split} or {"": given[None]})
    for split, members in splits.items():
        lines = "".join(f"{image_id}\n" for image_id in members)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines, encoding="utf-8")
    used = {name for image in layout.images for name in image.names}
    for name in layout.class_names:
        if name not in used:
            message = f"class {name!r} has no object: it is left out."
            notes.append({"image_id": "", **asdict(Note("unused_class", "info", message))})
    content: dict[str, Any] = {
        "kind": layout.kind,
        "folder": str(folder),
        "class_names": [name for name in layout.class_names if name in used],
        "notice": f"{folder} {done}" if done else "",
        "notes": notes,
    }
    write_json(root / MARKER, content)  # last: a folder without it is not whole


def _write_image(image_id: str, image: LabeledImage, root: Path) -> None:
    suffix = image.path.suffix.lower()
    name = f"{image_id}{suffix}"
    content = voc_bytes(name, image.width, image.height, image.boxes, image.names, database=image.path.name)
    if image.path.is_file():
        _link(image.path.resolve(), root / "JPEGImages" / name)
        (root / "Annotations" / f"{image_id}.xml").write_bytes(content)


def _link(image: Path, target: Path) -> None:
    try:
        target.symlink_to(image)
    except (OSError, NotImplementedError):  # Windows without the right to, or a disk without links
        shutil.copy2(image, target)


def _image_ids(paths: Sequence[Path], folder: Path) -> list[str]:
    """A name for each image: its file's without ending; where two have the same, with their folders."""
    plain = [_id(path.stem) for path in paths]
    often = Counter(plain)
    ids, taken = [], {name for name, count in often.items() if count == 1}
    for path, name in zip(paths, plain, strict=True):
        if often[name] > 1:
            name = whole = _id(re.sub(r"[/.]", "_", relative(path, folder)))
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


def read_beside(root: Path) -> Layout | None:
    """Read a folder with VOC annotations beside the images (labelImg, Roboflow), in the folder itself or in
    one for each split. None if there are none."""
    places = [(None, root), *((split, root / word) for word, split in SPLIT_WORDS.items())]
    files = [(s, file) for s, place in places if place.is_dir() for file in sorted(place.glob("*.xml"))]
    images = []
    for split, file in files:
        found = [p for p in map(file.with_suffix, _suffixes()) if p.is_file()]
        image = LabeledImage(found[0] if found else file.with_suffix(".jpg"), split)
        if image.measure():
            try:
                for number, (name, corners) in enumerate(read_objects(file), 1):
                    image.add(name, corners, f"{relative(file, root)}, object {number}")
            except DataError as error:
                image.notes.append(Note("damaged_annotation", "error", str(error)))
        images.append(image)
    if not any(image.width for image in images):
        return None
    return Layout("voc", tuple(sorted({name for image in images for name in image.names})), images)


def _suffixes() -> list[str]:
    return [case for suffix in IMAGE_SUFFIXES for case in (suffix, suffix.upper())]
