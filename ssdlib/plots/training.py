"""Figures of training: learning rates, losses, the mAP on val, and the average of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ssdlib.plots.style import INK, MUTED, axes_or_new, draw_boxes, show_image

if TYPE_CHECKING:
    from ssdlib.history import History

LINE_COLOURS = ("#1d4ed8", "#b45309", "#047857", "#a21caf", "#0f766e")
"""For quantities; those of the classes are left to the classes."""


def training_image(ax: Axes | None, image: Any, target: Mapping[str, Any]) -> Axes:
    """One image of a batch, (3, S, S) uint8, as the network gets it, with its boxes in the class colours."""
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
        colour = LINE_COLOURS[i % len(LINE_COLOURS)]
        ax.plot(np.arange(1, len(numbers) + 1), numbers, color=colour, label=name)
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
        ax.plot(done, numbers, color=LINE_COLOURS[i % len(LINE_COLOURS)], label=name)
    ax.set(xlim=(0, 100), ylim=(0, None), xlabel="training done, %", ylabel="learning rate")
    if rates:
        ax.legend()
    return ax


def average(ax: Axes | None, values: Sequence[float], averages: Mapping[str, Sequence[float]]) -> Axes:
    """A noisy quantity in grey, and averages of it that follow step by step."""
    ax = axes_or_new(ax, (6, 3.2))
    ax.plot(values, color=MUTED, alpha=0.55, lw=0.9, label="weight")
    for i, (name, numbers) in enumerate(averages.items()):
        ax.plot(numbers, color=LINE_COLOURS[i % len(LINE_COLOURS)], lw=2.2, label=name)
    ax.set(xlabel="step", ylabel="value")
    ax.legend()
    return ax


def loss_curves(ax: Axes | None, history: History) -> Axes:
    """The training loss of each epoch and its two parts, with the best epoch on val marked."""
    ax = axes_or_new(ax, (6, 3.6))
    epochs = [record.epoch for record in history.epochs]
    parts = {"total": "loss", "localisation": "localisation", "confidence": "confidence"}
    for i, (name, field) in enumerate(parts.items()):
        values = [getattr(record, field) for record in history.epochs]
        width = 2.4 if name == "total" else 1.5
        ax.plot(epochs, values, "o-", ms=_marker(epochs), lw=width, color=LINE_COLOURS[i], label=name)
    _mark_best(ax, history)
    ax.set(ylim=(0, None), xlabel="epoch", ylabel="training loss")
    _finish_epochs(ax, history, "upper right")
    return ax


def map_curve(ax: Axes | None, history: History) -> Axes:
    """mAP@0.5 on val at each epoch that was evaluated, with the best one marked and named."""
    ax = axes_or_new(ax, (6, 3.6))
    evaluated = [(r.epoch, r.map_50) for r in history.epochs if r.map_50 is not None]
    epochs, values = [e for e, _ in evaluated], [v for _, v in evaluated]
    ax.plot(epochs, values, "o-", ms=_marker(epochs), color=LINE_COLOURS[0], label="mAP@0.5 on val")
    _mark_best(ax, history)
    if history.best is not None:
        best = history.best
        ax.plot([best.epoch], [best.map_50], "o", ms=11, mfc="none", mec=INK, mew=1.6)
    ax.set(ylim=(0, 1.02), xlabel="epoch", ylabel="mAP@0.5 on val")
    _finish_epochs(ax, history, "lower right")
    return ax


def _mark_best(ax: Axes, history: History) -> None:
    best = history.best
    if best is not None:
        label = f"best: epoch {best.epoch}, mAP {best.map_50:.3f}"
        ax.axvline(best.epoch, color=INK, lw=1.2, ls="--", label=label)


def _marker(epochs: Sequence[int]) -> float:
    return 5 if len(epochs) <= 30 else 0


def _finish_epochs(ax: Axes, history: History, legend: str) -> None:
    ax.set_xlim(0.5, max(len(history.epochs), 1) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.legend(fontsize=9, loc=legend)
