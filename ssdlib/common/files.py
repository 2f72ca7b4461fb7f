"""Reading text and folders; writing so that nothing on disk is ever lost: write beside, sync, then rename."""

from __future__ import annotations

import codecs
import errno
import hashlib
import io
import json
import os
import re
import reprlib
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

from ssdlib.common.errors import DataError, SsdError

if TYPE_CHECKING:
    from pydantic import TypeAdapter


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
    included, the temporary file is removed and the old file stays. A device or a pipe is written to as it is.
    Raises SsdError, naming the file and the remedy, where the operating system refuses, and for a link, which
    would be replaced.
    """
    path = Path(path)
    if _is_stream(path):
        try:
            # For a pipe that nobody reads the system would wait for ever.
            waiting = getattr(os, "O_NONBLOCK", 0)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | waiting)
            if waiting:
                os.set_blocking(descriptor, True)
            with open(descriptor, "ab") as stream:  # noqa: PTH123 (it is open already)
                yield stream
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise SsdError(
                    f"cannot write {path}: nothing reads this pipe. Start its reader first."
                ) from error
            raise _refused(path, error) from error
        return
    raw, movable = None, os.name != "nt"  # which neither renames nor removes an open file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, raw = _begin(path, "tmp", lambda new: _Remembering(new, "xb"))
        try:
            with io.BufferedWriter(raw) as stream:
                try:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                    if movable:
                        temporary.replace(path)
                except BaseException:
                    if movable:  # while it is locked: afterwards the name may be another writer's
                        _unlink(temporary)
                    raise
            if not movable:
                temporary.replace(path)
        finally:
            if not movable:
                _unlink(temporary)
    except OSError as error:
        raise _refused(path, error) from error
    except Exception as error:
        if raw is None or raw.refused is None:
            raise
        raise _refused(path, raw.refused) from error


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _begin(path: Path, ending: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """A new temporary file or folder beside `path`, and what `make` gives for it, locked if possible.

    It has the same name each time, so that what a kill leaves is replaced when the same is written again;
    another one only while another process writes it, too.
    """
    for mark in chain(["0" * 8], (uuid4().hex[:8] for _ in range(99)), [""]):
        # Of a long name the beginning: with the rest it would be longer than a name may be.
        temporary = path.parent / f".{path.name[:50]}.{mark}.{ending}"
        _remove_forsaken(temporary)
        try:
            made = make(temporary)
        except FileExistsError:
            if not mark:
                raise
            continue
        if os.name == "nt" or _own(temporary, made):
            return temporary, made
        if isinstance(made, int):
            os.close(made)
        else:
            made.close()
    raise OSError(errno.EAGAIN, "others change it all the time")


def _own(temporary: Path, made: Any) -> bool:
    """Whether a file or folder just made could be locked before another process took it for forsaken."""
    descriptor = made if isinstance(made, int) else made.fileno()
    try:
        lock_open(descriptor)
    except BlockingIOError:
        return False
    except OSError:  # some file systems know no locks
        return True
    return _is_at(temporary, descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file or folder is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _is_stream(path: Path) -> bool:
    """Whether it is there and is neither file nor folder. Raises SsdError for a link."""
    with suppress(OSError):
        here = os.path.abspath(path)  # noqa: PTH100 (links are not to be resolved)
        if here.startswith(("/dev/std", "/dev/fd/", "/proc/")):  # links to what they are now
            return not path.is_dir()
        if path.is_symlink():
            raise SsdError(f"{path} is a link, which is not written to: name the file that it leads to.")
        mode = path.stat().st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


def lock_open(descriptor: int) -> None:
    """Lock an open file, or outside Windows a folder, until it is closed. OSError if another has it."""
    if os.name == "nt":
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # nobody may read the bytes that are locked
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def tidy(folder: Path, parts: Iterable[str]) -> None:
    """Remove what killed writers left behind in `folder` itself and anywhere in its `parts`, folders.

    Raises SsdError for a link among them, which would lead what is written out of the folder.
    """
    for place in (folder, *(folder / part for part in parts)):
        if place != folder and place.is_symlink():
            raise SsdError(f"{place} is a link, which could lead results elsewhere: remove it.")
        for here, folders, names in os.walk(place):
            if place == folder:
                folders.clear()
            for path in (Path(here, name) for name in (*folders, *names)):
                if place != folder and path.is_symlink():
                    raise SsdError(f"{path} is a link, which could lead results elsewhere: remove it.")
                if _LEFTOVER.fullmatch(path.name):
                    _remove_forsaken(path)


_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.DOTALL)
_UNFOLLOWED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def _remove_forsaken(temporary: Path) -> None:
    """Remove a temporary file or folder if it is there and the process that wrote it is gone."""
    with suppress(OSError):
        if os.name == "nt":
            temporary.unlink()  # refused while it is open
            return
        descriptor = os.open(temporary, os.O_RDONLY | _UNFOLLOWED)
        try:
            lock_open(descriptor)
            if _is_at(temporary, descriptor):
                if temporary.is_dir():
                    shutil.rmtree(temporary)
                else:
                    temporary.unlink()
        finally:
            os.close(descriptor)


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
    temporary = descriptor = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, descriptor = _begin(path, "partial", _make_folder)
        yield temporary
        with suppress(OSError):
            path.rmdir()  # succeeds on an empty folder alone; Windows does not rename over one
        try:
            temporary.rename(path)
            temporary = None
        except OSError:
            if not already():
                raise
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _make_folder(path: Path) -> int | None:
    """Make a folder; its descriptor, to be locked by, where the system opens folders."""
    path.mkdir()
    return None if os.name == "nt" else os.open(path, os.O_RDONLY)


def _refused(path: Path, error: OSError) -> SsdError:
    why = error.strerror or error
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        why = error.args[0][0][-1]  # of the first of the files that could not be copied
    return SsdError(
        f"cannot write {path}: {why}. Free some space or choose another folder; what was "
        "there before is untouched."
    )


def write_bytes(path: str | Path, content: bytes) -> None:
    """Atomically write `content` to `path`."""
    with atomic_open(path) as stream:
        stream.write(content)


def write_text(path: str | Path, content: str, encoding: str = "utf-8") -> None:
    """Atomically write `content` to `path`, by default as UTF-8; what no encoding has, as its code."""
    write_bytes(path, content.encode(encoding, "backslashreplace"))


def write_json(path: str | Path, value: Any) -> None:
    """Atomically write `value` as indented JSON. NaN is refused: write None for "n/a"."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


