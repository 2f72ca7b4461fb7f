"""YOLO labels: one text file an image, one line an object: `class x y width height`, in fractions.

The format, and data.yaml beside it: https://docs.ultralytics.com/datasets/detect/ and Roboflow's exports,
which follow it. Center and size are fractions of the upright image; class numbers count from 0.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ssdlib.common.errors import DataError
from ssdlib.common.files import decode_text, files_below, is_hidden, read_limited, shortened
from ssdlib.data.formats.lookup import Files, folded, missing_image
from ssdlib.data.formats.records import (
    MAX_IMAGES,
    SPLIT_WORDS,
    Corners,
    LabeledFolder,
    LabeledImage,
    check_names,
    read_names,
    read_text,
    relative,
    rounded,
)
from ssdlib.data.images import IMAGE_SUFFIXES

LAYOUT = "data.yaml or classes.txt, images/ and labels/*.txt"
_NAMES_FILES = ("classes.txt", "obj.names", "labels.txt")
"""What LabelImg and Label Studio, darknet and CVAT, and make-sense call the list of the classes."""
_PLACES = ("images", "jpegimages", "labels")
"""Folders of pictures and of their labels; below them, both have the same folders."""
_REACH = 0.5
"""Fractions further outside the image than this are no fractions: they are pixels, or of another format."""


def read_yolo(root: Path) -> LabeledFolder | None:
    """Read a folder with data.yaml (Ultralytics, Roboflow) or a list of the class names (`_NAMES_FILES`).

    Labels lie in `labels` where images lie in `images` or `JPEGImages`, else beside the image. Outlines
    (segmentation, oriented boxes) count as the upright box around them. None if there is neither file. Raises
    DataError for one that is damaged, for images that are not where it says, and where no image has a label
    file.
    """
    found = names_file(root)
    if found is None:
        return None
    file, content = found
    class_names = _class_names(content, file)
    folder = LabeledFolder("yolo", root, class_names, [], [file])
    files = files_below(root)
    labels = _Labels(files, root)
    _find_images(folder, content if isinstance(content, dict) else {}, file, Files(files, root), labels)
    images = folder.images
    owners = Counter(image.label_file for image in images)
    present = sorted(label for label in owners if label.is_file())
    if not present and any(
        file.suffix.lower() in (".xml", ".json", ".csv") and file.name != "notes.json" for file in files
    ):
        return None  # labels of another kind, and LabelImg's list of classes beside them
    if not images:
        raise DataError(
            f"{root} has no images where {file.name} lets them be looked for. Put them into "
            f"{root / 'images'}, their labels into {root / 'labels'}, or correct {file}."
        )
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
        if owners[image.label_file] > 1 and image.objects:
            name = relative(image.label_file, root)
            message = f"{name} is the label file of {owners[image.label_file]} images: all have its boxes."
            image.report("shared_labels", "warning", message, "Give each image a name of its own.")
    _report_unused_labels(folder, set(owners), file)
    return folder


def class_number(root: Path, name: str) -> int:
    """The number of a class in the labels of a YOLO folder. Raises DataError if it does not list it."""
    found = names_file(root)
    if found is None:
        raise DataError(
            f"{root} has no list of classes as YOLO has it. Convert it to voc, coco or yolo first."
        )
    file, content = found
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


def names_file(root: Path) -> tuple[Path, Any] | None:
    """The file that names the classes, with its content: parsed YAML or a list of lines."""
    yamls = [file for file in files_below(root, depth=0) if file.suffix.lower() in (".yaml", ".yml")]
    for file in sorted(yamls, key=lambda file: (file.stem not in ("data", "dataset"), file.name)):
        content = _read_yaml(file)
        if isinstance(content, dict) and "names" in content:
            return file, content
        if file.stem == "data":
            raise DataError(f'{file} has no "names". List the classes there: names: [RBC, WBC].')
    places = {place.name.lower(): place for place in root.iterdir() if place.is_dir()}
    inner = [places[word] for word in ("labels", "data", *_PLACES[:2], *SPLIT_WORDS) if word in places]
    inner += [
        one for place in inner for one in sorted(place.iterdir()) if one.is_dir() and not is_hidden(one)
    ]
    for level in ([root], inner):  # LabelImg writes the list where it saves the labels
        here = [file for place in level for file in files_below(place, depth=0)]
        lists = [file for name in _NAMES_FILES for file in here if file.name.lower() == name]
        lists += [file for file in here if file.suffix.lower() == ".names" and file not in lists]
        contents = [read_names(file) for file in (lists if level is inner else lists[:1])]
        longest = max(contents, key=len, default=[])
        for file, content in zip(lists, contents, strict=False):
            if content != longest[: len(content)]:  # LabelImg's lists grow, one in each folder of labels
                raise DataError(
                    f"{file} and {lists[contents.index(longest)]} name different classes, and no list in "
                    f"{root} says which numbers the labels have. Put the right one there."
                )
        if lists:
            return lists[contents.index(longest)], longest
    return None


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.load(decode_text(read_limited(file, _MAX_YAML), file), _Loader)
    except Exception as error:  # PyYAML raises more than its own errors
        if file.stem != "data":  # some other tool's
            return None
        if isinstance(error, DataError):
            raise
        what = " ".join(str(error).split())[:200]
        raise DataError(
            f"{file} is not valid YAML ({what}). Correct it, or export the labels anew."
        ) from error


class _Loader(yaml.BaseLoader):
    """YAML without types: dates, numbers and whatever a tag claims stay text, and nothing is merged."""

    _aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node. Refuses many aliases, which multiply."""
        self._aliases += self.check_event(yaml.AliasEvent)
        if self._aliases > _MAX_ALIASES:
            raise yaml.YAMLError(f"it has more than {_MAX_ALIASES} aliases")
        node = super().compose_node(parent, index)
        if node.tag.rpartition(":")[::2] not in _TAGS:
            raise yaml.YAMLError(f"it has the tag {shortened(node.tag)}, which says nothing here")
        return node


