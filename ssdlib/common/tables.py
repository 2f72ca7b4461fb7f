"""Tables: one record, written for a terminal and for Markdown here, as HTML by `common/macros.html`; and CSV
files for spreadsheets, written as `CSV_ENCODING`, with nothing in them that would run as a formula."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ssdlib.common.terminal import printable

CSV_ENCODING = "utf-8-sig"
"""UTF-8 with a byte order mark, without which Excel takes the text for the system's own encoding."""

_FORMULA = re.compile(r"['\s]*[=+\-@]")


def to_cell(text: str) -> str:
    """The text for a cell of a CSV file: an apostrophe keeps a spreadsheet from running it as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_lines(rows: Iterable[Iterable[Any]], *, decimal_comma: bool = False) -> Iterator[str]:
    """The lines of a CSV file; None is an empty cell.

    With `decimal_comma`, as spreadsheets in many languages want it: 0,5 for 0.5, semicolons between cells.
    """
    for row in rows:
        cells = [to_cell(value) if isinstance(value, str) else value for value in row]
        if decimal_comma:
            cells = [str(cell).replace(".", ",") if isinstance(cell, float) else cell for cell in cells]
        line = io.StringIO()
        # With this end of a line Python before 3.13 puts a cell with a carriage return in quotes, too.
        csv.writer(line, delimiter=";" if decimal_comma else ",", lineterminator="\r\n").writerow(cells)
        yield line.getvalue().removesuffix("\r\n") + "\n"


def number(value: float | str | None, form: str = ".3f") -> str:
    """The value in the format `form` of `format`; "n/a" where it is None, and a text as it is."""
    return "n/a" if value is None else value if isinstance(value, str) else format(value, form)


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells; the first cell of a row names it, the others hold its figures."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: bool = False
    """Whether the last row is set off from the others, as a total is."""

    def to_text(self) -> str:
        """Lines for a terminal: the first column flush left, the others flush right."""
        table = [[printable(cell, keep="") for cell in cells] for cells in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        rule = "  ".join("-" * width for width in widths)
        lines = [self._line(cells, widths) for cells in table]
        lines.insert(1, rule)
        if self.total and len(self.rows) > 1:
            lines.insert(-1, rule)
        return "\n".join(lines)

    @staticmethod
    def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return "  ".join(padded).rstrip()

    def to_markdown(self) -> str:
        """A pipe table as GitHub shows it; a `|` in a cell is escaped."""
        body = [self.header, ["---"] * len(self.header), *self.rows]
        escaped = ([cell.replace("|", r"\|") for cell in cells] for cells in body)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)
