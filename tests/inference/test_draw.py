"""Boxes and letters in the pixels of an image."""

import numpy as np
import pytest

from ssdlib.inference.detections import Detections
from ssdlib.inference.draw import annotate, color_of

GREY = 200


def field(width, height, boxes, labels=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = labels or [1] * len(boxes)
    found = Detections(boxes, [0.9] * len(boxes), labels, (width, height), ("WBC", "RBC"))
    return np.full((height, width, 3), GREY, np.uint8), found


def rows_of(image):
    """Rows in which something is drawn."""
    return np.flatnonzero((image != GREY).any(axis=(1, 2)))


@pytest.mark.parametrize("size", [(1, 1), (640, 480)])
def test_nothing_found_is_the_image_itself_as_a_copy(size):
    image, found = field(*size, [])
    drawn = annotate(image, found)
    assert np.array_equal(drawn, image) and not np.shares_memory(drawn, image)


@pytest.mark.parametrize("writeable", [True, False])
def test_scratch_saves_a_copy_where_it_can(writeable):
    image, found = field(640, 480, [[200, 200, 260, 260]])
    expected = annotate(image, found)
    image.flags.writeable = writeable
    drawn = annotate(image, found, scratch=True)
    assert np.array_equal(drawn, expected) and (drawn is image) == writeable


def test_letters_grow_with_the_cells_not_with_the_field():
    heights = []
    for width, height, side in [(640, 480, 60), (8000, 6000, 60), (8000, 6000, 600)]:
        image, found = field(width, height, [[200, 200, 200 + side, 200 + side]])
        heights.append(200 - rows_of(annotate(image, found))[0])  # of the tag above the box
    assert heights[0] == heights[1] and heights[2] > 5 * heights[0]


def test_small_cells_have_boxes_alone():
    boxes = [[x, y, x + 20, y + 20] for x in range(0, 600, 40) for y in range(40, 400, 40)]
    image, found = field(640, 480, boxes)
    drawn = annotate(image, found)
    assert rows_of(drawn)[0] >= 38  # no tag above the first row
    assert (drawn == GREY).all(axis=2).mean() > 0.8  # what was photographed is still seen


def test_no_box_crosses_a_label():
    """The tag of the second box lies where the first box's lower line passes."""
    image, found = field(640, 480, [[100, 100, 300, 200], [150, 205, 260, 300]], [1, 2])
    alone = annotate(image, Detections(found.boxes[1:], [0.9], [2], (640, 480), found.class_names))
    tag = np.s_[190:203, 152:200]
    assert (alone[tag] != GREY).any()
    assert np.array_equal(annotate(image, found)[tag], alone[tag])


def test_a_box_has_its_class_color():
    image, found = field(640, 480, [[100, 100, 300, 200]], [2])
    red, green, blue = (int(color_of(2)[start : start + 2], 16) for start in (1, 3, 5))
    assert annotate(image, found)[150, 100].tolist() == [red, green, blue]


@pytest.mark.parametrize("box", [[0, 0, 639, 479], [-5, -5, 10, 10], [600, 470, 640, 480], [10, 10, 10, 10]])
def test_a_box_at_the_border_or_without_area_is_drawn_on_a_copy(box):
    image, found = field(640, 480, [box])
    drawn = annotate(image, found)
    assert drawn.shape == image.shape and (image == GREY).all() and (drawn != GREY).any()
