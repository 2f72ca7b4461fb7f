"""Installation: declared requirements, exact pins, make targets, the fall-back for OpenCV, other machines."""

import ast
import importlib.metadata
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ssdlib.common.errors import ConfigError
from ssdlib.runs.pipeline import run_chain
from ssdlib.runs.report import notebook_section
from ssdlib.tools.label_errors.review import ReviewWidget

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)( ; sys_platform == \"linux\")?")
setup_check = runpy.run_path(str(ROOT / ".ci/setup_check.py"))
mend_opencv, missing_library = setup_check["mend_opencv"], setup_check["missing_library"]
NO_GL = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(*extras: str) -> list[Requirement]:
    """What the core and the extras require; an extra of the project itself, as its own requirements."""
    found = [*map(Requirement, PROJECT["dependencies"])]
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            inner = requirements(*requirement.extras) if requirement.name == "ssdlib" else [requirement]
            found += [one for one in inner if one not in found]
    return found


def pins() -> dict[str, str]:
    lines = (ROOT / ".ci/constraints.txt").read_text().splitlines()
    found = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(found), "each line is name==version, nothing local"
    return {match[1]: match[2] for match in found}


def test_every_requirement_has_lower_bounds_only_and_a_pin_that_satisfies_it():
    for requirement in requirements("dev"):
        assert {specifier.operator for specifier in requirement.specifier} == {">="}, requirement
        assert requirement.specifier.contains(pins()[normal(requirement.name)]), requirement


def test_dev_has_every_extra():
    assert set(map(str, requirements("dev"))) >= set(
        map(str, requirements(*PROJECT["optional-dependencies"]))
    )


KERNEL = "ipykernel ipython ipywidgets jupyter-client jupyter-core matplotlib-inline pyzmq tornado traitlets"
"""What runs the notebooks of a Jupyter server."""


def test_the_core_leaves_alone_what_runs_a_notebook_on_colab():
    lines = (ROOT / "tests/notebooks/colab.txt").read_text().splitlines()
    there = {normal(name): version for name, _, version in (line.partition("==") for line in lines)}
    core = {normal(one.name): one for one in requirements()}
    assert not set(KERNEL.split()) & set(core) and set(KERNEL.split()) <= set(there)
    assert not {"jupyterlab", "nbclient", "nbconvert", "nbformat", "nbval", "papermill", "pytest"} & set(core)
    assert set(core) - set(there) == {"imagecodecs", "latex2mathml", "nh3"}, "all else is there"
    for name, requirement in core.items():
        assert name not in there or requirement.specifier.contains(there[name]), "pip would replace it"


def test_what_needs_the_extra_lab_says_so(monkeypatch, tmp_path):
    for module in ("papermill", "nbconvert", "ipywidgets"):
        monkeypatch.setitem(sys.modules, module, None)
    for needs in (run_chain, lambda: ReviewWidget(tmp_path)):
        with pytest.raises(ConfigError, match=r"pip install 'ssdlib\[lab\]'"):
            needs()
    assert "nbconvert, which is not installed" in notebook_section(next(ROOT.glob("notebooks/*.ipynb"))).error


def test_machines_of_codespaces_and_binder_install_the_course():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert container["postCreateCommand"] == "make setup"
    opened = container["customizations"]["codespaces"]["openFiles"]
    assert opened and all((ROOT / name).is_file() for name in opened)
    python = (ROOT / ".binder/runtime.txt").read_text().strip().removeprefix("python-")
    assert container["image"].endswith(f":{python}") and SpecifierSet(PROJECT["requires-python"]).contains(
        python
    )
    script = ROOT / ".binder/postBuild"
    assert os.access(script, os.X_OK) and subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert "--editable ." in script.read_text() and ".ci/setup_check.py" in script.read_text()


