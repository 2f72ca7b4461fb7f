"""Run notebooks as on a machine of Colab: its versions of packages, a stand-in for google.colab, no checkout.

    python tests/notebooks/colab.py FOLDER [notebooks/02_prior_boxes.ipynb ...]    (all of them by default)

FOLDER gets a virtual environment (`venv`, 6 GB, made once; a Python 3.12 makes what Colab has), /content, and
the executed notebooks. Each notebook is opened alone: its first code cell finds a zip of this checkout and
installs it, and no run is left of the notebooks before it; --keep keeps /content as they left it. Fails if a
cell fails, or if the installation changes a package that was there. `make test` does not run it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = Path(__file__).with_name("colab.txt")
STAND_IN = {
    "google/colab/__init__.py": "from google.colab import drive, files\n",
    "google/colab/drive.py": "def mount(path):\n    raise RuntimeError('there is no Drive here')\n",
    "google/colab/files.py": "def upload():\n    raise RuntimeError('there is nobody who uploads a file')\n",
    # Colab's kernel has imported it before the first cell runs.
    "ipython/profile_default/startup/colab.py": "import google.colab\n",
}


def environment(folder: Path) -> dict[str, str]:
    """What the kernel and its commands run in: the virtual environment alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSDLIB", "PYTHON"))}
    return kept | {
        "PATH": f"{folder / 'venv/bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "stand-in"),
        "IPYTHONDIR": str(folder / "stand-in/ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


def prepare(folder: Path, python: str, *, keep: bool = False) -> None:
    """Make the virtual environment, if it is not there yet, the stand-in, and the zip in /content."""
    if not (folder / "versions.txt").exists():
        subprocess.run([python, "-m", "venv", "--clear", folder / "venv"], check=True)
        pip = [folder / "venv/bin/python", "-m", "pip", "install", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", VERSIONS], check=True)
        (folder / "versions.txt").write_text("\n".join(installed(folder)))
    for name, text in STAND_IN.items():
        (folder / "stand-in" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "stand-in" / name).write_text(text)
    if keep and (folder / "content").exists():
        return
    shutil.rmtree(folder / "content", ignore_errors=True)
    (folder / "content").mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    with zipfile.ZipFile(folder / "content/blood-cell-course.zip", "w") as archive:
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                archive.write(ROOT / name, f"blood-cell-course/{name}")


def installed(folder: Path) -> list[str]:
    """The lines of pip freeze, but for the course."""
    pip = [folder / "venv/bin/python", "-m", "pip", "freeze", "--all", "--exclude", "ssdlib"]
    return subprocess.run(pip, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()


def execute(folder: Path, path: Path, parameters: dict[str, str], *, keep: bool = False) -> bool:
    """Whether the notebook runs to its end, without the runs of those before it unless they are to `keep`."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if "google.colab" in source:
            source = source.replace('"/content', f'"{folder}/content')
        if "parameters" in cell["metadata"].get("tags", ()):
            for name, value in parameters.items():
                source = re.sub(rf'(?m)^{name} = "[^"]*"', f"{name} = {value!r}", source)
        cell["source"] = source
    opened = folder / "content" / path.name
    opened.write_text(json.dumps(notebook), encoding="utf-8")
    for runs in folder.glob("content/blood-cell-course/**/runs"):
        if (runs.parent / "pyproject.toml").exists() and not keep:
            shutil.rmtree(runs)
    convert = [folder / "venv/bin/python", "-m", "nbconvert", "--to", "notebook", "--execute", opened]
    executed = folder / "executed" / path.parent.name
    options = ["--ExecutePreprocessor.timeout=1800", "--output-dir", executed, "--log-level=WARN"]
    done = subprocess.run([*convert, *options], env=environment(folder), cwd=folder / "content")
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--python", default=shutil.which("python3.12") or sys.executable)
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--data", default="smears")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_intermixed_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder, given.python, keep=given.keep)
    failed = []
    chosen = given.notebooks or runpy.run_path(str(ROOT / ".ci/address.py"))["notebooks"]()
    for path in chosen:
        began = time.monotonic()
        parameters = {"PROFILE": given.profile, "DATA": given.data}
        works = execute(folder, path.resolve(), parameters, keep=given.keep)
        print(f"{'ran' if works else 'FAILED'} {path} in {time.monotonic() - began:.0f} s", flush=True)
        failed += [] if works else [path.name]
    before, after = set((folder / "versions.txt").read_text().splitlines()), set(installed(folder))
    print(f"installed with the course: {', '.join(sorted(after - before)) or 'nothing'}")
    print(f"changed or removed: {', '.join(sorted(before - after)) or 'nothing'}")
    return int(bool(failed or before - after))


if __name__ == "__main__":
    raise SystemExit(main())
