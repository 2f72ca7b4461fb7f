"""Figures of training: learning rates, losses, mAP on val, runs compared, and what missing labels cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ssdlib.plots.style import (
    INK,
    LINE_COLORS,
    LINES,
    MUTED,
    described,
    mark_synthetic,
    new_figure,
    say_missing,
)

if TYPE_CHECKING:
    from ssdlib.training.history import History


def step_curves(
    ax: Axes,
    values: Mapping[str, Sequence[float]],
    *,
    ylabel: str = "loss",
    noisy: Mapping[str, Sequence[float]] | None = None,
) -> Axes:
    """The Axes with a line for each {name: one value a step}; steps count from 1. `noisy` ones are gray."""
    for name, numbers in (noisy or {}).items():
        ax.plot(np.arange(1, len(numbers) + 1), numbers, color=MUTED, alpha=0.55, lw=0.9, label=name)
    for i, (name, numbers) in enumerate(values.items()):
        ax.plot(np.arange(1, len(numbers) + 1), numbers, **LINES[i % len(LINES)], label=name)
    ax.set(xlabel="step", ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(ax.lines) > 1:
        ax.legend()
    return ax


def learning_rates(ax: Axes, rates: Mapping[str, Sequence[float]]) -> Axes:
    """The Axes with schedules {name: the rate at each step}, over the share of the training that is done."""
    for i, (name, numbers) in enumerate(rates.items()):
        done = 100 * np.arange(len(numbers)) / max(len(numbers), 1)
        # Thin dashes over a thick line: of two that run along each other both show.
        width, dashes = (1.8, (0, (4, 2.5))) if i % 2 == 0 and i else (3.6, "-")
        ax.plot(done, numbers, color=LINE_COLORS[i % len(LINE_COLORS)], lw=width, ls=dashes, label=name)
    ax.set(xlim=(0, 100), ylim=(0, None), xlabel="training done, %", ylabel="learning rate")
    if rates:
        ax.legend()
    return ax


Points = Mapping[int, float]
"""A value at each epoch that has one."""


def epoch_curves(ax: Axes, groups: Mapping[str, Sequence[Points]]) -> Axes:
    """The Axes with the curves of {group: {epoch: value} of each of its runs}, each group in its own line.

    Several runs of a group are thin lines, and a thick one is the mean of those that went furthest, at the
    epochs that all of these have. The first group is on top; groups beyond the eighth are gray.
    """
    last = 1
    for rank, (name, runs) in enumerate(groups.items()):
        line = LINES[rank] if rank < len(LINES) else {"color": MUTED}
        style = {**line, "zorder": 3 - rank / max(len(groups), 1)}
        runs = [points for points in runs if points]
        last = max([last, *(max(points) for points in runs)])
        if len(runs) > 1:
            furthest = max(max(points) for points in runs)
            whole = [points for points in runs if max(points) == furthest]
            # A mean over fewer and fewer runs would jump.
            common = sorted(set.intersection(*(set(points) for points in whole)))
            means = [statistics.mean(points[epoch] for points in whole) for epoch in common]
            ax.plot(common, means, **style, lw=2.6, label=f"{name}, mean of {len(whole)}")
            style |= {"lw": 0.9, "alpha": 0.55}
        else:
            style["label"] = name
        for points in runs:
            # A lone point makes no line: without a marker it would not be seen.
            marker = "o" if len(points) == 1 or (len(runs) == 1 and len(points) <= 30) else ""
            ax.plot(list(points), list(points.values()), **style, marker=marker, ms=5)
    ax.set(xlim=(0.5, last + 0.5), xlabel="epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return ax


def _by_epoch(history: History, field: str) -> Points:
    values = {record.epoch: getattr(record, field) for record in history.epochs}
    return {epoch: value for epoch, value in values.items() if value is not None}


def map_curves(ax: Axes, groups: Mapping[str, Sequence[History]]) -> Axes:
    """The Axes with mAP@0.5 on val by epoch: {group: histories of its runs}, see `epoch_curves`."""
    points = {name: [_by_epoch(one, "map_50") for one in histories] for name, histories in groups.items()}
    ax = epoch_curves(ax, points)
    ax.set(ylim=(0, 1.05), ylabel="mAP@0.5 on val")
    return ax


def loss_curves(ax: Axes, history: History) -> Axes:
    """The Axes with one run's loss in training and on val, the epoch of the best mAP on val marked."""
    fields = {"training images": "loss", "val": "val_loss"}
    points = {name: _by_epoch(history, field) for name, field in fields.items()}
    ax = epoch_curves(ax, {name: [one] for name, one in points.items() if one})
    _mark_best(ax, history)
    highest = max([value for one in points.values() for value in one.values()], default=1.0)
    # Room for the legend: fine-tuning's curves are flat and leave none.
    ax.set(ylim=(0, 1.25 * highest), ylabel="loss")
    if ax.lines:
        ax.legend(fontsize=9, loc="upper right", ncols=2, frameon=True, edgecolor="none", framealpha=0.9)
    return ax


