"""The journal of a detect job: the record of each finished image, from which a stopped job goes on."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from ssdlib.common.errors import ConfigError, SsdError
from ssdlib.common.files import check_shape, parse_json, read_json, write_json
from ssdlib.config import differences
from ssdlib.inference.fields import SCALES
from ssdlib.inference.inputs import ImageTask, stamp_of
from ssdlib.inference.quality import NOTES
from ssdlib.inference.results import DONE, UNREADABLE, Record
from ssdlib.inference.slides import BORDER_RULES

_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Neither a link is followed nor a pipe waited for."""
_MAX_LINE = 20_000_000
"""Bytes of a line at most: one with 200,000 cells has fewer."""
APPENDING = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _CAREFUL
"""How a file is opened that only grows."""

_Side = Annotated[int, Field(ge=1, le=1_000_000)]
_Corner = Annotated[float, Field(ge=-1_000_000, le=1_000_000)]
_Scale = Annotated[FiniteFloat, Field(gt=0)] | None


class _Cell(TypedDict):
    label: str
    score: Annotated[float, Field(ge=0, le=1)]
    box: tuple[_Corner, _Corner, _Corner, _Corner]


class _Done(TypedDict):
    image: str
    state: Literal[DONE]
    width: _Side
    height: _Side
    detections: list[_Cell]
    counts: dict[str, int]
    tiles: _Side
    view: tuple[_Side, _Side]
    scale: Literal[SCALES]
    um_per_pixel: _Scale
    measured_um: _Scale
    border: Literal[tuple(BORDER_RULES)]
    quality: list[Literal[tuple(NOTES)]]
    copy: str | None


class _Unreadable(TypedDict):
    image: str
    state: Literal[UNREADABLE]
    message: str


class Journal:
    """One line of JSON for each finished image, in a file that only grows.

    A line counts once its end is written: what a killed process left of one is cut off when the file is
    opened again. An image is known by its path, size, time of change and name, so a changed one is done anew:
    by the next call, where it changes while the job runs.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written without a buffer: one that a full disk has refused would be tried again on closing.
            self._file = os.open(path, APPENDING, 0o666)
            self._stream = os.fdopen(os.open(path, os.O_RDONLY | _CAREFUL), "rb")
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise OSError("it is no file")
        except OSError as error:
            raise SsdError(
                f"cannot write {path}: {error.strerror or error}. Choose another --out."
            ) from error
        self._path = path
        self._offsets: dict[str, int] = {}
        self._keys: dict[ImageTask, str] = {}  # as they were when each image was first asked for
        self._class_names = class_names
        end = 0
        for line in iter(partial(self._stream.readline, _MAX_LINE), b""):
            if not line.endswith(b"\n"):
                break
            with suppress(ValueError):  # what is damaged is done anew
                self._offsets[self._parsed(line)[0]] = end
            end += len(line)
        if self._stream.tell() > end:  # else another process may have written a line since
            os.ftruncate(self._file, end)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        os.close(self._file)

    def __contains__(self, task: ImageTask) -> bool:
        return self._key(task) in self._offsets

    def _key(self, task: ImageTask) -> str:
        if task not in self._keys:
            self._keys[task] = json.dumps([task.shown, task.name, stamp_of(task.path)])
        return self._keys[task]

    def append(self, task: ImageTask, record: Record) -> None:
        """Write the record of an image whose other files are written."""
        key = self._key(task)
        line = json.dumps({"key": json.loads(key), **record}, allow_nan=False).encode() + b"\n"
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            end = os.lseek(self._file, 0, os.SEEK_CUR) - len(line)  # another process may write there, too
        except OSError as error:
            raise SsdError(
                f"cannot write {self._path}: {error.strerror or error}. Free some space and give the same "
                "command again: it goes on."
            ) from error
        self._offsets[key] = end

    def read(self, tasks: Iterable[ImageTask]) -> Iterator[Record]:
        """The record of each task that has one, in the order of the tasks."""
        for key in map(self._key, tasks):
            if key in self._offsets:
                self._stream.seek(self._offsets[key])
                try:
                    found, record = self._parsed(self._stream.readline())
                    if found != key:
                        raise ValueError("it is of another image")
                except ValueError as error:
                    raise SsdError(
                        f"a line of {self._path} was changed meanwhile ({error}): give the same command again"
                    ) from error
                yield record

    def _parsed(self, line: bytes) -> tuple[str, Record]:
        """The key and the record of a line. Raises ValueError if it is not as `append` wrote it."""
        content = parse_json(line, dict[str, Any])
        record = check_shape(content, _Done | _Unreadable)
        key = check_shape(content.get("key"), tuple[str, str, Any])
        if key[0] != record["image"]:
            raise ValueError("its key and its image differ")
        if record["state"] == DONE:
            labels = [cell["label"] for cell in record["detections"]]
            counts = {name: labels.count(name) for name in self._class_names}
            if record["counts"] != counts or sum(counts.values()) != len(labels):
                raise ValueError("its cells are not those that it counts")
            if any(
                box[0] > box[2] or box[1] > box[3] for box in (cell["box"] for cell in record["detections"])
            ):
                raise ValueError("it has a box whose end lies before its beginning")
        return json.dumps(key), record


def open_journal(
    folder: Path, settings: Mapping[str, Any], class_names: Sequence[str], *, restart: bool = False
) -> Journal:
    """The journal in `folder`, of a job with these settings (plain values for JSON).

    Raises ConfigError, naming what differs, if the folder holds results of other settings, unless `restart`,
    which forgets what was done.
    """
    path = folder / "journal.jsonl"
    if (folder / "plan.parquet").exists():
        raise ConfigError(f"{folder.parent} holds results of detect --engine-cluster: choose another --out")
    try:
        if restart:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise SsdError(f"cannot remove {path}: {error.strerror or error}. Choose another --out.") from error
    save_settings(folder, settings, begun=path.exists())
    return Journal(path, class_names)


def save_settings(folder: Path, settings: Mapping[str, Any], *, begun: bool) -> None:
    """Write the settings of a job, plain values, to settings.json in `folder`.

    Raises ConfigError, naming what differs, if the job has `begun` with other settings.
    """
    path = folder / "settings.json"
    if begun and path.exists():
        before = read_json(path, hint="Give --restart to do all images again.", shape=dict[str, Any])
        if changed := differences(before, settings):
            raise ConfigError(
                f"{folder.parent} holds results of other settings: {'; '.join(changed)}. Choose another "
                "--out, or give --restart to do all images again."
            )
    write_json(path, dict(settings))
