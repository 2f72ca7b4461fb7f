"""Figures of training: what is drawn, from nothing at all on."""

from itertools import pairwise

import matplotlib
import pytest
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from ssdlib.plots import training as plots
from ssdlib.training.history import EpochRecord, History


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def history(maps):
    """An epoch for each value, its loss falling; None was not evaluated."""
    return History(
        [EpochRecord(i, 6.0 / i, 2.0 / i, 4.0 / i, 1e-3, 10.0, 1.0, value) for i, value in enumerate(maps, 1)]
    )


HISTORIES = [([], None), ([None], None), ([0.2], 1), ([None, 0.5, None, 0.4], 2), ([0.1] * 40, 1)]


@pytest.mark.parametrize(("maps", "best"), HISTORIES)
def test_loss_curves(maps, best):
    ax = plots.loss_curves(None, history(maps))
    labels = [line.get_label() for line in ax.get_lines()]
    assert labels[:3] == ["total", "localization", "confidence"]
    assert len(ax.get_lines()[0].get_xdata()) == len(maps)
    marks = ax.get_lines()[3:]
    assert [mark.get_xdata()[0] for mark in marks] == ([best] if best else [])


@pytest.mark.parametrize(("maps", "best"), HISTORIES)
def test_map_curve_shows_evaluated_epochs_only(maps, best):
    ax = plots.map_curve(None, history(maps))
    curve = ax.get_lines()[0]
    assert list(curve.get_ydata()) == [value for value in maps if value is not None]
    assert any("best" in str(line.get_label()) for line in ax.get_lines()) == (best is not None)


@pytest.mark.parametrize(("start", "lines"), [(None, []), (0.25, [0.25])])
def test_map_curve_shows_where_it_started(start, lines):
    ax = plots.map_curve(None, history([]), start=start)
    before = [line for line in ax.get_lines() if "before" in str(line.get_label())]
    assert [line.get_ydata()[0] for line in before] == lines


@pytest.mark.parametrize("values", [{}, {"a": []}, {"a": [None]}, {"a": [0.1, None, 0.3], "b": [0.2, 0.4]}])
def test_compared_maps(values):
    ax = plots.compared_maps(None, values)
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}
    assert drawn == {name: [v for v in maps if v is not None] for name, maps in values.items()}


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_live_figure_is_shown_once_and_updated_in_place(epochs, monkeypatch):
    shown, updates = [], []

    class Handle:
        def update(self, figure):
            updates.append((figure, [len(ax.get_lines()) for ax in figure.axes]))

    def display(figure, display_id):
        shown.append(figure)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    live = plots.LiveFigure(1, 2, size=(6, 3))
    for epoch in range(epochs):
        with live.redrawn() as (left, right):
            left.plot(range(epoch))
            plots.compared_maps(right, {"a": [0.5] * epoch})
    assert shown == [live.figure] and not plt.get_fignums()
    assert updates == [(live.figure, [1, 1])] * epochs


def test_live_figure_outside_a_notebook(monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda figure, display_id: None)
    with plots.LiveFigure().redrawn() as (ax,):
        plots.loss_curves(ax, history([0.5]))
    assert ax.get_lines()


@pytest.mark.parametrize("objects", [0, 1, 4])
def test_training_image(objects):
    image = torch.full((3, 300, 300), 200, dtype=torch.uint8)
    corner = torch.arange(objects, dtype=torch.float32).reshape(-1, 1).expand(-1, 2) * 20
    target = {"boxes": torch.cat([corner, corner + 30], dim=1), "labels": torch.ones(objects).long()}
    _, given = plt.subplots()
    ax = plots.training_image(given, image, target)
    assert ax is given
    assert (len(ax.images), len(ax.patches)) == (1, objects)


@pytest.mark.parametrize("values", [{}, {"loss": []}, {"loss": [3.0, 2.0]}, {"a": [1.0], "b": [2.0]}])
def test_lines(values):
    for draw in (plots.step_values, plots.learning_rates):
        ax = draw(None, values)
        assert [len(line.get_ydata()) for line in ax.get_lines()] == [len(v) for v in values.values()]
    ax = plots.average(None, [1.0, 2.0], values)
    assert len(ax.get_lines()) == 1 + len(values)


def contestant(maps, stopped=None):
    points = [
        {"images": 10 * k, "seconds": 30.0 * k, "map_50": value, "ap_50": {}}
        for k, value in enumerate(maps, 1)
    ]
    return {"points": points, "stopped": stopped}


@pytest.mark.parametrize("against", ["minutes", "images"])
@pytest.mark.parametrize(
    ("contestants", "names"),
    [
        ({}, []),
        ({"a": contestant([])}, []),
        ({"a": contestant([None])}, []),
        ({"a": contestant([0.1, None, 0.3], "nan")}, ["a (stopped)  0.30"]),
        ({"a": contestant([0.1, 0.5]), "b": contestant([0.5])}, ["a  0.50", "b  0.50"]),
    ],
)
def test_time_to_accuracy_names_each_curve_at_its_end(contestants, names, against):
    ax = plots.plot_time_to_accuracy({"contestants": contestants}, against=against)
    assert [text.get_text() for text in ax.texts] == names
    curves = [line for line in ax.get_lines() if len(line.get_label()) == 1]
    assert len(curves) == len(names)
    if names and against == "minutes":
        assert curves[0].get_xdata()[0] == 0.5


def test_names_of_curves_that_end_together_make_room():
    three = {name: contestant([0.1, value]) for name, value in (("a", 0.5), ("b", 0.5), ("c", 0.52))}
    ax = plots.plot_time_to_accuracy({"contestants": three}, against="images")
    heights = sorted(text.xy[1] for text in ax.texts)
    assert min(b - a for a, b in pairwise(heights)) > 0.06


@pytest.mark.parametrize("synthetic", [False, True])
def test_time_to_accuracy_says_where_it_was_measured(synthetic):
    results = {"contestants": {"a": contestant([0.5])}, "data": {"synthetic": synthetic}}
    figure = plots.time_to_accuracy({**results, "environment": {"cpu": "a machine", "cores": 2}})
    assert "a machine, 2 cores" in figure.get_suptitle()
    assert ("synthetic" in figure.get_supxlabel()) == synthetic


@pytest.mark.parametrize("names", [["torchvision"], ["torchvision", "scratch"], ["scratch", "torchvision"]])
def test_a_contestant_keeps_its_color(names):
    ax = plots.plot_time_to_accuracy({"contestants": {name: contestant([0.5]) for name in names}})
    colors = {line.get_label(): line.get_color() for line in ax.get_lines()}
    assert colors == {name: plots.CONTESTANT_COLORS[name] for name in names}
