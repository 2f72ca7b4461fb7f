"""Figures of a detector's errors by kind, of the worst of them, and of how honest its scores are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssdlib.inference.draw import color_of
from ssdlib.plots.evaluation import MISSED, RIGHT, WRONG, crop
from ssdlib.plots.style import INK, MUTED, Source, axes_or_new, draw_boxes, new_figure

if TYPE_CHECKING:
    from ssdlib.evaluation.calibration import Reliability
    from ssdlib.evaluation.tide import TideErrors, WorstError


def kind_costs(ax: Axes | None, errors: TideErrors) -> Axes:
    """A bar a kind: the points (0.01) of mAP it costs, each class's part in its color, and how many."""
    costs = {kind: [one.kinds[kind].delta_ap for one in errors.per_class.values()] for kind in errors.kinds}
    held = max(sum(cost is not None for cost in next(iter(costs.values()), [])), 1)
    parts = {kind: [100 * (cost or 0.0) / held for cost in values] for kind, values in costs.items()}
    ends = {
        kind: f"{'n/a' if one.delta_ap is None else f'{100 * one.delta_ap:.1f}'}  ({one.count:,})"
        for kind, one in errors.kinds.items()
    }
    ax = _stacked(ax, parts, ends, list(errors.per_class))
    ax.set(xlabel="mAP at IoU 0.5 to gain, in points (and number of errors)")
    return ax


def kind_counts(ax: Axes | None, errors: TideErrors) -> Axes:
    """A bar a kind: how many errors, each class's part in its color."""
    parts = {kind: [one.kinds[kind].count for one in errors.per_class.values()] for kind in errors.kinds}
    ends = {kind: f"{one.count:,}" for kind, one in errors.kinds.items()}
    ax = _stacked(ax, parts, ends, list(errors.per_class))
    ax.set(xlabel="errors")
    return ax


def _stacked(
    ax: Axes | None, parts: Mapping[str, Sequence[float]], ends: Mapping[str, str], names: Sequence[str]
) -> Axes:
    """{row: a length for each class} as bars from top to bottom, each with a text at its end."""
    ax = axes_or_new(ax, (6.4, 3.0))
    starts = np.zeros(len(parts))
    for k, name in enumerate(names):
        lengths = np.array([values[k] for values in parts.values()], dtype=float)
        ax.barh(range(len(parts)), lengths, 0.7, left=starts, color=color_of(name, names), label=name)
        starts += lengths
    for row, kind in enumerate(parts):
        ax.annotate(ends[kind], (starts[row], row), (4, 0), textcoords="offset points", va="center",
                    fontsize=9, color=INK)  # fmt: skip
    ax.set_yticks(range(len(parts)), list(parts))
    ax.set(xlim=(0, 1.22 * max(starts.max(initial=0.0), 0.1)), ylim=(len(parts) - 0.4, -0.6))
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.grid(axis="y", visible=False)
    if names:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=len(names), fontsize=9)
    return ax


def error_grid(
    errors: Sequence[WorstError],
    image_of: Callable[[int], Any],
    *,
    columns: int = 6,
    source: Source | None = None,
) -> Figure:
    """A crop of each error with kind, class and score above it; `image_of(image_index)` gives (H, W, 3).

    What the detector said is orange, an object that nothing found blue and dashed; where a false alarm
    concerns an object, that one is dashed blue as well.
    """
    rows = max(-(-len(errors) // columns), 1)
    figure, axes = new_figure(rows, columns, (2.05 * columns, 2.5 * rows), source, squeeze=False)
    for ax in axes:
        ax.set_axis_off()
    if not errors:
        axes[0].text(0, 0.5, "no errors", transform=axes[0].transAxes, color=MUTED)
    images = {index: image_of(index) for index in {one.image_index for one in errors}}
    for ax, one in zip(axes, errors, strict=False):
        missed = one.score is None or one.kind == "missed"
        crop(ax, images[one.image_index], one.box, title=_caption(one), color=MISSED if missed else WRONG)
        if one.true_box is not None:
            draw_boxes(ax, one.true_box, color=MISSED, width=1.6, style=(0, (2.5, 1.5)))
        if missed:
            ax.patches[-1].set_linestyle((0, (2.5, 1.5)))
    return figure


def _caption(error: WorstError) -> str:
    said = f"{error.name} {'–' if error.score is None else f'{error.score:.2f}'}"
    if error.true_name not in (None, error.name):
        said += f" on {error.true_name}"
    return f"{error.kind}\n{said}"


def reliability_diagram(
    ax: Axes | None,
    reliability: Reliability,
    title: str = "",
    *,
    scaled: Reliability | None = None,
    color: str = RIGHT,
) -> Axes:
    """The share that is right in each bin of scores, its count above it; honest scores lie on the diagonal.

    `scaled` adds the same detections after temperature scaling, as rings.
    """
    ax = axes_or_new(ax, (4.2, 3.9))
    ax.plot([0, 1], [0, 1], color=MUTED, lw=1.2, ls="--", zorder=1)
    for one in reliability.bins:
        middle = (one.low + one.high) / 2
        if one.precision is not None:
            ax.bar(middle, one.precision, 0.9 * (one.high - one.low), color=color, alpha=0.3, lw=0)
            ax.plot([one.mean_score] * 2, [one.mean_score, one.precision], color=color, lw=1.4, zorder=2)
        ax.text(middle, 1.03, f"{one.count}", fontsize=7, color=INK, ha="center", va="bottom")
    handles = [_points(ax, reliability, "as they came", color, color)]
    if scaled is not None:
        handles.append(_points(ax, scaled, "scaled", "white", INK))
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0.93), fontsize=8, handletextpad=0.3)
    ax.set(xlim=(0, 1), ylim=(0, 1.12), xlabel="score", ylabel="share right", title=title)
    ax.set_yticks(np.linspace(0, 1, 6))
    return ax


def _points(ax: Axes, reliability: Reliability, name: str, face: str, edge: str) -> Line2D:
    held = [one for one in reliability.bins if one.count]
    ece = "n/a" if reliability.ece is None else f"{reliability.ece:.3f}"
    return ax.plot(
        [one.mean_score for one in held], [one.precision for one in held], "o", ms=6, mfc=face, mec=edge,
        zorder=3, label=f"{name}: ECE {ece}",
    )[0]  # fmt: skip
