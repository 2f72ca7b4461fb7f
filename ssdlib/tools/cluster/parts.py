"""The files of a part, `cells/part-N.parquet` and `images/part-N.parquet`, and what all say together.

The tables have the columns of `cells.csv` and `images.csv`. The images' file is written last: where it is,
the part is done.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ssdlib.common import files
from ssdlib.common.errors import SsdError
from ssdlib.common.files import atomic_open, require_file
from ssdlib.inference.job import Summary
from ssdlib.inference.quality import notes_of
from ssdlib.inference.results import DONE, Record, cell_rows, image_rows

CELLS, IMAGES = "cells", "images"
_TYPES = {
    "image": "string", "class": "string", "state": "string", "message": "string",
    "scale": "string", "quality": "string",
    "score": "double", "xmin": "double", "ymin": "double", "xmax": "double", "ymax": "double",
    "width_um": "double", "height_um": "double", "um_per_pixel": "double",
}  # fmt: skip


def part_file(out: Path, table: str, number: int) -> Path:
    """The file with a part's rows of `table` (CELLS or IMAGES)."""
    return out / table / f"part-{number:06d}.parquet"


def write_part(out: Path, number: int, records: Sequence[Record], class_names: Sequence[str]) -> None:
    """Write both files of a part, each whole or not at all."""
    cells, images = cell_rows(records), image_rows(records, class_names)
    # Sizes of images are whole pixels, those of cells are not.
    _write_table(part_file(out, CELLS, number), cells, {**_TYPES, "width": "double", "height": "double"})
    _write_table(part_file(out, IMAGES, number), images, _TYPES)


def _write_table(path: Path, rows: Iterator[Sequence[Any]], types: dict[str, str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    names, *body = rows
    columns = list(zip(*body, strict=True)) or [()] * len(names)
    arrays = [pa.array(column, types.get(name, "int32")) for name, column in zip(names, columns, strict=True)]
    with atomic_open(path) as stream:
        parquet.write_table(pa.table(arrays, names=list(names)), stream, compression="zstd")


def finished(out: Path) -> set[int]:
    """The numbers of the parts that are done."""
    return set(_numbered(out / IMAGES))


def tidy(out: Path, planned: Collection[int]) -> None:
    """Remove files of parts that are not planned or not finished, as a killed command leaves them.

    Raises SsdError for a link in the folders of the job, which would lead results elsewhere.
    """
    files.tidy(out, (IMAGES, CELLS, "job"))
    whole = finished(out) & set(planned)
    for table in (IMAGES, CELLS):  # in this order: without the images' file a part is not done
        for number, path in _numbered(out / table).items():
            if number not in whole:
                path.unlink(missing_ok=True)
        for path in (out / table).glob(".part-*.tmp"):
            path.unlink(missing_ok=True)


def _numbered(folder: Path) -> dict[int, Path]:
    found = (
        (re.fullmatch(r"part-([0-9]{6,9})\.parquet", path.name), path) for path in sorted(folder.glob("*"))
    )
    return {int(match[1]): path for match, path in found if match}


def summarize(out: Path, numbers: Sequence[int], class_names: tuple[str, ...]) -> Summary:
    """The summary of these parts, read one at a time."""
    from pyarrow import parquet

    summary = Summary(class_names)
    for number in numbers:
        path = part_file(out, IMAGES, number)
        try:
            require_file(path)
            with parquet.ParquetFile(path) as file:
                for row in file.read().to_pylist():
                    if row["state"] == DONE:
                        counts = [int(row[name]) for name in class_names]
                        summary.add(str(row["image"]), counts, notes_of(row["quality"]))
                        summary.add_scale(row["scale"], row["um_per_pixel"])
                    else:
                        summary.add_failure(str(row["message"]))
        except Exception as error:  # bytes at random raise whatever the reader comes across
            raise SsdError(
                f"{path} cannot be read ({error}). Remove it and give the same command again: its images are "
                "then done anew."
            ) from error
    return summary
