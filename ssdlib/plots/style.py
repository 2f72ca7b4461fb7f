"""What all figures share: colors, fonts, the size of a figure, and the mark of synthetic data.

Plot functions take an Axes and return it; none calls `show()`.
"""

from __future__ import annotations

from typing import Any, Protocol

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from ssdlib.common.language import LANGUAGES, language, translate

INK, MUTED, GRID = "#1f2937", "#6b7280", "#e5e7eb"

LINE_COLORS = ("#1d4ed8", "#c2410c", "#047857", "#a21caf", "#b08900", "#0e7490", "#be123c", "#6d28d9")
"""For runs, quantities and feature maps; those of the classes are `ssdlib.inference.draw.CLASS_COLORS`."""

LINES = tuple(
    {"color": color, "ls": style}
    for color, style in zip(LINE_COLORS, ("-", "--", "-.", "--", ":", ":", "-", "-."), strict=True)
)
"""For curves: colors that are alike to a red-green blind eye differ in style."""

STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "savefig.dpi": 100,
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


class Source(Protocol):
    """What a figure needs to know of where its data came from."""

    synthetic: bool


def new_figure(
    rows: int = 1,
    columns: int = 1,
    size: tuple[float, float] | None = None,
    source: Source | None = None,
    **options: Any,
) -> tuple[Figure, Any]:
    """A figure and its Axes: one Axes, or a flat array of rows * columns of them.

    size is (width, height) in inches. With a synthetic `source` the figure is marked as such.
    """
    # For good, not for this block: titles and legends read the settings when they are drawn.
    mpl.rcParams.update(STYLE)
    size = size or (4.2 * columns, 3.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", **options)
    if source is not None and source.synthetic:
        mark_synthetic(figure)
    return figure, axes.ravel() if isinstance(axes, np.ndarray) else axes


def mark_synthetic(figure: Figure) -> None:
    """Write below the figure that its data are synthetic smears."""
    # supxlabel, unlike figure.text, is given room by the constrained layout.
    figure.supxlabel("synthetic smears, not BCCD", fontsize=9, color="#9a3412", style="italic")


def in_language(figure: Figure) -> Figure:
    """The same figure, its titles, labels and legends in the language in use."""
    if language() == LANGUAGES[0]:
        return figure
    for text in figure.findobj(Text):
        english = text.get_text()
        translated = translate(english)
        if translated == english:
            translated = "\n".join(map(translate, english.split("\n")))
        if translated != english:
            text.set_text(translated)
    figure.canvas.draw()  # names of ticks are known only then, and written anew each time
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        names = [label.get_text() for label in axis.get_ticklabels()]
        if (translated := [translate(name) for name in names]) != names:
            axis.set_ticks(axis.get_ticklocs(), labels=translated)
    return figure


def described(text: str) -> dict[str, dict[str, str]]:
    """The metadata that gives a figure a text, by which those who cannot see it know what it shows."""
    return {f"image/{kind}": {"alt": translate(text)} for kind in ("jpeg", "png")}


def say_missing(ax: Axes, what: str) -> Axes:
    """The Axes with a few words in its middle, where a curve would be if there were anything to draw."""
    ax.text(0.5, 0.5, what, transform=ax.transAxes, color=MUTED, ha="center", va="center", fontsize=9)
    return ax
