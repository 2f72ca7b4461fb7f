"""The journal of a detect job: the record of each finished image, from which a stopped job goes on."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ssdlib.common.errors import ConfigError, SsdError
from ssdlib.common.files import parse_json, read_json, write_json
from ssdlib.config import differences
from ssdlib.inference.inputs import ImageTask, stamp_of
from ssdlib.inference.results import Record

_Line = dict[str, Any]
_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Neither a link is followed nor a pipe waited for."""
_MAX_LINE = 100_000_000
APPENDING = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _CAREFUL
"""How a file is opened that only grows."""


class Journal:
    """One line of JSON for each finished image, in a file that only grows.

    A line counts once its end is written: what a killed process left of one is cut off when the file is
    opened again. An image is known by its path, size, time of change and name, so a changed one is done anew:
    by the next call, where it changes while the job runs.
    """

    def __init__(self, path: Path) -> None:
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
        end = 0
        with suppress(ValueError, KeyError, TypeError):  # what is damaged is done anew
            for line in iter(partial(self._stream.readline, _MAX_LINE), b""):
                if not line.endswith(b"\n"):
                    break
                self._offsets[json.dumps(parse_json(line, _Line)["key"])] = end
                end += len(line)
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
        end, rest = os.fstat(self._file).st_size, memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
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
                record = json.loads(self._stream.readline())
                del record["key"]
                yield record


def open_journal(folder: Path, settings: Mapping[str, Any], *, restart: bool = False) -> Journal:
    """The journal in `folder`, of a job with these settings (plain values for JSON).

    Raises ConfigError, naming what differs, if the folder holds results of other settings, unless `restart`,
    which forgets what was done.
    """
    path = folder / "journal.jsonl"
    if (folder / "plan.parquet").exists():
        raise ConfigError(f"{folder.parent} holds results of detect --engine-cluster: choose another --out")
    if restart:
        path.unlink(missing_ok=True)
    save_settings(folder, settings, begun=path.exists())
    return Journal(path)


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
