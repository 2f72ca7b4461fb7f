"""Figures of a detector's errors, from nothing at all on."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from ssdlib.evaluation.errors import judge
from ssdlib.evaluation.tide import KINDS, tide_errors, worst_errors
from ssdlib.inference.draw import color_of
from ssdlib.plots import errors as plots
from ssdlib.plots.errors import FALSE_POSITIVE, MISSED, TRUE_POSITIVE
from tests.plots.conftest import EVERY_ERROR, NAMES, PICTURE, A, one_image, texts

CASES = {
    "nothing": one_image(),
    "false positive": one_image([(*A, 1, 0.9)]),
    "missed": one_image((), [(*A, 1)]),
    "every error": EVERY_ERROR,
}


def colors(ax):
    return [to_hex(patch.get_edgecolor()) for patch in ax.patches]


@pytest.mark.parametrize(
    ("name", "expected"), zip(CASES, [(0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 3, 2)], strict=True)
)
def test_matched_image(name, expected):
    ax = plots.matched_image(None, PICTURE, *CASES[name], judge(*CASES[name]))
    assert tuple(colors(ax).count(line["color"]) for line in plots.MATCH_LINES.values()) == expected


@pytest.mark.parametrize("right", [[], [True], [False, True, True]])
def test_matched_board(right):
    boxes = np.tile([10.0, 10, 30, 30], (len(right), 1))
    ax = plots.matched_board(None, boxes[:1], boxes, right, size=100)
    drawn = [one for one in colors(ax) if one in (TRUE_POSITIVE["color"], FALSE_POSITIVE["color"])]
    assert drawn == [(TRUE_POSITIVE if one else FALSE_POSITIVE)["color"] for one in right]
    assert texts(ax) == [*"A"[: len(right)], *map(str, range(1, len(right) + 1))]


@pytest.mark.parametrize("images", [[], *([case] for case in CASES.values())])
def test_delta_ap_bars(images):
    tide = tide_errors([found for found, _ in images], [target for _, target in images], NAMES)
    ax = plots.delta_ap_bars(None, tide)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(KINDS)
    widths = np.array([bar.get_width() for bar in ax.patches]).reshape(len(NAMES), len(KINDS))
    assert widths.sum(axis=0) == pytest.approx([100 * (one.cost or 0) for one in tide.kinds.values()])
    assert f"({tide.kinds['missed'].count})" in texts(ax)[-1]
    assert ("n/a" in texts(ax)[0]) == (tide.map_50 is None)
    faces = [to_hex(bar.get_facecolor()) for bar in ax.patches[:: len(KINDS)]]
    assert faces == [color_of(name, NAMES) for name in NAMES]


@pytest.mark.parametrize(("name", "crops"), [("nothing", 0), ("false positive", 1), ("missed", 1)])
def test_grid_from_nothing_on(name, crops):
    found, target = CASES[name]
    figure = plots.error_grid(worst_errors([found], [target], NAMES), lambda _: PICTURE, columns=3)
    assert sum(bool(ax.images) for ax in figure.axes) == crops
    assert (texts(figure.axes[0]) == ["no errors"]) == (crops == 0)


def test_grid_names_and_marks_the_errors():
    worst = worst_errors([EVERY_ERROR[0]], [EVERY_ERROR[1]], NAMES)
    figure = plots.error_grid(worst, lambda _: PICTURE, columns=2)
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes] == [
        "class\nWBC 0.80 on RBC",
        "localization\nRBC 0.70",
        "background\nPlatelets 0.60",
        "missed\nRBC –",
    ]
    found, lost = FALSE_POSITIVE["color"], MISSED["color"]
    assert [colors(ax) for ax in figure.axes] == [[found, lost], [found, lost], [found], [lost]]


@pytest.mark.parametrize(
    ("box", "center"),
    [([50, 40, 70, 60], (60, 50)), ([0, 0, 20, 20], (40, 40)), ([100, 80, 120, 100], (80, 60))],
)
def test_crop_surrounds_the_box_and_stays_inside(box, center):
    ax = plots.crop(None, PICTURE, box, MISSED)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert ((left + right) / 2, (bottom + top) / 2) == pytest.approx(center)
    assert right - left == bottom - top == 80
