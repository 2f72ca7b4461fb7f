"""Figures of training: learning rates, losses, the mAP on val, and the average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ssdlib.plots.style import INK, MUTED, axes_or_new, draw_boxes, mark_synthetic, new_figure, show_image

if TYPE_CHECKING:
    from ssdlib.training.history import History

LINE_COLORS = ("#1d4ed8", "#b45309", "#047857", "#a21caf", "#0f766e")
"""For quantities; those of the classes are left to the classes."""

CONTESTANT_COLORS = dict(zip(("scratch", "original", "torchvision"), LINE_COLORS, strict=False))
"""Each keeps its own in every figure, whoever else is there."""


def training_image(ax: Axes | None, image: Any, target: Mapping[str, Any]) -> Axes:
    """One image of a batch, (3, S, S) uint8, as the network gets it, with its boxes in the class colors."""
    ax = axes_or_new(ax, (3, 3))
    show_image(ax, image)
    draw_boxes(ax, target["boxes"], target["labels"], width=1.8)
    side = np.asarray(image).shape[-1]
    ax.set(xlim=(0, side), ylim=(side, 0))
    return ax


def step_values(ax: Axes | None, values: Mapping[str, Sequence[float]], *, ylabel: str = "loss") -> Axes:
    """A line for each {name: one value a step}; steps count from 1."""
    ax = axes_or_new(ax)
    for i, (name, numbers) in enumerate(values.items()):
        color = LINE_COLORS[i % len(LINE_COLORS)]
        ax.plot(np.arange(1, len(numbers) + 1), numbers, color=color, label=name)
    ax.set(xlabel="step", ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(values) > 1:
        ax.legend()
    return ax


def learning_rates(ax: Axes | None, rates: Mapping[str, Sequence[float]]) -> Axes:
    """Schedules {name: the rate at each step}, over the share of the training that is done."""
    ax = axes_or_new(ax, (6, 3.2))
    for i, (name, numbers) in enumerate(rates.items()):
        done = 100 * np.arange(len(numbers)) / max(len(numbers), 1)
        width = max(3.4 - 0.8 * i, 1.2)  # one that runs along a later one still shows
        ax.plot(done, numbers, color=LINE_COLORS[i % len(LINE_COLORS)], lw=width, label=name)
    ax.set(xlim=(0, 100), ylim=(0, None), xlabel="training done, %", ylabel="learning rate")
    if rates:
        ax.legend()
    return ax


def average(ax: Axes | None, values: Sequence[float], averages: Mapping[str, Sequence[float]]) -> Axes:
    """A noisy quantity in gray, and averages of it that follow step by step."""
    ax = axes_or_new(ax, (6, 3.2))
    ax.plot(values, color=MUTED, alpha=0.55, lw=0.9, label="weight")
    for i, (name, numbers) in enumerate(averages.items()):
        ax.plot(numbers, color=LINE_COLORS[i % len(LINE_COLORS)], lw=2.2, label=name)
    ax.set(xlabel="step", ylabel="value")
    ax.legend()
    return ax


def loss_curves(ax: Axes | None, history: History) -> Axes:
    """The training loss of each epoch and its two parts, with the best epoch on val marked."""
    ax = axes_or_new(ax, (6, 3.6))
    epochs = [record.epoch for record in history.epochs]
    parts = {"total": "loss", "localization": "localization", "confidence": "confidence"}
    for i, (name, field) in enumerate(parts.items()):
        values = [getattr(record, field) for record in history.epochs]
        width = 2.4 if name == "total" else 1.5
        ax.plot(epochs, values, "o-", ms=_marker(epochs), lw=width, color=LINE_COLORS[i], label=name)
    _mark_best(ax, history)
    highest = max((record.loss for record in history.epochs), default=1.0)
    # Room for the legend: fine-tuning's curves are flat and leave none.
    ax.set(ylim=(0, 1.25 * highest), xlabel="epoch", ylabel="training loss")
    _finish_epochs(ax, history, "upper right", columns=2)
    return ax


def map_curve(ax: Axes | None, history: History, *, start: float | None = None) -> Axes:
    """mAP@0.5 on val at each epoch that was evaluated, with the best one marked and named.

    `start` is that of the network before training, a dotted line.
    """
    ax = axes_or_new(ax, (6, 3.6))
    evaluated = [(r.epoch, r.map_50) for r in history.epochs if r.map_50 is not None]
    epochs, values = [e for e, _ in evaluated], [v for _, v in evaluated]
    ax.plot(epochs, values, "o-", ms=_marker(epochs), color=LINE_COLORS[0], label="mAP@0.5 on val")
    if start is not None:
        ax.axhline(start, color=MUTED, lw=1.6, ls=":", label=f"before training: {start:.3f}")
    _mark_best(ax, history)
    if history.best is not None:
        best = history.best
        ax.plot([best.epoch], [best.map_50], "o", ms=11, mfc="none", mec=INK, mew=1.6)
    ax.set(ylim=(0, 1.05), xlabel="epoch", ylabel="mAP@0.5 on val")
    _finish_epochs(ax, history, "lower right")
    return ax


def compared_maps(ax: Axes | None, values: Mapping[str, Sequence[float | None]]) -> Axes:
    """mAP@0.5 on val after each epoch of each {name: one value an epoch}; None was not evaluated."""
    ax = axes_or_new(ax, (6, 3.6))
    for i, (name, maps) in enumerate(values.items()):
        epochs = [e for e, value in enumerate(maps, 1) if value is not None]
        known = [value for value in maps if value is not None]
        ax.plot(epochs, known, "o-", ms=_marker(epochs), color=LINE_COLORS[i % len(LINE_COLORS)], label=name)
    ax.set(xlim=(0.5, max([len(maps) for maps in values.values()] + [1]) + 0.5), ylim=(0, 1.05))
    ax.set(xlabel="epoch", ylabel="mAP@0.5 on val")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if values:
        ax.legend(fontsize=9, loc="lower right")
    return ax


class LiveFigure:
    """A figure that a notebook shows once and redraws in place while its cell runs.

        live = LiveFigure(1, 2)
        with live.redrawn() as (left, right):  # emptied; shown again at the end of the block
            loss_curves(left, history)

    Takes what `new_figure` takes.
    """

    def __init__(self, *shape: int, **options: Any) -> None:
        from IPython.display import display  # not needed by any other figure
        from matplotlib import pyplot as plt

        self.figure, axes = new_figure(*shape, **options)
        self.axes = np.atleast_1d(axes)
        plt.close(self.figure)  # else the notebook would show it once more at the end of the cell
        self._shown = display(self.figure, display_id=True)

    @contextmanager
    def redrawn(self) -> Iterator[Sequence[Axes]]:
        """The Axes, emptied, to be drawn anew."""
        for ax in self.axes:
            ax.clear()
        yield self.axes
        if self._shown is not None:  # None outside a notebook
            self._shown.update(self.figure)


def plot_time_to_accuracy(
    results: Mapping[str, Any], ax: Axes | None = None, *, against: str = "minutes"
) -> Axes:
    """mAP@0.5 on val of each contestant of `tests.benchmarks.training`, against "minutes" or "images".

    A name and the last value stand at the end of each curve. A cross ends that of a training which stopped
    because its numbers were no longer finite; one without any evaluation is left out.
    """
    ax = axes_or_new(ax, (6, 3.8))
    ends = []
    for i, (name, entry) in enumerate(results["contestants"].items()):
        points = [p for p in entry["points"] if p["map_50"] is not None]
        if not points:
            continue
        across = [p["seconds"] / 60 if against == "minutes" else p["images"] for p in points]
        values = [p["map_50"] for p in points]
        color = CONTESTANT_COLORS.get(name, LINE_COLORS[i % len(LINE_COLORS)])
        ax.plot(across, values, "o-", ms=4, lw=2.2, color=color, label=name, clip_on=False)
        if entry.get("stopped"):
            ax.plot(across[-1], values[-1], "x", ms=10, mew=2.2, color=color, clip_on=False)
            name = f"{name} (stopped)"
        ends.append((across[-1], values[-1], name, color))
    ax.set(xlim=(0, max((x for x, *_ in ends), default=1)), ylim=(0, 1), ylabel="mAP@0.5 on val")
    ax.set(xlabel="minutes of training" if against == "minutes" else "images seen")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=against == "images"))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid(axis="x", visible=False)
    _name_ends(ax, ends)
    return ax


def _name_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]], apart: float = 0.065) -> None:
    """Write (x, y, name, color) right of each point; names that would touch make room for each other."""
    heights, near = [y for _, y, *_ in ends], 0.3 * ax.get_xlim()[1]
    order = sorted(range(len(ends)), key=heights.__getitem__)
    for _ in range(50):
        for below, above in combinations(order, 2):
            overlap = apart - (heights[above] - heights[below])
            if overlap > 0 and abs(ends[above][0] - ends[below][0]) < near:
                heights[above] += overlap / 2
                heights[below] = max(heights[below] - overlap / 2, apart / 3)
    for (x, y, name, color), height in zip(ends, heights, strict=True):
        ax.annotate(
            f"{name}  {y:.2f}", (x, height), (9, 0), textcoords="offset points", va="center", color=color,
            fontweight="bold", fontsize=9.5, annotation_clip=False,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip


def time_to_accuracy(results: Mapping[str, Any]) -> Figure:
    """`plot_time_to_accuracy` twice, against minutes and against images, and what it was measured on."""
    figure, (left, right) = new_figure(1, 2, size=(11, 4.4), sharey=True)
    plot_time_to_accuracy(results, left, against="minutes")
    plot_time_to_accuracy(results, right, against="images")
    left.set_title("How soon", pad=10)
    right.set_title("From how much", pad=10)
    right.set_ylabel("")
    environment, data = results.get("environment", {}), results.get("data", {})
    cores = environment.get("cores")
    cores = "1 core" if cores == 1 else f"{cores} cores"
    machine = environment.get("gpu") or f"{environment.get('cpu')}, {cores}"
    figure.suptitle(
        f"Time to accuracy: the same images in the same order, on {machine}",
        x=0.01,
        ha="left",
        fontsize=9,
        color=MUTED,
    )
    if data.get("synthetic"):
        mark_synthetic(figure)
    return figure


def _mark_best(ax: Axes, history: History) -> None:
    best = history.best
    if best is not None:
        label = f"best: epoch {best.epoch}, mAP {best.map_50:.3f}"
        ax.axvline(best.epoch, color=INK, lw=1.2, ls="--", label=label)


def _marker(epochs: Sequence[int]) -> float:
    return 5 if len(epochs) <= 30 else 0


def _finish_epochs(ax: Axes, history: History, legend: str, columns: int = 1) -> None:
    ax.set_xlim(0.5, max(len(history.epochs), 1) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.legend(
        fontsize=9, loc=legend, ncols=columns, frameon=True, edgecolor="none", framealpha=0.9
    )  # fmt: skip
