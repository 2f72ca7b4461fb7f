"""The files of a part, `cells/part-N.parquet` and `images/part-N.parquet`, and what all say together.

The tables have the columns of `cells.csv` and `images.csv`. The images' file is written last: where it is,
the part is done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssdlib.common.files import atomic_open
from ssdlib.inference.job import RedCellSizes, Summary
from ssdlib.inference.quality import notes_of
from ssdlib.inference.results import DONE, Record, cell_rows, image_rows
from ssdlib.inference.tiling import Tiling

CELLS, IMAGES = "cells", "images"
ENOUGH_RED_CELLS = 10_000
"""Red cells that suffice to judge the scale of an archive."""

_MEASURED = ["image", "class", "width", "height"]
_TYPES = {
    "image": "string", "class": "string", "state": "string", "message": "string",
    "quality": "string",
    "score": "double", "xmin": "double", "ymin": "double", "xmax": "double", "ymax": "double",
    "width_um": "double", "height_um": "double", "um_per_pixel": "double",
}  # fmt: skip


def part_file(out: Path, table: str, number: int) -> Path:
    """The file with a part's rows of `table` (CELLS or IMAGES)."""
    return out / table / f"part-{number:06d}.parquet"


def write_part(
    out: Path, number: int, records: Sequence[Record], class_names: Sequence[str], um_per_pixel: float | None
) -> None:
    """Write both files of a part, each whole or not at all."""
    cells, images = cell_rows(records, um_per_pixel), image_rows(records, class_names, um_per_pixel)
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
    """Remove files of parts that are not planned or not finished, as a killed command leaves them."""
    whole = finished(out) & set(planned)
    for table in (IMAGES, CELLS):  # in this order: without the images' file a part is not done
        for number, path in _numbered(out / table).items():
            if number not in whole:
                path.unlink(missing_ok=True)
        for path in (out / table).glob(".part-*.tmp"):
            path.unlink(missing_ok=True)


def _numbered(folder: Path) -> dict[int, Path]:
    return {int(path.stem.removeprefix("part-")): path for path in sorted(folder.glob("part-*.parquet"))}


def summarize(out: Path, numbers: Sequence[int], class_names: tuple[str, ...], tiling: Tiling) -> Summary:
    """The summary of these parts, read one at a time."""
    from pyarrow import parquet

    summary, sizes = Summary(class_names), RedCellSizes()
    for number in numbers:
        images = parquet.read_table(part_file(out, IMAGES, number)).to_pylist()
        for row in images:
            if row["state"] == DONE:
                summary.add(row["image"], [row[name] for name in class_names], notes_of(row["quality"]))
            else:
                summary.add_failure(row["message"])
        if sizes.count < ENOUGH_RED_CELLS:
            cells = parquet.read_table(part_file(out, CELLS, number))
            image, kind, width, height = map(np.asarray, cells.select(_MEASURED).columns)
            for row in images:
                if row["state"] == DONE:
                    left, top, right, bottom = tiling.tiles(row["width"], row["height"])[0]
                    own = (kind == "RBC") & (image == row["image"])
                    sizes.add(np.sqrt(width[own] * height[own]), (right - left, bottom - top))
    summary.scale_warning = sizes.warning()
    return summary
