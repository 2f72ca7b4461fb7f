"""Figures of the network: where its work goes, what it sees, its features, and the hard negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from ssdlib.plots.style import INK, MUTED, axes_or_new, draw_boxes, show_image

MAP_COLORS = ("#1d4ed8", "#0891b2", "#047857", "#b45309", "#be185d", "#6d28d9")
"""One for each of the six maps, fine to coarse."""


def share_bars(ax: Axes | None, values: Mapping[str, float], *, unit: str = "", digits: int = 1) -> Axes:
    """A horizontal bar for each {part: value}, first on top, with the value and its share of the sum."""
    ax = axes_or_new(ax, (5.5, 3.6))
    names, numbers = list(values), np.array(list(values.values()), dtype=float)
    total = numbers.sum()
    ax.barh(range(len(names)), numbers, color=MAP_COLORS[0], height=0.7)
    for i, number in enumerate(numbers):
        share = f"  {number:.{digits}f} {unit}".rstrip() + f" ({100 * number / total:.0f} %)"
        ax.text(number, i, share, va="center", fontsize=8, color=INK)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.set(xlim=(0, 1.35 * numbers.max(initial=0) or 1), xlabel=unit)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return ax


def receptive_fields(ax: Axes | None, image: Any, fields: Mapping[str, int]) -> Axes:
    """Squares around the center of a (3, S, S) image: what one cell of each {map: side in pixels} sees.

    A field larger than the image is drawn to where it ends; the axes show what lies beyond the image.
    """
    ax = axes_or_new(ax, (5.5, 5.5))
    size = np.asarray(image).shape[1]
    show_image(ax, image)
    for i, (name, side) in enumerate(fields.items()):
        low = (size - side) / 2
        color = MAP_COLORS[i % len(MAP_COLORS)]
        ax.add_patch(Rectangle((low, low), side, side, fill=False, edgecolor=color, lw=2.2))
        ax.text(
            low + 4, low - 4, f"{name}: {side}", color="white", fontsize=8, va="bottom",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    margin = max([side - size for side in fields.values()] + [0]) / 2 + 10
    ax.set(xlim=(-margin, size + margin), ylim=(size + margin, -margin - 24))
    return ax


def influence(ax: Axes | None, gradient: Any, side: int) -> Axes:
    """How much each pixel matters to one cell: |gradient| (S, S), with the cell's receptive field framed."""
    ax = axes_or_new(ax, (4, 4))
    strength = np.abs(np.asarray(gradient, dtype=float))
    top = np.quantile(strength[strength > 0], 0.995) if (strength > 0).any() else 1.0
    ax.imshow(strength, cmap="magma", vmin=0, vmax=top)
    low = (strength.shape[0] - side) / 2
    ax.add_patch(Rectangle((low, low), side, side, fill=False, edgecolor="white", lw=1.4, ls="--"))
    ax.set_axis_off()
    return ax


def norm_histogram(ax: Axes | None, norms: Mapping[str, Any]) -> Axes:
    """For {map: lengths of its feature vectors, any shape}: how they are spread, on a logarithmic axis."""
    ax = axes_or_new(ax, (6, 3.4))
    lengths = {name: np.asarray(values, dtype=float).ravel() for name, values in norms.items()}
    positive = np.concatenate([values[values > 0] for values in lengths.values()] or [np.empty(0)])
    low, high = (positive.min() * 0.8, positive.max() * 1.25) if len(positive) else (0.1, 10.0)
    edges = np.geomspace(low, high, 90)
    for i, (name, values) in enumerate(lengths.items()):
        counts, _ = np.histogram(values, edges)
        color = MAP_COLORS[i % len(MAP_COLORS)]
        ax.stairs(counts / max(counts.max(), 1), edges, fill=True, alpha=0.45, color=color, label=name)
    ax.set(xscale="log", ylim=(0, 1.3), yticks=[], xlabel="length of a feature vector")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_formatter("")
    if norms:
        ax.legend(fontsize=8, ncols=3, loc="upper left")
    return ax


def channels(ax: Axes | None, features: Any, *, rows: int = 3, columns: int = 4) -> Axes:
    """A mosaic of the most active channels of (C, H, W) features, each scaled to its own range."""
    ax = axes_or_new(ax, (5, 4))
    maps = np.asarray(features, dtype=float)
    chosen = np.argsort(-maps.std(axis=(1, 2)), kind="stable")[: rows * columns]
    height, width = maps.shape[1:]
    gap = max(1, height // 30)
    mosaic = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for i, channel in enumerate(sorted(chosen)):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        values = maps[channel] - maps[channel].min()
        mosaic[top : top + height, left : left + width] = values / max(values.max(), 1e-12)
    ax.imshow(mosaic, cmap="viridis", interpolation="nearest")
    ax.set_axis_off()
    return ax


def positive_priors(
    ax: Axes | None, image: Any, boxes_xyxy: Any, labels: Any, priors_xyxy: Any, prior_labels: Any
) -> Axes:
    """Objects (G, 4) in thick lines and the positive priors (K, 4) in thin ones, in their class colors."""
    ax = axes_or_new(ax, (5, 5))
    show_image(ax, image)
    draw_boxes(ax, priors_xyxy, prior_labels, width=0.7)
    draw_boxes(ax, boxes_xyxy, labels, width=2.4)
    return _frame(ax, image)


def negatives(ax: Axes | None, image: Any, priors_xyxy: Any, losses: Any) -> Axes:
    """Priors (K, 4) in pixels of the image, the darker the larger their (K,) confidence loss."""
    ax = axes_or_new(ax, (5, 5))
    show_image(ax, image)
    corners, losses = np.asarray(priors_xyxy, dtype=float).reshape(-1, 4), np.asarray(losses, dtype=float)
    order = np.argsort(losses, kind="stable")  # the hardest on top
    squares = [Rectangle((a, b), c - a, d - b) for a, b, c, d in corners[order]]
    scale = plt.Normalize(min(losses.min(initial=0), 0), max(losses.max(initial=0), 1e-12))
    colors = plt.get_cmap("viridis_r")(scale(losses[order]))
    colors[:, 3] = 0.12 + 0.88 * scale(losses[order])  # the easy ones would hide the image
    ax.add_collection(PatchCollection(squares, facecolor="none", edgecolor=colors, lw=1.3))
    return _frame(ax, image)


def loss_ranking(ax: Axes | None, losses: Sequence[float], picked: int) -> Axes:
    """Confidence losses of the negatives, hardest first; the first `picked` of them are learned from."""
    ax = axes_or_new(ax, (5, 3.4))
    ranked = -np.sort(-np.asarray(losses, dtype=float))
    ranks = np.arange(1, len(ranked) + 1)
    ax.fill_between(ranks[:picked], ranked[:picked], color=MAP_COLORS[3], alpha=0.35, label="learned from")
    ax.plot(ranks, ranked, color=INK, label="all negatives")
    ax.axvline(picked + 0.5, color=MUTED, ls="--", lw=1.2)
    ax.set_xscale("log")
    ax.set(xlim=(0.8, max(len(ranked), 2)), ylim=(0, None), xlabel="rank", ylabel="confidence loss")
    ax.legend()
    return ax


def _frame(ax: Axes, image: Any) -> Axes:
    side = np.asarray(image).shape[1]
    ax.set(xlim=(0, side), ylim=(side, 0))
    return ax
