"""What holds in every notebook of the course, lesson or solutions: read from the files, nothing is run."""

import ast
import builtins
import dis
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from ssdlib.common.paths import project_root
from ssdlib.runs.lesson import _KNOWN, MINE

FOLDER = project_root() / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted(FOLDER.glob("solutions/*.ipynb"))
NOTEBOOKS = [*LESSONS, *SOLUTIONS]
IMAGES = ("image/png", "image/jpeg", "image/svg+xml")

TAGS = {
    "parameters": "papermill writes the run's parameters below it",
    "colab": "gets the course on Colab; the same everywhere",
    MINE: "its definitions are used by other notebooks",
    "answer": "stands in for the stub above it; folded",
    "full-width": "works on networks of full width: slow, and the same whatever the data are",
}
LAST_SECTIONS = ["What you can do now", "Questions", "Exercises", "Sources"]
NOT_SAID = {
    r"\bput(s|ting)? out\b": "predict",
    r"\bby heart\b": "overfit, memorize",
    r"\bmend": "fix",
    r"\b(without a|off the|offline) network\b": "internet connection",
    r"\bpriors (a|per) cell\b": "location",
    r"\bcells? of (a|the|each) (feature )?map\b": "location",
    r"\b(colour|labell|normalis|optimis|recognis|grey\b|centre\b|learnt\b|licence)": "American spelling",
}  # fmt: skip
"""Words that have no place in the text, each with what to say in place of it."""
NOTES: dict[str, list[str]] = {}
"""By notebook, parts of saved NOTE lines that are meant to be there: what does not hold on the smears."""


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
lessons = pytest.mark.parametrize("path", LESSONS, ids=name_of)


@cache
def cells_of(path: Path) -> list[dict[str, Any]]:
    """The cells, their sources and outputs as text and not as lists of lines."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell["source"] = "".join(cell["source"])
        cell["tags"] = set(cell["metadata"].get("tags", ()))
    return cells


def code_of(path: Path, *tags: str) -> Iterator[tuple[int, str]]:
    """(number, source) of the code cells that have all of the tags."""
    for number, cell in enumerate(cells_of(path)):
        if cell["cell_type"] == "code" and cell["tags"].issuperset(tags):
            yield number, cell["source"]


def markdown_of(path: Path) -> Iterator[tuple[int, str]]:
    return (
        (number, cell["source"])
        for number, cell in enumerate(cells_of(path))
        if cell["cell_type"] == "markdown"
    )


def images_of(cell: dict[str, Any]) -> list[str]:
    """The text of each image below a cell; empty for one without."""
    texts = []
    for output in cell.get("outputs", ()):
        for kind in {*IMAGES} & set(output.get("data", ())):
            texts.append(output["metadata"].get(kind, {}).get("alt", ""))
    return texts


def prose(source: str) -> str:
    """Markdown without its code."""
    return re.sub(r"```.*?```|`[^`]*`", "", source, flags=re.DOTALL)


def headings(path: Path) -> list[tuple[int, str]]:
    """(level, text) of the headings."""
    text = "\n".join(re.sub(r"```.*?```", "", source, flags=re.DOTALL) for _, source in markdown_of(path))
    return [(len(marks), title.strip()) for marks, title in re.findall(r"(?m)^(#+) (.+)$", text)]


def test_each_lesson_has_solutions():
    assert len(LESSONS) >= 7 and [path.name[:2] for path in LESSONS] == [
        f"{number:02d}" for number in range(1, len(LESSONS) + 1)
    ]
    assert [path.name for path in SOLUTIONS] == [path.name for path in LESSONS]


@lessons
def test_titles_are_numbered_and_those_of_solutions_say_whose_they_are(path):
    level, title = headings(path)[0]
    assert level == 1 and title.startswith(f"{int(path.name[:2])}. ")
    solutions = FOLDER / "solutions" / path.name
    assert headings(solutions)[0] == (1, f"Solutions to {title}")


@lessons
def test_lessons_end_with_what_was_learned_questions_exercises_and_sources(path):
    titles = [title for level, title in headings(path) if level == 2]
    assert titles[-4:] == LAST_SECTIONS
    text = "\n".join(source for _, source in markdown_of(path))
    assert "](https://" in text[text.rindex("\n## Sources") :], "a source is a link"
    assert f"solutions/{path.name}" in text[text.rindex("\n## Exercises") :]


@notebooks
def test_code_cells_are_short(path):
    long = {
        number: lines for number, source in code_of(path) if (lines := len(source.strip().splitlines())) > 30
    }
    assert not long, "lines by cell"


@notebooks
def test_no_assert_stands_in_the_way_and_figures_are_shown_with_a_text(path):
    for number, source in code_of(path):
        if "colab" not in cells_of(path)[number]["tags"]:
            assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source))), number
        assert "plt.show(" not in source, number


@notebooks
def test_figures_are_explained_in_the_text_and_described_for_those_who_cannot_see_them(path):
    cells = [{"cell_type": "none"}, *cells_of(path), {"cell_type": "none"}]
    for number in range(len(cells) - 2):
        before, cell, after = cells[number : number + 3]
        if texts := images_of(cell):
            assert "markdown" in (before["cell_type"], after["cell_type"]), f"cell {number}: no words"
            assert not images_of(after), f"cells {number}, {number + 1}: two figures without words between"
            assert all(len(text) >= 20 for text in texts), f"cell {number}: show(figure, text)"


@notebooks
def test_text_keeps_to_the_words_of_the_course(path):
    for number, source in markdown_of(path):
        for said, better in NOT_SAID.items():
            found = re.search(said, prose(source), re.IGNORECASE)
            assert not found, f"cell {number}: {found[0]!r}; better: {better}"


@notebooks
def test_what_is_saved_holds(path):
    allowed = NOTES.get(name_of(path), [])
    for number, cell in enumerate(cells_of(path)):
        for output in cell.get("outputs", ()):
            assert output["output_type"] != "error", number
            for line in "".join(output.get("text", ())).splitlines():
                assert not line.startswith("NOTE:") or any(part in line for part in allowed), (number, line)


@notebooks
def test_tags_are_known_and_answers_folded(path):
    for number, cell in enumerate(cells_of(path)):
        assert cell["tags"] <= set(TAGS), number
        folded = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
        assert folded == bool(cell["tags"] & {"answer", "colab"}), number
    assert len([*code_of(path, "parameters")]) == 1


def is_stub(function: ast.AST) -> bool:
    """Whether nothing but `...` is written in a function."""
    if not isinstance(function, ast.FunctionDef):
        return False
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return [ast.unparse(statement) for statement in body] == ["..."]


@notebooks
def test_stubs_are_followed_by_their_answer(path):
    cells = cells_of(path)
    answered = set()
    for number, source in code_of(path):
        stubs = [node.name for node in ast.walk(ast.parse(source)) if is_stub(node)]
        if not stubs or "answer" in cells[number]["tags"]:
            continue
        assert MINE in cells[number]["tags"] and '"""' in source, f"cell {number}: what is to be written?"
        answer = cells[number + 1]
        answered.add(number + 1)
        assert answer["tags"] == {MINE, "answer"} and answer["source"].startswith("# @title Answer"), number
        for name in stubs:
            assert re.search(rf"(?m)^{name} = mine_or_answer\({name}, \w+_answer\)$", answer["source"]), name
    assert {number for number, _ in code_of(path, "answer")} == answered


