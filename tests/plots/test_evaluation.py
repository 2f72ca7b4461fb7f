"""Figures that judge a detector, and the verdicts they draw, from nothing at all on."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from ssdlib.evaluation.matching import match_image
from ssdlib.evaluation.metrics import PrecisionRecall, evaluate_detections
from ssdlib.evaluation.tables import Interval
from ssdlib.plots import evaluation as plots
from tests.plots.cases import judged_image

NAMES = ("WBC", "RBC", "Platelets")
IMAGE = np.full((100, 120, 3), 200, np.uint8)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def case(found=(), truth=()):
    return judged_image(found, truth, NAMES)


def curve(right=(), ground_truth=0):
    count = len(right)
    scores = np.linspace(0.9, 0.1, count)
    return PrecisionRecall(scores, np.array(right, dtype=bool), ground_truth)


A, B = (0, 0, 30, 30), (50, 50, 90, 90)
CASES = [
    ([], [], [], []),
    ([], [(*A, 1)], [], [True]),
    ([(*A, 1, 0.9)], [], [-1], []),
    ([(*A, 1, 0.9)], [(*A, 1)], [0], [False]),
    ([(*A, 2, 0.9)], [(*A, 1)], [-1], [True]),  # another class
    ([(*A, 1, 0.5), (*A, 1, 0.9)], [(*A, 1)], [0, -1], [False]),  # twice
    ([(0, 0, 30, 15, 1, 0.9)], [(*A, 1)], [0], [False]),  # IoU exactly 0.5
    ([(0, 0, 30, 14, 1, 0.9)], [(*A, 1)], [-1], [True]),
    ([(*A, 1, 0.9), (*B, 2, 0.8)], [(*B, 2), (*A, 1)], [1, 0], [False, False]),
]


@pytest.mark.parametrize(("found", "truth", "object_of", "missed"), CASES)
def test_judged_draws_right_wrong_and_missed(found, truth, object_of, missed):
    detections, target = case(found, truth)
    ax = plots.judged(None, IMAGE, detections, target, match_image(detections, target), scores=True)
    colors = [to_hex(patch.get_edgecolor()) for patch in ax.patches]
    wrong = object_of.count(-1)
    assert colors.count(plots.RIGHT) == len(object_of) - wrong
    assert colors.count(plots.WRONG) == wrong == len(ax.texts)
    assert colors.count(plots.MISSED) == sum(missed)


def test_verdict_legend_names_all_three():
    figure, _ = plt.subplots(layout="constrained")
    assert plots.verdict_legend(figure) is figure
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["right", "false alarm", "missed"]


@pytest.mark.parametrize("right", [[], [True], [False, True, True]])
def test_judged_board(right):
    boxes = np.tile([10.0, 10, 30, 30], (len(right), 1))
    ax = plots.judged_board(None, boxes[:1], boxes, right, size=100)
    assert len(ax.patches) == len(boxes[:1]) + len(right)


@pytest.mark.parametrize("eleven", [False, True])
@pytest.mark.parametrize(("right", "truth"), [([], 0), ([], 3), ([False], 2), ([True, False, True], 4)])
def test_precision_recall_by_hand(right, truth, eleven):
    ax = plots.precision_recall_by_hand(None, curve(right, truth), eleven=eleven)
    points = ax.get_lines()[-1]
    assert len(points.get_xdata()) == len(right)
    assert len(ax.texts) == (0 if eleven else len(right))


def test_eleven_points_are_as_high_as_voc_reads_them():
    one = curve([True, False, True, False, True, False], 4)
    ax = plots.precision_recall_by_hand(None, one, eleven=True)
    heights = ax.get_lines()[1].get_ydata()
    assert np.mean(heights) == pytest.approx(one.voc07_ap)


@pytest.mark.parametrize(
    "curves", [{}, {"WBC": ([], 0)}, {"WBC": ([True], 1), "RBC": ([False, True], 3)}], ids=len
)
def test_precision_recall_curves(curves):
    made = {name: curve(*values) for name, values in curves.items()}
    ax = plots.precision_recall_curves(None, made, dict.fromkeys(made, 0.2))
    dots = sum(bool(right) for right, _ in curves.values())
    assert len(ax.get_lines()) == len(curves) + dots


@pytest.mark.parametrize("values", [{}, {"VOC": {}}, {"VOC": {"WBC": None}, "COCO": {"WBC": 0.5}}])
def test_ap_bars(values):
    ax = plots.ap_bars(None, values)
    heights = [value or 0 for by_class in values.values() for value in by_class.values()]
    assert [bar.get_height() for bar in ax.patches] == heights
    assert sum("n/a" in text.get_text() for text in ax.texts) == ("VOC" in values and "WBC" in values["VOC"])


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({}, 0),
        ({"a": Interval(None, None, None)}, 0),
        ({"a": Interval(0.5, None, None)}, 1),
        ({"a": Interval(0.5, 0.4, 0.6), "b": Interval(None, None, None), "mean": Interval(0.5, 0.4, 0.6)}, 4),
    ],
)
def test_interval_dots(values, lines):
    ax = plots.interval_dots(None, values)
    assert len(ax.get_lines()) == lines
    assert [label.get_text() for label in ax.get_yticklabels()] == list(values)


@pytest.mark.parametrize("pair", [([], []), ([(*A, 1, 0.9)], [(*A, 1)])])
def test_metrics_table(pair):
    detections, target = case(*pair)
    ax = plots.metrics_table(None, evaluate_detections([detections], [target], NAMES))
    cells = [cell.get_text().get_text() for cell in ax.tables[0].get_celld().values()]
    assert {"WBC", "RBC", "Platelets", "mean"} <= set(cells)
    assert "n/a" in cells and ("1.000" in cells) == bool(pair[0])


@pytest.mark.parametrize("values", [{}, {"WBC": [None, None]}, {"WBC": [0.9, 0.4], "RBC": [0.5, None]}])
def test_ap_by_iou(values):
    ax = plots.ap_by_iou(None, [0.5, 0.75], values)
    drawn = [np.isfinite(np.asarray(line.get_ydata(), dtype=float)).sum() for line in ax.get_lines()]
    assert drawn == [sum(value is not None for value in row) for row in values.values()]


@pytest.mark.parametrize(("right", "truth"), [([], 0), ([], 2), ([False, True], 2)])
def test_threshold_curves_and_histogram(right, truth):
    ax = plots.threshold_curves(None, curve(right, truth), "RBC", NAMES, 0.4)
    assert [line.get_label() for line in ax.get_lines()[:3]] == ["precision", "recall", "F1"]
    ax = plots.score_histogram(None, curve(right, truth), "RBC", 0.4)
    counts = [patch.get_data().values.sum() for patch in ax.patches]
    assert counts == [sum(right)] * 2 + [len(right) - sum(right)] * 2


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.arange(16).reshape(4, 4)])
def test_confusion_puts_background_last(matrix):
    ax = plots.confusion(None, matrix.astype(np.int64), NAMES)
    first = {tuple(map(round, t.get_position())): t.get_text().split("\n")[0] for t in ax.texts}
    assert first[(0, 0)] == str(int(matrix[1, 1]))
    assert first[(3, 0)] == str(int(matrix[1, 0])) and first[(0, 3)] == str(int(matrix[0, 1]))
    assert first[(3, 3)] == "–"


@pytest.mark.parametrize(("true", "counted", "dots"), [([], [], 0), ([1], [2], 1), ([3, 3, 0], [4, 4, 0], 2)])
def test_counts_scatter_merges_equal_dots(true, counted, dots):
    ax = plots.counts_scatter(None, true, counted, "RBC", NAMES)
    assert len(ax.collections[0].get_offsets()) == dots


@pytest.mark.parametrize("values", [{}, {"precision": [0.9, 0.8]}])
def test_hidden_label_curves(values):
    ax = plots.hidden_label_curves(None, [0.0, 0.1], values)
    assert [list(line.get_ydata()) for line in ax.get_lines()] == list(values.values())


@pytest.mark.parametrize(
    ("box", "center"),
    [([50, 40, 70, 60], (60, 50)), ([0, 0, 20, 20], (40, 40)), ([100, 80, 120, 100], (80, 60))],
)
def test_crop_surrounds_the_box_and_stays_inside(box, center):
    ax = plots.crop(None, IMAGE, box)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    assert ((left + right) / 2, (bottom + top) / 2) == pytest.approx(center)
    assert right - left == bottom - top == 80
    assert len(ax.patches) == 1
