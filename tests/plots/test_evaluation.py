"""Figures that judge a detector, from nothing at all on."""

import numpy as np
import pytest
import torch

from ssdlib.evaluation.calibration import reliability
from ssdlib.evaluation.counting import count_curve, count_report
from ssdlib.evaluation.metrics import PrecisionRecall, evaluate_detections
from ssdlib.inference.detections import Detections
from ssdlib.plots import evaluation as plots
from tests.plots.conftest import EVERY_ERROR, NAMES, curves, texts


def curve(right=(), ground_truth=0):
    count = len(right)
    scores = np.linspace(0.9, 0.1, count)
    return PrecisionRecall(scores, np.array(right, dtype=bool), ground_truth, np.zeros(count, dtype=np.int64))


@pytest.mark.parametrize("eleven", [False, True])
@pytest.mark.parametrize(("right", "truth"), [([], 0), ([], 3), ([False], 2), ([True, False, True], 4)])
def test_precision_recall_by_hand(right, truth, eleven):
    one = curve(right, truth)
    drawn = curves(plots.precision_recall_by_hand(None, one, eleven=eleven))
    assert drawn["after each detection"] == (list(one.recall), list(one.precision))
    if eleven and len(right) and truth:
        assert np.mean(drawn["read at 11 recalls"][1]) == pytest.approx(one.voc07_ap)


@pytest.mark.parametrize("given", [{}, {"WBC": ([], 0)}, {"WBC": ([True], 1), "RBC": ([False, True], 3)}])
def test_precision_recall_curves_have_a_dot_at_the_threshold(given):
    made = {name: curve(*values) for name, values in given.items()}
    ax = plots.precision_recall_curves(None, made, dict.fromkeys(made, 0.2))
    dots = [tuple(line.get_xydata()[0]) for line in ax.get_lines() if line.get_marker() == "o"]
    assert dots == [one.at(0.2)[1::-1] for one in made.values() if one.ground_truth]
    assert [label.split(",")[0] for label in ax.get_legend_handles_labels()[1]] == list(given)


@pytest.mark.parametrize("images", [[], [EVERY_ERROR]])
def test_metrics_table_has_a_row_a_class_and_the_means(images):
    metrics = evaluate_detections([found for found, _ in images], [target for _, target in images], NAMES)
    cells = plots.metrics_table(None, metrics).tables[0].get_celld()
    rows = [cells[row, -1].get_text().get_text() for row in range(1, 5)]
    assert rows == [*NAMES, "mean"]
    expected = "n/a" if metrics.map_50 is None else f"{metrics.map_50:.3f}"
    assert cells[4, 3].get_text().get_text() == expected


@pytest.mark.parametrize("values", [{}, {"WBC": [0.9, 0.5], "RBC": [0.8, None]}])
def test_ap_by_iou(values):
    drawn = curves(plots.ap_by_iou(None, [0.5, 0.75], values))
    assert list(drawn) == list(values)
    for name, (ious, heights) in drawn.items():
        assert ious == [0.5, 0.75] and heights[0] == values[name][0]


@pytest.mark.parametrize(("right", "truth"), [([], 0), ([], 2), ([False, True], 2)])
def test_threshold_curves_and_histogram(right, truth):
    one = curve(right, truth)
    drawn = curves(ax := plots.threshold_curves(None, one, "RBC", NAMES, 0.4))
    expected = [np.nan if (p := one.at(level)[0]) is None else p for level in drawn["precision"][0]]
    assert np.array_equal(drawn["precision"][1], expected, equal_nan=True) and texts(ax) == ["0.40"]
    ax = plots.score_histogram(None, one, "RBC", 0.4)
    counts = [patch.get_data().values.sum() for patch in ax.patches]
    assert counts == [sum(right)] * 2 + [len(right) - sum(right)] * 2


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.arange(16).reshape(4, 4)])
def test_confusion_puts_background_last(matrix):
    ax = plots.confusion(None, matrix.astype(np.int64), NAMES)
    first = {tuple(map(round, t.get_position())): t.get_text().split("\n")[0] for t in ax.texts}
    assert first[(0, 0)] == str(int(matrix[1, 1]))
    assert first[(3, 0)] == str(int(matrix[1, 0])) and first[(0, 3)] == str(int(matrix[0, 1]))
    assert first[(3, 3)] == "–"


@pytest.mark.parametrize("count", [0, 1, 200])
def test_reliability(count):
    rng = np.random.default_rng(0)
    scores = rng.random(count)
    result = reliability(scores, rng.random(count) < scores)
    ax = plots.reliability_diagram(None, result, "RBC", scaled=result)
    assert texts(ax) == [str(one.count) for one in result.bins] and sum(map(int, texts(ax))) == count
    assert [bar.get_height() for bar in ax.patches] == [one.right for one in result.bins if one.count]
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend[1] == ("scaled: ECE n/a" if count == 0 else f"scaled: ECE {result.ece:.3f}")


def counts(true, counted):
    detections = [Detections([[0, 0, 9, 9]] * n, [0.9] * n, [2] * n, (120, 100), NAMES) for n in counted]
    targets = [{"boxes": torch.zeros(n, 4), "labels": torch.full((n,), 2)} for n in true]
    return detections, targets


@pytest.mark.parametrize(
    ("true", "counted"), [([], []), ([0], [0]), ([5], [3]), ([4, 4], [4, 4]), ([2, 4, 6, 2], [3, 4, 4, 3])]
)
def test_figures_of_counts(true, counted):
    ax = plots.counts_scatter(None, true, counted, "RBC", NAMES)
    assert {tuple(spot) for spot in ax.collections[-1].get_offsets()} == set(zip(true, counted, strict=True))
    red = count_report(*counts(true, counted), NAMES, samples=50).per_class["RBC"]
    ax = plots.bland_altman(None, red, "RBC", NAMES)
    spots = {tuple(spot) for spot in ax.collections[-1].get_offsets().tolist()}
    assert spots == {((t + c) / 2, c - t) for t, c in zip(true, counted, strict=True)}
    known = [one.value for one in (red.bias, red.lower_limit, red.upper_limit) if one.value is not None]
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx([0, *known])
    low, high = ax.get_ylim()
    assert all(low < value < high for value in [*known, *(spot[1] for spot in spots)])
    found = count_curve(*counts(true, counted), 2)
    drawn = curves(ax := plots.count_threshold_curve(None, found, "RBC", NAMES, found.best()))
    assert np.array_equal(drawn["mean |difference|"][1], found.mae, equal_nan=True)
    assert texts(ax) == [f"{found.best():.2f}"]
