"""README and the pages of docs: links that lead somewhere, and the words of the course."""

import re

import pytest

from ssdlib.common.paths import project_root
from tests.notebooks.test_rules import NOT_SAID, prose

ROOT = project_root()
PAGES = [ROOT / "README.md", ROOT / "data/README.md", *sorted((ROOT / "ssdlib/docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


@pages
def test_pages_keep_to_the_words_of_the_course(page):
    for said, better in NOT_SAID.items():
        found = re.search(said, prose(page.read_text(encoding="utf-8")), re.IGNORECASE)
        assert not found, f"{found[0]!r}; better: {better}"


def test_readme_has_a_row_for_each_notebook_and_the_glossary_names_notebooks_that_there_are():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lessons = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    rows = re.findall(r"(?m)^\| \[(\d)\. .+?\]\(notebooks/(\w+\.ipynb)\) \|", readme)
    assert rows == [(str(number), path.name) for number, path in enumerate(lessons, start=1)]
    glossary = (ROOT / "ssdlib/docs/glossary.md").read_text(encoding="utf-8")
    numbers = ",".join(re.findall(r"(?m)\| ([\d, ]+) \|$", glossary)).split(",")
    assert set(map(int, numbers)) <= set(range(1, len(lessons) + 1))
