"""Figures of the network: what is drawn, from nothing at all on."""

import numpy as np
import pytest
import torch

from ssdlib.plots import model as plots
from tests.plots.conftest import texts

IMAGE = torch.full((3, 300, 300), 200, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("values", "ends"), [({}, []), ({"a": 3.0, "b": 1.0}, ["3.0 GFLOP (75%)", "1.0 GFLOP (25%)"])]
)
def test_share_bars(values, ends):
    ax = plots.share_bars(None, values, "GFLOP")
    assert [bar.get_width() for bar in ax.patches] == list(values.values()) and texts(ax) == ends


@pytest.mark.parametrize("fields", [{}, {"conv4_3": 92}, {"conv4_3": 92, "conv11_2": 700}])
def test_receptive_fields(fields):
    ax = plots.receptive_fields(None, IMAGE, fields)
    assert [patch.get_width() for patch in ax.patches] == list(fields.values())
    assert texts(ax) == [f"{name}: {side}" for name, side in fields.items()]
    assert ax.get_xlim()[1] - ax.get_xlim()[0] >= max([300, *fields.values()])


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_influence_of_nothing_and_of_something(value):
    ax = plots.influence(None, torch.full((30, 30), -value), 10)
    assert (ax.images[0].get_array() == value).all() and ax.patches[0].get_width() == 10


@pytest.mark.parametrize("norms", [{}, {"a": []}, {"a": [0.0, 0.0]}, {"a": [20.0, 20.0], "b": [[1.0, 3.0]]}])
def test_norm_histogram(norms):
    ax = plots.norm_histogram(None, norms)
    drawn = [patch.get_data().values.max() > 0 for patch in ax.patches]
    assert drawn == [bool((np.asarray(values) > 0).any()) for values in norms.values()]


@pytest.mark.parametrize("count", [0, 1, 20])
def test_channels_of_fewer_maps_than_places(count):
    features = torch.arange(count).reshape(-1, 1, 1) * torch.rand(count, 19, 19)
    ax = plots.channels(None, features, rows=2, columns=3)
    shown = np.isfinite(ax.images[0].get_array().filled(np.nan)).sum()
    assert shown == min(count, 6) * 19 * 19


@pytest.mark.parametrize("losses", [[], [0.5], [0.0, 0.0], [3.0, 1.0, 2.0]])
def test_negatives_have_the_hardest_on_top(losses):
    corners = torch.arange(len(losses), dtype=torch.float32).reshape(-1, 1).expand(-1, 4) + torch.tensor(
        [0.0, 0, 30, 30]
    )
    ax = plots.negatives(None, IMAGE, corners, losses)
    left = [path.vertices[:, 0].min() for path in ax.collections[0].get_paths()]
    assert left == np.argsort(losses, kind="stable").tolist()


@pytest.mark.parametrize(("losses", "picked"), [([], 0), ([1.0], 0), ([1.0, 3.0, 2.0], 2)])
def test_loss_ranking(losses, picked):
    ax = plots.loss_ranking(None, losses, picked)
    assert list(ax.get_lines()[0].get_ydata()) == sorted(losses, reverse=True)
    assert ax.get_lines()[1].get_xdata()[0] == picked + 0.5
