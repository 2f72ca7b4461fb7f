"""The course's address on GitHub, in all its places, and the first code cell, which needs it on Colab."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import nbformat
import pytest

from ssdlib.common.paths import project_root

ROOT = project_root()
SCRIPT = runpy.run_path(str(ROOT / ".ci/address.py"))
address, first_code, notebooks, write = (SCRIPT[n] for n in ("address", "first_code", "notebooks", "write"))
GIVEN = "some-one/blood-cells.v2"


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the files that have the address."""
    for path in (ROOT / "pyproject.toml", ROOT / "README.md", *notebooks()):
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_all_places_have_the_address_of_pyproject(copy):
    assert len(notebooks()) >= 6
    assert write(address(), copy) == [], "make address writes it into these"
    assert not any("OWNER" in path.read_text(encoding="utf-8") for path in copy.rglob("*") if path.is_file())


def test_the_script_writes_an_address_and_takes_it_out_again(copy):
    write("", copy)
    without = contents(copy)
    assert sorted(write(GIVEN, copy)) == sorted(without) and write(GIVEN, copy) == []
    assert address(copy) == GIVEN
    for path in notebooks(copy):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        name = path.relative_to(copy).as_posix()
        badge, empty, title = notebook.cells[0].source.split("\n")[:3]
        assert badge.endswith(f"/github/{GIVEN}/blob/main/{name})") and not empty and title.startswith("# ")
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert f'"https://github.com/{GIVEN}"' in code[0].source
        assert "google.colab" not in "".join(cell.source for cell in code[1:])
        assert path.read_text(encoding="utf-8").endswith("\n}\n")
    readme = (copy / "README.md").read_text(encoding="utf-8")
    assert all(f"{at}{GIVEN}" in readme for at in ("/github/", "mybinder.org/v2/gh/", "codespaces.new/"))
    write("another/name", copy)
    assert not any(GIVEN.encode() in content for content in contents(copy).values())
    write("", copy)
    assert contents(copy) == without
    links = r"colab\.research\.google\.com/github|mybinder|codespaces\.new|git.{0,4}clone"
    assert not any(re.search(links, content.decode()) for content in without.values())


def test_only_sources_change(copy):
    write("", copy)
    path = notebooks(copy)[0]
    before = json.loads(path.read_text(encoding="utf-8"))
    write(GIVEN, copy)
    after = json.loads(path.read_text(encoding="utf-8"))
    assert before["metadata"] == after["metadata"] and before["cells"][2:] == after["cells"][2:]
    assert all(before["cells"][k] | {"source": []} == after["cells"][k] | {"source": []} for k in (0, 1))


def test_a_notebook_with_neither_badge_nor_first_cell_gets_both(copy):
    path = notebooks(copy)[0]
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"][0]["source"] = ["# Title\n", "text"]
    del notebook["cells"][1]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    write(GIVEN, copy)
    made = nbformat.read(path, as_version=4)
    nbformat.validate(made)
    assert made.cells[0].source.endswith(")\n\n# Title\ntext") and made.cells[1].source == first_code(GIVEN)


@pytest.mark.parametrize("wrong", ["owner", "a/b/c", "a b/c", "https://gitlab.com/a/b"])
def test_what_is_no_address_is_refused_and_nothing_written(copy, wrong, capsys):
    before = contents(copy)
    with pytest.raises(ValueError, match="owner/name"):
        write(wrong, copy)
    assert contents(copy) == before
    assert SCRIPT["main"]([wrong]) == 1 and "owner/name" in capsys.readouterr().err


def test_files_without_their_places_are_named(copy):
    (copy / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="README"):
        write(GIVEN, copy)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("given", "says"), [(["REPO=a/b"], "a/b"), (["REPO="], ""), ([], None)])
def test_make_passes_the_address_on(given, says):
    # Under `make test` this make would say which folder it enters.
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-n", "address", *given]
    text = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True).stdout
    assert text.split()[1:] == [".ci/address.py", *([] if says is None else [f'"{says}"'])]


