"""Boxes on images and boards: what is drawn is what was given, from nothing at all on."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from ssdlib.inference.draw import CLASS_COLORS, color_of
from ssdlib.plots import boxes as plots
from tests.plots.conftest import NAMES, PICTURE, texts

TWO = np.array([[1.0, 2, 20, 30], [30, 5, 60, 40]])


@pytest.mark.parametrize("picture", [PICTURE, PICTURE.transpose(2, 0, 1), torch.from_numpy(PICTURE)])
def test_an_image_of_either_layout_is_shown_upright(ax, picture):
    assert plots.show_image(ax, picture).images[0].get_array().shape == PICTURE.shape


@pytest.mark.parametrize("labels", [[], [1, 3]])
def test_boxes_are_drawn_where_they_are_in_the_color_of_their_class(ax, labels):
    assert plots.draw_boxes(ax, TWO[: len(labels)], labels) is ax
    assert [patch.get_bbox().extents.tolist() for patch in ax.patches] == TWO[: len(labels)].tolist()
    assert [to_hex(patch.get_edgecolor()) for patch in ax.patches] == [CLASS_COLORS[k] for k in labels]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_board_names_its_objects_and_tags_are_at_opposite_corners(ax, count):
    plots.board(ax, 8, TWO[:count], ("red", "blue"), grid=8)
    plots.tag_boxes(ax, TWO[:count], ["1", "2"][:count], ["red", "blue"][:count])
    assert texts(ax) == [*"AB"[:count], *"12"[:count]] and ax.get_ylim() == (8, 0)
    assert [one.get_position() for one in ax.texts[count:]] == [(1, 2), (60, 40)][:count]


@pytest.mark.parametrize("names", [(), NAMES])
def test_class_legend(ax, names):
    legend = plots.class_legend(ax.figure, names).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == list(names)
    assert [line.get_color() for line in legend.get_lines()] == [color_of(name, names) for name in names]
