"""Tables: one record, written for a terminal and for Markdown here, as HTML by `common/macros.html`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def number(value: float | None, form: str = ".3f") -> str:
    """The value in the format `form` of `format`; "n/a" where it is None."""
    return "n/a" if value is None else format(value, form)


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells; the first cell of a row names it, the others hold its figures."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: bool = False
    """Whether the last row is set off from the others, as a total is."""

    def to_text(self) -> str:
        """Lines for a terminal: the first column flush left, the others flush right."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        rule = "  ".join("-" * width for width in widths)
        lines = [self._line(cells, widths) for cells in (self.header, *self.rows)]
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
