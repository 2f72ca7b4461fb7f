"""Figures of detections: what is drawn, from nothing at all on."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ssdlib.inference.detections import Detections
from ssdlib.plots import detections as plots
from ssdlib.plots.boxes import board
from tests.plots.conftest import NAMES, PICTURE, curves, texts


def detections(labels=(), score=0.9, image="x"):
    boxes = torch.tensor([[10.0 * k, 5, 10 * k + 20, 40] for k in range(len(labels))]).reshape(-1, 4)
    return Detections(boxes, [score] * len(labels), list(labels), (120, 100), NAMES, image)


@pytest.mark.parametrize("labels", [[], [2], [1, 2, 2, 3]])
def test_detected_and_triptych(labels):
    found = detections(labels)
    ax = plots.detected(None, PICTURE, found, captions=True)
    assert len(ax.patches) == len(ax.texts) == len(labels)
    assert ax.get_title(loc="left") == plots.counts_text(found.counts())
    target = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([3])}
    axes = plots.triptych(plt.subplots(1, 3)[1], PICTURE, found, target)
    assert [len(ax.patches) for ax in axes] == [0, len(labels), 1]
    assert axes[2].get_title(loc="left") == "0 WBC, 0 RBC, 1 Platelets"


@pytest.mark.parametrize(
    ("count", "kept", "suppressed"), [(0, [], []), (3, [], []), (4, [0], [2]), (2, [0, 1], [])]
)
def test_suppression_colors_each_box_by_its_state(count, kept, suppressed):
    boxes = np.tile([10.0, 10, 30, 30], (count, 1))
    ax = plots.suppression(board(None, 100), boxes, kept=kept, suppressed=suppressed, scores=[0.5] * count)
    lines = plots.suppression_lines()
    numbers = {"kept": len(kept), "suppressed": len(suppressed)}
    numbers["waiting"] = count - sum(numbers.values())
    colors = [patch.get_linewidth() for patch in ax.patches], [patch.get_edgecolor() for patch in ax.patches]
    assert len(ax.patches) == count and colors[0].count(lines["kept"]["lw"]) == len(kept)
    tags = [one.get_bbox_patch().get_facecolor() for one in ax.texts]
    for state, number in numbers.items():
        assert tags.count(plt.matplotlib.colors.to_rgba(lines[state]["color"])) == number
    assert texts(ax) == [f"{k}  0.5" for k in range(1, count + 1)]


@pytest.mark.parametrize(
    "found", [[], [detections()], [detections([1, 2], 0.3), detections([2], 0.7)]], ids=len
)
def test_counts_by_threshold(found):
    true = {"WBC": 1, "RBC": 2, "Platelets": 0}
    drawn = curves(plots.counts_by_threshold(None, found, true, dict.fromkeys(NAMES, 0.3)))
    for name in NAMES:
        assert np.nan_to_num(drawn[name][1]).max() == sum(one.counts()[name] for one in found)
    assert not plots.counts_by_threshold(None, found, {}).get_lines()


@pytest.mark.parametrize(
    "rows", [{}, {"a": [(1, 1), (2, 3)]}, {"a": [(0, 0), (5, 5)], "b": [(1, 2), (3, 4)]}]
)
def test_counts_table_marks_differences(rows):
    ax = plots.counts_table(None, rows, ["WBC", "RBC"])
    cells = ax.tables[0].get_celld().values() if rows else []
    bold = [cell.get_text().get_text() for cell in cells if cell.get_text().get_weight() == "bold"]
    assert sorted(bold) == sorted(f"{c} / {t}" for pairs in rows.values() for c, t in pairs if c != t)


@pytest.mark.parametrize("labels", [[], [[]], [[1, 2], [2, 3]]])
def test_scores_table_adds_up(labels):
    found = [detections(each, 0.5, f"image {i}") for i, each in enumerate(labels)]
    cells = plots.scores_table(None, found, NAMES).tables[0]
    totals = [sum(each.count(k) for each in labels) for k in (1, 2, 3)]
    last = [cells[len(labels) + 1, j].get_text().get_text() for j in range(3)]
    assert last == [f"{n}  (0.50)" if n else "0" for n in totals]
