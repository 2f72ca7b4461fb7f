"""Write the course's address on GitHub into every place that needs it, or take it out again.

    python .ci/address.py                (into all places what pyproject.toml has)
    python .ci/address.py owner/name
    python .ci/address.py ""             (there is none)

The one place that counts is `[project.urls]` in pyproject.toml. From there it goes into the README's line
about browsers and into each notebook: the first line of its first cell, which is a badge, and the first code
cell, which gets the course on Colab. Without an address they say how to do it by upload. Uses the standard
library alone, and writes only files that change. `make address REPO=owner/name` runs it.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GITHUB = "https://github.com/"
FIRST = "notebooks/01_explore_data.ipynb"
TAG = "colab"
"""The tag of the cell that gets the course."""

UPLOAD = "*On [Colab](https://colab.research.google.com): "
NO_BADGE = (
    UPLOAD + "choose File > Upload notebook. The first code cell then asks for a zip of the course's folder.*"
)
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"

IN_BROWSER = "In a browser, without installing: "
"""How the one line of README.md begins that has the address."""
ON_DRIVE = (
    "`KEEP_ON_DRIVE` in that cell keeps the course and your runs in your Google Drive, for the next notebook "
    "and the next day."
)
NO_BADGES = (
    f"{IN_BROWSER}on [Colab](https://colab.research.google.com), choose File > Upload notebook, then a file "
    "of `notebooks/`. Its first code cell asks for a zip of this whole folder (without `.venv`) and installs "
    f"the course from it. {ON_DRIVE}"
)

HEAD = """\
# @title On Colab, run this cell first (elsewhere it does nothing)
import os
import subprocess
import sys
from pathlib import Path

KEEP_ON_DRIVE = False  # @param {type: "boolean"}
if "google.colab" in sys.modules:
    from google.colab import drive, files

    folder = Path("/content/blood-cell-course")
    if KEEP_ON_DRIVE:  # course, data and runs stay in your Google Drive; else they end with this machine
        drive.mount("/content/drive")
        folder = Path("/content/drive/MyDrive/blood-cell-course")
"""
CLONE = """\
    url = "{url}"
    if not folder.exists():
        subprocess.run(["git", "clone", "--depth", "1", url, folder], check=True)
"""
UNPACK = """\
    if not (found := list(folder.rglob("pyproject.toml"))):
        print("Choose a zip of the whole course: of the folder that its README.md is in, without .venv.")
        for name in [*Path("/content").glob("blood-cell-course*.zip")] or files.upload():
            subprocess.run(["unzip", "-qo", name, "-d", folder], check=True)
        found = list(folder.rglob("pyproject.toml"))
    assert found, "The course was not in it. Run this cell again, and choose another zip."
    folder = min(found, key=lambda path: len(path.parts)).parent
"""
TAIL = """\
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", folder], check=True)
    sys.path.insert(0, str(folder))
    os.chdir(folder / "notebooks")"""


def address(root: Path = ROOT) -> str:
    """The address in pyproject.toml as owner/name; empty if there is none."""
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    return urls.get("Repository", "").removeprefix(GITHUB)


def notebooks(root: Path = ROOT) -> list[Path]:
    """The lessons and their solutions."""
    return sorted((root / "notebooks").rglob("[0-9][0-9]_*.ipynb"))


def first_line(repository: str, notebook: str) -> str:
    """What a notebook begins with, by its path in the repository."""
    if not repository:
        return NO_BADGE
    return f"{BADGE}(https://colab.research.google.com/github/{repository}/blob/main/{notebook})"


def first_code(repository: str) -> str:
    """The source of the first code cell."""
    if not repository:
        return HEAD + UNPACK + TAIL
    clone = CLONE.replace("{url}", GITHUB + repository)
    return HEAD.replace("import drive, files", "import drive") + clone + TAIL


def browser_line(repository: str) -> str:
    """The line of README.md about browsers."""
    if not repository:
        return NO_BADGES
    binder, spaces = "https://mybinder.org", "https://codespaces.new"
    return (
        f"{IN_BROWSER}{first_line(repository, FIRST)} "
        f"[![Binder]({binder}/badge_logo.svg)]({binder}/v2/gh/{repository}/main?urlpath=lab/tree/{FIRST}) "
        f"[![Codespaces](https://github.com/codespaces/badge.svg)]({spaces}/{repository}). Each notebook has "
        f"a badge for Colab, and its first code cell installs the course there. {ON_DRIVE}"
    )


def with_address(name: str, text: str, repository: str) -> str:
    """The text of the project's file of this name with the address, or with none. Raises ValueError."""
    if name.endswith(".ipynb"):
        notebook = json.loads(text)
        _fill(notebook["cells"], name, repository)
        return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if name == "README.md":
        text, count = re.subn(rf"(?m)^{re.escape(IN_BROWSER)}.*$", lambda _: browser_line(repository), text)
        if count != 1:
            raise ValueError(f"{name} must have one line that begins with {IN_BROWSER!r}; it has {count}")
        return text
    text, count = re.subn(
        r'(?m)^\[project\.urls\]\n(Repository = ".*"\n)?',
        "[project.urls]\n" + (f'Repository = "{GITHUB}{repository}"\n' if repository else ""),
        text,
    )
    if count != 1:
        raise ValueError(f"{name} must have one table [project.urls]; it has {count}")
    return text


def _fill(cells: list[dict[str, Any]], name: str, repository: str) -> None:
    title, bootstrap = cells[0], next((cell for cell in cells if cell["cell_type"] == "code"), None)
    if title["cell_type"] != "markdown":
        raise ValueError(f"{name} must begin with a title")
    lines = "".join(title["source"]).split("\n")
    if lines[0].startswith((BADGE, UPLOAD)):
        lines[0] = first_line(repository, name)
    else:
        lines[:0] = [first_line(repository, name), ""]
    title["source"] = "\n".join(lines).splitlines(keepends=True)
    if bootstrap is None or "google.colab" not in "".join(bootstrap["source"]):
        bootstrap = {"cell_type": "code", "execution_count": None, "id": TAG, "outputs": []}
        cells.insert(1, bootstrap)
    # Folded in JupyterLab and on Colab, where the form is left to be seen.
    bootstrap["metadata"] = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": [TAG]}
    bootstrap["source"] = first_code(repository).splitlines(keepends=True)


def write(repository: str, root: Path = ROOT) -> list[str]:
    """Write the address, owner/name or empty, into all places; returns the names of files that changed.

    Raises ValueError, before anything is written, for an address or a file that it cannot be.
    """
    if repository and not re.fullmatch(r"[\w-]+/[\w.-]+", repository, re.ASCII):
        raise ValueError(f"{repository!r} is no address on GitHub: give owner/name")
    changed = {}
    for path in (root / "pyproject.toml", root / "README.md", *notebooks(root)):
        name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        if (new := with_address(name, text, repository)) != text:
            changed[name] = new
    for name, new in changed.items():
        (root / name).write_text(new, encoding="utf-8", newline="\n")
    return list(changed)


def main(arguments: list[str]) -> int:
    given = arguments[0].strip().removeprefix(GITHUB).removesuffix("/") if arguments else address()
    try:
        changed = write(given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given or 'no address'}: {', '.join(changed) or 'all places have it'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
