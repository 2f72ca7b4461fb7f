"""Figures of detections: what is drawn, from nothing at all on."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ssdlib.inference.detections import Detections
from ssdlib.plots import detections as plots
from ssdlib.plots.style import new_figure
from tests.plots.conftest import NAMES, PICTURE, curves, texts


def detections(labels=(), score=0.9, image="x"):
    boxes = torch.tensor([[10.0 * k, 5, 10 * k + 20, 40] for k in range(len(labels))]).reshape(-1, 4)
    return Detections(boxes, [score] * len(labels), list(labels), (120, 100), NAMES, image)


@pytest.mark.parametrize("labels", [[], [2], [1, 2, 2, 3]])
def test_triptych(labels):
    target = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([3])}
    axes = plots.triptych(new_figure(1, 3)[1], PICTURE, detections(labels), target)
    assert [len(ax.patches) for ax in axes] == [0, len(labels), 1]
    counted = ", ".join(f"{labels.count(k)} {name}" for k, name in enumerate(NAMES, 1))
    assert [ax.get_title(loc="left") for ax in axes] == ["x", counted, "0 WBC, 0 RBC, 1 Platelets"]


@pytest.mark.parametrize("boxes", [[], [[0, 0, 10, 20]], [[0, 0, 10, 20], [5, 5, 9, 9]]])
def test_mark_boxes_puts_a_symbol_into_each(ax, boxes):
    plots.mark_boxes(ax, torch.tensor(boxes), "?")
    assert texts(ax) == ["?"] * len(boxes)
    assert [one.get_position() for one in ax.texts] == [((a + c) / 2, (b + d) / 2) for a, b, c, d in boxes]


@pytest.mark.parametrize(
    ("count", "kept", "suppressed"), [(0, [], []), (3, [], []), (4, [0], [2]), (2, [0, 1], [])]
)
def test_suppression_colors_each_box_by_its_state(ax, count, kept, suppressed):
    boxes = np.tile([10.0, 10, 30, 30], (count, 1))
    plots.suppression(ax, boxes, kept=kept, suppressed=suppressed, scores=[0.5] * count)
    numbers = {"waiting": count - len(kept + suppressed), "kept": len(kept), "suppressed": len(suppressed)}
    drawn = [to_hex(patch.get_edgecolor()) for patch in ax.patches]
    tags = [to_hex(one.get_bbox_patch().get_facecolor()) for one in ax.texts]
    for state, line in plots.SUPPRESSION_LINES.items():
        assert drawn.count(line["color"]) == tags.count(line["color"]) == numbers[state]
    assert texts(ax) == [f"{k}  0.5" for k in range(1, count + 1)]


@pytest.mark.parametrize("labels", [[], [[]], [[1, 2], [2, 3]]])
def test_counts_by_threshold_adds_up(ax, labels):
    found = [detections(each, 0.5, f"image {i}") for i, each in enumerate(labels)]
    totals = [sum(each.count(k) for each in labels) for k in (1, 2, 3)]
    true = dict(zip(NAMES, (1, 2, 0), strict=True))  # of the last class there is no object
    drawn = curves(plots.counts_by_threshold(ax, found, true, dict.fromkeys(NAMES, 0.3)))
    assert [np.nan_to_num(drawn[name][1]).max() for name in NAMES] == totals
    dashed = [line.get_ydata()[0] for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert dashed == [1, 2]
