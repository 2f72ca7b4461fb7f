"""Which file of a folder is meant by what a label file or a list calls it, often on another machine."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from ssdlib.data.formats.records import SPLIT_WORDS
from ssdlib.data.images import IMAGE_SUFFIXES


class Files:
    """The images of a folder, found by what label files and lists call them, often on another machine."""

    def __init__(self, files: Iterable[Path], root: Path) -> None:
        self.all = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        self._root = root
        self._by_stem: dict[str, list[tuple[tuple[str, ...], Path]]] = defaultdict(list)
        for file in self.all:
            parts = tuple(map(folded, file.relative_to(root).parts))
            self._by_stem[folded(file.stem)].append((parts, file))

    def find(self, name: str, near: Path, split: str | None = None) -> Path | None:
        """The image that `name` means in a label file in the folder `near`; None if it cannot be told.

        The base name decides, with an ending or without; of several images, the one in whose path most of the
        stated folders follow; then one in `near` or in a usual place. None is in a folder of another split.
        """
        found = self._best(name, near, split, ())
        return found[0][1] if len(found) == 1 else None

    def find_all(
        self, names: Sequence[str], near: Path, split: str | None = None, words: Iterable[str] = ()
    ) -> list[Path | None]:
        """`find` for all names of one label file, in folders named by one of `words` first.

        Of names of different images, one image goes to that which fits best.
        """
        words = [folded(word) for word in words]
        found = [self._best(name, near, split, words) for name in names]
        stated = [tuple(map(folded, next(_spellings(name), ()))) for name in names]
        owners: dict[Path, tuple[int, tuple[str, ...]]] = {}
        for parts, files in zip(stated, found, strict=True):
            if len(files) == 1 and files[0][0][0] > owners.get(files[0][1], (0, ()))[0]:
                owners[files[0][1]] = files[0][0][0], parts
        return [
            files[0][1] if len(files) == 1 and _same_end(parts, owners[files[0][1]][1]) else None
            for parts, files in zip(stated, found, strict=True)
        ]

    def _best(
        self, name: str, near: Path, split: str | None, words: Sequence[str]
    ) -> list[tuple[tuple, Path]]:
        """(rank, image) of those that fit the name equally well; the rank begins with the length of the
        stated path's end that fits."""
        here = tuple(map(folded, near.relative_to(self._root).parts))
        for parts in _spellings(name):
            base, ended = folded(parts[-1]), parts[-1].lower().endswith(IMAGE_SUFFIXES)
            ranked = []
            for own, file in self._by_stem.get(base.rpartition(".")[0] if ended else base, ()):
                if (ended and own[-1] != base) or (
                    split and folder_split(file, self._root) not in (None, split)
                ):
                    continue
                stated = (*map(folded, parts[:-1]), own[-1])
                rank = (
                    _common(reversed(stated), reversed(own)),
                    own == (*here, *stated),
                    any(word in own[:-1] for word in words),
                    _common(here, own),
                    max(k * (own == (*place, *stated)) for k, place in enumerate(_USUAL)),
                    file.name == parts[-1],
                )
                ranked.append((rank, file))
            if ranked:
                best = max(rank for rank, _ in ranked)
                return [one for one in ranked if one[0] == best]
        return []


_USUAL = (("?",), ("data",), ("jpegimages",), ("images",), ())
"""Folders of images, the likelier the later."""


def folded(text: str) -> str:
    """The text for comparison: macOS takes accents apart, and Windows does not mind the case."""
    return unicodedata.normalize("NFC", text).casefold()


def _same_end(a: Sequence[str], b: Sequence[str]) -> bool:
    length = min(len(a), len(b))
    return a[-length:] == b[-length:]


def _common(a: Iterable[str], b: Iterable[str]) -> int:
    count = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        count += 1
    return count


def _spellings(name: str) -> Iterator[list[str]]:
    """The parts of a stated path: as it is written, as an address, and without Label Studio's mark."""
    path, _, query = name.partition("?")
    local = re.search(r"(?:^|&)d=([^&]+)", query)  # Label Studio: /data/local-files/?d=a/b.png
    address = unquote(local[1] if local else path)
    for text in (name, address, re.sub(r"(^|[/\\])[0-9a-f]{8}-([^/\\]+)$", r"\1\2", address)):
        parts = [part.strip() for part in re.split(r"[/\\]", text.strip())]
        parts = [part for part in parts if part not in ("", ".", "..") and not part.endswith(":")]
        if parts:
            yield parts


def missing_image(name: str, file: Path, root: Path) -> Path:
    """Where the image should be that a label file names and that is not there."""
    inner = file.parent != root and file.parent.name.lower() in ("annotations", "labels")
    place = root / "images" if (root / "images").is_dir() else file.parent.parent if inner else file.parent
    # Shorter than any system's longest name, so that it can be asked for and shown.
    parts = [
        re.sub(r"[\0\ud800-\udfff]", "_", part)[:200] for part in next(_spellings(name), ["image"])[-20:]
    ]
    return place.joinpath(*parts) if os.path.exists(place / parts[-1]) else place / parts[-1]  # noqa: PTH110


def split_of(file: Path, root: Path) -> tuple[str | None, str]:
    """(train, val, test or None; the word that says so) from the file's folders or name."""
    folders = reversed(file.parent.relative_to(root).parts)
    for word in (*folders, *re.split(r"[^a-z0-9]+", file.stem.lower())):
        if (plain := word.lower().rstrip("0123456789")) in SPLIT_WORDS:
            return SPLIT_WORDS[plain], word
    return None, ""


def folder_split(file: Path, root: Path) -> str | None:
    """The split that the file's folders tell."""
    return split_of(file.parent / "_", root)[0]
