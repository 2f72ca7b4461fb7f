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

PICTURE = torch.full((3, 300, 300), 200, dtype=torch.uint8)
BOXES = torch.tensor([[10.0, 20, 60, 90], [200, 200, 240, 230]])


def test_priors_of_all_locations_are_all_priors():
    config = PriorConfig(feature_maps=(3, 2), scales=(0.3, 0.6), aspect_ratios=((2.0,), (2.0, 3.0)))
    places = [(k, i, j) for k, f in enumerate(config.feature_maps) for i in range(f) for j in range(f)]
    together = torch.cat([plots.priors_of_location(config, *place) for place in places])
    assert torch.equal(together, cxcywh_to_xyxy(make_priors(config)))


@pytest.mark.parametrize("labels", [[], [1, 3]])
def test_map_priors(ax, labels):
    plots.map_priors(ax, PICTURE, PriorConfig(), 2, BOXES[: len(labels)], labels)
    assert len(ax.collections[0].get_offsets()) == 100
    outlines = [to_hex(patch.get_edgecolor()) for patch in ax.patches if not patch.get_fill()]
    assert outlines == [CLASS_COLORS[label] for label in labels for _ in range(6)]


@pytest.mark.parametrize(
    ("boxes", "matched", "outlines"), [(BOXES[:0], [-1, -1], 0), (BOXES, [-1, -1], 2), (BOXES, [1, 1], 4)]
)
def test_positives(ax, boxes, matched, outlines):
    plots.positives(ax, PICTURE, boxes, BOXES, matched)
    assert sum(not patch.get_fill() for patch in ax.patches) == outlines


def test_recall_curves(ax):
    plots.recall_curves(ax, {"WBC": torch.tensor([0.25, 0.75]), "RBC": torch.zeros(0)})
    (line,) = ax.lines  # no curve for a class without objects
    level, share = line.get_data()
    assert share[0] == 100 and share[-1] == 0 and np.interp(0.5, level, share) == pytest.approx(50)


@pytest.mark.parametrize("count", [0, 2])
def test_decoded_moves(ax, count):
    prior = torch.tensor([[0.4, 0.4, 0.6, 0.6]])
    plots.decoded_moves(ax, prior, prior.expand(count, 4) + 0.1, ["a", "b"][:count])
    assert len(ax.patches) == 1 + count and ax.get_legend_handles_labels()[1] == ["a", "b"][:count]


@pytest.mark.parametrize("names", ["", "xywh"])
def test_offset_histograms_differ_without_color(ax, names):
    plots.offset_histograms(ax, {name: torch.linspace(-1, 1, 9) for name in names}, limit=4)
    assert len({patch.get_linestyle() for patch in ax.patches}) == len(ax.patches) == len(names)
    shown = ax.get_legend().legend_handles if names else []
    assert [line.get_linestyle() for line in shown] == [patch.get_linestyle() for patch in ax.patches]
