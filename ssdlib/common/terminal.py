"""What is printed: text that no file name, class name or message of a library can turn into commands."""

from __future__ import annotations

import re
import sys
import unicodedata
from contextlib import nullcontext, suppress
from types import EllipsisType
from typing import TextIO


def printable(text: object, keep: str = "\n\t") -> str:
    r"""The text with every control and format character but those in `keep` as its code, such as \x1b.

    They would steer the terminal: clear it, rename its window, or show a name from right to left. Of a word
    longer than any path the beginning is given, and its length.
    """
    text = _LONG.sub(lambda word: f"{word[0][:_SHOWN]}... ({len(word[0]):,} characters)", str(text))
    return "".join(
        one if one in keep or unicodedata.category(one) not in _STEERING else ascii(one)[1:-1] for one in text
    )


_LONG, _SHOWN = re.compile(r"\S{4200,}"), 200
_STEERING = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def say(*values: object, file: TextIO | EllipsisType | None = ..., flush: bool = False) -> None:
    """Print as `print` does, but `printable` text alone, in letters that the stream can take.

    To standard output if no file is given; nowhere if it is None, as a closed `sys.stderr` is. No job ends
    because standard error takes nothing.
    """
    stream = sys.stdout if file is ... else file
    if stream is None:
        return
    text = " ".join(map(printable, values))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with suppress(OSError) if stream is sys.stderr else nullcontext():
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=flush)