def map_curve(ax: Axes, history: History, *, start: float | None = None) -> Axes:
    """The Axes with one run's mAP@0.5 on val, the best epoch marked; `start`, before training, is dotted."""
    ax = map_curves(ax, {"mAP@0.5 on val": [history]})
    if start is not None:
        ax.axhline(start, color=MUTED, lw=1.6, ls=":", label=f"before training: {start:.3f}")
    _mark_best(ax, history)
    if history.best is not None:
        ax.plot([history.best.epoch], [history.best.map_50], "o", ms=11, mfc="none", mec=INK, mew=1.6)
    if ax.lines:
        ax.legend(fontsize=9, loc="lower right", frameon=True, edgecolor="none", framealpha=0.9)
    else:
        say_missing(ax, "no mAP on val to show")
    return ax


def _mark_best(ax: Axes, history: History) -> None:
    best = history.best
    if best is not None:
        label = f"best: epoch {best.epoch}, mAP {best.map_50:.3f}"
        ax.axvline(best.epoch, color=INK, lw=1.2, ls="--", label=label)


class LiveFigure:
    """A figure that a notebook shows once and redraws in place while its cell runs.

        live = LiveFigure(1, 2)
        with live.redrawn() as (left, right):  # emptied; shown again at the end of the block
            loss_curves(left, history)

    `text` describes it for those who cannot see it; the other arguments are those of `new_figure`.
    """

    def __init__(self, *shape: int, text: str = "", **options: Any) -> None:
        from IPython.display import display  # not needed by any other figure
        from matplotlib import pyplot as plt

        self.figure, axes = new_figure(*shape, **options)
        self.axes = np.atleast_1d(axes)
        plt.close(self.figure)  # else the notebook would show it once more at the end of the cell
        self._metadata = described(text) if text else None
        self._shown = display(self.figure, display_id=True, metadata=self._metadata)

    @contextmanager
    def redrawn(self) -> Iterator[Sequence[Axes]]:
        """The Axes, emptied, to be drawn anew."""
        for ax in self.axes:
            ax.clear()
        yield self.axes
        if self._shown is not None:  # None outside a notebook
            self._shown.update(self.figure, metadata=self._metadata)


