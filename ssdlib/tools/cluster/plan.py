"""The plan of an archive: a Parquet file with a row group of images for each part, kept for going on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ssdlib.common.errors import SsdError
from ssdlib.common.files import atomic_open, parse_json, require_file
from ssdlib.common.runtime import need_extra
from ssdlib.inference.inputs import ImageTask, stamp_of

PLAN = "job/plan.parquet"
"""The plan's file in the output folder."""
MISSING = (-1, -1)
"""Stamp of an image that is not there."""
_READERS = 32
"""Stamps asked for at once: on a network file system each takes about a millisecond of waiting."""

MAX_PART_IMAGES = 10_000_000
"""No part has more images."""

Stamp = tuple[int, int]
"""What `ssdlib.inference.inputs.stamp_of` gives."""


class Plan:
    """The parts of an archive in the order of their numbers, read one part at a time.

    Raises SsdError that names the file if it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        parquet = need_extra("ray", "pyarrow.parquet", "ray")
        self._path = path
        with self._refused():
            require_file(path)
            self._file = parquet.ParquetFile(path)
            about = self._file.metadata
            self.numbers: list[int] = parse_json(about.metadata[b"parts"], list[int])
            rows = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
            if len(rows) != len(self.numbers) or not all(0 < row <= MAX_PART_IMAGES for row in rows):
                raise ValueError("it does not hold the parts that it names")
            if self.numbers != sorted({number for number in self.numbers if number >= 0}):
                raise ValueError("the numbers of its parts are not in order")

    def stamps(self, row_group: int) -> dict[bytes, Stamp]:
        """The stamp of each image of a part, by the bytes of its path."""
        with self._refused():
            rows = self._file.read_row_group(row_group, ["path", "size", "changed_ns"]).to_pylist()
            return {bytes(row["path"]): (int(row["size"]), int(row["changed_ns"])) for row in rows}

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # bytes at random raise whatever the reader comes across
            raise SsdError(
                f"{self._path} cannot be read ({error}). Give --restart to do all images again."
            ) from error

    def tasks(self, row_group: int) -> list[ImageTask]:
        """The images of a part, without names for pictures."""
        return [ImageTask(Path(os.fsdecode(path)), "") for path in self.stamps(row_group)]

    def images(self) -> dict[int, int]:
        """The number of images of each part."""
        groups = map(self._file.metadata.row_group, range(len(self.numbers)))
        return {number: group.num_rows for number, group in zip(self.numbers, groups, strict=True)}


def make_plan(path: Path, tasks: Iterable[ImageTask], size: int) -> Plan:
    """The plan for these images, `size` of them a part, written to `path`.

    A part of an earlier plan there keeps its number if all of its images are still meant and unchanged. Every
    other image, be it new, changed, or left over from a part that lost one, goes into a new part, with a
    number that the earlier plan did not have.
    """
    waiting = _stamps(tasks)
    earlier = Plan(path) if path.exists() else None

    def parts() -> Iterator[tuple[int, dict[bytes, Stamp]]]:
        number = -1
        for row_group, number in enumerate(earlier.numbers if earlier else ()):
            kept = earlier.stamps(row_group)
            if all(waiting.get(image) == stamp for image, stamp in kept.items()):
                for image in kept:
                    del waiting[image]
                yield number, kept
        rest = iter(waiting.items())
        while images := dict(islice(rest, size)):
            number += 1
            yield number, images

    _write(path, parts())
    return Plan(path)


def _stamps(tasks: Iterable[ImageTask]) -> dict[bytes, Stamp]:
    paths, stamps = (os.fsencode(task.path) for task in tasks), {}
    with ThreadPoolExecutor(_READERS, "ssdlib-stamp") as pool:
        # Some at a time: what waits in the pool takes more memory than all that is asked for.
        while some := list(islice(paths, 100 * _READERS)):
            stamps |= {
                path: stamp or MISSING for path, stamp in zip(some, pool.map(stamp_of, some), strict=True)
            }
    return stamps


def _write(path: Path, parts: Iterable[tuple[int, dict[bytes, Stamp]]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema({"path": pa.binary(), "size": pa.int64(), "changed_ns": pa.int64()})
    numbers: list[int] = []
    with atomic_open(path) as stream, parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for number, images in parts:
            sizes, changes = zip(*images.values(), strict=True)
            columns: list[Any] = [list(images), sizes, changes]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(images))
            numbers.append(number)
        writer.add_key_value_metadata({"parts": json.dumps(numbers)})
