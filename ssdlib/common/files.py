"""Reading text and folders; writing so that nothing on disk is ever lost: write beside, sync, then rename."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from ssdlib.common.errors import DataError, SsdError


class _Remembering(io.FileIO):
    """A file that keeps the first error of its writes: some libraries raise one of their own instead."""

    refused: OSError | None = None

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            self.refused = self.refused or error
            raise


@contextmanager
def atomic_open(path: str | Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, open for binary writing, which is renamed to `path` on success.

    A reader sees the old file or the whole new one, never a half. On any error, a full disk or Ctrl-C
    included, the temporary file is removed and the old file stays. Raises SsdError, naming the file and
    the remedy, where the operating system refuses.
    """
    path = Path(path)
    temporary, raw = _beside(path, "tmp"), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = _Remembering(temporary, "xb")
        with io.BufferedWriter(raw) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
    except Exception as error:
        if raw is None or raw.refused is None:
            raise
        raise _refused(path, raw.refused) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def new_folder(path: str | Path, *, already: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """A temporary folder beside `path` to be filled, which is renamed to `path` on success.

    So `path` is there as a whole or not at all; an empty folder of that name is replaced. `already()` is
    asked where the renaming fails: it says whether another process was quicker with the same content, which
    then stays. Raises DataError if there is something in `path` from the start, SsdError, naming the remedy,
    where the operating system refuses.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path} already holds something: name a new folder.")
    temporary = _beside(path, "partial")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        with suppress(OSError):
            path.rmdir()  # succeeds on an empty folder alone; Windows does not rename over one
        try:
            temporary.rename(path)
        except OSError:
            if not already():
                raise
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path, ending: str) -> Path:
    return path.parent / f".{path.name}.{uuid4().hex[:8]}.{ending}"


def _refused(path: Path, error: OSError) -> SsdError:
    return SsdError(
        f"cannot write {path}: {error.strerror or error}. Free some space or choose another folder; what was "
        "there before is untouched."
    )


def write_bytes(path: str | Path, content: bytes) -> None:
    """Atomically write `content` to `path`."""
    with atomic_open(path) as stream:
        stream.write(content)


def write_text(path: str | Path, content: str, encoding: str = "utf-8") -> None:
    """Atomically write `content` to `path`, by default as UTF-8."""
    write_bytes(path, content.encode(encoding))


def write_json(path: str | Path, value: Any) -> None:
    """Atomically write `value` as indented JSON. NaN is refused: write None for "n/a"."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, *, hint: str = "") -> Any:
    """The value in a JSON file. Raises SsdError with the file and `hint` if it is missing or damaged."""
    try:
        return json.loads(decode_text(Path(path).read_bytes(), path))
    except FileNotFoundError as error:
        raise SsdError(f"{path} is missing. {hint}".strip()) from error
    except OSError as error:
        raise SsdError(f"cannot read {path}: {error.strerror or error}. {hint}".strip()) from error
    except (json.JSONDecodeError, DataError, RecursionError) as error:
        raise SsdError(f"{path} is not valid JSON ({error}). {hint}".strip()) from error


_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def decode_text(content: bytes, path: str | Path) -> str:
    """The text of a file's bytes: UTF-8, or UTF-16 where a byte order mark says so, without the mark.

    Raises DataError, naming the file, for any other encoding.
    """
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    if "\0" in text:  # UTF-16 without a mark, or no text at all
        raise DataError(f"{path} is not UTF-8 text (it has zero bytes). Save it as UTF-8.")
    return text


def is_hidden(path: str | Path) -> bool:
    """Whether a file or folder is one that systems leave beside the user's: hidden, ._a.jpg, __MACOSX."""
    name = Path(path).name
    return name.startswith(".") or name.lower() in ("__macosx", "@eadir", "thumbs.db", "desktop.ini")


def files_below(folder: str | Path, depth: int | None = None) -> list[Path]:
    """All files in a folder and in those below it, `depth` levels at most, sorted; hidden ones are left out.

    Linked folders are entered, unless they lead back to one that they are in. Raises DataError for a folder
    that cannot be read.
    """

    def enter(place: str, above: tuple[str, ...]) -> Iterator[Path]:
        real = os.path.realpath(place)
        if real in above or (depth is not None and len(above) > depth):
            return
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from enter(entry.path, (*above, real))
            elif entry.is_file():
                yield Path(entry.path)

    try:
        return list(enter(str(folder), ()))
    except OSError as error:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror or error}") from error


def write_with(path: str | Path, writer: Callable[[BinaryIO], Any]) -> None:
    """Atomically write whatever `writer(stream)` writes; for libraries that want a file object."""
    with atomic_open(path) as stream:
        writer(stream)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
