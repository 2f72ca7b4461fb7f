"""Figures of a dataset: ground truth, box sizes, objects in an image, and objects without a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes

from ssdlib.inference.draw import color_of
from ssdlib.plots.boxes import as_boxes, draw_boxes, fill_boxes, show_image
from ssdlib.plots.charts import scaled_histograms
from ssdlib.plots.style import INK, MUTED


def ground_truth(ax: Axes, image: Any, target: Mapping[str, Any], title: str = "") -> Axes:
    """The Axes with an image and its target: "boxes" (G, 4), xyxy pixels, and "labels" (G,)."""
    show_image(ax, image, title)
    return draw_boxes(ax, target["boxes"], target["labels"])


def size_scatter(ax: Axes, sizes: Mapping[str, Any], priors: Any = ()) -> Axes:
    """The Axes with a dot for each box of {class: (G, 2) widths and heights}, fractions of the image.

    Both axes are logarithmic. `priors` (K, 2) are the sizes of prior boxes, drawn as diamonds, the one of the
    smallest area larger.
    """
    names = list(sizes)
    dots = {name: np.asarray(sizes[name], dtype=float).reshape(-1, 2) for name in names}
    # The most numerous class first, so that it does not hide the others.
    for name in sorted(names, key=lambda name: -len(dots[name])):
        ax.scatter(*dots[name].T, s=12, color=color_of(name, names), alpha=0.45, lw=0, label=name)
    shapes = np.asarray(priors, dtype=float).reshape(-1, 2)
    if len(shapes):
        ax.scatter(*shapes.T, marker="D", s=22, facecolor="white", edgecolor=INK, label="prior", zorder=3)
        smallest = shapes[shapes.prod(axis=1).argmin()]
        ax.scatter(*smallest, marker="D", s=75, color=INK, label="smallest prior", zorder=3)
    low = min([0.025, *(0.8 * one.min() for one in dots.values() if len(one))])
    ax.set(xscale="log", yscale="log", xlim=(low, 1.1), ylim=(low, 1.1), aspect="equal")
    ticks = [tick for tick in (0.001, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 1) if tick >= low]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel="width, fraction of the image", ylabel="height, fraction of the image")
    if names or len(shapes):
        ax.legend(loc="upper left", fontsize=8)
    return ax


def aspect_histogram(ax: Axes, ratios: Mapping[str, Any], prior_ratios: Sequence[float] = ()) -> Axes:
    """The Axes with a histogram of width / height for each {class: ratios}; the priors' ratios are dotted."""
    names = list(ratios)
    colors = [color_of(name, names) for name in names]
    # Wide fields, squeezed into a square, may make all cells narrower than the axis.
    every = np.concatenate([[1.0], *(np.asarray(one, float) for one in ratios.values())])
    most = max(4.0, 1.25 * float(np.exp(np.quantile(np.abs(np.log(every[every > 0])), 0.95))))
    scaled_histograms(ax, ratios, np.geomspace(0.8 / most, 1.25 * most, 49), colors, lw=1.8)
    for ratio in prior_ratios:
        ax.axvline(ratio, color=MUTED, lw=1, ls=":")
    ax.set_xscale("log")
    ax.set_xticks((1 / 3, 1 / 2, 1, 2, 3), ["1:3", "1:2", "1:1", "2:1", "3:1"])
    ax.minorticks_off()
    ax.set(xlim=(1 / most, most), xlabel="width : height")
    return ax


def count_histogram(ax: Axes, counts: Sequence[int], name: str, class_names: Sequence[str]) -> Axes:
    """The Axes with bars of how many images hold 0, 1, 2, ... objects of one class."""
    images = np.bincount(np.asarray(counts, dtype=np.int64), minlength=2)
    ax.bar(np.arange(len(images)), images, width=0.9, color=color_of(name, class_names))
    ax.set(xlabel=f"{name} in an image", ylabel="images", xlim=(-0.7, len(images) - 0.3))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="x", visible=False)
    ax.set_title(name)
    return ax


def hidden_labels(ax: Axes, image: Any, target: Mapping[str, Any], hidden: Any) -> Axes:
    """Ground truth in which the boxes where `hidden` (G,) is true are filled with yellow, as if unlabeled."""
    boxes, labels = as_boxes(target["boxes"]), np.asarray(target["labels"])
    hidden = np.asarray(hidden, dtype=bool)
    ax = ground_truth(ax, image, {"boxes": boxes[~hidden], "labels": labels[~hidden]})
    fill_boxes(ax, boxes[hidden], "#fde047", alpha=0.55)
    for center in (boxes[hidden, :2] + boxes[hidden, 2:]) / 2:
        ax.text(*center, "?", ha="center", va="center", weight="bold", fontsize=14, color=INK, clip_on=True)
    return ax


def side_by_side(ax: Axes, images: Sequence[Any], title: str = "") -> Axes:
    """The Axes with images, each (H, W, 3), next to each other with white gaps, at the first one's height."""
    if len(images):
        arrays = [np.asarray(image) for image in images]
        height = arrays[0].shape[0]
        gap = np.full((height, 12, 3), 255, np.uint8)
        even = [cv2.resize(a, (round(a.shape[1] * height / a.shape[0]), height)) for a in arrays]
        pieces = [piece for image in even for piece in (image, gap)][:-1]
        show_image(ax, np.concatenate(pieces, axis=1), title)
    return ax
