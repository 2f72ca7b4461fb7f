"""Boxes on images and on drawn boards, and the legends that say what their outlines mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ssdlib.inference.draw import color_of
from ssdlib.plots.style import MUTED

Line = Mapping[str, Any]
"""How a box is outlined: `color`, `lw` and `ls`, as matplotlib names them."""


def show_image(ax: Axes, image: np.ndarray, title: str = "") -> Axes:
    """The Axes with an (H, W, 3) uint8 RGB image, or a (3, H, W) tensor, without ticks or grid."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] != 3:
        pixels = pixels.transpose(1, 2, 0)
    ax.imshow(pixels)
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def draw_boxes(
    ax: Axes, boxes_xyxy: Any, labels: Any = None, *, color: str | None = None, **line: Any
) -> Axes:
    """The Axes with (G, 4) xyxy boxes outlined in one color, or each in that of its label's class.

    Boxes are in the units of the Axes. `line` is what matplotlib's Rectangle takes, such as `lw` and `ls`.
    """
    line = {"fill": False, "lw": 1.6, **line}
    for i, (xmin, ymin, xmax, ymax) in enumerate(as_boxes(boxes_xyxy)):
        edge = color or color_of(int(labels[i]))
        ax.add_patch(Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, edgecolor=edge, **line))
    return ax


def fill_boxes(ax: Axes, boxes_xyxy: Any, color: str, alpha: float = 0.25) -> Axes:
    """The Axes with (G, 4) xyxy boxes filled in a translucent color."""
    for xmin, ymin, xmax, ymax in as_boxes(boxes_xyxy):
        ax.add_patch(Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, color=color, alpha=alpha, lw=0))
    return ax


def as_boxes(boxes: Any) -> np.ndarray:
    """Any (..., 4) boxes as a float array (K, 4)."""
    return np.asarray(boxes, dtype=float).reshape(-1, 4)


def board(
    ax: Axes, size: float, objects_xyxy: Any = (), colors: Sequence[str] = (MUTED,), grid: int = 0
) -> Axes:
    """A square board of `size` units for a drawn example, with objects (G, 4) xyxy named A, B, ...

    Objects are filled with the colors in turn; y runs downward as in images. `grid` is the number of squares
    a side, 0 for none.
    """
    ax.set(xlim=(0, size), ylim=(size, 0), aspect="equal")
    lines = np.linspace(0, size, grid + 1) if grid else []
    ax.set_xticks(lines, labels=[""] * len(lines))
    ax.set_yticks(lines, labels=[""] * len(lines))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(True)
    for i, box in enumerate(as_boxes(objects_xyxy)):
        color = colors[i % len(colors)]
        draw_boxes(fill_boxes(ax, box, color), box, color=color, lw=1.4)
        # Overlapping neighbors keep their names apart: at the left and at the right in turn.
        side, x = ("left", box[0] + 0.03 * size) if i % 2 == 0 else ("right", box[2] - 0.03 * size)
        ax.text(x, box[1] + 0.02 * size, chr(ord("A") + i), color=color, ha=side, va="top", fontsize=13,
                weight="bold")  # fmt: skip
    return ax


def tag_boxes(ax: Axes, boxes_xyxy: Any, tags: Sequence[str], colors: Sequence[str]) -> Axes:
    """The Axes with a tag in its own color at a corner of each of the (K, 4) boxes."""
    for i, (box, tag, color) in enumerate(zip(as_boxes(boxes_xyxy), tags, colors, strict=True)):
        # Neighbors are often shifted by little: every other tag goes to the opposite corner.
        x, y, ha, va = (*box[:2], "left", "top") if i % 2 == 0 else (*box[2:], "right", "bottom")
        ax.text(x, y, tag, color="white", fontsize=8, ha=ha, va=va,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5})  # fmt: skip
    return ax


def legend_above(figure: Figure, lines: Mapping[str, Line]) -> Figure:
    """The figure with a legend of {name: line} above all its Axes."""
    handles = [Line2D([], [], **line, label=name) for name, line in lines.items()]
    figure.legend(
        handles=handles, loc="outside upper right", ncols=min(max(len(handles), 1), 6), frameon=False
    )
    return figure


def class_legend(figure: Figure, class_names: Sequence[str]) -> Figure:
    """The figure with a legend of the classes' colors above all its Axes."""
    return legend_above(
        figure, {name: {"color": color_of(name, class_names), "lw": 7} for name in class_names}
    )
