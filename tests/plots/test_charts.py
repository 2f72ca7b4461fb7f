"""The shared charts draw the numbers they are given, and say where there is none."""

import numpy as np
import pytest

from ssdlib.evaluation.tables import Interval
from ssdlib.plots import charts
from tests.plots.conftest import NAMES, texts


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"a": {"WBC": None, "RBC": 0.5}}, ["n/a\na", "50%\na"]),
        ({"a": {"WBC": 0.25}, "b": {"WBC": 1.0}}, ["25%\na", "100%\nb"]),
    ],
)
@pytest.mark.parametrize("log", [False, True])
def test_grouped_bars(ax, values, expected, log):
    charts.grouped_bars(ax, values, form="{:.0%}", log=log)
    heights = [value or 0 for by_class in values.values() for value in by_class.values()]
    assert [bar.get_height() for bar in ax.patches] == heights and texts(ax) == expected


@pytest.mark.parametrize("rows", [{}, {"first": [1.0, 2.0], "second": [0.0, 0.0]}])
def test_stacked_bars(ax, rows):
    charts.stacked_bars(ax, rows, [str(sum(parts)) for parts in rows.values()], {"a": "red", "b": "blue"})
    widths = np.array([bar.get_width() for bar in ax.patches]).reshape(2, len(rows))
    assert widths.T.tolist() == list(rows.values())
    assert [label.get_text() for label in ax.get_yticklabels()] == list(rows)
    assert [(one.get_text(), one.xy[0]) for one in ax.texts] == [(str(sum(p)), sum(p)) for p in rows.values()]


NOTHING = Interval(None, None, None)
MEAN = {"WBC": Interval(0.5, 0.4, 0.6), "RBC": NOTHING, "mean": Interval(0.7, None, None)}


@pytest.mark.parametrize(
    ("values", "dots", "ranges", "expected"),
    [
        ({}, [], [], []),
        ({"WBC": NOTHING}, [], [], ["n/a"]),
        (MEAN, [0.5, 0.7], [[0.4, 0.6]], ["0.500", "n/a", "0.700"]),
    ],
)
def test_interval_dots(ax, values, dots, ranges, expected):
    charts.interval_dots(ax, values, NAMES, published={"WBC": 0.1, "Yeast": 0.2}, at_least=(0.0, 1.0))
    lines = {
        mark: [list(line.get_xdata()) for line in ax.lines if line.get_marker() == mark] for mark in "oD"
    }
    assert lines == {"o": [[value] for value in dots], "D": [[0.1]] if values else []}
    assert [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "None"] == ranges
    assert texts(ax) == expected and [label.get_text() for label in ax.get_yticklabels()] == list(values)
    assert ax.get_xlim()[0] <= 0 and ax.get_xlim()[1] >= 1


@pytest.mark.parametrize("values", [{}, {"a": []}, {"a": [20.0, 20.0], "b": [[1.0, 3.0]]}])
def test_histograms_are_scaled_to_their_maximum(ax, values):
    charts.scaled_histograms(ax, values, np.linspace(0, 30, 31), ["red", "blue"])
    tops = [patch.get_data().values.max() for patch in ax.patches]
    assert tops == [1 if len(numbers) else 0 for numbers in values.values()]
