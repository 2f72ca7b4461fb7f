"""Figures of a dataset: each returns its Axes, draws what it is given, and takes an empty input."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

from ssdlib.inference.draw import CLASS_COLORS
from ssdlib.plots import data as plots
from ssdlib.plots.style import new_figure

CLASSES = ("WBC", "RBC", "Platelets")
PICTURE = np.full((48, 64, 3), 200, np.uint8)
NO_BOXES = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}
TWO_BOXES = {"boxes": np.array([[1, 2, 20, 30], [30, 5, 60, 40]]), "labels": np.array([1, 3])}


@pytest.fixture(autouse=True)
def no_windows(monkeypatch):
    mpl.use("Agg")
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("a plot function must not call show()"))
    yield
    plt.close("all")


@pytest.mark.parametrize(("target", "count"), [(NO_BOXES, 0), (TWO_BOXES, 2)])
@pytest.mark.parametrize("picture", [PICTURE, PICTURE.transpose(2, 0, 1)])
def test_ground_truth(target, count, picture):
    ax = plots.ground_truth(None, picture, target, "a field")
    assert isinstance(ax, Axes) and len(ax.images) == 1 and len(ax.patches) == count
    colors = [patch.get_edgecolor() for patch in ax.patches]
    assert colors == [to_rgba(CLASS_COLORS[label]) for label in target["labels"]]


def test_ground_truth_draws_on_the_given_axes():
    _, ax = new_figure()
    assert plots.ground_truth(ax, PICTURE, TWO_BOXES) is ax


@pytest.mark.parametrize("names", [(), CLASSES])
def test_class_legend(names):
    figure, _ = new_figure()
    assert plots.class_legend(figure, names) is figure
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(names)


@pytest.mark.parametrize(
    ("counts", "bars"),
    [
        ({}, 0),
        ({"train": {}}, 0),
        ({"train": {"WBC": 0, "RBC": 5}}, 2),
        ({"train": {"WBC": 3, "RBC": 40}, "val": {"WBC": 1, "RBC": 9}}, 4),
    ],
)
def test_class_bars(counts, bars):
    ax = plots.class_bars(None, counts)
    assert len(ax.patches) == bars
    assert sum(patch.get_height() for patch in ax.patches) == sum(sum(c.values()) for c in counts.values())


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
    assert [collection.get_label() for collection in ax.collections] == labels
    if len(priors):
        assert ax.collections[-1].get_offsets().tolist() == [[0.1, 0.1]]


@pytest.mark.parametrize(
    ("ratios", "curves"), [({}, 0), ({"WBC": []}, 1), ({"WBC": [1.0], "RBC": [0.5, 0.6]}, 2)]
)
def test_aspect_histogram(ratios, curves):
    ax = plots.aspect_histogram(None, ratios, [0.5, 1, 2])
    assert len(ax.patches) == curves and len(ax.lines) == 3


@pytest.mark.parametrize(("counts", "heights"), [([], [0, 0]), ([0, 0], [2, 0]), ([1, 3, 3], [0, 1, 0, 2])])
def test_count_histogram(counts, heights):
    ax = plots.count_histogram(None, counts, "RBC", CLASSES)
    assert [patch.get_height() for patch in ax.patches] == heights


@pytest.mark.parametrize(
    ("target", "hidden", "marks"),
    [(NO_BOXES, [], 0), (TWO_BOXES, [False, False], 0), (TWO_BOXES, [True, False], 1)],
)
def test_hidden_labels(target, hidden, marks):
    ax = plots.hidden_labels(None, PICTURE, target, hidden)
    assert [text.get_text() for text in ax.texts] == ["?"] * marks
    assert len(ax.patches) == len(hidden)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_side_by_side(count):
    ax = plots.side_by_side(None, [PICTURE] * count, "pictures")
    assert len(ax.images) == min(count, 1)
    if count:
        assert ax.images[0].get_array().shape == (48, 64 * count + 12 * (count - 1), 3)
