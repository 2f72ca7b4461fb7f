"""Figures of how well a detector counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ssdlib.inference.draw import color_of
from ssdlib.plots.style import INK, MUTED, axes_or_new

if TYPE_CHECKING:
    from ssdlib.evaluation.counting import ClassCounts, CountCurve, CountReport
    from ssdlib.evaluation.tables import Interval

TOGETHER = "all cells"


def bland_altman(ax: Axes | None, counts: ClassCounts, name: str, class_names: Sequence[str]) -> Axes:
    """Each image's difference of the two counts over their mean; bias and 95 % limits with their intervals.

    Images that fall on each other are drawn larger. Bland & Altman 1986. A name that is no class is drawn
    in the color of text.
    """
    ax = axes_or_new(ax, (4.0, 3.6))
    true, counted = np.array(counts.true_per_image, float), np.array(counts.counted_per_image, float)
    pairs = np.stack([(true + counted) / 2, counted - true], axis=1).reshape(-1, 2)
    spots, images = np.unique(pairs, axis=0, return_counts=True)
    color = color_of(name, class_names) if name in class_names else INK
    ax.axhline(0, color=MUTED, lw=0.8)
    for label, line, style in (
        ("bias", counts.bias, "-"), ("", counts.lower_limit, "--"), ("95 %", counts.upper_limit, "--"),
    ):  # fmt: skip
        if line.value is None:
            continue
        ax.axhline(line.value, color=INK, lw=1.4, ls=style)
        if line.low is not None:
            ax.axhspan(line.low, line.high, color=INK, alpha=0.08, lw=0)
        if style == "--" and line.value == counts.bias.value:
            continue  # its number would only be written over that of the bias
        ax.annotate(f"{label} {line.value:+.2f}".strip(), (1, line.value), (-2, 2), fontsize=8, color=INK,
                    xycoords=("axes fraction", "data"), textcoords="offset points", ha="right")  # fmt: skip
    ax.scatter(spots[:, 0], spots[:, 1], s=22 * images**0.7, color=color, alpha=0.75, lw=0, zorder=2)
    most = max(np.abs(pairs[:, 1]).max(initial=0), *(abs(x) for x in _ends(counts)), 1.0)
    low, high = pairs[:, 0].min(initial=np.inf), pairs[:, 0].max(initial=0)
    low = min(low, high)
    ax.set(
        xlim=(low - 0.08 * (high - low) - 0.3, high + 0.28 * (high - low) + 0.5),
        ylim=(-1.15 * most, 1.25 * most),
    )
    ax.set(xlabel="mean of counted and true", ylabel="counted − true", title=name)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    return ax


def _ends(counts: ClassCounts) -> list[float]:
    limits = (counts.lower_limit, counts.upper_limit)
    return [0.0, *(end for one in limits for end in (one.value, one.low, one.high) if end is not None)]


_FIGURES = {
    "accuracy": ("total counting accuracy, %", "{:.1f}"),
    "ratio": ("counted / true, %", "{:.1f}"),
    "mae": ("mean absolute difference per image", "{:.2f}"),
    "bias": ("mean difference per image, counted − true", "{:+.2f}"),
    "r2": ("R², of counted = true", "{:.2f}"),
    "pearson": ("correlation of counted and true", "{:.2f}"),
    "exact": ("share of images counted exactly", "{:.2f}"),
}


def count_dots(
    ax: Axes | None,
    report: CountReport,
    figure: str = "accuracy",
    published: Mapping[str, float] | None = None,
) -> Axes:
    """One of the figures of `ClassCounts` with its interval, class by class and for all cells together.

    `published` marks {class: value} of others by a hollow diamond. An undefined value is written as n/a.
    """
    label, form = _FIGURES[figure]
    ax = axes_or_new(ax, (6, 2.6))
    names = list(report.per_class)
    rows: dict[str, Interval] = {name: getattr(report.per_class[name], figure) for name in names}
    rows[TOGETHER] = getattr(report.together, figure)
    for row, (name, one) in enumerate(rows.items()):
        color = color_of(name, names) if name in names else INK
        if one.value is None:
            ax.annotate("n/a", (0, row), (6, 0), xycoords=("axes fraction", "data"),
                        textcoords="offset points", va="center", color=MUTED)  # fmt: skip
            continue
        if one.low is not None:
            ax.plot([one.low, one.high], [row, row], color=color, lw=5, alpha=0.35, solid_capstyle="butt")
        ax.plot(one.value, row, "o", ms=9, color=color)
        ax.annotate(form.format(one.value), (one.value, row), (0, 8), textcoords="offset points", ha="center",
                    fontsize=9, color=INK)  # fmt: skip
    for name, value in (published or {}).items():
        if name in rows:
            ax.plot(value, list(rows).index(name), "D", ms=8, mfc="white", mec=INK, zorder=3)
    if figure in ("bias", "ratio"):
        ax.axvline(100 if figure == "ratio" else 0, color=MUTED, lw=1.0, zorder=0)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.margins(x=0.08)
    ax.set(ylim=(len(rows) - 0.5, -0.8), xlabel=label)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.grid(axis="y", visible=False)
    return ax


def count_threshold_curve(
    ax: Axes | None, curve: CountCurve, name: str, class_names: Sequence[str], chosen: float
) -> Axes:
    """Mean absolute difference (solid) and mean difference (dashed) per image against the score threshold."""
    ax = axes_or_new(ax, (3.9, 3.3))
    color = color_of(name, class_names)
    ax.plot(curve.thresholds, curve.mae, color=color, label="mean |difference|")
    ax.plot(curve.thresholds, curve.bias, "--", color=color, label="mean difference")
    ax.axhline(0, color=MUTED, lw=0.8)
    ax.axvline(chosen, color=MUTED, lw=1.2)
    # Low thresholds count so many that the interesting part would be flat.
    near = curve.mae[np.abs(curve.thresholds - chosen) <= 0.25]
    top = max(2.5 * float(np.nanmax(near)), 1.0) if len(near) and np.isfinite(near).any() else 1.0
    left = chosen < 0.5
    ax.annotate(f"{chosen:.2f}", (chosen, 0.97 * top), (4 if left else -4, 0), textcoords="offset points",
                fontsize=9, color=INK, va="top", ha="left" if left else "right")  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(-top, top), xlabel="score threshold", title=name)
    return ax
