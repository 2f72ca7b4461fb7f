"""nbval does guard the notebooks: one saved number altered, and it fails."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from ssdlib.common.paths import project_root

NOTEBOOKS = project_root() / "notebooks"


def shortened(data, printed: int) -> nbformat.NotebookNode:
    """The beginning of notebook 2, up to its `printed`-th cell with text for output, on other smears."""
    notebook = nbformat.read(NOTEBOOKS / "02_prior_boxes.ipynb", as_version=4)
    cells = []
    for cell in notebook.cells:
        if cell.cell_type != "code" or "google.colab" in cell.source:
            continue
        cells.append(cell)
        cell.source = cell.source.replace('DATA = "smears"', f"DATA = {str(data)!r}")
        printed -= any(output.output_type == "stream" for output in cell.outputs)
        if not printed:
            break
    notebook.cells = cells
    return notebook


@pytest.mark.parametrize("altered", [False, True])
def test_one_altered_number_makes_nbval_fail(altered, smears_root, tmp_path):
    notebook = shortened(smears_root, printed=3)
    assert str(smears_root) in "".join(cell.source for cell in notebook.cells)
    if altered:
        output = next(o for o in notebook.cells[-1].outputs if o.output_type == "stream")
        output.text, count = re.subn(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), output.text, count=1)
        assert count == 1
    nbformat.write(notebook, tmp_path / "copy.ipynb")
    shutil.copy(NOTEBOOKS / "conftest.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "-q", "copy.ipynb"],
        env={**os.environ, "SSDLIB_RUN_DIR": str(tmp_path / "run"), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    cells = len(notebook.cells)
    expected = f"1 failed, {cells - 1} passed" if altered else f"{cells} passed"
    assert done.returncode == int(altered) and expected in done.stdout, done.stdout + done.stderr
