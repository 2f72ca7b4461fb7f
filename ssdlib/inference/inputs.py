"""The images of a detect job: found from files, folders, patterns and lists, and read ahead in threads."""

from __future__ import annotations

import glob
import os
import re
import stat
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, AnyStr, TypeVar

from ssdlib.common.errors import DataError
from ssdlib.common.files import MAX_BYTES, is_hidden, require_file, short_name
from ssdlib.common.runtime import need_extra
from ssdlib.common.threads import threads
from ssdlib.data.images import IMAGE_SUFFIXES, fields_in, file_of, image_size

PIXELS_AHEAD = 64_000_000
"""The most that is decoded before its turn (192 MB), so that large fields do not fill the memory."""

_LONGEST = 5000
"""Characters of a listed path that are looked at: no system has longer ones."""

Source = TypeVar("Source")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class ImageTask:
    """One image to detect cells in."""

    path: Path
    name: str
    """Path of its picture below the output folder, without ending: no two tasks share one in any case."""

    @property
    def shown(self) -> str:
        """The path as text that every file takes, also where its bytes are no UTF-8."""
        return os.fsencode(self.path).decode("utf-8", "replace")

    @property
    def image_id(self) -> str:
        """A file name without folder or ending, for layouts that keep all images in one folder."""
        return short_name(self.name.replace("/", "--"))


@dataclass
class PassedOver:
    """What folders hold and a job does not look at."""

    endings: Counter[str] = field(default_factory=Counter)
    """The number of files of each ending that is no image's; "" for those without."""
    hidden: int = 0
    """The number of files and folders that are hidden, such as macOS' companions `._a.jpg`."""
    links: int = 0
    """The number of links to folders, which could lead anywhere."""
    closed: list[str] = field(default_factory=list)
    """The folders that the operating system does not let in."""
    special: int = 0
    """The number of pipes, sockets and devices, which may never end."""

    @property
    def unreadable(self) -> int:
        """The number of folders that the operating system does not let in."""
        return len(self.closed)

    def __str__(self) -> str:
        """All of it in one phrase; empty if nothing was passed over."""
        shown = ", ".join(ending or "no ending" for ending, _ in self.endings.most_common(5))
        more = ", ..." if len(self.endings) > 5 else ""
        first = ", ".join(self.closed[:5]) + ", ..." * (len(self.closed) > 5)
        kinds = (
            (self.endings.total(), "file", "files", f" with other endings ({shown}{more})"),
            (self.hidden, "hidden file or folder", "hidden files or folders", ""),
            (self.links, "link to a folder", "links to folders", ": name it to have it looked at"),
            (self.unreadable, "folder that cannot be opened", "folders that cannot be opened", f" ({first})"),
            (self.special, "pipe or device", "pipes or devices", " with the name of an image"),
        )
        return "; ".join(
            f"{number:,} {one if number == 1 else many}{note}" for number, one, many, note in kinds if number
        )


def stamp_of(path: bytes | Path) -> tuple[int, int] | None:
    """A file's size in bytes and time of the last change in nanoseconds; None if it is not there.

    A file that differs in either is taken for another one.
    """
    try:
        status = file_of(Path(os.fsdecode(path))).stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def find_images(
    paths: Sequence[str | Path],
    out: Path | None = None,
    *,
    listed: Iterable[str] = (),
    passed_over: PassedOver | None = None,
) -> list[ImageTask]:
    """Tasks for each file given, each image inside a folder given, and what a pattern (`a/**/*.tif`) matches.

    A TIFF with several fields gives a task for each, see `ssdlib.data.images.fields_in`. `listed` are paths
    from lists, where a missing file is only found out (and said) when it is read. What lies inside `out` is
    passed over in folders and patterns: an earlier call wrote it. What else is passed over in folders is
    added to `passed_over`. Raises DataError for a path that does not exist, a folder or pattern without
    images, and an image given inside `out`.
    """
    found: dict[Path, str] = {}
    passed = passed_over or PassedOver()
    given = (pair for path in paths for pair in _given(str(path), out, passed))
    read = (pair for entry in listed if entry for pair in _images(Path(entry), out, passed))
    for image, name in chain(given, read):
        fields = fields_in(image)
        for number, one in enumerate(fields, 1):
            stem, dot, ending = name.rpartition(".")
            found.setdefault(one, f"{stem}-{number}{dot}{ending}" if len(fields) > 1 else name)
    taken: set[str] = set()
    return [ImageTask(path, _free_name(name, taken)) for path, name in found.items()]


