"""The figure about issues draws what it is given, and nothing it is not."""

import pytest
from matplotlib import pyplot as plt

from ssdlib.plots.label_errors import cut_curves


@pytest.mark.parametrize(
    ("curve", "lines"),
    [
        ([], 1),
        ([(0.1, 0.5, None), (0.5, 0.9, None)], 1),
        ([(0.1, 0.5, 1.0), (0.5, 0.9, 0.8)], 2),
    ],
)
def test_cut_curves(curve, lines):
    ax = cut_curves(None, curve)
    assert len(ax.lines) == lines
    assert list(ax.lines[0].get_ydata()) == [point[1] for point in curve]
    marked = cut_curves(None, curve, cut=0.5, wanted=0.9)
    assert len(marked.lines) == lines + 2
    assert [text.get_text() for text in marked.get_legend().get_texts()][-1] == "cut 0.5"
    plt.close("all")