def accuracy_against(ax: Axes, results: Mapping[str, Any], across: str) -> Axes:
    """The Axes with mAP@0.5 on val of each training of `tests.benchmarks.training` against minutes or images.

    `across` is "minutes" or "images". The legend has the last values. A cross ends the curve of a training
    that stopped because its loss was no longer finite; one without any evaluation is left out.
    """
    for row, color, marker in zip(results["rows"], LINE_COLORS, "osD^vP*X", strict=False):
        points = [point for point in row["points"] if point["map_50"] is not None]
        if not points:
            continue
        x = [p["seconds"] / 60 if across == "minutes" else p["images"] for p in points]
        y = [p["map_50"] for p in points]
        label = f"{row['name']}: {y[-1]:.2f}" + (" (stopped)" if row["stopped"] else "")
        ax.plot(x, y, marker=marker, ms=5, lw=2.2, color=color, label=label, clip_on=False)
        if row["stopped"]:
            ax.plot(x[-1], y[-1], "x", ms=10, mew=2.2, color=color, clip_on=False)
    ax.set(xlim=(0, None), ylim=(0, 1), ylabel="mAP@0.5 on val")
    ax.set(xlabel="minutes of training" if across == "minutes" else "images seen")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=across == "images"))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.grid(axis="x", visible=False)
    if ax.lines:
        ax.legend(fontsize=9)
    return ax


def time_to_accuracy(results: Mapping[str, Any]) -> Figure:
    """A figure of `accuracy_against` minutes and against images, with the machine it was measured on."""
    figure, (left, right) = new_figure(1, 2, size=(11, 4.4), sharey=True)
    accuracy_against(left, results, "minutes").set_title("How soon", pad=10)
    accuracy_against(right, results, "images").set_title("From how much", pad=10)
    right.set_ylabel("")
    environment = results["environment"]
    cores = f"{environment['cores']} core" + ("" if environment["cores"] == 1 else "s")
    machine = environment.get("gpu") or f"{environment['cpu']}, {cores}"
    title = f"Time to accuracy: the same images in the same order, on {machine}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color=MUTED)
    if results["data"]["synthetic"]:
        mark_synthetic(figure)
    return figure


def against_removed(ax: Axes, values: Mapping[str, Mapping[float, float | None]], ylabel: str = "") -> Axes:
    """The Axes with a line for each {name: {share of labels removed: value}}; None is left out."""
    for i, (name, by_share) in enumerate(values.items()):
        points = {share: value for share, value in sorted(by_share.items()) if value is not None}
        ax.plot(list(points), list(points.values()), marker="osD^"[i % 4], ms=6, lw=2.2, label=name,
                color=LINE_COLORS[i % len(LINE_COLORS)], clip_on=False)  # fmt: skip
    shares = sorted({share for by_share in values.values() for share in by_share})
    ax.set(ylim=(0, 1), xlim=(-0.02, max(shares, default=0.5) + 0.02), ylabel=ylabel)
    ax.set_xticks(shares)
    ax.set_xlabel("labels removed")
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="x", visible=False)
    return ax


BACKGROUNDS = {
    "as it is": "hard: every gap is background",
    "soft": "soft: background far from labels counts less",
    "ignore_confident": "ignore_confident: what looks like a cell is left out",
}
"""Legends of the changes of the recipe that are about missing labels."""


def missing_labels(results: Mapping[str, Any]) -> Figure:
    """A figure of training with labels removed: AP, mAP and recall against the share removed.

    results: what `tests.benchmarks.ablation` writes. A line for each change of the recipe, a mean over seeds.
    """
    name = results["terms"]["class"]
    panels = {
        f"{name} AP@0.5": lambda row: row["ap_50"][name],
        "mAP@0.5": lambda row: row["map_50"],
        f"{name} recall at score 0.5": lambda row: row["recall"],
    }
    figure, axes = new_figure(1, len(panels), size=(3.9 * len(panels), 4.0), sharey=True)
    for ax, (title, value) in zip(axes, panels.items(), strict=True):
        found: dict[str, dict[float, list[float | None]]] = {}
        for row in results["rows"]:
            label = BACKGROUNDS.get(row["change"], row["change"])
            found.setdefault(label, {}).setdefault(row["removed"], []).append(value(row))
        means = {
            label: {share: None if None in v else statistics.mean(v) for share, v in by_share.items()}
            for label, by_share in found.items()
        }
        against_removed(ax, means).set_title(title, pad=10)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=len(handles))
    if results["data"]["synthetic"]:
        mark_synthetic(figure)
    return figure
