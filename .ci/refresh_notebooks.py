"""Run notebooks in place and save them with fresh outputs and clean metadata.

    python .ci/refresh_notebooks.py [notebooks/02_prior_boxes.ipynb ...]     (all of them by default)

Outputs are those of the saved parameters (profile smoke, synthetic smears). Progress bars, timings of cells,
widget states and the kernel's patch version are left out: they differ from one machine to the next.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from ssdlib.runs.kernels import ChainKernel

WIDGET = "application/vnd.jupyter.widget-view+json"

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def refresh(path: Path) -> None:
    """Execute one notebook from its own folder and write it back."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        kernel_manager_class=ChainKernel,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    clean(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Keep what the course needs: sources, tags, outputs; drop what one machine left behind."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if {"answer", "colab"} & set(tags):  # folded in JupyterLab and on Colab
            cell.metadata |= {"jupyter": {"source_hidden": True}, "cellView": "form"}
        if cell.cell_type == "code":
            cell.outputs = merged(o for o in cell.outputs if o.get("name") != "stderr")
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)  # a dead widget; its text stays
                for kind in list(output.get("metadata", {})):
                    if not kind.startswith("image/"):  # texts of figures
                        del output.metadata[kind]


def merged(outputs: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Printed text in one piece: how the kernel cuts it differs from one execution to the next."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def set_aside(run: Path) -> None:
    """Rename the notebooks' own run folder: nothing of an earlier run may show in what is saved."""
    if run.exists():
        kept = run.with_name(f"{run.name}-before-{datetime.now():%Y%m%d-%H%M%S}")
        print(f"{run.name} is kept as {kept.name}", flush=True)
        run.rename(kept)


if __name__ == "__main__":
    set_aside(FOLDER.parent / "runs" / "lab-smoke-smears")
    for name in sys.argv[1:] or sorted(map(str, FOLDER.rglob("[0-9][0-9]_*.ipynb"))):
        print(f"running {name}", flush=True)
        refresh(Path(name).resolve())
