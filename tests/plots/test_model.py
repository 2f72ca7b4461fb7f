"""Figures of the network: what is drawn, from nothing at all on."""

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from ssdlib.plots import model as plots

IMAGE = torch.full((3, 300, 300), 200, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def corners(count):
    low = torch.arange(count, dtype=torch.float32).reshape(-1, 1).expand(-1, 2) * 20
    return torch.cat([low, low + 30], dim=1)


@pytest.mark.parametrize(("values", "texts"), [({}, []), ({"a": 3.0, "b": 1.0}, ["75 %", "25 %"])])
def test_share_bars(values, texts):
    ax = plots.share_bars(None, values, unit="GFLOP")
    assert [bar.get_width() for bar in ax.patches] == list(values.values())
    assert all(share in text.get_text() for share, text in zip(texts, ax.texts, strict=True))


@pytest.mark.parametrize("fields", [{}, {"conv4_3": 92}, {"conv4_3": 92, "conv11_2": 700}])
def test_receptive_fields(fields):
    ax = plots.receptive_fields(None, IMAGE, fields)
    assert [patch.get_width() for patch in ax.patches] == list(fields.values())
    assert ax.get_xlim()[1] - ax.get_xlim()[0] >= max([300, *fields.values()])


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_influence_of_nothing_and_of_something(value):
    _, given = plt.subplots()
    ax = plots.influence(given, torch.full((30, 30), value), 10)
    assert ax is given and len(ax.images) == 1 and ax.patches[0].get_width() == 10


@pytest.mark.parametrize("norms", [{}, {"a": []}, {"a": [0.0, 0.0]}, {"a": [20.0, 20.0], "b": [[1.0, 3.0]]}])
def test_norm_histogram(norms):
    ax = plots.norm_histogram(None, norms)
    assert len(ax.patches) == len(norms)
    for patch, values in zip(ax.patches, norms.values(), strict=True):
        assert (patch.get_data().values.max() > 0) == bool((np.asarray(values) > 0).any())


@pytest.mark.parametrize("count", [0, 1, 20])
def test_channels_of_fewer_maps_than_places(count):
    features = torch.arange(count).reshape(-1, 1, 1) * torch.rand(count, 19, 19)
    ax = plots.channels(None, features, rows=2, columns=3)
    shown = np.isfinite(ax.images[0].get_array().filled(np.nan)).sum()
    assert shown == min(count, 6) * 19 * 19


@pytest.mark.parametrize("count", [0, 1, 5])
def test_positive_priors(count):
    labels = torch.ones(count).long()
    ax = plots.positive_priors(None, IMAGE, corners(count), labels, corners(count), labels)
    assert len(ax.patches) == 2 * count


@pytest.mark.parametrize("losses", [[], [0.5], [0.0, 0.0], [3.0, 1.0, 2.0]])
def test_negatives(losses):
    ax = plots.negatives(None, IMAGE, corners(len(losses)), losses)
    assert len(ax.collections[0].get_paths()) == len(losses)


@pytest.mark.parametrize(("losses", "picked"), [([], 0), ([1.0], 0), ([1.0, 3.0, 2.0], 2)])
def test_loss_ranking(losses, picked):
    ax = plots.loss_ranking(None, losses, picked)
    assert list(ax.get_lines()[0].get_ydata()) == sorted(losses, reverse=True)
    assert ax.get_lines()[1].get_xdata()[0] == picked + 0.5
