"""Figures of training: what is drawn, from nothing at all on."""

import matplotlib.pyplot as plt
import pytest

from ssdlib.plots import training as plots
from ssdlib.plots.style import LINE_COLORS, MUTED
from ssdlib.training.history import EpochRecord, History
from tests.plots.conftest import axes, curves, texts


def history(maps):
    """An epoch for each value, its loss falling; None was not evaluated, and has no loss on val."""
    records = []
    for i, value in enumerate(maps, 1):
        val_loss = None if value is None else 9.0 / i
        records.append(EpochRecord(i, 6.0 / i, 2.0 / i, 4.0 / i, 1e-3, 10.0, 1.0, value, val_loss))
    return History(records)


@pytest.mark.parametrize(
    ("maps", "best"), [([], None), ([None], None), ([0.2], 1), ([None, 0.5, None, 0.4], 2), ([0.1] * 40, 1)]
)
def test_curves_of_one_run(maps, best):
    ax = plots.loss_curves(axes(), history(maps))
    drawn, epochs = curves(ax), list(range(1, len(maps) + 1))
    evaluated = [epoch for epoch in epochs if maps[epoch - 1] is not None]
    assert drawn.get("training images", ([], [])) == (epochs, [6.0 / epoch for epoch in epochs])
    assert drawn.get("val", ([], [])) == (evaluated, [9.0 / epoch for epoch in evaluated])
    assert all(y <= ax.get_ylim()[1] for _, values in drawn.values() for y in values)
    assert [x[0] for label, (x, _) in drawn.items() if label.startswith("best")] == ([best] if best else [])
    drawn = curves(plots.map_curve(axes(), history(maps), start=0.25))
    assert drawn.get("mAP@0.5 on val", ([], []))[1] == [value for value in maps if value is not None]
    assert drawn["before training: 0.250"][1][0] == 0.25
    assert any(label.startswith("best") for label in drawn) == (best is not None)


def test_a_map_that_is_nowhere_defined_is_said():
    assert texts(plots.map_curve(axes(), history([None, None]))) == ["no mAP on val to show"]


def test_runs_of_a_group_are_thin_lines_and_the_mean_of_those_that_went_furthest():
    groups = {
        "a": [history([0.2, None, 0.6]), history([0.4, 0.5, 0.6]), history([0.9])],
        "b": [history([0.5])],
    }
    ax = plots.map_curves(axes(), {**groups, "c": []})
    lines = {line.get_label(): line for line in ax.get_lines()}
    mean = lines["a, mean of 2"]
    assert list(mean.get_xdata()) == [1, 3] and list(mean.get_ydata()) == pytest.approx([0.3, 0.6])
    assert (mean.get_color(), lines["b"].get_color()) == LINE_COLORS[:2]
    assert len(ax.get_lines()) == 5 and "c" not in lines
    assert mean.get_zorder() > lines["b"].get_zorder()
    many = plots.epoch_curves(axes(), {str(k): [{1: 0.5}] for k in range(9)})
    assert [line.get_color() for line in many.get_lines()] == [*LINE_COLORS, MUTED]


@pytest.mark.parametrize(("epochs", "in_notebook"), [(0, True), (3, True), (1, False)])
def test_live_figure_is_shown_once_and_updated_in_place(epochs, in_notebook, monkeypatch):
    shown, updates = [], []

    class Handle:
        def update(self, figure, metadata):
            assert metadata["image/jpeg"] == {"alt": "Loss by epoch"}
            updates.append((figure, [len(ax.get_lines()) for ax in figure.axes]))

    def display(figure, display_id, metadata):
        shown.append(figure)
        return Handle() if in_notebook else None

    monkeypatch.setattr("IPython.display.display", display)
    live = plots.LiveFigure(1, 2, text="Loss by epoch", size=(6, 3))
    for epoch in range(epochs):
        with live.redrawn() as (left, right):
            left.plot(range(epoch))
            plots.map_curves(right, {"a": [history([0.5])]})
    assert shown == [live.figure] and not plt.get_fignums()
    assert updates == [(live.figure, [1, 1])] * epochs * in_notebook


@pytest.mark.parametrize("values", [{}, {"loss": []}, {"loss": [3.0, 2.0]}, {"a": [1.0], "b": [2.0]}])
def test_step_curves_and_learning_rates(values):
    drawn = curves(plots.step_curves(axes(), values, noisy={"weight": [1.0, 2.0]}))
    assert drawn == {"weight": ([1, 2], [1, 2])} | {
        name: (list(range(1, len(numbers) + 1)), numbers) for name, numbers in values.items()
    }
    drawn = curves(plots.learning_rates(axes(), values))
    assert {name: y for name, (_, y) in drawn.items()} == values


def training(name, maps, stopped=None):
    points = [{"images": 10 * k, "seconds": 30.0 * k, "map_50": value} for k, value in enumerate(maps, 1)]
    return {"name": name, "points": points, "stopped": stopped}


@pytest.mark.parametrize("synthetic", [False, True])
@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ([], []),
        ([training("a", []), training("b", [None])], []),
        ([training("a", [0.1, None, 0.3], "nan")], ["a: 0.30 (stopped)"]),
        ([training("a", [0.1, 0.5]), training("b", [0.5])], ["a: 0.50", "b: 0.50"]),
    ],
)
def test_time_to_accuracy(rows, labels, synthetic):
    results = {"rows": rows, "data": {"synthetic": synthetic}}
    figure = plots.time_to_accuracy({**results, "environment": {"cpu": "a machine", "cores": 2}})
    for ax, unit in zip(figure.axes, (0.5, 10), strict=True):  # minutes, and images
        assert ax.get_legend_handles_labels()[1] == labels
        assert all(x[0] == unit for label, (x, _) in curves(ax).items() if label in labels)
    assert "a machine, 2 cores" in figure.get_suptitle()
    assert ("synthetic" in figure.get_supxlabel()) == synthetic


def row(removed, change, ap=0.5):
    return {"removed": removed, "change": change, "recall": 0.25, "map_50": 0.7, "ap_50": {"RBC": ap}}


@pytest.mark.parametrize("synthetic", [False, True])
@pytest.mark.parametrize(
    ("rows", "drawn"),
    [
        ([], {}),
        ([row(0.5, "as it is", 0.4), row(0.0, "as it is", 0.9)], {"hard": ([0.0, 0.5], [0.9, 0.4])}),
        ([row(0.5, "as it is", 0.4), row(0.5, "as it is", 0.6)], {"hard": ([0.5], [0.5])}),
        ([row(0.0, "soft", None), row(0.3, "soft", 0.8), row(0.0, "mine")],
         {"soft": ([0.3], [0.8]), "mine": ([0.0], [0.5])}),
    ],
)  # fmt: skip
def test_missing_labels_has_a_panel_for_each_quantity(rows, drawn, synthetic):
    results = {"rows": rows, "terms": {"class": "RBC"}, "data": {"synthetic": synthetic}}
    figure = plots.missing_labels(results)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "RBC AP@0.5", "mAP@0.5", "RBC recall at score 0.5",
    ]  # fmt: skip
    assert {label.split(":")[0]: xy for label, xy in curves(figure.axes[0]).items()} == drawn
    assert len(figure.legends) == bool(rows)
    assert ("synthetic" in figure.get_supxlabel()) == synthetic
