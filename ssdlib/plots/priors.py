"""Figures of priors: on the image, their overlap with objects, the matching, and the encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ssdlib.config import PriorConfig
from ssdlib.detector.boxes import cxcywh_to_xyxy
from ssdlib.detector.priors import make_priors
from ssdlib.inference.draw import color_of
from ssdlib.plots.style import INK, MUTED, axes_or_new, draw_boxes, show_image

OBJECT_COLORS = tuple(plt.get_cmap("tab10").colors[i] for i in (1, 0, 2, 6, 4, 9, 8, 5, 3))
"""For objects that must be told apart within one image, whatever their class; gray is left to background."""


def priors_of_cell(config: PriorConfig, level: int, row: int, column: int) -> torch.Tensor:
    """(n, 4) fractional xyxy priors of one cell of one map."""
    sizes = [f * f * n for f, n in zip(config.feature_maps, config.per_location, strict=True)]
    cell = row * config.feature_maps[level] + column
    start = sum(sizes[:level]) + cell * config.per_location[level]
    return cxcywh_to_xyxy(make_priors(config)[start : start + config.per_location[level]])


def map_priors(
    ax: Axes | None, image: Any, config: PriorConfig, level: int, boxes_xyxy: Any, labels: Any
) -> Axes:
    """One feature map's cell centers as dots, and all priors of the cells that hold the given objects.

    image is (3, S, S) or (S, S, 3); boxes (G, 4) in its pixels are filled, their cells' priors outlined in
    the color of the class.
    """
    ax = axes_or_new(ax, (4, 4))
    cells, size = config.feature_maps[level], np.asarray(image).shape[1]
    show_image(ax, image)
    centers = (np.arange(cells) + 0.5) * size / cells
    x, y = np.meshgrid(centers, centers)
    ax.scatter(x, y, s=2 + 40 / cells, color="white", edgecolor=INK, linewidth=0.3, zorder=3)
    for (xmin, ymin, xmax, ymax), label in zip(_boxes(boxes_xyxy), labels, strict=True):
        color = color_of(label)
        corner, shape = (xmin, ymin), (xmax - xmin, ymax - ymin)
        ax.add_patch(Rectangle(corner, *shape, facecolor=color, alpha=0.3, edgecolor="none"))
        row, column = int((ymin + ymax) / 2 / size * cells), int((xmin + xmax) / 2 / size * cells)
        draw_boxes(ax, priors_of_cell(config, level, row, column) * size, color=color, width=1.3)
    ax.set(xlim=(0, size), ylim=(size, 0))
    ax.set_title(f"{cells} x {cells} map: {config.per_location[level]} priors a cell")
    return ax


def board(
    ax: Axes | None,
    objects_xyxy: Any,
    names: Sequence[str],
    prior_xyxy: Any = None,
    *,
    color: Any = MUTED,
    squares: int = 8,
) -> Axes:
    """Named objects (G, 4) xyxy on a board of `squares` units a side, and over them one hatched prior (4,).

    y runs downward as in images.
    """
    ax = axes_or_new(ax, (3, 3))
    ax.set(xlim=(0, squares), ylim=(squares, 0), aspect="equal")
    ax.set_xticks(range(squares + 1), labels=[])
    ax.set_yticks(range(squares + 1), labels=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(True)
    for i, (xmin, ymin, xmax, ymax) in enumerate(_boxes(objects_xyxy)):
        own, corner, shape = OBJECT_COLORS[i], (xmin, ymin), (xmax - xmin, ymax - ymin)
        ax.add_patch(Rectangle(corner, *shape, facecolor=own, alpha=0.25, edgecolor="none"))
        ax.add_patch(Rectangle(corner, *shape, fill=False, edgecolor=own, lw=2))
        # The first name to the left, the last to the right, so that overlapping objects keep theirs apart.
        side = "left" if i == 0 else "right"
        x = xmin + 0.25 if i == 0 else xmax - 0.25
        ax.text(x, ymin + 0.2, names[i], color=own, weight="bold", fontsize=12, ha=side, va="top")
    if prior_xyxy is not None:
        xmin, ymin, xmax, ymax = _boxes(prior_xyxy)[0]
        corner, shape = (xmin, ymin), (xmax - xmin, ymax - ymin)
        ax.add_patch(Rectangle(corner, *shape, fill=False, edgecolor=color, lw=0, hatch="///", alpha=0.6))
        ax.add_patch(Rectangle(corner, *shape, fill=False, edgecolor=color, lw=2.6, ls="--"))
    return ax


def overlap_table(
    ax: Axes | None,
    overlap: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    own: Sequence[tuple[int, int]] = (),
    extra: Sequence[tuple[int, int]] = (),
) -> Axes:
    """The IoU matrix (G, P) as a shaded table; pairs in `own` get a solid frame, in `extra` a dashed one."""
    ax = axes_or_new(ax, (5.2, 2.4))
    values = np.asarray(overlap, dtype=float).reshape(len(rows), len(columns))
    if values.size:
        ax.imshow(values, cmap="Greens", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=INK, fontsize=11)
    for pairs, style in ((own, "-"), (extra, "--")):
        for i, j in pairs:
            ax.add_patch(
                Rectangle((j - 0.47, i - 0.46), 0.94, 0.92, fill=False, edgecolor=INK, lw=2.2, ls=style)
            )
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0, labelcolor=INK)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def positives(
    ax: Axes | None,
    image: Any,
    boxes_xyxy: Any,
    priors_xyxy: Any = (),
    object_for_each_prior: Any = (),
    *,
    width: float = 0.9,
) -> Axes:
    """Objects (G, 4) filled, and the priors (P, 4) that answer for them in the same color, in image pixels.

    `object_for_each_prior` (P,) is the object's index, -1 for background, which is not drawn.
    """
    ax = axes_or_new(ax, (5, 5))
    shape_of_image = np.asarray(image).shape
    height, wide = shape_of_image[1:] if shape_of_image[0] == 3 else shape_of_image[:2]
    show_image(ax, image)
    answers = np.asarray(object_for_each_prior)
    for i, (xmin, ymin, xmax, ymax) in enumerate(_boxes(boxes_xyxy)):
        color = OBJECT_COLORS[i % len(OBJECT_COLORS)]
        shape = (xmax - xmin, ymax - ymin)
        ax.add_patch(Rectangle((xmin, ymin), *shape, facecolor=color, alpha=0.25, edgecolor="none"))
        draw_boxes(ax, (xmin, ymin, xmax, ymax), color=color, width=2.2)
        draw_boxes(ax, _boxes(priors_xyxy)[answers == i], color=color, width=width, style="--")
    ax.set(xlim=(0, wide), ylim=(height, 0))
    return ax


def share_bars(ax: Axes | None, shares: Mapping[str, Mapping[str, float | None]]) -> Axes:
    """Grouped bars of {prior setting: {class: share of its objects, 0 to 1, None without objects}}."""
    ax = axes_or_new(ax, (7, 3.6))
    shades = np.linspace(0.35, 1.0, max(len(shares), 2))
    width = 0.8 / max(len(shares), 1)
    for k, (setting, by_class) in enumerate(shares.items()):
        names = list(by_class)
        for i, name in enumerate(names):
            if by_class[name] is None:
                continue
            x, height = i + (k - (len(shares) - 1) / 2) * width, 100 * by_class[name]
            ax.bar(x, height, width * 0.92, color=color_of(name, names), alpha=shades[k])
            ax.text(x, height + 1.5, f"{height:.0f} %\n{setting}", ha="center", va="bottom", fontsize=8)
        ax.set_xticks(range(len(names)), names)
    ax.set(ylim=(0, 122), ylabel="share of objects, %")
    ax.set_yticks(range(0, 101, 25))
    ax.grid(axis="x", visible=False)
    return ax


def recall_curves(ax: Axes | None, best: Mapping[str, Any], *, style: str = "-", suffix: str = "") -> Axes:
    """For {class: (G,) IoU of each object with its best prior}: the share that reaches each IoU."""
    ax = axes_or_new(ax, (5.5, 3.8))
    names = list(best)
    levels = np.linspace(0, 1, 201)
    for name in names:
        overlaps = np.asarray(best[name], dtype=float)
        if len(overlaps):
            share = (overlaps[None, :] >= levels[:, None]).mean(axis=1)
            ax.plot(levels, 100 * share, style, color=color_of(name, names), label=f"{name}{suffix}")
    ax.set(xlim=(0, 1), ylim=(0, 104), xlabel="IoU with the best prior", ylabel="objects that reach it, %")
    return ax


def decoded_moves(ax: Axes | None, prior_xyxy: Any, moved_xyxy: Any, names: Sequence[str]) -> Axes:
    """A prior (4,) in solid gray and the boxes (K, 4) that it becomes, each in a color of its own."""
    ax = axes_or_new(ax, (4, 4))
    draw_boxes(ax, prior_xyxy, color=MUTED, width=3)
    for i, box in enumerate(_boxes(moved_xyxy)):
        color = OBJECT_COLORS[i % len(OBJECT_COLORS)]
        draw_boxes(ax, box, color=color, width=2, style="--")
        ax.plot([], [], "--", color=color, label=names[i])
    corners = np.concatenate([_boxes(prior_xyxy), _boxes(moved_xyxy)])
    margin = 0.25 * (corners.max() - corners.min())
    ax.set(xlim=(corners[:, 0].min() - margin, corners[:, 2].max() + margin))
    ax.set(ylim=(corners[:, 3].max() + margin, corners[:, 1].min() - margin), aspect="equal")
    if names:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, fontsize=8)
    return ax


def spread(ax: Axes | None, values: Mapping[str, Any], *, limit: float) -> Axes:
    """Step histograms of {name: (K,) values} between -limit and limit, each scaled to its own maximum."""
    ax = axes_or_new(ax, (5, 3))
    edges = np.linspace(-limit, limit, 61)
    for i, (name, numbers) in enumerate(values.items()):
        counts, _ = np.histogram(np.asarray(numbers, dtype=float), edges)
        ax.stairs(counts / max(counts.max(), 1), edges, color=OBJECT_COLORS[i], lw=1.8, label=name)
    ax.set(xlim=(-limit, limit), ylim=(0, 1.08), yticks=[])
    if values:
        ax.legend(loc="upper right", fontsize=8)
    return ax


def _boxes(boxes: Any) -> np.ndarray:
    """Any (..., 4) boxes as (K, 4) float."""
    return np.asarray(boxes, dtype=float).reshape(-1, 4)
