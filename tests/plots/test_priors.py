"""Figures of priors: each draws what it is given, and takes an empty input."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ssdlib.config import PriorConfig
from ssdlib.detector.boxes import cxcywh_to_xyxy
from ssdlib.detector.priors import make_priors
from ssdlib.inference.draw import CLASS_COLORS
from ssdlib.plots import priors as plots
from tests.plots.conftest import texts

PICTURE = torch.full((3, 300, 300), 200, dtype=torch.uint8)
BOXES = torch.tensor([[10.0, 20, 60, 90], [200, 200, 240, 230]])


@pytest.mark.parametrize(
    ("level", "row", "column", "center"),
    [(0, 0, 0, (0.5 / 38, 0.5 / 38)), (2, 4, 7, (0.75, 0.45)), (5, 0, 0, (0.5, 0.5))],
)
def test_priors_of_cell_share_the_center_of_their_cell(level, row, column, center):
    corners = plots.priors_of_cell(PriorConfig(), level, row, column)
    assert len(corners) == PriorConfig().per_location[level]
    torch.testing.assert_close(
        (corners[:, :2] + corners[:, 2:]) / 2, torch.tensor([center]).expand(len(corners), 2)
    )


def test_priors_of_all_cells_are_all_priors():
    config = PriorConfig(feature_maps=(3, 2), scales=(0.3, 0.6), aspect_ratios=((2.0,), (2.0, 3.0)))
    cells = [(k, i, j) for k, f in enumerate(config.feature_maps) for i in range(f) for j in range(f)]
    together = torch.cat([plots.priors_of_cell(config, *cell) for cell in cells])
    assert torch.equal(together, cxcywh_to_xyxy(make_priors(config)))


@pytest.mark.parametrize("labels", [[], [1, 3]])
def test_map_priors(labels):
    ax = plots.map_priors(None, PICTURE, PriorConfig(), 2, BOXES[: len(labels)], labels)
    assert len(ax.collections[0].get_offsets()) == 100
    outlines = [to_hex(patch.get_edgecolor()) for patch in ax.patches if not patch.get_fill()]
    assert outlines == [CLASS_COLORS[label] for label in labels for _ in range(6)]


@pytest.mark.parametrize(
    ("overlap", "rows", "columns", "own"),
    [(np.zeros((0, 2)), [], ["p", "q"], []), ([[0.25, 0.8]], ["A"], ["p", "q"], [(0, 1)])],
)
def test_overlap_table(overlap, rows, columns, own):
    ax = plots.overlap_table(None, overlap, rows, columns, own=own, extra=own)
    assert texts(ax) == [f"{v:.2f}" for v in np.ravel(overlap)] and len(ax.patches) == 2 * len(own)


@pytest.mark.parametrize(
    ("boxes", "answers", "outlines"),
    [(BOXES[:0], [-1, -1], 0), (BOXES, [-1, -1], 2), (BOXES, [0, 1], 4), (BOXES, [1, 1], 4)],
)
def test_positives(boxes, answers, outlines):
    ax = plots.positives(None, PICTURE, boxes, BOXES, answers)
    assert sum(not patch.get_fill() for patch in ax.patches) == outlines


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
    assert ax.get_legend_handles_labels()[1] == ["a", "b"][:count]


def test_offset_histograms():
    ax = plots.offset_histograms(None, {"x": [0.1, -0.2], "y": [5.0]}, limit=4)
    assert [patch.get_data().values.max() for patch in ax.patches] == [1, 0] and ax.get_xlim() == (-4, 4)
