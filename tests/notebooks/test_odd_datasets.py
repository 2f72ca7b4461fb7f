"""Every notebook on data sets of one's own that are odd as such are; every cell twice; data of no use at all.

The cells run in this process, without Jupyter, on a profile smaller than smoke.
"""

import contextlib
import io
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib_inline import backend_inline

from ssdlib import config
from ssdlib.common.errors import DataError
from ssdlib.data.audit import audit
from ssdlib.data.source import open_folder
from ssdlib.runs import lesson
from ssdlib.runs.folder import read_stages
from ssdlib.runs.pipeline import find_stages, run_chain
from tests.notebooks.cases import EMPTY, ODD, SMALL, draw, field

STAGES = find_stages()
SOLUTIONS = [path for path in sorted(STAGES[0].parent.glob("solutions/*.ipynb")) if "train" not in path.stem]
"""Without those of notebook 4, which train for a minute."""
CELL = field("RBC")
NO_NUMBER = re.compile(r"\b(nan|inf)\b")


@pytest.fixture
def small_profile(monkeypatch):
    """The profile smoke with fewer images and a single epoch."""
    smoke = config.PROFILES["smoke"]
    recipe = smoke.recipe.replace(epochs=1, batch_size=2, frozen_stages=5)
    small = smoke.replace(recipe=recipe, train_images=8, val_images=2, test_images=2)
    monkeypatch.setitem(config.PROFILES, "smoke", small)
    monkeypatch.setattr(backend_inline, "set_matplotlib_formats", lambda *_, **__: None)
    plt.switch_backend("Agg")
    plt.close("all")  # what another test has left


@pytest.fixture
def shown(monkeypatch):
    """The texts of figures and tables, as they are shown."""
    texts = []

    def display(thing, metadata=None):
        if isinstance(thing, Figure):
            texts.extend(text.get_text() for text in thing.findobj(Text))
            texts.extend(of_kind["alt"] for of_kind in metadata.values())
        else:
            texts.extend(BeautifulSoup(thing.data, "html.parser").stripped_strings)

    monkeypatch.setattr(lesson, "display", display)
    return texts


def cells_of(stage: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(stage, as_version=4).cells if cell.cell_type == "code"]


def run_notebook(
    stage: Path, parameters: dict[str, str], monkeypatch, shown: list[str], *, times: int = 1
) -> str:
    """What the cells print; each runs `times` times in a row. A nan printed, in a figure or a table fails.

    Cells on networks of full width are left out (tag `full-width`): they are slow, and no data set makes them
    take another way.
    """
    monkeypatch.chdir(stage.parent)
    namespace = {"__name__": "__main__"}
    printed = io.StringIO()
    for cell in cells_of(stage):
        tags = cell.metadata.get("tags", [])
        if "full-width" in tags:
            continue
        source = cell.source
        if "parameters" in tags:
            source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
        code = compile(source, f"<{stage.stem}, {cell.id}>", "exec")
        for _ in range(times):
            with contextlib.redirect_stdout(printed), warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)  # numpy's divisions by zero
                exec(code, namespace)
        assert not plt.get_fignums(), f"{cell.id} makes a figure and does not show it"
        assert not [text for text in shown if NO_NUMBER.search(text)], cell.id
        shown.clear()
    lines = printed.getvalue().splitlines()
    assert not [line for line in lines if NO_NUMBER.search(line)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if number > 1 else ()) for number, name in enumerate(ODD)][1:],
)
def test_notebooks_run_on_odd_data(name, small_profile, shown, tmp_path, monkeypatch):
    data = draw(tmp_path / "my cells", ODD[name])
    assert not audit(open_folder(data)).errors
    parameters = {"PROFILE": "smoke", "DATA": str(data), "RUN_DIR": str(tmp_path / "run")}
    for stage in STAGES:
        run_notebook(stage, parameters, monkeypatch, shown)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.stem)
def test_each_cell_runs_twice(stage, small_profile, shown, tmp_path, monkeypatch):
    data = draw(tmp_path / "data", next(iter(ODD.values())))
    assert not audit(open_folder(data)).errors
    parameters = {"PROFILE": "smoke", "DATA": str(data), "RUN_DIR": str(tmp_path / "run")}
    printed = run_notebook(stage, parameters, monkeypatch, shown, times=2)
    assert printed.count("PASS") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", SOLUTIONS, ids=lambda stage: stage.stem)
def test_solutions_run_on_a_small_data_set(stage, small_profile, shown, tmp_path, monkeypatch):
    data = draw(tmp_path / "data", SMALL)
    parameters = {"PROFILE": "smoke", "DATA": str(data), "RUN_DIR": str(tmp_path / "run")}
    run_notebook(stage, parameters, monkeypatch, shown)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": [EMPTY, EMPTY], "val": [field("RBC")], "test": [field("RBC")]},
            "none of the 2 training images has",
        ),
        ({"train": [field("RBC")], "val": [], "test": [field("RBC")]}, "split val of .* is empty"),
    ],
)
def test_the_chain_refuses_data_of_no_use_before_it_begins(splits, message, tmp_path):
    data = draw(tmp_path / "data", splits)
    with pytest.raises(DataError, match=message):
        run_chain("smoke", str(data), tmp_path / "run", progress=False)
    assert not read_stages(tmp_path / "run")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(0.9, 0.2, "NOTE: the training made the network worse: mAP@0.5 on val was 0.900, now 0.200"),
     (0.9, 0.9, "PASS: on val"), (None, 0.1, "PASS: on val"),
     (None, None, "NOTE: no val image has an object")],
)  # fmt: skip
def test_a_training_that_made_the_network_worse_is_said(before, after, said, capsys):
    cell = next(cell for cell in cells_of(STAGES[3]) if "made the network worse" in cell.source)
    best = None if after is None else SimpleNamespace(map_50=after)
    trained = SimpleNamespace(epochs=[SimpleNamespace(loss=2.0), SimpleNamespace(loss=1.9)], best=best)
    recipe = SimpleNamespace(initial_weights="bccd" if before else "scratch")

    exec(cell.source, {"trained": trained, "recipe": recipe, "before": before, "check": lesson.check})
    printed = capsys.readouterr().out
    assert said in printed
    assert ("not so here: from nothing" in printed) == (before is None)