@pytest.mark.skipif(
    importlib.metadata.version("torch") != pins()["torch"], reason="another torch needs other packages"
)
def test_pins_cover_everything_that_the_requirements_need():
    todo, seen = requirements("lab"), set()
    while todo:
        requirement = todo.pop()
        key = (normal(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in pins(), f"{requirement} is not pinned"
        for text in importlib.metadata.requires(requirement.name) or ():
            needed = Requirement(text)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    assert len(seen) > 50


def test_pins_can_be_installed_by_the_oldest_python_that_is_promised():
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    as_pinned = [d for d in importlib.metadata.distributions() if pins().get(normal(d.name)) == d.version]
    assert len(as_pinned) > 50
    for package in as_pinned:
        needs = SpecifierSet(package.metadata["Requires-Python"] or "")
        assert needs.contains(oldest) or package.name == "audioop-lts", f"{package.name} needs {needs}"


def test_headless_opencv_is_pinned_to_the_same_version():
    assert pins()["opencv-python-headless"] == pins()["opencv-python"]


def test_everything_imported_is_required():
    providers = importlib.metadata.packages_distributions()
    extras = PROJECT["optional-dependencies"].keys() - {"dev"}
    required = {normal(one.name) for one in requirements(*extras)}
    for path in (ROOT / "ssdlib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"ssdlib"}:
                distributions = {normal(name) for name in providers.get(top, [top])}
                assert distributions & required, f"{path.name} imports {top}: add it to pyproject.toml"


def test_data_files_travel_with_the_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    others = [p for p in (ROOT / "ssdlib").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert others and all(any(path.match(pattern) for pattern in patterns) for path in others)


def test_conda_installs_from_the_same_pins():
    text = (ROOT / "environment.yml").read_text()
    assert "-c .ci/constraints.txt" in text and "-e .[dev]" in text


@pytest.mark.parametrize(
    ("problem", "library"),
    [
        ("", None),
        ("ModuleNotFoundError: No module named 'cv2'", None),
        (NO_GL, "libGL.so.1"),
        (NO_GL.replace("libGL.so.1", "libgthread-2.0.so.0"), "libgthread-2.0.so.0"),
    ],
)
def test_what_a_loader_message_misses(problem, library):
    assert missing_library(problem) == library


class Loader:
    """Stands in for the system: reports the problems one after the other, and notes pip's commands."""

    def __init__(self, *problems: str | None) -> None:
        self.problems, self.commands = list(problems), []

    def problem(self) -> str | None:
        return self.problems.pop(0)

    def pip(self, *arguments: str) -> None:
        self.commands.append(arguments)

    def mend(self, constraints: Path | None = None) -> str:
        return mend_opencv(constraints, problem=self.problem, run_pip=self.pip)


def test_opencv_that_loads_is_left_alone():
    loader = Loader(None)
    assert loader.mend() == "OpenCV: ok" and loader.commands == []


def test_opencv_without_the_systems_libraries_gives_way_to_headless():
    loader = Loader(NO_GL, None)
    message = loader.mend(Path("pins.txt"))
    assert "libGL.so.1" in message and "opencv-python-headless" in message
    assert loader.commands == [
        ("uninstall", "--yes", "opencv-python", "opencv-python-headless"),
        ("install", "--constraint", "pins.txt", "opencv-python-headless"),
    ]


@pytest.mark.parametrize("problems", [("ImportError: numpy is too old",), (NO_GL, "ImportError: still")])
def test_opencv_that_cannot_be_mended_is_said(problems):
    with pytest.raises(RuntimeError, match="OpenCV does not import"):
        Loader(*problems).mend()


def test_setup_check_ends_with_a_message(capsys):
    assert setup_check["main"](["--constraints", "x"]) == 0 and capsys.readouterr().out == "OpenCV: ok\n"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
class TestMake:
    def make(self, *arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        return subprocess.run(["make", *arguments], cwd=folder, env=clean, capture_output=True, text=True)

    def test_run_passes_profile_data_and_name(self):
        text = self.make("-n", "run", "PROFILE=smoke", "DATA=a folder", "RUN=one").stdout
        assert '-m ssdlib run --profile "smoke" --data "a folder" --run "one"' in text

    def test_test_runs_ruff_and_every_notebook(self):
        text = self.make("-n", "test").stdout
        assert "ruff check ." in text and "ruff format --check ." in text
        assert "pytest -n 2 tests" in text and "pytest --nbval notebooks/01" in text
        for notebook in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
            assert f"notebooks/{notebook.name}" in text

    def copy_makefile(self, folder):
        """The Makefile alone, with empty files of what it installs by."""
        shutil.copy(ROOT / "Makefile", folder)
        (folder / ".ci").mkdir()
        (folder / ".ci/constraints.txt").touch()
        (folder / "pyproject.toml").touch()

    def test_an_old_python_is_refused_in_words(self, tmp_path):
        self.copy_makefile(tmp_path)
        old = tmp_path / "python-old"
        real = f'exec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])" "$2"'
        old.write_text(f"#!/bin/sh\n{real}\n")
        old.chmod(0o755)
        done = self.make("setup", f"PYTHON={old}", folder=tmp_path)
        assert done.returncode != 0 and "Python 3.11 or newer is needed" in done.stderr
        assert "is 3.9" in done.stderr and not (tmp_path / ".venv").exists()

    def test_where_nothing_can_be_installed_the_python_is_named(self, tmp_path):
        self.copy_makefile(tmp_path)
        fake = tmp_path / ".venv/bin/python"
        fake.parent.mkdir(parents=True)
        fake.write_text(f'#!/bin/sh\n[ "$1" = -m ] && exit 1\nexec {sys.executable} "$@"\n')
        fake.chmod(0o755)
        done = self.make("setup", f"PYTHON={sys.executable}", folder=tmp_path)
        assert done.returncode != 0 and f"for Python {platform.python_version()} of .venv" in done.stderr
        assert not (tmp_path / ".venv/.stamp").exists()


def test_ci_script_is_sound():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
