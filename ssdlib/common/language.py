"""The language of reports and figures: English, or another by a catalog of texts beside this file."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from ssdlib.common.errors import ConfigError
from ssdlib.common.files import read_json

VARIABLE = "SSDLIB_LANGUAGE"
"""The environment variable with the language, so that the processes of the notebooks have it, too."""
LANGUAGES = ("en", "ru")


_PARTS = re.compile(r"(\{#?\})")
_AS_PATTERN = {"{}": "(.+?)", "{#}": r"([-+]?\d[\d.,]*)"}


def language() -> str:
    """The language in use, one of `LANGUAGES`. Raises ConfigError for another."""
    return _known(os.environ.get(VARIABLE) or LANGUAGES[0])


def use_language(name: str) -> None:
    """Use this language from here on, in processes that are started, too. Raises ConfigError as above."""
    os.environ[VARIABLE] = _known(name)


def translate(text: str) -> str:
    """The text in the language in use; what its catalog lacks stays as it is.

    Spaces and line breaks in a row count as one space. A catalog maps English to the language; `{}` in both
    stands for any part, which is translated by itself, in the same order or as numbered (`{0}`); `{#}` in the
    English stands for a number.
    """
    if language() == LANGUAGES[0] or not text.strip():
        return text
    exact, patterns = _catalog(language())
    plain = " ".join(text.split())
    if plain in exact:
        return exact[plain]
    for pattern, translated in patterns:
        if found := pattern.fullmatch(plain):
            return _filled(translated, [translate(part) for part in found.groups()])
    return text


def _filled(text: str, parts: list[str]) -> str:
    rest = iter(parts)
    return re.sub(r"\{(\d?)\}", lambda at: parts[int(at[1])] if at[1] else next(rest), text)


def _known(name: str) -> str:
    if name not in LANGUAGES:
        raise ConfigError(f"there is no language {name!r}: choose {' or '.join(LANGUAGES)} ({VARIABLE})")
    return name


@cache
def _catalog(name: str) -> tuple[dict[str, str], list[tuple[re.Pattern[str], str]]]:
    """The texts without `{}`, and the patterns of those with one, longest first."""
    texts = read_json(Path(__file__).with_name(f"{name}.json"), shape=dict[str, str])
    exact = {text: translated for text, translated in texts.items() if not _PARTS.search(text)}
    patterns = [
        (_pattern(text), translated)
        for text, translated in sorted(texts.items(), key=lambda item: -len(item[0]))
        if text not in exact
    ]
    return exact, patterns


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("".join(_AS_PATTERN.get(part, re.escape(part)) for part in _PARTS.split(text)))