MAX_BYTES = 20_000_000
"""No file with settings, labels as XML or text, or a list is larger; one that is, is something else."""
MAX_JSON_BYTES = 400_000_000
"""No JSON file is larger: COCO keeps the labels of a whole data set in one."""
_MAX_VALUES_BYTES = 1_500_000_000
"""The most memory that the values of a JSON file may need."""
_MAX_DEPTH, _MAX_DIGITS = 100, 100
_LONG_NUMBER = re.compile(rf"\d{{{_MAX_DIGITS + 1}}}")


def read_limited(path: str | Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises DataError, naming it, if it is missing, cannot be read, is larger than `most` bytes, or is a
    folder, a pipe or a device, which may never end.
    """
    path = Path(path)
    status, content = require_file(path), b""
    try:
        if status.st_size <= most:
            with path.open("rb") as stream:
                content = stream.read(status.st_size + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if max(status.st_size, len(content)) > most:
        raise DataError(f"{path} is larger than {most // 10**6} MB: not what its name says.")
    return content


def require_file(path: str | Path) -> os.stat_result:
    """What the system knows of a regular file. Raises DataError as `read_limited` does."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"cannot read {path}: it is a folder, a pipe or a device. Put a file there.")
    return status


def read_json(path: str | Path, *, hint: str = "", shape: Any = None, most: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file of at most `most` bytes, of a type that pydantic knows: `shape`.

    Raises SsdError with the file, the place in it and `hint` if it is missing, damaged or of another shape.
    """
    if not os.path.lexists(path):
        raise SsdError(f"{path} is missing. {hint}".strip())
    try:
        content = decode_text(read_limited(path, most), path)
    except DataError as error:
        raise SsdError(f"{error} {hint}".strip()) from error
    try:
        value = parse_json(content)
    except ValueError as error:
        raise SsdError(f"{path} is not valid JSON ({error}). {hint}".strip()) from error
    try:
        shape is None or check_shape(value, shape)
    except ValueError as error:
        raise SsdError(f"{path} is not what its name says ({error}). {hint}".strip()) from error
    return value


def parse_json(text: str | bytes, shape: Any = None) -> Any:
    """The value of a JSON text, checked to be of the type `shape`, one that pydantic knows.

    Raises ValueError that says what is wrong: with the text, or where a value is of another type; also
    for one that is nested too deep, has too long numbers, or would fill the memory.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        if 184 * text.count("{") + 56 * text.count("[") + 60 * text.count(",") > _MAX_VALUES_BYTES:
            raise ValueError("it holds more values than fit into the memory")
        digits = _LONG_NUMBER.search(text)  # else Python's own way is twice as fast
        value = json.loads(text, parse_int=_integer if digits else None)
        if text.count("[") + text.count("{") > _MAX_DEPTH:
            _check_depth(value)
    except RecursionError:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep") from None
    except MemoryError:
        raise ValueError("it needs more memory than there is") from None
    if shape is not None:
        check_shape(value, shape)
    return value


def check_shape(value: Any, shape: Any) -> Any:
    """The value as the type `shape`, one that pydantic knows. Raises ValueError, saying where it is not."""
    from pydantic import ValidationError

    try:
        return _adapter(shape).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{where}: {first['msg'].lower()}, not {shortened(first['input'])}") from error


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits):,} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    nested, level = (dict, list), [value]
    for _ in range(_MAX_DEPTH + 1):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, nested))
        level = [child for children in inner for child in children if isinstance(child, nested)]
        if not level:
            return
    raise RecursionError