def names_in(code: CodeType) -> tuple[set[str], set[str]]:
    """The names that code defines at its top level, and those of the outside that it or its functions use."""
    defined, used = set(), set()
    for step in dis.get_instructions(code):
        if step.opname.startswith("STORE_NAME"):
            defined.add(step.argval)
        elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            used.add(step.argval)
        elif isinstance(step.argval, CodeType):
            inner_defined, inner_used = names_in(step.argval)
            # A class body looks in itself first.
            used |= inner_used - inner_defined
    return defined, used


def mine_of(path: Path) -> tuple[set[str], set[str]]:
    """The names that the cells tagged `mine` define, and those that they use and do not define."""
    defined, used = set(), set()
    for _, source in code_of(path, MINE):
        in_cell, of_others = names_in(compile(source, path.name, "exec"))
        defined |= in_cell
        used |= of_others
    return defined, used - defined


@notebooks
def test_cells_that_others_use_need_nothing_else(path):
    known = {*_KNOWN, *vars(builtins), "pieces", "mine_or_answer", "__name__"}
    assert mine_of(path)[1] <= known


def pieces_asked_for(source: str) -> Iterator[tuple[str, list[str]]]:
    """(notebook, names) of each call of `pieces`; the names may stand in a tuple of their own."""
    tree = ast.parse(source)
    tuples = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "pieces":
            given: list[str] = []
            for one in node.args:
                if isinstance(one, ast.Starred):
                    given += ast.literal_eval(tuples[one.value.id])
                else:
                    given.append(ast.literal_eval(one))
            yield given[0], given[1:]


@notebooks
def test_pieces_asked_for_are_written(path):
    for number, source in code_of(path):
        for notebook, names in pieces_asked_for(source):
            written = mine_of(FOLDER / f"{notebook}.ipynb")[0]
            assert names and written.issuperset(names), (number, set(names) - written)


@notebooks
def test_links_lead_to_files(path):
    for number, source in markdown_of(path):
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(source)):
            if not re.match(r"https?://|mailto:|attachment:|#", target):
                assert (path.parent / target.partition("#")[0]).exists(), (number, target)
