"""Small notebooks for the chain."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = 'PROFILE = "smoke"\nDATA = "smears"\nRUN_DIR = ""'


def write_notebook(path: Path, *sources: str, parameters: str = PARAMETERS) -> None:
    cells = [new_markdown_cell(f"# {path.stem}")]
    cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