def shortened(value: Any, most: int = 80) -> str:
    """The beginning of a value as text, for messages, however large or deep it is."""
    return _brief.repr(value)[:most]


_brief = reprlib.Repr()
_brief.maxlist = _brief.maxtuple = _brief.maxdict = _brief.maxset = 50
_brief.maxstring = _brief.maxother = 200


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


def short_name(name: str, most: int = 200) -> str:
    """The name itself, or its beginning with a hash of the whole where it has more than `most` bytes.

    File systems take 255, and an ending or the mark of an unfinished file follows.
    """
    encoded = name.encode()
    if len(encoded) <= most:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: most - 9].decode('utf-8', 'ignore')}-{digest}"


def is_hidden(path: str | Path) -> bool:
    """Whether a file or folder is one that systems leave beside the user's: hidden, ._a.jpg, __MACOSX."""
    name = Path(path).name
    return name.startswith(".") or name.lower() in ("__macosx", "@eadir", "thumbs.db", "desktop.ini")


def files_below(folder: str | Path, depth: int | None = None) -> list[Path]:
    """All files in a folder and in those below it, `depth` levels at most, sorted; hidden ones are left out.

    Linked folders are entered, unless they lead back to one that they are in. Raises DataError for a folder
    that cannot be read, and where many are reached on many ways.
    """

    def enter(place: str, real: str, above: tuple[str, ...]) -> Iterator[Path]:
        if real in above or (depth is not None and len(above) > depth):
            return
        if real in reached:
            again.add(place)
        reached.add(real)
        if len(again) > _MAX_AGAIN:
            raise DataError(f"links in the folder {folder} lead to the same places again and again.")
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                inner = os.path.join(real, entry.name)  # noqa: PTH118 (thousands of folders)
                inner = os.path.realpath(inner) if entry.is_symlink() else inner
                yield from enter(entry.path, inner, (*above, real))
            elif entry.is_file():
                yield Path(entry.path)

    reached: set[str] = set()
    again: set[str] = set()
    try:
        return list(enter(str(folder), os.path.realpath(folder), ()))
    except OSError as error:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror or error}") from error


_MAX_AGAIN = 1000
"""Folders that are linked to each other have more ways through them than can ever be walked."""


def write_with(path: str | Path, writer: Callable[[BinaryIO], Any]) -> None:
    """Atomically write whatever `writer(stream)` writes; for libraries that want a file object."""
    with atomic_open(path) as stream:
        writer(stream)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
