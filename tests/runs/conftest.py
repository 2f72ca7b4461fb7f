"""What the tests of runs share: four drawn fields, a run on them that trains in a second, small notebooks."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ssdlib.data.smears import write_dataset

PARAMETERS = 'PROFILE = "smoke"\nDATA = "smears"\nRUN_DIR = ""'


@pytest.fixture(scope="session")
def smears(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data") / "tiny"
    return str(write_dataset(folder, train=4, val=2, test=2, progress=False))


def write_notebook(path: Path, *sources: str, parameters: str = PARAMETERS) -> None:
    cells = [new_markdown_cell(f"# {path.stem}")]
    cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
