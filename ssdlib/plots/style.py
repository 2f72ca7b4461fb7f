"""What all figures share: colors, images, boxes, and the notice on anything that is not real data.

Plot functions take an Axes (or make one) and return it; none calls `show()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ssdlib.inference.draw import color_of

INK, MUTED, GRID = "#1f2937", "#6b7280", "#e5e7eb"

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

    size is (width, height) in inches. With a synthetic `source` the figure says so at its foot.
    """
    # For good, not for this block: titles and legends read the settings when they are drawn.
    mpl.rcParams.update(STYLE)
    size = size or (4.2 * columns, 3.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", **options)
    if source is not None and source.synthetic:
        mark_synthetic(figure)
    return figure, axes.ravel() if isinstance(axes, np.ndarray) else axes


def mark_synthetic(figure: Figure) -> None:
    """Write at the figure's foot that nothing on it is a real blood smear."""
    # supxlabel, unlike figure.text, is given room by the constrained layout.
    figure.supxlabel("synthetic smears, not BCCD", fontsize=9, color="#9a3412", style="italic")


def axes_or_new(ax: Axes | None, size: tuple[float, float] = (5.0, 3.6)) -> Axes:
    """The given Axes, or those of a new figure: the first line of every plot function."""
    return new_figure(size=size)[1] if ax is None else ax


def show_image(ax: Axes, image: np.ndarray, title: str = "") -> Axes:
    """An (H, W, 3) uint8 RGB image, or a (3, H, W) tensor, without ticks or grid."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] != 3:
        pixels = pixels.transpose(1, 2, 0)
    ax.imshow(pixels)
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def draw_boxes(
    ax: Axes,
    boxes_xyxy: Any,
    labels: Any = None,
    class_names: Sequence[str] = (),
    scores: Any = None,
    *,
    color: str | None = None,
    style: str = "-",
    width: float = 1.6,
    captions: bool = False,
) -> Axes:
    """Outline (G, 4) xyxy boxes in the units of the Axes, each in its class's color.

    `captions` writes the class name, and the score where there is one, at the box's upper left corner.
    """
    for i, (xmin, ymin, xmax, ymax) in enumerate(np.asarray(boxes_xyxy, dtype=float).reshape(-1, 4)):
        label = 0 if labels is None else int(labels[i])
        edge = color or color_of(label)
        ax.add_patch(
            Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, fill=False, edgecolor=edge, lw=width, ls=style)
        )
        if captions:
            text = class_names[label - 1] if label and class_names else ""
            if scores is not None:
                text = f"{text} {float(scores[i]):.2f}".strip()
            # At the upper and the right border a caption outside the box would be cut off.
            left, right = sorted(ax.get_xlim())
            flush_right = xmin > left + 0.85 * (right - left)
            at_top = ymin < min(ax.get_ylim()) + 0.04 * abs(np.subtract(*ax.get_ylim()))
            ax.text(
                xmax if flush_right else xmin, max(ymin, min(ax.get_ylim())), text, fontsize=7,
                color="white", va="top" if at_top else "bottom", ha="right" if flush_right else "left",
                clip_on=True, bbox={"facecolor": edge, "edgecolor": "none", "pad": 1.0},
            )  # fmt: skip
    return ax


def table(ax: Axes, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Axes:
    """A plain table drawn as a figure: one named row after another, values already formatted.

    For numbers of a network that was just trained: their last digits differ from one processor to the next,
    so they belong into pictures and reports rather than into outputs that are compared to the letter.
    """
    ax.set_axis_off()
    drawn = ax.table(
        [list(values) for values in rows.values()],
        rowLabels=list(rows),
        colLabels=list(columns),
        loc="center",
        cellLoc="right",
        edges="horizontal",
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(10)
    drawn.scale(1, 1.5)
    for cell in drawn.get_celld().values():
        cell.set_edgecolor(GRID)
    return ax
