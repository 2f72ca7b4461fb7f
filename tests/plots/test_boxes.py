"""Boxes on images and boards: what is drawn is what was given, from nothing at all on."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ssdlib.inference.draw import CLASS_COLORS, color_of
from ssdlib.plots import boxes as plots
from ssdlib.plots.style import new_figure
from tests.plots.conftest import NAMES, PICTURE, texts

TWO = np.array([[1.0, 2, 20, 30], [30, 5, 60, 40]])


@pytest.mark.parametrize("picture", [PICTURE, PICTURE.transpose(2, 0, 1), torch.from_numpy(PICTURE)])
def test_an_image_of_either_layout_is_shown_upright(picture):
    _, ax = new_figure()
    assert plots.show_image(ax, picture, "a field").images[0].get_array().shape == PICTURE.shape
    assert ax.get_title(loc="left") == "a field"


@pytest.mark.parametrize("labels", [[], [1, 3]])
def test_boxes_are_drawn_where_they_are_in_the_color_of_their_class(labels):
    _, ax = new_figure()
    plots.draw_boxes(ax, TWO[: len(labels)], labels, NAMES, [0.9] * len(labels), captions=True)
    assert [patch.get_bbox().extents.tolist() for patch in ax.patches] == TWO[: len(labels)].tolist()
    assert [to_hex(patch.get_edgecolor()) for patch in ax.patches] == [CLASS_COLORS[k] for k in labels]
    assert texts(ax) == [f"{NAMES[k - 1]} 0.90" for k in labels]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_board_names_its_objects(count):
    ax = plots.board(None, 8, TWO[:count], ("red", "blue"), grid=8)
    assert texts(ax) == list("AB"[:count]) and ax.get_ylim() == (8, 0)
    assert len(ax.get_xticks()) == 9


def test_tags_of_neighbors_are_at_opposite_corners():
    ax = plots.tag_boxes(plots.board(None, 100), TWO, ["1", "2"], ["red", "blue"])
    assert [(one.get_text(), one.get_position()) for one in ax.texts] == [("1", (1, 2)), ("2", (60, 40))]


@pytest.mark.parametrize("names", [(), NAMES])
def test_class_legend(names):
    figure, _ = new_figure()
    legend = plots.class_legend(figure, names).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == list(names)
    assert [line.get_color() for line in legend.get_lines()] == [color_of(name, names) for name in names]