def listed_paths(lists: Sequence[str]) -> Iterator[str]:
    """The paths in lists: `-` is standard input, one a line; others are Parquet files.

    The column is `path`, or `image` as in the tables of an earlier call.
    Raises DataError for a list that cannot be read, ConfigError without the extra `ray`.
    """
    for given in lists:
        if given == "-":
            if sys.stdin is None:
                raise DataError("standard input is closed: give it the list of images (< list.txt)")
            lines = getattr(sys.stdin, "buffer", sys.stdin)  # bytes, since not every name is UTF-8
            yield from (os.fsdecode(line).strip("\r\n") for line in _line_starts(lines))
        else:
            yield from _parquet_paths(given)


def _line_starts(stream: IO[AnyStr]) -> Iterator[AnyStr]:
    """The beginning of each line. Raises DataError for a line without end and for more than a few zero bytes,
    which no path has."""
    zeros = 0
    while line := stream.readline(_LONGEST):
        rest, size = line, len(line)
        while rest[-1:] not in (b"\n", "\n") and (rest := stream.readline(_LONGEST)):
            size += len(rest)
            if size > MAX_BYTES:
                raise DataError("standard input is no list of images: give it one path a line (< list.txt)")
        zeros += line.count("\0" if isinstance(line, str) else b"\0")
        if zeros > 10:
            raise DataError("standard input has zero bytes: give one path a line (find -print, not -print0)")
        yield line


def _parquet_paths(given: str) -> Iterator[str]:
    parquet = need_extra("ray", "pyarrow.parquet")
    import pyarrow as pa

    try:
        require_file(given)
    except DataError as error:
        raise DataError(f"the list {given} cannot be read ({error}): write it again as Parquet") from error
    try:
        with parquet.ParquetFile(given) as file:
            names = file.schema_arrow.names
            column = next((name for name in ("path", "image") if name in names), None)
            if column is None:
                raise DataError(f"{given} has no column path or image, but {', '.join(names)}")
            for rows in file.iter_batches(1000, columns=[column]):
                paths = (path.as_py() for path in rows.column(0).unique())  # one by one: they may be long
                yield from (str(path)[:_LONGEST] for path in paths if path is not None)
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: text that is not UTF-8
        raise DataError(f"the list {given} cannot be read ({error}): write it again as Parquet") from error


def _given(given: str, out: Path | None, passed: PassedOver) -> list[tuple[Path, str]]:
    """(image, its name with folders below the path given) of one argument."""
    path = Path(given)
    if os.path.exists(path) or file_of(path) != path:  # noqa: PTH110 (pathlib raises for too long a name)
        if _is_folder(path):
            _refuse_output(path, out)
        pairs = _images(path, out, passed)
        problem = f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}): name another folder"
    elif glob.has_magic(given):
        given = re.sub(r"(\*\*/+){2,}", "**/", given)  # which means the same, and is not searched twice
        met = sorted(Path(entry) for entry in glob.glob(given, recursive=True))  # noqa: PTH207 (pathlib takes no absolute one)
        pairs = [pair for entry in met if _is_folder(entry) for pair in _images(entry, out, passed)]
        pairs += [(entry, entry.name) for entry in met if _is_image(entry) and not _is_output(entry, out)]
        # glob says nothing of folders that it cannot open
        above = (glob.glob(f"{folder}{os.sep}", recursive=True) for folder in Path(given).parents)  # noqa: PTH207
        folders = {one for some in above for one in some}
        passed.closed += sorted(one for one in folders if not os.access(one, os.R_OK | os.X_OK))
        problem = f"no image fits the pattern {given}: check it, and that no folder is misspelt"
    else:
        pairs = []
        problem = f"{path} does not exist: name an image file, a folder of images or a pattern"
    if not pairs:
        raise DataError(f"{problem}. Passed over: {passed}" if str(passed) else problem)
    return pairs


