"""YOLO labels: one text file an image, one line an object: `class x y width height`, in fractions.

The format, and data.yaml beside it: https://docs.ultralytics.com/datasets/detect/ and Roboflow's exports,
which follow it. Center and size are fractions of the upright image; class numbers count from 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ssdlib.common.errors import DataError
from ssdlib.data.formats.records import (
    SPLIT_WORDS,
    Corners,
    LabeledFolder,
    LabeledImage,
    check_names,
    read_limited,
    relative,
    rounded,
)
from ssdlib.data.images import IMAGE_SUFFIXES, list_images

LAYOUT = "data.yaml or classes.txt, images/ and labels/*.txt"
_NAMES_FILES = ("classes.txt", "obj.names")
_REACH = 0.5
"""Fractions further outside the image than this are no fractions: they are pixels, or of another format."""


def read_yolo(root: Path) -> LabeledFolder | None:
    """Read a folder with data.yaml (Ultralytics, Roboflow) or classes.txt (LabelImg, Label Studio).

    Labels lie in `labels` where images lie in `images`, else beside the image. Outlines (segmentation,
    oriented boxes) count as the upright box around them. None if there is neither file. Raises DataError
    for one that is damaged, for images that are not where it says, and where no image has a label file.
    """
    found = _names_file(root)
    if found is None:
        return None
    file, content = found
    class_names = _class_names(content, file)
    folder = LabeledFolder("yolo", root, class_names, [], [file])
    _find_images(folder, content if isinstance(content, dict) else {}, file)
    images = folder.images
    if not images:
        raise DataError(
            f"{root} has no images where {file.name} lets them be looked for. Put them into "
            f"{root / 'images'}, their labels into {root / 'labels'}, or correct {file}."
        )
    labels = {image.label_file for image in images}
    present = sorted(label for label in labels if label.is_file())
    if not present:
        first = images[0]
        raise DataError(
            f"none of the {len(images)} images has a label file: for {relative(first.path, root)} there "
            f"should be {relative(first.label_file, root)} in {root}. Put the labels there."
        )
    folder.files += present
    for image in images:
        if image.measure():
            read_labels(image, class_names, root)
    _report_unused_labels(folder, labels, file)
    return folder


def class_number(root: Path, name: str) -> int:
    """The number of a class in the labels of a YOLO folder. Raises DataError if it does not list it."""
    file, content = _names_file(root)
    names = _class_names(content, file)
    if name not in names:
        raise DataError(f"{file} does not list the class {name}: add it at the end of the names.")
    return names.index(name)


def label_lines(
    boxes_xyxy: Iterable[Sequence[float]], numbers: Iterable[int], width: int, height: int
) -> str:
    """One line for each object in an image of that size: `class x y width height`, in fractions."""
    lines = []
    for (x1, y1, x2, y2), number in zip(boxes_xyxy, numbers, strict=True):
        box = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        fractions = " ".join(f"{v / side:.6f}" for v, side in zip(box, 2 * (width, height), strict=True))
        lines.append(f"{number} {fractions}\n")
    return "".join(lines)


# --- which classes and which images ----------------------------------------------------------------------


def _names_file(root: Path) -> tuple[Path, Any] | None:
    """The file that names the classes, with its content: parsed YAML or a list of lines."""
    files = [*root.glob("*.yaml"), *root.glob("*.yml")]
    for file in sorted(files, key=lambda file: (file.stem not in ("data", "dataset"), file.name)):
        content = _read_yaml(file)
        if isinstance(content, dict) and "names" in content:
            return file, content
        if file.stem == "data":
            raise DataError(f'{file} has no "names". List the classes there: names: [RBC, WBC].')
    for name in _NAMES_FILES:
        if (file := root / name).is_file():
            return file, [line for line in _read_text(file).splitlines() if line.strip()]
    return None


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(_read_text(file))
    except (yaml.YAMLError, RecursionError) as error:
        if file.stem != "data":  # some other tool's
            return None
        what = " ".join(str(error).split())
        raise DataError(
            f"{file} is not valid YAML ({what}). Correct it, or export the labels anew."
        ) from error


def _read_text(file: Path) -> str:
    try:
        return read_limited(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error


def _class_names(content: Any, file: Path) -> tuple[str, ...]:
    names = content["names"] if isinstance(content, dict) else content
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{file}: names must be numbered 0, 1, 2, ...; they are {list(names)}.")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise DataError(f"{file}: names must be a list of class names, not {str(names)[:80]}.")
    return check_names([str(name) for name in names], file)


def _find_images(folder: LabeledFolder, content: dict, file: Path) -> None:
    """Add the images where the content of data.yaml says they are, or where they usually are."""
    root = folder.root
    stated = {key: entry for key, entry in content.items() if str(key) in SPLIT_WORDS and entry}
    seen: set[Path] = set()

    def add(paths: Iterable[Path], split: str | None = None) -> None:
        for path in paths:
            if path not in seen:
                seen.add(path)
                folder.images.append(LabeledImage(path, _label_file(path, root), split=split))

    for key, entry in stated.items():
        for one in entry if isinstance(entry, list) else [entry]:
            place = _place(root, str(one), content.get("path"))
            if place is None:
                message = f"{file.name} has {key}: {one}, and there is no such folder or list in {root}"
                if SPLIT_WORDS[key] == "train":
                    raise DataError(f"{message}. Put the images there, or correct {file}.")
                remedy = f"Put them there, or take the line out of {file.name}."
                folder.report("missing_split", "warning", f"{message}: the split is left out.", remedy)
                continue
            if place.is_file():
                folder.files.append(place)
            paths = list(_listed(place, root)) if place.is_file() else _below(place)
            if paths and seen.issuperset(paths):
                message = f"{file.name} has the images of {key} in another split, too: they stay there only."
                remedy = "What is trained on must not be judged on: give it images of its own."
                folder.report("split_overlap", "warning", message, remedy)
            add(paths, SPLIT_WORDS[key])
    if stated:
        return
    for word, split in SPLIT_WORDS.items():
        for place in (root / "images" / word, root / word):
            if place.is_dir():
                add(_below(place), split)
    if not folder.images:
        add(_below(root / "images") if (root / "images").is_dir() else list_images(root))


def _place(root: Path, entry: str, base: Any) -> Path | None:
    """Where an entry of data.yaml leads, always inside the folder.

    Exports are often wrong by a level (Roboflow writes ../train/images for train/images) or by a machine
    (an absolute `path`), so what leads outside is tried from the folder itself.
    """
    parts = PurePosixPath(entry.replace("\\", "/")).parts
    inside = [part for part in parts if part not in ("..", ".", "/")]
    bases = [str(base).replace("\\", "/").strip("/").split("/")] if base else []
    trials = [root.joinpath(*bases[0], *inside)] if bases and ".." not in bases[0] else []
    absolute = parts[:1] == ("/",) or ":" in "".join(parts[:1])
    trials += [root.joinpath(*inside[k:]) for k in range(len(inside) if absolute else 1)]
    return next((place for place in trials if place.exists()), None)


def _listed(file: Path, root: Path) -> Iterator[Path]:
    for line in _read_text(file).splitlines():
        if line.strip():
            yield _place(root, line.strip(), None) or root / PurePosixPath(line.strip()).name


def _below(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in found if path.is_file())


# --- labels ----------------------------------------------------------------------------------------------


def _label_file(image: Path, root: Path) -> Path:
    """labels/a.txt for the last `images` of the path, else, or where only that exists, beside the image."""
    beside = image.with_suffix(".txt")
    parts = list(image.relative_to(root).parts)
    if "images" not in parts[:-1]:
        return beside
    last = len(parts) - 2 - parts[-2::-1].index("images")
    parts[last] = "labels"
    usual = root.joinpath(*parts).with_suffix(".txt")
    return beside if beside.is_file() and not usual.is_file() else usual


def read_labels(image: LabeledImage, class_names: tuple[str, ...], root: Path) -> None:
    """Add the objects of its label file to the image, and a finding for each line that is odd."""
    name = relative(image.label_file, root)
    if not image.label_file.is_file():
        message = f"there is no {name}: the image counts as one without objects and teaches background only."
        image.report("no_label_file", "warning", message, "Label it, or add an empty file.")
        return
    try:
        lines = _read_text(image.label_file).splitlines()
    except DataError as error:
        image.report("damaged_labels", "error", str(error))
        return
    outlines: list[int] = []
    scores: list[int] = []
    for number, line in enumerate(lines, 1):
        if not (words := line.split()):
            continue
        where = f"{name}, line {number}"
        try:
            label, corners = _read_line(words, class_names, image)
        except ValueError as error:
            remedy = "The image cannot be used until it is corrected."
            image.report("damaged_labels", "error", f"{where}: {error}.", remedy)
            continue
        (outlines if len(words) > 6 else scores if len(words) == 6 else []).append(number)
        image.add(class_names[label], corners, where)
    if outlines:
        message = f"{name} has outlines ({_numbers(outlines)}): the upright box around each is used."
        image.report("outline", "info", message)
    if scores:
        message = f"{name} has a sixth number ({_numbers(scores)}), as predictions have: it is passed over."
        remedy = "Make sure that these are labels that a person has looked at."
        image.report("scored_label", "warning", message, remedy)


def _numbers(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:3])) + (", ..." if len(lines) > 3 else "")
    return f"line {shown}" if len(lines) == 1 else f"{len(lines)} lines: {shown}"


def _read_line(words: list[str], class_names: tuple[str, ...], image: LabeledImage) -> tuple[int, Corners]:
    """Class number and pixel corners. ValueError says what is wrong with the line."""
    try:
        number, *values = (float(word) for word in words)
    except ValueError:
        raise ValueError(f"numbers are expected, not {' '.join(words)[:60]!r}") from None
    if not all(map(math.isfinite, (number, *values))):
        raise ValueError(f"finite numbers are expected, not {' '.join(words)[:60]!r}")
    if len(values) < 4 or (len(values) > 5 and len(values) % 2):
        raise ValueError(f"`class x y width height` is expected, not {len(words)} numbers")
    if number != int(number) or not 0 <= number < len(class_names):
        last = len(class_names) - 1
        raise ValueError(f"there is no class {words[0]}: they are 0 to {last} ({', '.join(class_names)})")
    box = values[:4]
    if len(values) > 5:
        left, top, right, bottom = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
        box = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    if not all(-_REACH <= value <= 1 + _REACH for value in box):
        raise ValueError(f"fractions of the image from 0 to 1 are expected, not {' '.join(words[1:5])}")
    x, y, width, height = (
        value * side for value, side in zip(box, 2 * (image.width, image.height), strict=True)
    )
    return int(number), rounded((x - width / 2, y - height / 2, x + width / 2, y + height / 2))


def _report_unused_labels(folder: LabeledFolder, used: set[Path], names_file: Path) -> None:
    other = {"classes", "notes", "readme", *SPLIT_WORDS}
    for place in sorted({label.parent for label in used if label.parent.is_dir()}):
        for file in sorted(place.glob("*.txt")):
            if file in used or file == names_file or file.stem.split(".")[0].lower() in other:
                continue
            message = f"{relative(file, folder.root)} belongs to no image: its objects are not used."
            remedy = "Restore the image, or remove the file."
            folder.report("label_without_image", "warning", message, remedy)
