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

LINE_STYLES = ("-", "--", "-.", ":")
"""For curves and boxes that must be told apart without their color, too."""


def priors_of_location(config: PriorConfig, level: int, row: int, column: int) -> torch.Tensor:
    """The priors (n, 4) at one location of one map, fractional xyxy."""
    sizes = [f * f * n for f, n in zip(config.feature_maps, config.per_location, strict=True)]
    location = row * config.feature_maps[level] + column
    start = sum(sizes[:level]) + location * config.per_location[level]
    return cxcywh_to_xyxy(make_priors(config)[start : start + config.per_location[level]])


def map_priors(ax: Axes, image: Any, config: PriorConfig, level: int, boxes_xyxy: Any, labels: Any) -> Axes:
    """The Axes with the locations of one feature map, and the priors of those where an object has its center.

    image is (3, S, S) or (S, S, 3); the objects' boxes (G, 4), in its pixels, are filled, and the priors of
    their locations outlined, in the color of the class.
    """
    side, size = config.feature_maps[level], np.asarray(image).shape[1]
    show_image(ax, image)
    centers = (np.arange(side) + 0.5) * size / side
    x, y = np.meshgrid(centers, centers)
    ax.scatter(x, y, s=2 + 40 / side, color="white", edgecolor=INK, linewidth=0.3, zorder=3)
    for (xmin, ymin, xmax, ymax), label in zip(as_boxes(boxes_xyxy), labels, strict=True):
        color = color_of(label)
        fill_boxes(ax, (xmin, ymin, xmax, ymax), color)
        row, column = int((ymin + ymax) / 2 / size * side), int((xmin + xmax) / 2 / size * side)
        draw_boxes(ax, priors_of_location(config, level, row, column) * size, color=color, lw=1.3)
    ax.set(xlim=(0, size), ylim=(size, 0))
    ax.set_title(f"{side} x {side} map: {config.per_location[level]} priors per location")
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
    """The Axes with a prior (4,) in gray and the boxes (K, 4) decoded from it, each with a color and line."""
    draw_boxes(ax, prior_xyxy, color=MUTED, lw=3)
    for i, box in enumerate(as_boxes(moved_xyxy)):
        line = {"color": OBJECT_COLORS[i % len(OBJECT_COLORS)], "ls": LINE_STYLES[i % len(LINE_STYLES)]}
        draw_boxes(ax, box, lw=2, **line)
        ax.plot([], [], label=names[i], **line)
    corners = np.concatenate([as_boxes(prior_xyxy), as_boxes(moved_xyxy)])
    margin = 0.25 * (corners.max() - corners.min())
    ax.set(xlim=(corners[:, 0].min() - margin, corners[:, 2].max() + margin))
    ax.set(ylim=(corners[:, 3].max() + margin, corners[:, 1].min() - margin), aspect="equal")
    if names:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, fontsize=8)
    return ax


def offset_histograms(ax: Axes, values: Mapping[str, Any], *, limit: float) -> Axes:
    """The Axes with a histogram of each {name: (K,) values} between -limit and limit, each with its line."""
    scaled_histograms(ax, values, np.linspace(-limit, limit, 61), OBJECT_COLORS, lw=1.8)
    for outline, style in zip(ax.patches, LINE_STYLES, strict=False):
        outline.set_linestyle(style)
    if values:
        ax.legend(loc="upper right", fontsize=8)  # again, now with the styles
    ax.set(xlim=(-limit, limit))
    return ax