def _images(path: Path, out: Path | None, passed: PassedOver) -> list[tuple[Path, str]]:
    """The images in a folder, or the file itself, each with its name below the folder."""
    if not _is_folder(path):
        _refuse_output(path, out)
        file = file_of(path)
        number = re.sub(r"\D", "", path.name[len(file.name) :])  # of name.tif[2]
        return [(path, f"{file.stem}-{number}{file.suffix}" if number else path.name)]
    images = []

    def count_unreadable(error: OSError) -> None:
        passed.closed.append(str(error.filename))

    for folder, folders, files in os.walk(path, onerror=count_unreadable):
        here = Path(folder)
        if _is_output(here, out):
            folders.clear()
            continue
        links = {name for name in folders if (here / name).is_symlink()}
        hidden = {name for name in folders if is_hidden(here / name)}
        passed.links += len(links - hidden)
        passed.hidden += len(hidden)
        folders[:] = [name for name in folders if name not in links | hidden]
        for file in (here / name for name in files):
            if is_hidden(file):
                passed.hidden += 1
            elif file.suffix.lower() not in IMAGE_SUFFIXES:
                passed.endings[file.suffix.lower()] += 1
            elif _is_special(file):
                passed.special += 1
            else:
                images.append(file)  # also a link that leads nowhere: reading it says so
    return [(image, image.relative_to(path).as_posix()) for image in sorted(images)]


def _is_special(path: Path) -> bool:
    """Whether it is a pipe, a socket or a device."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 (pathlib raises for names that no file has)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not _is_folder(path) and not _is_special(path)


def _is_output(path: Path, out: Path | None) -> bool:
    try:
        return out is not None and path.resolve().is_relative_to(out.resolve())
    except (OSError, RuntimeError, ValueError):  # a name that no file has, a link to itself
        return False


def _refuse_output(path: Path, out: Path | None) -> None:
    if _is_output(path, out):
        raise DataError(f"{path} lies in --out, which could overwrite it: choose another folder for --out")


def _free_name(name: str, taken: set[str]) -> str:
    """`name` without ending, in letters that every system takes; a number makes a second one differ.

    Case is no difference (it is none on Windows and macOS), nor is the folder: `a/b` and `a--b` share an id.
    No part leads out of a folder, and none is too long for a file system.
    """
    stem = re.sub(r"[^\w\-. ()+,=@#/]", "_", os.fsencode(name).decode("utf-8", "replace"))
    parts = (part.strip(" ") for part in stem[: len(stem) - len(Path(stem).suffix)].split("/"))
    stem = "/".join(short_name(part) if part.strip(".") else "_" for part in parts)
    free, number = stem, 2
    while short_name(free.replace("/", "--")).casefold() in taken:
        free, number = f"{stem}-{number}", number + 1
    taken.add(short_name(free.replace("/", "--")).casefold())
    return free


def read_ahead(
    load: Callable[[Source], Loaded],
    sources: Iterable[Source],
    *,
    ahead: int,
    pixels: Callable[[Source], int] = lambda _: 0,
    most_pixels: int = PIXELS_AHEAD,
) -> Iterator[Loaded | DataError]:
    """What `load` gives for each source, in order, or its DataError; computed in threads before its turn.

    At most `ahead` wait at a time, and fewer where by `pixels` they hold more than `most_pixels` together.
    """

    def attempt(source: Source) -> Loaded | DataError:
        try:
            return load(source)
        except DataError as error:
            return error

    pool = ThreadPoolExecutor(threads(), "ssdlib-read")
    waiting: deque[tuple[int, Future[Loaded | DataError]]] = deque()
    held = 0
    try:
        for source in sources:
            cost = pixels(source)
            while waiting and (len(waiting) >= ahead or held + cost > most_pixels):
                held -= waiting[0][0]
                yield waiting.popleft()[1].result()  # without a name, which would keep it
            waiting.append((cost, pool.submit(attempt, source)))
            held += cost
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def pixels_of(path: Path) -> int:
    """The number of pixels by the file's header; 0 for what cannot be read."""
    try:
        width, height = image_size(path)
    except DataError:
        return 0
    return width * height
