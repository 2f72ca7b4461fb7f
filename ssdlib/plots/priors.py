"""Figures of priors: on the image, their overlap with objects, the matching, and the encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from ssdlib.config import PriorConfig
from ssdlib.detector.boxes import cxcywh_to_xyxy
from ssdlib.detector.priors import make_priors
from ssdlib.inference.draw import color_of
from ssdlib.plots.boxes import as_boxes, draw_boxes, fill_boxes, show_image
from ssdlib.plots.charts import scaled_histograms
from ssdlib.plots.style import INK, MUTED

OBJECT_COLORS = tuple(plt.get_cmap("tab10").colors[i] for i in (1, 0, 2, 6, 4, 9, 8, 5, 3))
"""For objects that must be told apart within one image, whatever their class; gray is left to background."""


def priors_of_cell(config: PriorConfig, level: int, row: int, column: int) -> torch.Tensor:
    """The priors (n, 4) of one cell of one map, fractional xyxy."""
    sizes = [f * f * n for f, n in zip(config.feature_maps, config.per_location, strict=True)]
    cell = row * config.feature_maps[level] + column
    start = sum(sizes[:level]) + cell * config.per_location[level]
    return cxcywh_to_xyxy(make_priors(config)[start : start + config.per_location[level]])


def map_priors(ax: Axes, image: Any, config: PriorConfig, level: int, boxes_xyxy: Any, labels: Any) -> Axes:
    """The Axes with one feature map's cell centers, and the priors of the cells that hold objects.

    image is (3, S, S) or (S, S, 3); the objects' boxes (G, 4), in its pixels, are filled, and the priors of
    their cells outlined, in the color of the class.
    """
    cells, size = config.feature_maps[level], np.asarray(image).shape[1]
    show_image(ax, image)
    centers = (np.arange(cells) + 0.5) * size / cells
    x, y = np.meshgrid(centers, centers)
    ax.scatter(x, y, s=2 + 40 / cells, color="white", edgecolor=INK, linewidth=0.3, zorder=3)
    for (xmin, ymin, xmax, ymax), label in zip(as_boxes(boxes_xyxy), labels, strict=True):
        color = color_of(label)
        fill_boxes(ax, (xmin, ymin, xmax, ymax), color)
        row, column = int((ymin + ymax) / 2 / size * cells), int((xmin + xmax) / 2 / size * cells)
        draw_boxes(ax, priors_of_cell(config, level, row, column) * size, color=color, lw=1.3)
    ax.set(xlim=(0, size), ylim=(size, 0))
    ax.set_title(f"{cells} x {cells} map: {config.per_location[level]} priors a cell")
    return ax


def overlap_table(
    ax: Axes,
    overlap: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    own: Sequence[tuple[int, int]] = (),
    extra: Sequence[tuple[int, int]] = (),
) -> Axes:
    """The Axes with the IoU matrix (G, P) as a shaded table; pairs in `own` are framed, in `extra` dashed."""
    values = np.asarray(overlap, dtype=float).reshape(len(rows), len(columns))
    if values.size:
        ax.imshow(values, cmap="Greens", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=INK, fontsize=11)
    for pairs, style in ((own, "-"), (extra, "--")):
        for i, j in pairs:
            draw_boxes(ax, (j - 0.47, i - 0.46, j + 0.47, i + 0.46), color=INK, lw=2.2, ls=style)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0, labelcolor=INK)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def positives(
    ax: Axes,
    image: Any,
    boxes_xyxy: Any,
    priors_xyxy: Any = (),
    object_for_each_prior: Any = (),
    *,
    width: float = 0.9,
) -> Axes:
    """The Axes with objects (G, 4) filled, each with its positive priors dashed in the same color.

    `object_for_each_prior` (P,) holds the index of the object that each of `priors_xyxy` (P, 4) is matched
    with, -1 for background, which is not drawn. Boxes are in pixels of the image.
    """
    show_image(ax, image)
    matched = np.asarray(object_for_each_prior)
    for i, box in enumerate(as_boxes(boxes_xyxy)):
        color = OBJECT_COLORS[i % len(OBJECT_COLORS)]
        draw_boxes(fill_boxes(ax, box, color), box, color=color, lw=2.2)
        draw_boxes(ax, as_boxes(priors_xyxy)[matched == i], color=color, lw=width, ls="--")
    return ax


def recall_curves(ax: Axes, best: Mapping[str, Any]) -> Axes:
    """The Axes with the share of each class's objects whose best prior reaches an IoU, against that IoU.

    best: {class: (G,) IoU of each object with its best prior}.
    """
    names = list(best)
    levels = np.linspace(0, 1, 201)
    for name in names:
        overlaps = np.asarray(best[name], dtype=float)
        if len(overlaps):
            share = (overlaps[None, :] >= levels[:, None]).mean(axis=1)
            ax.plot(levels, 100 * share, color=color_of(name, names), label=name)
    ax.set(xlim=(0, 1), ylim=(0, 104), xlabel="IoU with the best prior", ylabel="objects that reach it, %")
    return ax


def decoded_moves(ax: Axes, prior_xyxy: Any, moved_xyxy: Any, names: Sequence[str]) -> Axes:
    """The Axes with a prior (4,) in gray and the boxes (K, 4) decoded from it, each in a color of its own."""
    draw_boxes(ax, prior_xyxy, color=MUTED, lw=3)
    for i, box in enumerate(as_boxes(moved_xyxy)):
        color = OBJECT_COLORS[i % len(OBJECT_COLORS)]
        draw_boxes(ax, box, color=color, lw=2, ls="--")
        ax.plot([], [], "--", color=color, label=names[i])
    corners = np.concatenate([as_boxes(prior_xyxy), as_boxes(moved_xyxy)])
    margin = 0.25 * (corners.max() - corners.min())
    ax.set(xlim=(corners[:, 0].min() - margin, corners[:, 2].max() + margin))
    ax.set(ylim=(corners[:, 3].max() + margin, corners[:, 1].min() - margin), aspect="equal")
    if names:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, fontsize=8)
    return ax


def offset_histograms(ax: Axes, values: Mapping[str, Any], *, limit: float) -> Axes:
    """The Axes with a histogram of each {name: (K,) values} between -limit and limit."""
    scaled_histograms(ax, values, np.linspace(-limit, limit, 61), OBJECT_COLORS, lw=1.8)
    ax.set(xlim=(-limit, limit))
    return ax
