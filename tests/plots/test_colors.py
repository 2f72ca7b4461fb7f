"""What figures tell apart by color stays apart for red-green blind readers, or differs in more than color."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ssdlib.inference.draw import CLASS_COLORS
from ssdlib.plots.detections import SUPPRESSION_LINES
from ssdlib.plots.errors import FALSE_POSITIVE, MATCH_LINES, MISSED, TRUE_POSITIVE
from ssdlib.plots.style import LINES

# Machado, Oliveira and Fernandes 2009, severity 1: matrices for linear RGB.
EYES = {
    "any": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip
SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

CLEAR = 25
"""Least distance (CIE76) of colors that lines of one or two pixels on a photograph are told apart by.

Large patches are told apart from 2.3 on. Thin lines need some ten times that: a green and an orange at a
distance of 19 were the same brown in our figures, a red and a teal at 27 were not.
"""


def lab(color, eye):
    """CIE L*a*b* of a color as an eye sees it."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)])
    xyz = SRGB_TO_XYZ @ np.clip(EYES[eye] @ linear, 0, 1) / SRGB_TO_XYZ.sum(axis=1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one, other):
    """The distance of two colors for the eye that tells them apart the least."""
    return min(float(np.linalg.norm(lab(one, eye) - lab(other, eye))) for eye in EYES)


def look(line):
    """All of a line but its color."""
    return {key: value for key, value in line.items() if key != "color"}


def pairs(values):
    return list(itertools.combinations(values, 2))


def test_the_simulation_sees_what_is_known_of_it():
    assert lab("white", "any") == pytest.approx([100, 0, 0], abs=0.1)
    assert lab("red", "any") == pytest.approx([53.2, 80.1, 67.2], abs=0.1)
    for eye in EYES:  # grays are the same to all
        assert lab("#808080", eye) == pytest.approx(lab("#808080", "any"), abs=0.1)
    assert distance("#15803d", "#d62839") < 20 < 99 < distance("black", "white")


@pytest.mark.parametrize("one, other", pairs([TRUE_POSITIVE, FALSE_POSITIVE, MISSED]))
def test_right_wrong_and_missed_differ_by_color_and_by_line(one, other):
    assert distance(one["color"], other["color"]) >= CLEAR and look(one) != look(other)


def test_wrong_boxes_have_a_mark():
    marked = [name for name, line in MATCH_LINES.items() if "marker" in line]
    assert marked == ["false positive"]


@pytest.mark.parametrize("one, other", pairs(SUPPRESSION_LINES.values()))
def test_states_of_suppression_differ_by_color_and_by_line(one, other):
    assert distance(one["color"], other["color"]) >= CLEAR and look(one) != look(other)


@pytest.mark.parametrize("one, other", pairs(CLASS_COLORS[1:4]))
def test_classes_of_blood_cells_differ_by_color(one, other):
    assert distance(one, other) >= CLEAR


@pytest.mark.parametrize("one, other", pairs(LINES))
def test_curves_differ_by_color_or_by_style(one, other):
    assert one["ls"] != other["ls"] or distance(one["color"], other["color"]) >= CLEAR
