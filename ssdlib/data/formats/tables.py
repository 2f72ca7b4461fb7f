"""Labels in a CSV file: a line for each object, with its image, its box in pixels and its class."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ssdlib.common.errors import DataError
from ssdlib.common.files import files_below
from ssdlib.data.formats.lookup import Files, folder_split, missing_image, split_of
from ssdlib.data.formats.records import (
    SPLIT_WORDS,
    Corners,
    LabeledFolder,
    LabeledImage,
    check_names,
    read_text,
    relative,
)
from ssdlib.data.images import IMAGE_SUFFIXES

LAYOUT = "a .csv file with the columns image, xmin, ymin, xmax, ymax, label, and the images"

_COLUMNS = {
    "image": ("image", "imagename", "imagenames", "filename", "file", "path", "imagepath", "imageid", "img"),
    "xmin": ("xmin", "x1", "left"),
    "ymin": ("ymin", "y1", "top"),
    "xmax": ("xmax", "x2", "right"),
    "ymax": ("ymax", "y2", "bottom"),
    "label": ("label", "class", "classname", "labelname", "celltype", "category", "name"),
    "score": ("score", "confidence"),
}
"""How tools call the columns, without signs between the words; the last one may be missing."""

_PLAIN = ("image", "xmin", "ymin", "xmax", "ymax", "label")
"""The columns of a file without a header (keras-retinanet)."""


Row = tuple[int, dict[str, str]]
"""The number of a line, and its cells by column."""


def read_tables(root: Path) -> LabeledFolder | None:
    """Read a folder with CSV files: one for all images, or one a split, by its name (train.csv) or folder.

    A line with an image alone says that it has no object. Images are looked for by their names anywhere in
    the folder. None if there is no such file. Raises DataError for one without class names.
    """
    if not (files := csv_files(root)):
        return None
    folder, pictures = LabeledFolder("csv", root, (), [], list(files)), Files(files_below(root), root)
    scored = [file for file, rows in files.items() if any(row.get("score") for _, row in rows)]
    for file, rows in files.items():
        if file in scored and len(scored) < len(files):
            message = f"{relative(file, root)} has scores, as predictions have: it is not used."
            folder.report("scored_label", "info", message)
            continue
        _add_rows(folder, file, rows, pictures)
    names = sorted({o.name for image in folder.images for o in image.objects})
    folder.class_names = check_names(names, next(iter(files))) if names else ()
    return folder


def csv_files(root: Path) -> dict[Path, list[Row]]:
    """The lines of the CSV files with labels, in the folder, annotations, labels and split folders."""
    words = {"annotations", "labels", *SPLIT_WORDS}
    places = [root, *(place for place in sorted(root.iterdir()) if place.name.lower() in words)]
    files = [file for place in places if place.is_dir() for file in files_below(place, depth=0)]
    return {file: rows for file in files if file.suffix.lower() == ".csv" and (rows := _read_rows(file))}


def _read_rows(file: Path) -> list[Row]:
    """The lines of a CSV file with labels; none if it is another table."""
    text = read_text(file)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}. Save it as CSV anew.") from error
    if not lines:
        return []
    plain = ["".join(filter(str.isalnum, cell.lower())) for cell in lines[0][1]]
    columns = {
        name: next((plain.index(word) for word in words if word in plain), None)
        for name, words in _COLUMNS.items()
    }
    lacking = [name for name in _PLAIN if columns[name] is None]
    if lacking:
        first = lines[0][1]
        image = len(first) == len(_PLAIN) and first[0].lower().endswith(IMAGE_SUFFIXES)
        if not image or not all(cell == "" or _number(cell) is not None for cell in first[1:5]):
            return []
        columns = {name: k for k, name in enumerate(_PLAIN)}
    return [
        (number, {name: cells[k] for name, k in columns.items() if k is not None and k < len(cells)})
        for number, cells in lines[not lacking :]
    ]


def _add_rows(folder: LabeledFolder, file: Path, rows: Sequence[Row], pictures: Files) -> None:
    shown = relative(file, folder.root)
    split, word = split_of(file, folder.root)
    stated = list(dict.fromkeys(row.get("image", "") for _, row in rows))
    found = dict(zip(stated, pictures.find_all(stated, file.parent, split, [word]), strict=True))
    images: dict[str, LabeledImage] = {}
    for name, path in found.items():
        if not name:
            number = next(number for number, row in rows if not row.get("image"))
            raise DataError(f"{file}, line {number} names no image. Fill it in, or delete the line.")
        path = path or missing_image(name, file, folder.root)
        own = split or folder_split(path, folder.root)
        images[name] = folder.add_image(path, file, own)
        if not images[name].joined:
            images[name].measure()
    scores = 0
    for number, row in rows:
        image, cells = images[row["image"]], [row.get(name, "") for name in _PLAIN[1:]]
        scores += bool(row.get("score"))
        if not any(cells):
            continue
        corners = _corners(cells[:4])
        if corners is None or not cells[4]:
            message = f"{shown}, line {number}: a box of four numbers and a class are expected, not "
            remedy = "Correct it, or delete the line."
            image.report("damaged_labels", "error", f"{message}{', '.join(cells)!r}.", remedy)
        elif image.width:
            image.add(cells[4], corners, f"{shown}, line {number}")
    if scores:
        message = f"{shown} has scores in {scores} lines, as predictions have: they are passed over."
        remedy = "Make sure that these are labels that a person has looked at."
        folder.report("scored_label", "warning", message, remedy)


def _corners(cells: Sequence[str]) -> Corners | None:
    values = [_number(cell) for cell in cells]
    return None if None in values else tuple(values)


def _number(cell: str) -> float | None:
    """The number in a cell, with a decimal point or comma."""
    try:
        value = float(cell.replace(",", "."))
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None
