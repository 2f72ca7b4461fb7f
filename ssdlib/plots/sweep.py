"""Figures that compare runs: a color for each group, thin lines for the runs, a thick one for their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ssdlib.plots.style import MUTED, axes_or_new

if TYPE_CHECKING:
    from ssdlib.training.history import EpochRecord, History

GROUP_COLORS = ("#1d4ed8", "#c2410c", "#047857", "#a21caf", "#b08900", "#0e7490", "#be123c", "#6d28d9")
"""By rank of the group; groups beyond these are gray, since nobody tells a ninth color from the others."""

Groups = Mapping[str, Sequence["History"]]


def group_color(rank: int) -> str:
    """The color of the group that is `rank`-th best, from 0."""
    return GROUP_COLORS[rank] if rank < len(GROUP_COLORS) else MUTED


def map_curves(ax: Axes | None, groups: Groups) -> Axes:
    """mAP@0.5 on val at the evaluated epochs: {group: the histories of its runs}, best group first."""
    ax = _curves(ax, groups, lambda record: record.map_50)
    ax.set(ylim=(0, 1.02), ylabel="mAP@0.5 on val")
    return ax


def training_loss_curves(ax: Axes | None, groups: Groups) -> Axes:
    """The training loss of each epoch: {group: the histories of its runs}, best group first."""
    ax = _curves(ax, groups, lambda record: record.loss)
    ax.set(ylim=(0, None), ylabel="training loss")
    return ax


def _curves(ax: Axes | None, groups: Groups, value: Callable[[EpochRecord], float | None]) -> Axes:
    ax = axes_or_new(ax, (6, 3.6))
    last = 1
    # The best group is drawn last, on top of the others.
    for rank, (name, histories) in reversed(list(enumerate(groups.items()))):
        lines = [
            points
            for history in histories
            if (points := {r.epoch: v for r in history.epochs if (v := value(r)) is not None})
        ]
        several = len(lines) > 1
        for points in lines:
            style = {"lw": 0.9, "alpha": 0.55} if several else {"lw": 1.8, "label": name}
            _line(ax, points, rank, **style)
            last = max(last, *points)
        if several:
            # Runs that stopped early would cut the mean short for all.
            furthest = max(max(points) for points in lines)
            whole = [points for points in lines if max(points) == furthest]
            _line(ax, _mean(whole), rank, lw=2.6, label=f"{name}, mean of {len(whole)}")
    ax.set(xlim=(0.5, last + 0.5), xlabel="epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return ax


def _line(ax: Axes, points: Mapping[int, float], rank: int, **style: object) -> None:
    # A lone point makes no line: it would not be seen.
    marker = {"marker": "o", "markersize": 4} if len(points) == 1 else {}
    ax.plot(list(points), list(points.values()), color=group_color(rank), **marker, **style)


def _mean(lines: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Mean at the epochs that every line has: a mean over fewer and fewer runs would jump."""
    common = sorted(set.intersection(*(set(line) for line in lines)))
    return {epoch: sum(line[epoch] for line in lines) / len(lines) for epoch in common}
