"""Figures of priors: each returns its Axes, draws what it is given, and takes an empty input."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from ssdlib.config import PriorConfig
from ssdlib.detector.boxes import cxcywh_to_xyxy
from ssdlib.detector.priors import make_priors
from ssdlib.inference.draw import CLASS_COLORS
from ssdlib.plots import priors as plots

PICTURE = torch.full((3, 300, 300), 200, dtype=torch.uint8)
BOXES = torch.tensor([[10.0, 20, 60, 90], [200, 200, 240, 230]])


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    mpl.use("Agg")
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("a plot function must not call show()"))
    yield
    plt.close("all")


@pytest.mark.parametrize(
    ("level", "row", "column", "center"),
    [(0, 0, 0, (0.5 / 38, 0.5 / 38)), (2, 4, 7, (0.75, 0.45)), (5, 0, 0, (0.5, 0.5))],
)
def test_priors_of_cell_share_the_center_of_their_cell(level, row, column, center):
    config = PriorConfig()
    corners = plots.priors_of_cell(config, level, row, column)
    assert corners.shape == (config.per_location[level], 4)
    torch.testing.assert_close(
        (corners[:, :2] + corners[:, 2:]) / 2, torch.tensor([center]).expand(len(corners), 2)
    )


def test_priors_of_all_cells_are_all_priors():
    config = PriorConfig(feature_maps=(3, 2), scales=(0.3, 0.6), aspect_ratios=((2.0,), (2.0, 3.0)))
    cells = [(k, i, j) for k, f in enumerate(config.feature_maps) for i in range(f) for j in range(f)]
    together = torch.cat([plots.priors_of_cell(config, *cell) for cell in cells])
    assert torch.equal(together, cxcywh_to_xyxy(make_priors(config)))


@pytest.mark.parametrize(("boxes", "labels", "patches"), [(BOXES[:0], [], 0), (BOXES, [1, 3], 2 * (1 + 6))])
def test_map_priors(boxes, labels, patches):
    ax = plots.map_priors(None, PICTURE, PriorConfig(), 2, boxes, labels)
    assert isinstance(ax, Axes) and len(ax.images) == 1
    assert len(ax.collections[0].get_offsets()) == 100
    assert len(ax.patches) == patches
    outlines = {patch.get_edgecolor() for patch in ax.patches if not patch.get_fill()}
    assert outlines == {to_rgba(CLASS_COLORS[label]) for label in labels}


@pytest.mark.parametrize(
    ("objects", "prior", "patches"),
    [([], None, 0), ([[0, 0, 4, 4]], None, 2), ([[0, 0, 4, 4], [2, 0, 5, 4]], [0, 0, 2, 2], 6)],
)
def test_board(objects, prior, patches):
    ax = plots.board(None, objects, "AB", prior)
    assert len(ax.patches) == patches
    assert [text.get_text() for text in ax.texts] == list("AB"[: len(objects)])
    assert ax.get_ylim() == (8, 0)


@pytest.mark.parametrize(
    ("overlap", "rows", "columns", "own"),
    [(np.zeros((0, 2)), [], ["p", "q"], []), ([[0.25, 0.8]], ["A"], ["p", "q"], [(0, 1)])],
)
def test_overlap_table(overlap, rows, columns, own):
    ax = plots.overlap_table(None, overlap, rows, columns, own=own, extra=own)
    assert [text.get_text() for text in ax.texts] == [f"{v:.2f}" for v in np.ravel(overlap)]
    assert len(ax.patches) == 2 * len(own)


@pytest.mark.parametrize(
    ("boxes", "answers", "patches"),
    [(BOXES[:0], [-1, -1], 0), (BOXES, [-1, -1], 4), (BOXES, [0, 1], 6), (BOXES, [1, 1], 6)],
)
@pytest.mark.parametrize("picture", [PICTURE, PICTURE.permute(1, 2, 0)])
def test_positives(boxes, answers, patches, picture):
    ax = plots.positives(None, picture, boxes, BOXES, answers)
    assert len(ax.patches) == patches
    assert ax.get_xlim() == (0, 300) and ax.get_ylim() == (300, 0)


@pytest.mark.parametrize(
    ("shares", "bars"),
    [
        ({}, 0),
        ({"paper": {}}, 0),
        ({"paper": {"WBC": 1.0, "RBC": None}, "small": {"WBC": 0.5, "RBC": 0.0}}, 3),
    ],
)
def test_share_bars(shares, bars):
    ax = plots.share_bars(None, shares)
    assert len(ax.patches) == bars
    assert all(patch.get_height() <= 100 for patch in ax.patches)


def test_recall_curves():
    assert len(plots.recall_curves(None, {}).lines) == 0
    ax = plots.recall_curves(None, {"WBC": torch.tensor([0.25, 0.75]), "RBC": torch.zeros(0)})
    assert len(ax.lines) == 1  # no curve for a class without objects
    level, share = ax.lines[0].get_data()
    assert share[0] == 100 and share[-1] == 0
    assert np.interp(0.5, level, share) == pytest.approx(50)


@pytest.mark.parametrize("count", [0, 2])
def test_decoded_moves(count):
    prior = torch.tensor([[0.4, 0.4, 0.6, 0.6]])
    ax = plots.decoded_moves(None, prior, prior.expand(count, 4) + 0.1, ["a", "b"][:count])
    assert len(ax.patches) == 1 + count
    assert len(ax.get_legend_handles_labels()[1]) == count


@pytest.mark.parametrize(("values", "curves"), [({}, 0), ({"x": []}, 1), ({"x": [0.1, -0.2], "y": [5.0]}, 2)])
def test_spread(values, curves):
    ax = plots.spread(None, values, limit=4)
    assert len(ax.patches) == curves and ax.get_xlim() == (-4, 4)
