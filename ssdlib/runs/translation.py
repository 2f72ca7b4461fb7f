"""The notebooks in another language: English code and outputs, prose from `notebooks/<language>/`.

A file such as `notebooks/ru/04.md` (or `notebooks/ru/solutions/04.md`) holds the prose of one notebook as
blocks of Markdown. Each begins with a line `<!-- cell KEY -->`, where KEY is `key_of` the English cell. So a
block whose English has changed is known to be stale, and the English is shown in its place, marked.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssdlib.common.files import read_json, write_json

MARK = "> **Ещё не переведено.** Этот текст изменился в английском издании.\n\n"
"""What stands above a cell whose translation is missing or stale."""
MOST_STALE = 5
"""Cells without a translation that may wait for one, in all notebooks together."""
OPEN = (
    "*В [Colab](https://colab.research.google.com) выберите File > Upload notebook. Первая ячейка с кодом "
    "попросит zip-архив с папкой курса.*"
)
"""The first line of a translated notebook, where the English one may have a badge that opens itself."""

_BLOCK = re.compile(r"^<!-- cell ([0-9a-f]{12}) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Translated:
    """A notebook in another language."""

    notebook: dict[str, Any]
    stale: list[str] = field(default_factory=list)
    """Where prose has no translation: the headings of the cells, or how they begin."""
    unused: list[str] = field(default_factory=list)
    """The keys of blocks that no cell has any more."""


def key_of(source: str) -> str:
    """The key of a cell: twelve digits of the SHA-256 of its source."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def prose_of(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each Markdown cell with its source, without the first cell's line about Colab, which `make address`
    writes."""
    first = True
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            source = "".join(cell["source"])
            yield cell, source.partition("\n")[2].lstrip("\n") if first else source
            first = False


def read_blocks(file: Path) -> dict[str, str]:
    """The blocks of a file of prose, by key; empty if there is no such file."""
    if not file.is_file():
        return {}
    parts = _BLOCK.split(file.read_text(encoding="utf-8"))[1:]
    return {key: text.strip("\n") for key, text in zip(parts[::2], parts[1::2], strict=True)}


def prose_file(notebook: Path, folder: Path, language: str) -> Path:
    """The file with the prose of a notebook in `folder`, the course's `notebooks/`."""
    return folder / language / notebook.relative_to(folder).parent / f"{notebook.name[:2]}.md"


def translated(notebook: Path, folder: Path, language: str) -> Translated:
    """A notebook in `folder`, the course's `notebooks/`, with its prose in the language."""
    result = read_json(notebook)
    blocks, stale = read_blocks(prose_file(notebook, folder, language)), []
    left = set(blocks)
    for number, (cell, source) in enumerate(prose_of(result)):
        key = key_of(source)
        left.discard(key)
        text = blocks.get(key)
        if text is None:
            stale.append(source.strip().partition("\n")[0].lstrip("# ")[:80])
            text = MARK + source
        cell["source"] = f"{OPEN}\n\n{text}" if number == 0 else text
    return Translated(result, stale, sorted(left))


def build(notebook: Path, folder: Path, language: str, out: Path) -> Translated:
    """The same, written to `out`; links to the documentation lead there from `out`'s folder."""
    result = translated(notebook, folder, language)
    docs = os.path.relpath(folder.parent / "ssdlib", out.parent).replace(os.sep, "/")
    for cell, _ in prose_of(result.notebook):
        cell["source"] = re.sub(r"\]\((\.\./)+ssdlib/", f"]({docs}/", cell["source"])
    write_json(out, result.notebook)
    return result
