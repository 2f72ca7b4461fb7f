"""Figures of detections: what is drawn, from nothing at all on."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from ssdlib.inference.detections import Detections
from ssdlib.inference.draw import CLASS_COLORS
from ssdlib.plots import detections as plots
from ssdlib.plots.style import INK

NAMES = ("WBC", "RBC", "Platelets")
IMAGE = np.full((80, 100, 3), 200, np.uint8)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def detections(labels=(), score=0.9, image="x"):
    boxes = torch.tensor([[10.0 * k, 5, 10 * k + 20, 40] for k in range(len(labels))]).reshape(-1, 4)
    return Detections(boxes, [score] * len(labels), list(labels), (100, 80), NAMES, image)


LABELS = [[], [2], [1, 2, 2, 3]]


@pytest.mark.parametrize(
    ("counts", "text"), [({}, ""), ({"WBC": 0}, "0 WBC"), ({"WBC": 1, "RBC": 12}, "1 WBC, 12 RBC")]
)
def test_counts_text(counts, text):
    assert plots.counts_text(counts) == text


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("captions", [False, True])
def test_detected(labels, captions):
    _, given = plt.subplots()
    ax = plots.detected(given, IMAGE, detections(labels), captions=captions)
    assert ax is given
    assert [to_hex(p.get_edgecolor()) for p in ax.patches] == [CLASS_COLORS[k] for k in labels]
    assert len(ax.texts) == (len(labels) if captions else 0)
    assert ax.get_title(loc="left") + ax.get_title() == plots.counts_text(detections(labels).counts())


@pytest.mark.parametrize("labels", LABELS)
def test_triptych(labels):
    _, axes = plt.subplots(1, 3)
    target = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([3])}
    plots.triptych(axes, IMAGE, detections(labels), target)
    assert [len(ax.patches) for ax in axes] == [0, len(labels), 1]
    assert [len(ax.images) for ax in axes] == [1, 1, 1]


@pytest.mark.parametrize(
    ("count", "kept", "suppressed"), [(0, [], []), (3, [], []), (4, [0], [2]), (2, [0, 1], [])]
)
def test_suppression(count, kept, suppressed):
    boxes = np.tile([10.0, 10, 30, 30], (count, 1))
    for ax in (
        plots.suppression(None, IMAGE, boxes, kept=kept, suppressed=suppressed),
        plots.suppression_board(None, boxes, [0.5] * count, kept=kept, suppressed=suppressed),
    ):
        colors = [to_hex(patch.get_edgecolor()) for patch in ax.patches]
        assert colors.count(plots.KEPT) == len(kept)
        assert colors.count(plots.SUPPRESSED) == len(suppressed)
        assert colors.count(INK) == count - len(kept) - len(suppressed)


def test_legend_of_states():
    figure, _ = plt.subplots(layout="constrained")
    assert plots.legend_of_states(figure) is figure
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["waiting", "kept", "suppressed"]


@pytest.mark.parametrize(
    "found", [[], [detections()], [detections([1, 2], 0.3), detections([2], 0.7)]], ids=len
)
def test_counts_by_threshold(found):
    true = {"WBC": 1, "RBC": 2, "Platelets": 0}
    ax = plots.counts_by_threshold(None, found, true, dict.fromkeys(NAMES, 0.3))
    curves = {line.get_label(): line for line in ax.get_lines()}
    for name in NAMES:
        most = np.nan_to_num(curves[name].get_ydata()).max()
        assert most == sum(one.counts()[name] for one in found)


def test_counts_by_threshold_without_classes():
    assert not plots.counts_by_threshold(None, [], {}).get_lines()


@pytest.mark.parametrize(
    "rows", [{}, {"a": [(1, 1), (2, 3)]}, {"a": [(0, 0), (5, 5)], "b": [(1, 2), (3, 4)]}]
)
def test_counts_table_marks_differences(rows):
    ax = plots.counts_table(None, rows, ["WBC", "RBC"])
    assert len(ax.tables) == bool(rows)
    cells = ax.tables[0].get_celld().values() if rows else []
    bold = sum(cell.get_text().get_weight() == "bold" for cell in cells)
    assert bold == sum(c != t for pairs in rows.values() for c, t in pairs)


@pytest.mark.parametrize("labels", [[], [[]], [[1, 2], [2, 3]]])
def test_scores_table_adds_up(labels):
    found = [detections(each, 0.5, f"image {i}") for i, each in enumerate(labels)]
    ax = plots.scores_table(None, found, NAMES)
    last = len(labels) + 1
    texts = [ax.tables[0][last, j].get_text().get_text() for j in range(3)]
    totals = [sum(each.count(k) for each in labels) for k in (1, 2, 3)]
    assert texts == [f"{n}  (0.50)" if n else "0" for n in totals]
