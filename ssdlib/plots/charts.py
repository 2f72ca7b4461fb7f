"""Charts that several rooms of the course share: bars, dots with intervals, histograms, curves by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from ssdlib.inference.draw import color_of
from ssdlib.plots.style import INK, MUTED

if TYPE_CHECKING:
    from ssdlib.evaluation.tables import Interval


def grouped_bars(
    ax: Axes,
    values: Mapping[str, Mapping[str, float | None]],
    *,
    form: str = "{:.2f}",
    log: bool = False,
) -> Axes:
    """The Axes with a group of bars for each class of {series: {class: value}}, in the class's color.

    Values are shares from 0 to 1, or with `log` counts on a logarithmic axis; None is written as n/a.
    """
    shades, width = np.linspace(1.0, 0.4, max(len(values), 2)), 0.8 / max(len(values), 1)
    for k, (series, by_class) in enumerate(values.items()):
        names = list(by_class)
        for i, (name, value) in enumerate(by_class.items()):
            x, height = i + (k - (len(values) - 1) / 2) * width, value or 0
            ax.bar(x, height, width * 0.92, color=color_of(name, names), alpha=shades[k])
            text = "n/a" if value is None else form.format(value)
            ax.annotate(f"{text}\n{series}", (x, max(height, 1) if log else height), (0, 3), fontsize=8,
                        textcoords="offset points", ha="center")  # fmt: skip
        ax.set_xticks(range(len(names)), names)
    if log:
        most = max((value or 0 for by_class in values.values() for value in by_class.values()), default=1)
        ax.set(yscale="log", ylim=(1, max(most, 10) * 4))
    else:
        ax.set(ylim=(0, 1.22), yticks=np.linspace(0, 1, 6))
    ax.grid(axis="x", visible=False)
    return ax


def stacked_bars(
    ax: Axes, rows: Mapping[str, Sequence[float]], ends: Sequence[str], colors: Mapping[str, str]
) -> Axes:
    """The Axes with a horizontal bar for each {row: a length for each part}, first on top.

    `ends` are the texts at the ends of the bars, `colors` those of the parts by name.
    """
    starts = np.zeros(len(rows))
    for k, (part, color) in enumerate(colors.items()):
        lengths = np.array([parts[k] for parts in rows.values()], dtype=float)
        ax.barh(range(len(rows)), lengths, 0.7, left=starts, color=color, label=part)
        starts += lengths
    for row, (length, text) in enumerate(zip(starts, ends, strict=True)):
        ax.annotate(text, (length, row), (4, 0), textcoords="offset points", va="center", fontsize=8.5,
                    color=INK)  # fmt: skip
    ax.set(xlim=(0, 1.35 * max(starts.max(initial=0.0), 0.1)))
    return _named_rows(ax, list(rows))


def interval_dots(
    ax: Axes,
    values: Mapping[str, Interval],
    class_names: Sequence[str],
    *,
    form: str = "{:.3f}",
    at_least: tuple[float, float] | None = None,
    published: Mapping[str, float] | None = None,
) -> Axes:
    """The Axes with a row for each {class or mean: value}: a dot, and the interval as a broad line.

    An undefined value is written as n/a. `at_least` is a range that the axis covers whatever the values are.
    `published` marks {row: value} of others by a hollow diamond.
    """
    for row, (name, one) in enumerate(values.items()):
        if one.value is None:
            ax.annotate("n/a", (0, row), (6, 0), xycoords=("axes fraction", "data"),
                        textcoords="offset points", va="center", color=MUTED)  # fmt: skip
            continue
        color = color_of(name, class_names) if name in class_names else INK
        if one.low is not None:
            ax.plot([one.low, one.high], [row, row], color=color, lw=5, alpha=0.35, solid_capstyle="butt")
        ax.plot(one.value, row, "o", ms=9, color=color)
        ax.annotate(form.format(one.value), (one.value, row), (0, 8), textcoords="offset points", ha="center",
                    fontsize=9, color=INK)  # fmt: skip
    for row, name in enumerate(values):
        if name in (published or {}):
            ax.plot(published[name], row, "D", ms=8, mfc="white", mec=INK, zorder=3)
    if at_least is not None:
        ax.update_datalim([(end, 0) for end in at_least])
        ax.autoscale_view()
    ax.margins(x=0.08)
    return _named_rows(ax, list(values))


def _named_rows(ax: Axes, names: Sequence[str]) -> Axes:
    """Name rows at y = 0, 1, ..., the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.8))
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.grid(axis="y", visible=False)
    return ax


def scaled_histograms(
    ax: Axes, values: Mapping[str, Any], edges: np.ndarray, colors: Sequence[str], **style: Any
) -> Axes:
    """The Axes with a step histogram of each {name: values}, scaled to its own maximum."""
    for (name, numbers), color in zip(values.items(), colors, strict=False):
        counts, _ = np.histogram(np.asarray(numbers, dtype=float), edges)
        ax.stairs(counts / max(counts.max(), 1), edges, color=color, label=name, **style)
    ax.set(ylim=(0, 1.08), yticks=[])
    if values:
        ax.legend(loc="upper right", fontsize=8)
    return ax
