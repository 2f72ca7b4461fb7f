"""Figures of the network: what is drawn, from nothing at all on."""

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from ssdlib.config import ModelConfig, PriorConfig
from ssdlib.plots import model as plots
from tests.plots.conftest import axes, texts

IMAGE = torch.full((3, 300, 300), 200, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("values", "ends"), [({}, []), ({"a": 3.0, "b": 1.0}, ["3.0 GFLOP (75%)", "1.0 GFLOP (25%)"])]
)
def test_share_bars(ax, values, ends):
    assert texts(plots.share_bars(ax, values, "GFLOP")) == ends


@pytest.mark.parametrize("fields", [{}, {"conv4_3": 92}, {"conv4_3": 92, "conv11_2": 700}])
def test_receptive_fields(ax, fields):
    plots.receptive_fields(ax, IMAGE, fields)
    assert [patch.get_width() for patch in ax.patches] == list(fields.values())
    assert texts(ax) == [f"{name}: {side}" for name, side in fields.items()]
    assert ax.get_xlim()[1] - ax.get_xlim()[0] >= max([300, *fields.values()])


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_influence_of_nothing_and_of_something(ax, value):
    plots.influence(ax, torch.full((30, 30), -value), 10, 16)
    assert (ax.images[0].get_array() == value).all()
    assert (ax.patches[0].get_x(), ax.patches[0].get_width()) == (10.5, 10)


@pytest.mark.parametrize("norms", [{}, {"a": [0.0, 0.0]}, {"a": [20.0, 20.0], "b": [[1.0, 3.0]]}])
def test_norm_histogram(ax, norms):
    plots.norm_histogram(ax, norms)
    drawn = [patch.get_data().values.max() > 0 for patch in ax.patches]
    assert drawn == [bool((np.asarray(values) > 0).any()) for values in norms.values()]


@pytest.mark.parametrize("count", [0, 1, 20])
def test_channels_of_fewer_maps_than_places(ax, count):
    features = torch.arange(count).reshape(-1, 1, 1) * torch.rand(count, 19, 19)
    plots.channels(ax, features, rows=2, columns=3)
    assert np.isfinite(ax.images[0].get_array().filled(np.nan)).sum() == min(count, 6) * 19 * 19


@pytest.mark.parametrize("losses", [[], [0.0, 0.0], [3.0, 1.0, 2.0]])
def test_negatives_and_their_ranking(ax, losses):
    corners = torch.arange(len(losses)).reshape(-1, 1) + torch.tensor([0.0, 0, 30, 30])
    plots.negatives(ax, IMAGE, corners, losses, most=2)
    left = [path.vertices[:, 0].min() for path in ax.collections[0].get_paths()]
    assert left == np.argsort(losses, kind="stable").tolist()[-2:]  # the hardest on top
    assert len(ax.figure.axes) == (2 if losses else 1)  # a color bar
    ranking = plots.loss_ranking(axes(), losses, 1)
    assert list(ranking.get_lines()[0].get_ydata()) == sorted(losses, reverse=True)
    share = "50%" if losses == [3.0, 1.0, 2.0] else "0%"
    assert f"with {share} of" in ranking.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize(
    ("config", "shape", "head", "rows"),
    [
        (ModelConfig(), (512, 38, 38), (4, 4), 8732),
        (
            ModelConfig(class_names=("cell",), width=0.125, priors=PriorConfig(aspect_ratios=((2.0,),) * 6)),
            (64, 38, 38),
            (4, 2),
            7760,
        ),
    ],
)
def test_the_drawing_says_what_the_network_is(config, shape, head, rows):
    (ax,) = plots.ssd_drawing(config).axes
    said = texts(ax)
    assert plots._by(*shape) in said and f"{head[0]} {plots.TIMES} (4 + {head[1]})" in said
    assert any(text.startswith(f"{rows:,} rows") for text in said)
    boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    bars = [box.get_width() for box in boxes if box.get_y() == 63.4]
    assert len(bars) == 6 and bars[0] == pytest.approx(107 * 38**2 * head[0] / rows)


def test_the_drawing_as_a_picture_of_few_bytes(tmp_path):
    path = tmp_path / "ssd300.png"
    plots.save_ssd_drawing(path)
    assert Image.open(path).width == 2200 and path.stat().st_size < 150_000


def test_maps_of_the_drawing_have_all_priors():
    with torch.device("meta"):
        network = plots.SSD300(ModelConfig())
    maps = plots.maps_of(network)
    assert [one.name for one in maps][::5] == ["conv4_3", "conv11_2"]
    assert [one.rows for one in maps] == [5776, 2166, 600, 150, 36, 4]
