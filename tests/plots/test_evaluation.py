"""Figures that judge a detector, from nothing at all on."""

import numpy as np
import pytest
import torch

from ssdlib.common.tables import number
from ssdlib.evaluation.calibration import reliability
from ssdlib.evaluation.counting import count_curve, count_report
from ssdlib.evaluation.metrics import PrecisionRecall
from ssdlib.inference.detections import Detections
from ssdlib.plots import evaluation as plots
from tests.plots.conftest import NAMES, axes, curves, texts


def curve(right=(), ground_truth=0):
    count = len(right)
    scores = np.linspace(0.9, 0.1, count)
    return PrecisionRecall(scores, np.array(right, dtype=bool), ground_truth)


@pytest.mark.parametrize(("right", "truth"), [([], 0), ([], 3), ([False, True], 2), ([True, False, True], 4)])
def test_curves_of_one_class(right, truth):
    one = curve(right, truth)
    drawn = curves(plots.precision_recall_by_hand(axes(), one, eleven=True))
    assert drawn["after each detection"] == (list(one.recall), list(one.precision))
    if right:
        assert np.mean(drawn["read at 11 recalls"][1]) == pytest.approx(one.voc07_ap)
    ax = plots.precision_recall_curves(axes(), {"WBC": one}, {"WBC": 0.2})
    dots = [tuple(line.get_xydata()[0]) for line in ax.get_lines() if line.get_marker() == "o"]
    assert dots == ([one.at(0.2)[1::-1]] if right else [])
    ax = plots.threshold_curves(axes(), one, "RBC", NAMES, 0.4)
    levels, precision = curves(ax)["precision"]
    expected = [np.nan if (p := one.at(level)[0]) is None else p for level in levels]
    assert np.array_equal(precision, expected, equal_nan=True)
    assert texts(ax) == [*([] if truth else ["no object of this class, so no recall"]), "0.40"]
    ax = plots.score_histogram(axes(), one, "RBC", 0.4)
    counts = [patch.get_data().values.sum() for patch in ax.patches]
    assert counts == [sum(right)] * 2 + [len(right) - sum(right)] * 2


def test_ap_by_iou(ax):
    drawn = curves(plots.ap_by_iou(ax, [0.5, 0.75], {"WBC": [0.9, 0.5], "RBC": [0.8, None]}))
    assert drawn["WBC"] == ([0.5, 0.75], [0.9, 0.5]) and drawn["RBC"][1][0] == 0.8


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.arange(16).reshape(4, 4)])
def test_confusion_puts_background_last(ax, matrix):
    plots.confusion(ax, matrix.astype(np.int64), NAMES)
    first = {tuple(map(round, t.get_position())): t.get_text().split("\n")[0] for t in ax.texts}
    assert first[(0, 0)] == str(int(matrix[1, 1]))
    assert first[(3, 0)] == str(int(matrix[1, 0])) and first[(0, 3)] == str(int(matrix[0, 1]))
    assert first[(3, 3)] == "–"
    shares = {tuple(map(round, t.get_position())): t.get_text().split("\n")[1:] for t in ax.texts}
    for row in range(3):
        assert (shares[(0, row)] == ["n/a"]) == (not matrix[row + 1].any())


@pytest.mark.parametrize("count", [0, 1, 200])
def test_reliability(ax, count):
    rng = np.random.default_rng(0)
    scores = rng.random(count)
    result = reliability(scores, rng.random(count) < scores)
    plots.reliability_diagram(ax, result, "RBC", scaled=result, color="green")
    assert texts(ax) == [str(one.count) for one in result.bins] and sum(map(int, texts(ax))) == count
    assert [bar.get_height() for bar in ax.patches] == [one.precision for one in result.bins if one.count]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend[1] == f"scaled: ECE {number(result.ece)}"


def counts(true, counted):
    detections = [Detections([[0, 0, 9, 9]] * n, [0.9] * n, [2] * n, (120, 100), NAMES) for n in counted]
    targets = [{"boxes": torch.zeros(n, 4), "labels": torch.full((n,), 2)} for n in true]
    return detections, targets


@pytest.mark.parametrize(
    ("true", "counted"), [([], []), ([0], [0]), ([5], [3]), ([4, 4], [4, 4]), ([2, 4, 6, 2], [3, 4, 4, 3])]
)
def test_figures_of_counts(true, counted):
    ax = plots.counts_scatter(axes(), true, counted, "RBC", NAMES)
    assert {tuple(spot) for spot in ax.collections[-1].get_offsets()} == set(zip(true, counted, strict=True))
    red = count_report(*counts(true, counted), NAMES, samples=50).per_class["RBC"]
    ax = plots.bland_altman(axes(), red, "RBC", NAMES)
    spots = {tuple(spot) for spot in ax.collections[-1].get_offsets().tolist()}
    assert spots == {((t + c) / 2, c - t) for t, c in zip(true, counted, strict=True)}
    known = [one.value for one in (red.bias, red.lower_limit, red.upper_limit) if one.value is not None]
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx([0, *known])
    low, high = ax.get_ylim()
    assert all(low < value < high for value in [*known, *(spot[1] for spot in spots)])
    found = count_curve(*counts(true, counted), 2)
    drawn = curves(ax := plots.count_threshold_curve(axes(), found, "RBC", NAMES, found.best()))
    assert np.array_equal(drawn["mean |difference|"][1], found.mae, equal_nan=True)
    assert texts(ax) == [
        *([] if sum(true) else ["no object of this class to choose by"]),
        f"{found.best():.2f}",
    ]
