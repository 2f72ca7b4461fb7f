"""The Russian edition: each cell of prose has its block, with the same formulas, code, links and numbers."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from ssdlib.common.errors import ConfigError
from ssdlib.common.language import VARIABLE, _catalog, language, translate, use_language
from ssdlib.common.paths import project_root
from ssdlib.runs import translation
from ssdlib.runs.translation import (
    MARK,
    MOST_STALE,
    build,
    key_of,
    prose_file,
    prose_of,
    read_blocks,
    translated,
)

FOLDER = project_root() / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("**/[0-9][0-9]_*.ipynb"))

GLOSSARY = {
    r"\bprior(s| box(es)?)?\b": "рамк",
    "ground truth": "истинн",
    "non-maximum suppression": "подавлени",
    "hard negative": "сложн",
    r"\bthresholds?\b": "порог",
    r"\brecall\b": "полнот",
    r"\bcalibrat": "калибр",
    "overfitting": "переобуч",
    "fine-tun": "дообуч",
    "feature map": "карт",
    "augmentation": "аугмент",
    "learning rate": "скорост",
    "white cells": "лейкоцит",
    "red cells": "эритроцит",
    "platelets": "тромбоцит",
    "confusion matrix": "матриц",
}
"""Terms by how they begin: where the English has one, the Russian has its translation."""


def prose() -> list[tuple[str, str, str]]:
    """(place, English, Russian) of each cell that has a block."""
    found = []
    for notebook in NOTEBOOKS:
        blocks = read_blocks(prose_file(notebook, FOLDER, "ru"))
        for _, source in prose_of(json.loads(notebook.read_text(encoding="utf-8"))):
            if russian := blocks.get(key_of(source)):
                heading = source.strip().partition("\n")[0][:60]
                found.append((f"{notebook.relative_to(FOLDER)}: {heading}", source, russian))
    return found


PROSE = prose()


def pieces(text: str) -> dict[str, Counter | list]:
    """What must be the same on both sides: see `test_both_sides_have_the_same`."""
    code = re.findall(r"```.*?```", text, re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    formulas = re.findall(r"\$\$.*?\$\$|\$[^$\n]+\$", text, re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.DOTALL)
    spans = re.findall(r"`[^`]+`", text)
    text = re.sub(r"`[^`]+`", "", text)
    links = re.findall(r"\]\(([^)]+)\)", text)
    text = re.sub(r"\]\([^)]+\)", "]", text)
    numbers = re.findall(r"\d+(?:[.,\u00a0\u202f]\d+)*", text)
    return {
        "blocks of code": Counter(" ".join(one.split()) for one in code),
        "formulas": Counter(" ".join(one.split()) for one in formulas),
        "code": Counter(" ".join(one.split()) for one in spans),
        "links": Counter(links),
        "numbers": Counter(re.sub(r"\D", "", one) for one in numbers),
        "items": len(re.findall(r"(?m)^\s*(?:[-*]|\d+\.) ", text)),
        "rows": len(re.findall(r"(?m)^\|", text)),
        "headings": re.findall(r"(?m)^(#+) ", text),
    }


def test_hardly_any_prose_waits_for_its_translation():
    results = {notebook: translated(notebook, FOLDER, "ru") for notebook in NOTEBOOKS}
    stale = [f"{path.name}: {heading}" for path, one in results.items() for heading in one.stale]
    assert len(stale) <= MOST_STALE, "\n".join(stale)
    assert not [key for one in results.values() for key in one.unused], "blocks of cells that are gone"
    assert len(NOTEBOOKS) == 14 and len(PROSE) > 250


def test_both_sides_have_the_same():
    differing = []
    for place, english, russian in PROSE:
        ours, theirs = pieces(english), pieces(russian)
        differing += [
            f"{place}: {what}: {ours[what]} {theirs[what]}" for what in ours if ours[what] != theirs[what]
        ]
    assert not differing, "\n".join(differing)


def test_all_of_it_is_russian_and_keeps_to_the_glossary():
    lacking = [place for place, _, russian in PROSE if not re.search("[а-яё]", russian, re.IGNORECASE)]
    uses = Counter()
    for place, english, russian in PROSE:
        for term, beginning in GLOSSARY.items():
            if re.search(term, english, re.IGNORECASE):
                uses[term, beginning in russian.lower()] += 1
                if beginning not in russian.lower():
                    lacking.append(f"{place}: {term} without {beginning}")
    # A sentence may do without a term; most do not.
    for term in GLOSSARY:
        assert uses[term, True] >= max(1, 2 * uses[term, False]), (term, "\n".join(lacking))


def test_terms_of_the_glossary_stand_in_the_russian_one():
    page = (project_root() / "ssdlib/docs/glossary.ru.md").read_text(encoding="utf-8")
    english = (project_root() / "ssdlib/docs/glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"(?m)^\| (?!term|---)([^|]+) \|", english)
    assert len(terms) > 60
    missing = [term for term in terms if term.split(",")[0].strip() not in page]
    assert not missing, missing


def test_a_notebook_is_joined_from_english_code_and_russian_prose(tmp_path):
    result = build(NOTEBOOKS[0], FOLDER, "ru", tmp_path / "build/ru" / NOTEBOOKS[0].name)
    ours = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    theirs = json.loads((tmp_path / "build/ru" / NOTEBOOKS[0].name).read_text(encoding="utf-8"))
    assert result.notebook == theirs and len(ours["cells"]) == len(theirs["cells"])
    for english, russian in zip(ours["cells"], theirs["cells"], strict=True):
        if english["cell_type"] == "code":
            assert english == russian
        else:
            assert {**english, "source": 0} == {**russian, "source": 0} and english["source"] != russian[
                "source"
            ]
    assert "".join(theirs["cells"][0]["source"]).startswith(translation.OPEN)


def test_links_to_the_documentation_lead_there_from_anywhere(tmp_path):
    found = 0
    for notebook in NOTEBOOKS:
        out = tmp_path / "deep/er" / notebook.relative_to(FOLDER)
        result = build(notebook, FOLDER, "ru", out)
        for _, source in prose_of(result.notebook):
            for link in re.findall(r"\]\(([^)#]*ssdlib/docs/[^)#]+)", source):
                found += 1
                assert (out.parent / link).resolve().is_file(), (notebook, link)
    assert found >= 4


@pytest.fixture
def course(tmp_path) -> Path:
    """A course of one notebook with two cells of prose, of which the second has no translation."""
    cells = ["badge\n\n# One\n\nText.", "## Two\n\nMore.", "## Three\n\nMost."]
    notebook = {"cells": [{"cell_type": "markdown", "source": [text]} for text in cells]}
    (tmp_path / "notebooks/ru").mkdir(parents=True)
    (tmp_path / "notebooks/01_one.ipynb").write_text(json.dumps(notebook))
    blocks = {"# One\n\nText.": "# Раз", "## Three\n\nMost.": "## Три", "gone": "пропало"}
    text = "\n".join(f"<!-- cell {key_of(english)} -->\n\n{russian}\n" for english, russian in blocks.items())
    (tmp_path / "notebooks/ru/01.md").write_text(text, encoding="utf-8")
    return tmp_path / "notebooks"


def test_what_is_stale_is_shown_in_english_marked_and_named(course):
    result = translated(course / "01_one.ipynb", course, "ru")
    first, second, third = (cell["source"] for cell in result.notebook["cells"])
    assert first == f"{translation.OPEN}\n\n# Раз" and third == "## Три"
    assert second == f"{MARK}## Two\n\nMore." and result.stale == ["Two"]
    assert result.unused == [key_of("gone")]


def test_the_colab_line_that_an_address_changes_is_no_part_of_the_key(course):
    path = course / "01_one.ipynb"
    path.write_text(path.read_text().replace("badge", "[![another](badge)](url)"))
    assert translated(path, course, "ru").stale == ["Two"]


@pytest.fixture
def russian(monkeypatch):
    monkeypatch.setenv(VARIABLE, "ru")


def test_pages_speak_the_language_in_use(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert language() == "en" and translate("Contents") == "Contents"
    monkeypatch.setenv(VARIABLE, "xx")
    with pytest.raises(ConfigError, match="xx"):
        translate("Contents")
    use_language("ru")
    assert translate("Contents") == "Содержание" and translate("nobody says this") == "nobody says this"


def test_texts_with_values_in_them(russian, monkeypatch):
    _catalog.cache_clear()
    texts = {"{} of {}": "{1}: {0}", "cells": "клеток", "{} of {} images": "{} из {} изображений"}
    texts["{#} to {#}"] = "от {} до {}"
    monkeypatch.setattr("ssdlib.common.language.read_json", lambda path, shape: texts)
    assert translate("3 of cells") == "клеток: 3"
    assert translate("3 of\n  5 images") == "3 из 5 изображений"
    assert translate("-1.5 to +2") == "от -1.5 до +2" and translate("left to right") == "left to right"
    _catalog.cache_clear()


def test_the_catalog_keeps_values_and_says_everything_once():
    texts = json.loads((project_root() / "ssdlib/common/ru.json").read_text(encoding="utf-8"))
    for english, russian in texts.items():
        assert english == " ".join(english.split()), english
        parts = len(re.findall(r"\{#?\}", english))
        assert len(re.findall(r"\{\d?\}", russian)) == parts, english
