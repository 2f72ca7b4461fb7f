"""What the notebooks share: pieces of each other, checks that do not stop, texts of figures."""

import nbformat
import pytest
import torch
from matplotlib.figure import Figure

from ssdlib.common.errors import SsdError
from ssdlib.runs import lesson


def written(value):
    """Twice the value."""
    return 2 * value


def stub(value, *, scale=1):
    """Twice the value."""
    ...


def bare(value): ...


def constant():
    return 3


def answer(value):
    return value + value


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A function that writes cells, each a source with its tags, as a notebook of the course."""
    monkeypatch.setattr(lesson.paths, "project_root", lambda: tmp_path)
    (tmp_path / "notebooks").mkdir()

    def write(*cells):
        made = [nbformat.v4.new_code_cell(text, metadata={"tags": tags}) for text, tags in cells]
        nbformat.write(nbformat.v4.new_notebook(cells=made), tmp_path / "notebooks" / "02_boxes.ipynb")

    return write


def test_an_answer_stands_in_for_a_stub_alone():
    assert lesson.mine_or_answer(written, answer) is written
    assert lesson.mine_or_answer(constant, answer) is constant
    assert lesson.mine_or_answer(stub, answer) is lesson.mine_or_answer(bare, answer) is answer


def test_pieces_are_those_of_tagged_cells_in_their_order(notebook):
    notebook(
        ("def area(box):\n    ...", ["mine"]),
        ("raise RuntimeError", []),
        ("def area_answer(box):\n    return (box[2:] - box[:2]).prod()", ["mine", "answer"]),
        ("area = mine_or_answer(area, area_answer)\nclass Net(nn.Module):\n    pass", ["mine"]),
    )
    area, network = lesson.pieces("02_boxes", "area", "Net")
    assert area(torch.tensor([1.0, 1.0, 3.0, 4.0])) == 6 and issubclass(network, torch.nn.Module)


def test_what_no_cell_defines_is_named(notebook):
    notebook(("def area(box): ...", []))
    with pytest.raises(SsdError, match=r"02_boxes\.ipynb tagged 'mine' defines area"):
        lesson.pieces("02_boxes", "area")
    with pytest.raises(SsdError, match=r"03_none\.ipynb cannot be read"):
        lesson.pieces("03_none", "area")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"cells": [1]}', '{"cells": [{"metadata": {"tags": 1}}]}', "\udcff"]
)
def test_what_is_no_notebook_is_said(notebook, tmp_path, text):
    notebook()
    (tmp_path / "notebooks/02_boxes.ipynb").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SsdError, match=r"02_boxes\.ipynb cannot be read"):
        lesson.pieces("02_boxes", "area")


def test_a_check_says_what_holds_and_never_stops(capsys):
    lesson.check(True, "mine equals the library's")
    lesson.check(torch.tensor(False), "nor here")
    assert capsys.readouterr().out == "PASS: mine equals the library's\nNOTE: not so here: nor here\n"


def test_figures_have_a_text_and_tables_are_html(monkeypatch):
    shown = []
    monkeypatch.setattr(lesson, "display", lambda thing, metadata=None: shown.append((thing, metadata)))
    lesson.show(Figure(), "A red cell")
    lesson.show_table(["class", "AP < 1"], [["RBC", 0.5]], "On test")
    assert shown[0][1]["image/jpeg"] == shown[0][1]["image/png"] == {"alt": "A red cell"}
    page = shown[1][0].data
    assert "<caption>On test</caption>" in page and "AP &lt; 1</th>" in page and ">0.5</td>" in page
