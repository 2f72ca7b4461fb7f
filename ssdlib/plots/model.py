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

from ssdlib.plots.boxes import as_boxes, draw_boxes, show_image, tag_boxes
from ssdlib.plots.charts import scaled_histograms, stacked_bars
from ssdlib.plots.style import INK, LINE_COLORS, MUTED


def share_bars(ax: Axes, values: Mapping[str, float], unit: str) -> Axes:
    """The Axes with a horizontal bar for each {part: value}, with the value and its share of the sum."""
    total = sum(values.values())
    ends = [f"{value:.1f} {unit} ({value / total:.0%})" for value in values.values()]
    ax = stacked_bars(ax, {name: [value] for name, value in values.items()}, ends, {unit: LINE_COLORS[0]})
    ax.set(xlabel=unit)
    return ax


def receptive_fields(ax: Axes, image: Any, fields: Mapping[str, int]) -> Axes:
    """The Axes with a (3, S, S) image and the receptive field of one cell of each {map: side in pixels}.

    A field larger than the image is drawn whole.
    """
    size = np.asarray(image).shape[1]
    show_image(ax, image)
    for (name, side), color in zip(fields.items(), LINE_COLORS, strict=False):
        low = (size - side) / 2
        draw_boxes(ax, (low, low, low + side, low + side), color=color, lw=2.2)
        tag_boxes(ax, (low, low, low + side, low + side), [f"{name}: {side}"], [color])
    margin = max([side - size for side in fields.values()] + [0]) / 2 + 10
    ax.set(xlim=(-margin, size + margin), ylim=(size + margin, -margin))
    return ax


def influence(ax: Axes, gradient: Any, side: int) -> Axes:
    """The Axes with |gradient| (S, S) of one cell by each pixel, and the cell's receptive field framed."""
    strength = np.abs(np.asarray(gradient, dtype=float))
    top = np.quantile(strength[strength > 0], 0.995) if (strength > 0).any() else 1.0
    ax.imshow(strength, cmap="magma", vmin=0, vmax=top)
    low = (strength.shape[0] - side) / 2
    draw_boxes(ax, (low, low, low + side, low + side), color="white", lw=1.4, ls="--")
    ax.set_axis_off()
    return ax


def norm_histogram(ax: Axes, norms: Mapping[str, Any]) -> Axes:
    """The Axes with a histogram of the lengths of each {map: feature vectors}, on a logarithmic axis."""
    lengths = {name: np.asarray(values, dtype=float).ravel() for name, values in norms.items()}
    positive = np.concatenate([values[values > 0] for values in lengths.values()] or [np.empty(0)])
    low, high = (positive.min() * 0.8, positive.max() * 1.25) if len(positive) else (0.1, 10.0)
    scaled_histograms(ax, lengths, np.geomspace(low, high, 90), LINE_COLORS, fill=True, alpha=0.45)
    ax.set(xscale="log", ylim=(0, 1.3), xlabel="length of a feature vector")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_formatter("")
    if norms:
        ax.legend(fontsize=8, ncols=3, loc="upper left")
    return ax


def channels(ax: Axes, features: Any, *, rows: int = 3, columns: int = 4) -> Axes:
    """The Axes with a mosaic of the most active channels of (C, H, W) features, each on its own scale."""
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


def negatives(ax: Axes, image: Any, priors_xyxy: Any, losses: Any) -> Axes:
    """The Axes with priors (K, 4) in the image's pixels, the darker the larger their (K,) confidence loss."""
    show_image(ax, image)
    corners, losses = as_boxes(priors_xyxy), np.asarray(losses, dtype=float)
    order = np.argsort(losses, kind="stable")  # the hardest on top
    squares = [Rectangle((a, b), c - a, d - b) for a, b, c, d in corners[order]]
    scale = plt.Normalize(min(losses.min(initial=0), 0), max(losses.max(initial=0), 1e-12))
    colors = plt.get_cmap("viridis_r")(scale(losses[order]))
    colors[:, 3] = 0.12 + 0.88 * scale(losses[order])  # the easy ones would hide the image
    ax.add_collection(PatchCollection(squares, facecolor="none", edgecolor=colors, lw=1.3), autolim=False)
    return ax


def loss_ranking(ax: Axes, losses: Sequence[float], picked: int) -> Axes:
    """The Axes with the negatives' confidence losses, largest first, the `picked` hardest ones shaded."""
    ranked = -np.sort(-np.asarray(losses, dtype=float))
    ranks = np.arange(1, len(ranked) + 1)
    ax.fill_between(ranks[:picked], ranked[:picked], color=LINE_COLORS[1], alpha=0.35, label="learned from")
    ax.plot(ranks, ranked, color=INK, label="all negatives")
    ax.axvline(picked + 0.5, color=MUTED, ls="--", lw=1.2)
    ax.set_xscale("log")
    ax.set(xlim=(0.8, max(len(ranked), 2)), ylim=(0, None), xlabel="rank", ylabel="confidence loss")
    ax.legend()
    return ax