_TAGS = {
    ("tag:yaml.org,2002", kind)
    for kind in (
        "str",
        "int",
        "float",
        "bool",
        "null",
        "binary",
        "timestamp",
        "map",
        "seq",
        "set",
        "omap",
        "merge",
    )
}
_MAX_ALIASES, _MAX_YAML = 8, 1_000_000
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile("(~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Loader.add_constructor("tag:yaml.org,2002:null", lambda *_: None)


def _class_names(content: Any, file: Path) -> tuple[str, ...]:
    names = content["names"] if isinstance(content, dict) else content
    if isinstance(names, dict):
        if names.keys() != {str(number) for number in range(len(names))}:
            raise DataError(
                f"{file}: names must be numbered 0, 1, 2, ...; they are {shortened(list(names))}."
            )
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: names must be a list of class names, not {shortened(names)}.")
    return check_names(names, file)


def _find_images(folder: LabeledFolder, content: dict, file: Path, pictures: Files, labels: _Labels) -> None:
    """Add the images where data.yaml, obj.data or lists say that they are, or where they usually are."""
    root = folder.root
    stated = {key: entry for key, entry in content.items() if str(key) in SPLIT_WORDS and entry}
    seen: set[Path] = set()

    def add(paths: Iterable[Path], split: str | None = None) -> None:
        for path in paths:
            if path not in seen:
                seen.add(path)
                folder.images.append(LabeledImage(path, labels.of(path), split=split))

    if not stated:
        for key, place in _lists(root):
            folder.files.append(place)
            if key:
                add(_listed(place, root, pictures), SPLIT_WORDS[key])
    for key, entry in stated.items():
        for one in entry if isinstance(entry, list) else [entry]:
            if not isinstance(one, str) or not isinstance(content.get("path") or "", str):
                wrong = f"{key}: {shortened(one)} (path: {shortened(content.get('path'))})"
                raise DataError(f"{file} has {wrong}: name folders or lists as text there.")
            place = _place(root, one, content.get("path"))
            if place is None:
                message = f"{file.name} has {key}: {shortened(one)[1:-1]}, and there is "
                message += f"no such folder or list in {root}"
                if SPLIT_WORDS[key] == "train":
                    raise DataError(f"{message}. Put the images there, or correct {file}.")
                remedy = f"Put them there, or take the line out of {file.name}."
                folder.report("missing_split", "warning", f"{message}: the split is left out.", remedy)
                continue
            if place.is_file():
                folder.files.append(place)
            paths = _listed(place, root, pictures) if place.is_file() else _below(place)
            if paths and seen.issuperset(paths):
                message = f"{file.name} has the images of {key} in another split, too: they stay there only."
                remedy = "What is trained on must not be judged on: give it images of its own."
                folder.report("split_overlap", "warning", message, remedy)
            add(paths, SPLIT_WORDS[key])
    if stated or folder.images:
        return
    by_split = {path: _folder_split(path.relative_to(root).parts) for path in pictures.all}
    for word in dict.fromkeys(SPLIT_WORDS.values()):
        add((path for path, split in by_split.items() if split == word), word)
    usual = [path for path in pictures.all if _is_usual(path.relative_to(root).parts)]
    at_root = [path for path in pictures.all if path.parent == root]
    labeled = [path for path in pictures.all if labels.of(path).is_file()]
    add(labeled if folder.images else usual or at_root or labeled)


def _folder_split(parts: Sequence[str]) -> str | None:
    """The split that an image's folders tell: images/train/, train/, obj_train_data/ (CVAT)."""
    for part in [part.lower() for part in parts[:-1]][:2]:
        if split := SPLIT_WORDS.get(re.sub(r"^obj_(.+)_data$", r"\1", part)):
            return split
        if part not in _PLACES:
            return None
    return None


def _is_usual(parts: Sequence[str]) -> bool:
    place = parts[0].lower()
    return len(parts) > 1 and (place in _PLACES[:2] or bool(re.fullmatch(r"obj_.+_data", place)))


def _lists(root: Path) -> list[tuple[str, Path]]:
    """(word for a split, list of its images), named by obj.data (darknet, CVAT) or by itself: train.txt.

    The files that name lists are among them, without a word.
    """
    files = [file for file in files_below(root, depth=1) if file.parent in (root, root / "data")]
    found = []
    for file in files:
        if file.suffix.lower() == ".data":
            lines = (line.partition("=") for line in read_text(file).splitlines())
            named = {key.strip(): value.strip() for key, _, value in lines}
            trials = (
                (key, _place(root, value, None, True)) for key, value in named.items() if key in SPLIT_WORDS
            )
            named = [(key, place) for key, place in trials if place is not None and place.is_file()]
            found += [("", file), *named] if named else []
    for file in files:
        word = file.stem.lower()
        if file.suffix.lower() == ".txt" and word in SPLIT_WORDS and all(file != place for _, place in found):
            first = next((line.strip() for line in read_text(file).splitlines() if line.strip()), "")
            if first.lower().endswith(IMAGE_SUFFIXES):  # else it may be the label file of train.jpg
                found.append((word, file))
    return found


def _place(root: Path, entry: str, base: Any, moved: bool = False) -> Path | None:
    """Where an entry of data.yaml leads, always inside the folder.

    Exports are often wrong by a level (Roboflow writes ../train/images for train/images) or by a machine
    (an absolute `path`), so what leads outside is tried from the folder itself; with `moved`, all is.
    """
    if len(entry) > _MAX_PATH or len(str(base)) > _MAX_PATH:
        return None
    parts = PurePosixPath(entry.replace("\\", "/")).parts
    inside = [part for part in parts if part not in ("..", ".", "/")]
    bases = [str(base).replace("\\", "/").strip("/").split("/")] if base else []
    trials = [root.joinpath(*bases[0], *inside)] if bases and ".." not in bases[0] else []
    moved |= parts[:1] == ("/",) or ":" in "".join(parts[:1])
    trials += [root.joinpath(*inside[k:]) for k in range(len(inside) if moved else 1)]
    return next((place for place in trials if os.path.exists(place)), None)  # noqa: PTH110 (pathlib raises for names that no file has)


_MAX_PATH = 4096
"""Characters: no system has longer paths."""


def _listed(file: Path, root: Path, pictures: Files) -> list[Path]:
    names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if len(names) > MAX_IMAGES:
        raise DataError(f"{file} lists {len(names):,} images: more than {MAX_IMAGES:,} are not read.")
    found = pictures.find_all(names, file.parent)
    return [place or missing_image(name, file, root) for name, place in zip(names, found, strict=True)]


def _below(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


# --- labels ----------------------------------------------------------------------------------------------


class _Labels:
    """The label files of a folder, by the images that they belong to."""

    def __init__(self, files: Iterable[Path], root: Path) -> None:
        self._root = root
        self._found = {
            (self._folders(file), folded(file.stem)): file for file in files if file.suffix.lower() == ".txt"
        }
        self._stems = Counter(folded(f.stem) for f in files if f.suffix.lower() in IMAGE_SUFFIXES)

    def _folders(self, file: Path) -> tuple[str, ...]:
        parts = map(folded, file.relative_to(self._root).parts[:-1])
        return tuple(part for part in parts if part not in _PLACES)

    def of(self, image: Path) -> Path:
        """labels/a.txt for the last `images` of the path, else beside the image, where one of them exists.

        Else the one in labels of the same folders, or of none, where images of one name are not mixed up.
        """
        beside = image.with_suffix(".txt")
        parts = list(image.relative_to(self._root).parts)
        last = max((k for k, part in enumerate(parts[:-1]) if part.lower() in _PLACES[:2]), default=None)
        usual = beside
        if last is not None:
            usual = self._root.joinpath(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
        if usual.is_file() or beside.is_file():
            return usual if usual.is_file() else beside
        stem = folded(image.stem)
        flat = self._found.get(((), stem)) if self._stems[stem] == 1 else None
        return self._found.get((self._folders(image), stem)) or flat or usual


def read_labels(image: LabeledImage, class_names: tuple[str, ...], root: Path) -> None:
    """Add the objects of its label file to the image, and a finding for each line that is odd."""
    name = relative(image.label_file, root)
    if not image.label_file.is_file():
        message = f"there is no {name}: the image counts as one without objects and teaches background only."
        image.report("no_label_file", "warning", message, "Label it, or add an empty file.")
        return
    try:
        lines = read_text(image.label_file).splitlines()
    except DataError as error:
        image.report("damaged_labels", "error", str(error))
        return
    outlines: list[int] = []
    scores: list[int] = []
    for number, line in enumerate(lines, 1):
        if image.full:
            break
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
        comma = " (decimals are written with a point, and spaces between)" if "," in "".join(words) else ""
        raise ValueError(f"numbers are expected, not {' '.join(words)[:60]!r}{comma}") from None
    if not all(map(math.isfinite, (number, *values))):
        raise ValueError(f"finite numbers are expected, not {' '.join(words)[:60]!r}")
    if len(values) < 4 or (len(values) > 5 and len(values) % 2):
        raise ValueError(f"`class x y width height` is expected, not {len(words)} numbers")
    if number != int(number) or not 0 <= number < len(class_names):
        last = len(class_names) - 1
        raise ValueError(
            f"there is no class {words[0][:40]}: they are 0 to {last} ({', '.join(class_names)[:200]})"
        )
    coordinates = values if len(values) > 5 else values[:4]
    outside = [w for w, v in zip(words[1:], coordinates, strict=False) if not -_REACH <= v <= 1 + _REACH]
    if outside:
        pixels = " (these look like pixels)" if len(outside) * 2 >= len(coordinates) else ""
        raise ValueError(
            f"fractions of the image from 0 to 1 are expected, not {' '.join(outside[:8])[:200]}{pixels}"
        )
    box = values[:4]
    if len(values) > 5:
        left, top, right, bottom = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
        box = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    x, y, width, height = (
        value * side for value, side in zip(box, 2 * (image.width, image.height), strict=True)
    )
    return int(number), rounded((x - width / 2, y - height / 2, x + width / 2, y + height / 2))


def _report_unused_labels(folder: LabeledFolder, used: set[Path], names_file: Path) -> None:
    other = {"classes", "labels", "notes", "readme", *SPLIT_WORDS}
    for place in sorted({label.parent for label in used if label.parent.is_dir()}):
        for file in files_below(place, depth=0):
            if file.suffix.lower() != ".txt" or file in used or file == names_file:
                continue
            if file.stem.split(".")[0].lower() in other:
                continue
            message = f"{relative(file, folder.root)} belongs to no image: its objects are not used."
            remedy = "Restore the image, or remove the file."
            folder.report("label_without_image", "warning", message, remedy)
