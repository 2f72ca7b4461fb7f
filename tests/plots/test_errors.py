"""Figures of a detector's errors, from nothing at all on."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from ssdlib.evaluation.matching import match_image
from ssdlib.evaluation.tide import KINDS, tide_errors, worst_errors
from ssdlib.plots import errors as plots
from tests.plots.conftest import EVERY_ERROR, NAMES, PICTURE, A, one_image, texts

NOTHING, FALSE, MISSED = one_image(), one_image([(*A, 1, 0.9)]), one_image((), [(*A, 1)])
RIGHT, WRONG, LOST = (line["color"] for line in plots.MATCH_LINES.values())


def colors(ax):
    return [to_hex(patch.get_edgecolor()) for patch in ax.patches]


@pytest.mark.parametrize(
    ("case", "expected"),
    [(NOTHING, ()), (FALSE, (WRONG,)), (MISSED, (LOST,)), (EVERY_ERROR, (RIGHT, LOST, LOST, *[WRONG] * 3))],
)
def test_matched_image(ax, case, expected):
    assert tuple(colors(plots.matched_image(ax, PICTURE, *case, match_image(*case)))) == expected
    assert len(ax.get_lines()[0].get_xdata()) == expected.count(WRONG), "a cross at each false positive"


@pytest.mark.parametrize("right", [[], [True], [False, True, True]])
def test_matched_board(ax, right):
    boxes = np.tile([10.0, 10, 30, 30], (len(right), 1))
    plots.matched_board(ax, boxes[:1], boxes, right, size=100)
    assert [one for one in colors(ax) if one in (RIGHT, WRONG)] == [RIGHT if one else WRONG for one in right]
    assert texts(ax) == [*"A"[: len(right)], *(f"{k} {'✗✓'[one]}" for k, one in enumerate(right, 1))]


@pytest.mark.parametrize("images", [[], [NOTHING], [MISSED], [EVERY_ERROR]])
def test_delta_ap_bars(ax, images):
    tide = tide_errors([found for found, _ in images], [target for _, target in images], NAMES)
    plots.delta_ap_bars(ax, tide)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(KINDS)
    widths = np.array([bar.get_width() for bar in ax.patches]).reshape(len(NAMES), len(KINDS))
    assert widths.sum(axis=0) == pytest.approx([100 * (one.delta_ap or 0) for one in tide.kinds.values()])
    assert f"({tide.kinds['missed'].count})" in texts(ax)[-1]
    assert ("n/a" in texts(ax)[0]) == (tide.map_50 is None)


@pytest.mark.parametrize(
    ("case", "titles", "expected"),
    [
        (NOTHING, [""], [[]]),
        (MISSED, ["missed\nWBC –"], [[LOST]]),
        (
            EVERY_ERROR,
            [
                "class\nWBC 0.80 on RBC",
                "localization\nRBC 0.70",
                "background\nPlatelets 0.60",
                "missed\nRBC –",
            ],
            [[WRONG, LOST], [WRONG, LOST], [WRONG], [LOST]],
        ),
    ],
)
def test_the_grid_names_and_marks_the_errors(case, titles, expected):
    figure = plots.error_grid(
        worst_errors([case[0]], [case[1]], NAMES), lambda _: PICTURE, columns=len(titles)
    )
    assert [ax.get_title(loc="left") for ax in figure.axes] == titles
    assert [colors(ax) for ax in figure.axes] == expected
    assert (texts(figure.axes[0]) == ["no errors"]) == (case is NOTHING)


@pytest.mark.parametrize(
    ("box", "center"),
    [([50, 40, 70, 60], (60, 50)), ([0, 0, 20, 20], (40, 40)), ([100, 80, 120, 100], (80, 60))],
)
def test_crop_surrounds_the_box_and_stays_inside(ax, box, center):
    plots.crop(ax, PICTURE, box, plots.MISSED)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert ((left + right) / 2, (bottom + top) / 2) == pytest.approx(center)
    assert right - left == bottom - top == 80
