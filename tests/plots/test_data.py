"""Figures of a dataset: each draws what it is given, and takes an empty input."""

import numpy as np
import pytest

from ssdlib.plots import data as plots
from ssdlib.plots.style import new_figure
from tests.plots.conftest import NAMES, PICTURE, texts

NO_BOXES = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}
TWO_BOXES = {"boxes": np.array([[1, 2, 20, 30], [30, 5, 60, 40]]), "labels": np.array([1, 3])}


@pytest.mark.parametrize("target", [NO_BOXES, TWO_BOXES])
def test_ground_truth(target):
    _, ax = new_figure()
    assert plots.ground_truth(ax, PICTURE, target, "a field") is ax
    assert (len(ax.images), len(ax.patches)) == (1, len(target["labels"]))


@pytest.mark.parametrize(
    ("sizes", "priors", "labels"),
    [
        ({}, (), []),
        ({"WBC": np.zeros((0, 2))}, (), ["WBC"]),
        (
            {"WBC": [[0.3, 0.4]], "RBC": [[0.1, 0.2], [0.2, 0.2]]},
            [(0.2, 0.2), (0.1, 0.1)],
            ["RBC", "WBC", "prior", "smallest prior"],
        ),
    ],
)
def test_size_scatter(sizes, priors, labels):
    ax = plots.size_scatter(None, sizes, priors)
    dots = {one.get_label(): one.get_offsets().tolist() for one in ax.collections}
    assert list(dots) == labels
    if len(priors):
        assert dots["RBC"] == sizes["RBC"] and dots["smallest prior"] == [[0.1, 0.1]]


@pytest.mark.parametrize("ratios", [{}, {"WBC": []}, {"WBC": [1.0], "RBC": [0.5, 0.6]}])
def test_aspect_histogram(ratios):
    ax = plots.aspect_histogram(None, ratios, [0.5, 1, 2])
    assert len(ax.patches) == len(ratios)
    assert [line.get_xdata()[0] for line in ax.lines] == [0.5, 1, 2]


@pytest.mark.parametrize(("counts", "heights"), [([], [0, 0]), ([0, 0], [2, 0]), ([1, 3, 3], [0, 1, 0, 2])])
def test_count_histogram(counts, heights):
    ax = plots.count_histogram(None, counts, "RBC", NAMES)
    assert [patch.get_height() for patch in ax.patches] == heights


@pytest.mark.parametrize(
    ("target", "hidden"), [(NO_BOXES, []), (TWO_BOXES, [False, False]), (TWO_BOXES, [True, False])]
)
def test_hidden_labels(target, hidden):
    ax = plots.hidden_labels(None, PICTURE, target, hidden)
    assert texts(ax) == ["?"] * sum(hidden)
    assert sum(not patch.get_fill() for patch in ax.patches) == len(hidden) - sum(hidden)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_side_by_side(count):
    ax = plots.side_by_side(None, [PICTURE] * count, "pictures")
    shapes = [image.get_array().shape for image in ax.images]
    assert shapes == ([(100, 120 * count + 12 * (count - 1), 3)] if count else [])