class Colab:
    """Stands in for a machine of Colab: /content, Google Drive, uploads, and the commands that are run."""

    def __init__(self, root: Path, monkeypatch) -> None:
        self.root, self.commands, self.uploads, self.mounted = root, [], [], []
        for module in (colab := types.ModuleType("google.colab"), types.ModuleType("google")):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        colab.drive = types.SimpleNamespace(mount=self.mounted.append)
        colab.files = types.SimpleNamespace(upload=lambda: dict.fromkeys(self.uploads, b""))
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.chdir(root)

    def run(self, command, check):
        assert check
        self.commands.append([str(word) for word in command])
        if command[0] == "unzip":
            zipfile.ZipFile(command[2]).extractall(command[4])
        if command[0] == "git":
            self.course(Path(command[-1]))

    def course(self, folder: Path) -> Path:
        (folder / "notebooks").mkdir(parents=True)
        (folder / "pyproject.toml").touch()
        return folder

    def zipped(self, name: str, inside: str) -> Path:
        with zipfile.ZipFile(self.root / name, "w") as archive:
            for path in (".venv/x/pyproject.toml", "pyproject.toml", "notebooks/01.ipynb"):
                archive.writestr(inside + path, "")
        return self.root / name

    def start(self, repository: str, *, drive: bool = False) -> Path:
        """Run the cell; returns the folder that it installed, in which it is now."""
        source = first_code(repository).replace('"/content', f'"{self.root}')
        exec(source.replace("KEEP_ON_DRIVE = False", f"KEEP_ON_DRIVE = {drive}"), {})
        *_, folder = self.commands[-1]
        assert self.commands[-1][1:-1] == ["-m", "pip", "install", "-q", "-e"]
        assert sys.path[0] == folder and Path.cwd() == Path(folder) / "notebooks"
        return Path(folder).relative_to(self.root)


@pytest.fixture
def colab(tmp_path, monkeypatch) -> Colab:
    return Colab(tmp_path, monkeypatch)


def test_elsewhere_the_first_cell_does_nothing(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a command was run"))
    before = Path.cwd(), list(sys.path)
    for repository in ("", GIVEN):
        exec(first_code(repository), {})
    assert (Path.cwd(), list(sys.path)) == before


def test_on_colab_the_course_is_cloned_once(colab):
    for _ in range(2):
        assert colab.start(GIVEN) == Path("blood-cell-course")
    assert [command[0] for command in colab.commands] == ["git", sys.executable, sys.executable]
    assert f"https://github.com/{GIVEN}" in colab.commands[0] and not colab.mounted


def test_on_drive_it_stays(colab):
    assert colab.start(GIVEN, drive=True) == Path("drive/MyDrive/blood-cell-course")
    assert colab.mounted == [str(colab.root / "drive")]


@pytest.mark.parametrize("inside", ["", "cells-main/"])
@pytest.mark.parametrize("name", ["blood-cell-course-main.zip", "mine.zip"])
def test_without_an_address_a_zip_is_unpacked(colab, inside, name, capsys):
    colab.zipped("photographs.zip", "other/")
    colab.uploads = [str(colab.zipped(name, inside))] if name == "mine.zip" else []
    if not colab.uploads:
        colab.zipped(name, inside)
    for _ in range(2):
        assert colab.start("") == Path("blood-cell-course") / inside
    assert "zip of the whole course" in capsys.readouterr().out
    assert [command[0] for command in colab.commands] == ["unzip", sys.executable, sys.executable]


def test_a_folder_that_is_there_is_taken(colab):
    colab.course(colab.root / "drive/MyDrive/blood-cell-course")
    assert colab.start("", drive=True) == Path("drive/MyDrive/blood-cell-course") and len(colab.commands) == 1


def test_nothing_uploaded_is_said(colab):
    with pytest.raises(AssertionError, match="another zip"):
        colab.start("")
