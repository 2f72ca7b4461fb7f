"""Figures of errors by kind, honest scores and counts, from nothing at all on."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from ssdlib.evaluation.calibration import reliability
from ssdlib.evaluation.counting import count_curve, count_report
from ssdlib.evaluation.tide import KINDS, tide_errors, worst_errors
from ssdlib.inference.detections import Detections
from ssdlib.inference.draw import color_of
from ssdlib.plots import counting, errors
from ssdlib.plots.evaluation import MISSED, WRONG
from tests.plots.cases import SIZE, judged_image

NAMES = ("WBC", "RBC", "Platelets")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def case(found=(), truth=()):
    """One image as lists: see `plot_cases.judged_image`."""
    detections, target = judged_image(found, truth, NAMES)
    return [detections], [target]


A, B, C = (0, 0, 30, 30), (50, 50, 90, 90), (100, 0, 120, 20)
EVERY = case(
    [(*A, 1, 0.9), (*B, 1, 0.8), (50, 50, 68, 90, 2, 0.7), (0, 60, 20, 80, 3, 0.6)],
    [(*A, 1), (*B, 2), (*C, 2)],
)
CASES = {"no image": ([], []), "empty": case(), "alarm": case([(*A, 1, 0.9)]), "missed": case((), [(*A, 1)])}


def image_of(index):
    return np.full((100, 120, 3), 200, np.uint8)


def texts(ax):
    return [one.get_text() for one in ax.texts]


def drawn(ax):
    ax.figure.canvas.draw()
    return ax


@pytest.mark.parametrize("name", [*CASES, "every"])
@pytest.mark.parametrize("function", [errors.kind_costs, errors.kind_counts])
def test_bars_of_kinds(function, name):
    tide = tide_errors(*(EVERY if name == "every" else CASES[name]), NAMES)
    ax = drawn(function(None, tide))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(KINDS)
    widths = np.array([bar.get_width() for bar in ax.patches]).reshape(len(NAMES), len(KINDS))
    for k, (kind, one) in enumerate(tide.kinds.items()):
        whole = one.count if function is errors.kind_counts else 100 * (one.delta_ap or 0)
        assert widths[:, k].sum() == pytest.approx(whole), kind
    assert f"{tide.kinds['missed'].count}" in texts(ax)[-1]
    if function is errors.kind_costs:
        assert ("n/a" in texts(ax)[0]) == (tide.map_50 is None)


def test_bars_are_in_the_colors_of_the_classes():
    ax = errors.kind_counts(plt.figure().add_subplot(), tide_errors(*EVERY, NAMES))
    first = ax.patches[:: len(KINDS)]
    assert [to_hex(bar.get_facecolor()) for bar in first] == [color_of(name, NAMES) for name in NAMES]


@pytest.mark.parametrize(("name", "crops"), [("empty", 0), ("alarm", 1), ("missed", 1)])
def test_grid_from_nothing_on(name, crops):
    figure = errors.error_grid(worst_errors(*CASES[name], NAMES), image_of, columns=3)
    figure.canvas.draw()
    assert sum(bool(ax.images) for ax in figure.axes) == crops
    assert (texts(figure.axes[0]) == ["no errors"]) == (crops == 0)


def test_grid_names_and_marks_the_errors():
    worst = worst_errors(*EVERY, NAMES)
    figure = errors.error_grid(worst, image_of, columns=2)
    figure.canvas.draw()
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    assert titles == [
        "class\nWBC 0.80 on RBC",
        "localization\nRBC 0.70",
        "background\nPlatelets 0.60",
        "missed\nRBC –",
    ]
    colors = [[to_hex(box.get_edgecolor()) for box in ax.patches] for ax in figure.axes]
    assert colors == [[WRONG, MISSED], [WRONG, MISSED], [WRONG], [MISSED]]
    assert figure.axes[3].patches[0].get_linestyle() != "-"


@pytest.mark.parametrize("count", [0, 1, 200])
def test_reliability(count):
    rng = np.random.default_rng(0)
    scores = rng.random(count)
    result = reliability(scores, rng.random(count) < scores)
    ax = drawn(errors.reliability_diagram(None, result, "RBC", scaled=result))
    assert texts(ax) == [str(one.count) for one in result.bins] and sum(map(int, texts(ax))) == count
    held = [one for one in result.bins if one.count]
    assert [bar.get_height() for bar in ax.patches] == [one.precision for one in held]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend[1] == ("scaled: ECE n/a" if count == 0 else f"scaled: ECE {result.ece:.3f}")


def counts(true, counted):
    label = 2
    detections = [Detections([[0, 0, 9, 9]] * n, [0.9] * n, [label] * n, SIZE, NAMES) for n in counted]
    targets = [{"boxes": torch.zeros(n, 4), "labels": torch.full((n,), label)} for n in true]
    return detections, targets


PAIRS = [([], []), ([0], [0]), ([5], [3]), ([4, 4], [4, 4]), ([2, 4, 6, 2], [3, 4, 4, 3])]


@pytest.mark.parametrize(("true", "counted"), PAIRS)
def test_bland_altman(true, counted):
    report = count_report(*counts(true, counted), NAMES, samples=50)
    red = report.per_class["RBC"]
    ax = drawn(counting.bland_altman(None, red, "RBC", NAMES))
    spots = {tuple(spot) for spot in ax.collections[-1].get_offsets().tolist()}
    assert spots == {((t + c) / 2, c - t) for t, c in zip(true, counted, strict=True)}
    known = [one.value for one in (red.bias, red.lower_limit, red.upper_limit) if one.value is not None]
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx([0, *known])
    low, high = ax.get_ylim()
    assert all(low < value < high for value in [*known, *(spot[1] for spot in spots)])
    counting.bland_altman(ax, report.together, counting.TOGETHER, NAMES)
    assert ax.get_title(loc="left") == "all cells"


@pytest.mark.parametrize(("true", "counted"), PAIRS)
@pytest.mark.parametrize("figure", ["accuracy", "mae", "ratio", "bias", "r2", "pearson", "exact"])
def test_dots(true, counted, figure):
    report = count_report(*counts(true, counted), NAMES, samples=50)
    ax = counting.count_dots(None, report, figure, {"RBC": 96.1, "Yeast": 1.0})
    if figure == "accuracy":
        drawn(ax)
    rows = [tick.get_text() for tick in ax.get_yticklabels()]
    assert rows == [*NAMES, counting.TOGETHER]
    values = [getattr(one, figure).value for one in (*report.per_class.values(), report.together)]
    assert [text == "n/a" for text in texts(ax)] == [value is None for value in values]
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert [tuple(line.get_xydata()[0]) for line in diamonds] == [(96.1, 1.0)]


@pytest.mark.parametrize(("true", "counted"), PAIRS)
def test_threshold_curve(true, counted):
    curve = count_curve(*counts(true, counted), 2)
    ax = drawn(counting.count_threshold_curve(None, curve, "RBC", NAMES, curve.best()))
    assert np.array_equal(ax.lines[0].get_ydata(), curve.mae, equal_nan=True)
    assert ax.lines[-1].get_xdata()[0] == curve.best() and texts(ax) == [f"{curve.best():.2f}"]
    low, high = ax.get_ylim()
    assert low == -high and high >= 1
