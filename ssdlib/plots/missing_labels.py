"""Figures of training with labels removed: what each way of learning background makes of the gaps."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ssdlib.plots.style import MUTED, axes_or_new, mark_synthetic, new_figure
from ssdlib.plots.training import LINE_COLORS

ByShare = Mapping[float, float | None]
"""A figure of merit by the share of labels removed, 0 to 1; None where there is none."""

NAMES = {
    "hard": "hard: every gap is background",
    "soft": "soft: background far from labels counts less",
    "ignore_confident": "ignore_confident: what looks like a cell is left out",
}
COLORS = dict(zip(NAMES, (MUTED, LINE_COLORS[1], LINE_COLORS[0]), strict=True))
"""Each method keeps its own in every figure, whoever else is there."""
MARKERS = dict(zip(NAMES, "osD", strict=True))


def against_removed(ax: Axes | None, values: Mapping[str, ByShare], *, ylabel: str = "AP@0.5") -> Axes:
    """A line for each {method: {share of labels removed: value}}; values are in [0, 1], None is left out."""
    ax = axes_or_new(ax, (5, 3.8))
    for i, (method, by_share) in enumerate(values.items()):
        points = [(share, value) for share, value in sorted(by_share.items()) if value is not None]
        ax.plot(
            [share for share, _ in points],
            [value for _, value in points],
            marker=MARKERS.get(method, "o"),
            ms=6,
            lw=2.2,
            color=COLORS.get(method, LINE_COLORS[(i + 2) % len(LINE_COLORS)]),
            label=NAMES.get(method, method),
            clip_on=False,
        )
    ax.set(ylim=(0, 1), xlabel="labels removed from the training images", ylabel=ylabel)
    shares = sorted({share for by_share in values.values() for share in by_share})
    ax.set_xlim(-0.02, max(shares, default=0.5) + 0.02)
    ax.set_xticks(shares)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid(axis="x", visible=False)
    return ax


def missing_labels(panels: Mapping[str, Mapping[str, ByShare]], *, synthetic: bool = False) -> Figure:
    """`against_removed` for each {what is measured: {method: {share removed: value}}}, side by side.

    The panels are those of `tests.benchmarks.missing_labels.panels`; all are judged on complete labels.
    """
    figure, axes = new_figure(1, max(len(panels), 1), size=(3.9 * max(len(panels), 1), 4.0), sharey=True)
    axes = [axes] if isinstance(axes, Axes) else list(axes)
    for ax, (title, values) in zip(axes, panels.items(), strict=False):
        against_removed(ax, values, ylabel="")
        ax.set_title(title, pad=10)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=len(handles))
    if synthetic:
        mark_synthetic(figure)
    return figure
