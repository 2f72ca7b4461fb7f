"""Figures of a dataset: each draws what it is given, and takes an empty input."""

import numpy as np
import pytest

from ssdlib.plots import data as plots
from tests.plots.conftest import NAMES, PICTURE, texts

BOXES, LABELS = np.array([[1, 2, 20, 30], [30, 5, 60, 40]]), np.array([1, 3])


@pytest.mark.parametrize("hidden", [[], [False, False], [True, False]])
def test_ground_truth_and_hidden_labels(ax, hidden):
    target = {"boxes": BOXES[: len(hidden)], "labels": LABELS[: len(hidden)]}
    plots.hidden_labels(ax, PICTURE, target, hidden)
    assert texts(ax) == ["?"] * sum(hidden) and len(ax.images) == 1
    assert sum(not patch.get_fill() for patch in ax.patches) == len(hidden) - sum(hidden)


@pytest.mark.parametrize(
    ("sizes", "priors", "labels"),
    [
        ({"WBC": np.zeros((0, 2))}, (), ["WBC"]),
        (
            {"WBC": [[0.3, 0.4]], "RBC": [[0.1, 0.2], [0.2, 0.2]]},
            [(0.2, 0.2), (0.1, 0.1)],
            ["RBC", "WBC", "prior", "smallest prior"],
        ),
        ({"RBC": [[0.002, 0.01]]}, (), ["RBC"]),
    ],
)
def test_size_scatter(ax, sizes, priors, labels):
    plots.size_scatter(ax, sizes, priors)
    dots = {one.get_label(): one.get_offsets().tolist() for one in ax.collections}
    assert list(dots) == labels
    low, high = ax.get_xlim()
    assert all(low < side < high for rows in sizes.values() for row in rows for side in row)
    if len(priors):
        assert dots["RBC"] == sizes["RBC"] and dots["smallest prior"] == [[0.1, 0.1]]


@pytest.mark.parametrize(("counts", "heights"), [([], [0, 0]), ([0, 0], [2, 0]), ([1, 3, 3], [0, 1, 0, 2])])
def test_histograms(ax, counts, heights):
    plots.count_histogram(ax, counts, "RBC", NAMES)
    assert [patch.get_height() for patch in ax.patches] == heights
    plots.aspect_histogram(ax, {"WBC": counts}, [0.5, 1, 2])
    assert [line.get_xdata()[0] for line in ax.lines] == [0.5, 1, 2]


def test_ratios_of_wide_fields_are_shown(ax):
    plots.aspect_histogram(ax, {"RBC": [0.04, 0.05]}, [1])
    assert ax.get_xlim()[0] < 0.04 and ax.patches[0].get_data().values.sum() > 0


def test_side_by_side_takes_other_sizes(ax):
    plots.side_by_side(ax, [PICTURE, np.zeros((50, 40, 3), np.uint8)])
    assert [image.get_array().shape for image in ax.images] == [(100, 120 + 12 + 80, 3)]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_side_by_side(ax, count):
    plots.side_by_side(ax, [PICTURE] * count, "pictures")
    shapes = [image.get_array().shape for image in ax.images]
    assert shapes == ([(100, 120 * count + 12 * (count - 1), 3)] if count else [])
