"""Figures about missing labels: what the cut on a issue's score does."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from ssdlib.inference.draw import color_of
from ssdlib.plots.style import INK, MUTED, axes_or_new


def cut_curves(
    ax: Axes | None,
    curve: Sequence[tuple[float, float, float | None]],
    *,
    cut: float | None = None,
    wanted: float | None = None,
) -> Axes:
    """Precision and recall of unlabeled objects against the least score that is listed.

    curve: (score, precision, recall) as `tests.benchmarks.issues.found_again` gives them; a recall of None,
    where nothing was removed, is left out. `cut` marks the one in use, `wanted` a precision to reach.
    """
    ax = axes_or_new(ax)
    recall = [(score, value) for score, _, value in curve if value is not None]
    ax.plot([p[0] for p in curve], [p[1] for p in curve], color=INK, marker="o", ms=3, label="precision")
    if recall:
        ax.plot(*zip(*recall, strict=True), color=color_of(2), marker="o", ms=3, label="recall")
    if wanted is not None:
        ax.axhline(wanted, color=MUTED, ls=":", lw=1.2)
    if cut is not None:
        ax.axvline(cut, color=MUTED, ls="--", lw=1.2, label=f"cut {cut:g}")
    ax.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="least score listed", ylabel="share")
    ax.set_title("Removed labels found again")
    ax.legend(loc="lower left", bbox_to_anchor=(0.14, 0.0))
    return ax
