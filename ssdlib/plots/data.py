"""Figures of a dataset: ground truth, class balance, box sizes, and what the labels leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ssdlib.inference.draw import color_of
from ssdlib.plots.style import INK, MUTED, axes_or_new, draw_boxes, show_image


def ground_truth(ax: Axes | None, image: Any, target: Mapping[str, Any], title: str = "") -> Axes:
    """One image with its target's "boxes" (G, 4), xyxy in the image's pixels, colored by "labels" (G,)."""
    ax = axes_or_new(ax, (4.2, 3.3))
    show_image(ax, image, title)
    return draw_boxes(ax, target["boxes"], target["labels"])


def class_legend(figure: Figure, class_names: Sequence[str]) -> Figure:
    """One colored patch for each class, above all Axes of the figure."""
    handles = [Patch(color=color_of(name, class_names), label=name) for name in class_names]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)
    return figure


def class_bars(ax: Axes | None, counts: Mapping[str, Mapping[str, int]]) -> Axes:
    """Grouped bars of {split: {class: objects}}, on a logarithmic axis because RBCs outnumber the rest."""
    ax = axes_or_new(ax, (8, 3.4))
    shades, width = np.linspace(1.0, 0.4, max(len(counts), 2)), 0.8 / max(len(counts), 1)
    for k, (split, by_class) in enumerate(counts.items()):
        names = list(by_class)
        for i, name in enumerate(names):
            x = i + (k - (len(counts) - 1) / 2) * width
            ax.bar(x, by_class[name], width * 0.92, color=color_of(name, names), alpha=shades[k])
            label = f"{by_class[name]}\n{split}"
            ax.text(x, max(by_class[name], 1) * 1.08, label, ha="center", va="bottom", fontsize=8)
        ax.set_xticks(range(len(names)), names)
    most = max((n for by_class in counts.values() for n in by_class.values()), default=1)
    ax.set(yscale="log", ylim=(1, max(most, 10) * 4), ylabel="objects (logarithmic)")
    ax.grid(axis="x", visible=False)
    return ax


def size_scatter(ax: Axes | None, sizes: Mapping[str, Any], priors: Any = ()) -> Axes:
    """{class: (G, 2) width and height of its boxes} as fractions of the image, on logarithmic axes.

    `priors` (K, 2) are the sizes of prior boxes; each is drawn as a diamond, the one of least area larger.
    """
    ax = axes_or_new(ax, (5.6, 5.2))
    names = list(sizes)
    # The most numerous class first, so that it does not hide the others.
    for name in sorted(names, key=lambda name: -len(sizes[name])):
        width, height = np.asarray(sizes[name], dtype=float).reshape(-1, 2).T
        ax.scatter(width, height, s=12, color=color_of(name, names), alpha=0.45, lw=0, label=name)
    shapes = np.asarray(priors, dtype=float).reshape(-1, 2)
    if len(shapes):
        ax.scatter(*shapes.T, marker="D", s=22, facecolor="white", edgecolor=INK, label="prior", zorder=3)
        smallest = shapes[shapes.prod(axis=1).argmin()]
        ax.scatter(*smallest, marker="D", s=75, color=INK, label="smallest prior", zorder=3)
    ax.set(xscale="log", yscale="log", xlim=(0.025, 1.1), ylim=(0.025, 1.1), aspect="equal")
    ticks = (0.03, 0.06, 0.1, 0.2, 0.4, 1)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel="width, fraction of the image", ylabel="height, fraction of the image")
    if names or len(shapes):
        ax.legend(loc="upper left", fontsize=8)
    return ax


def aspect_histogram(ax: Axes | None, ratios: Mapping[str, Any], prior_ratios: Sequence[float] = ()) -> Axes:
    """Step histograms of width / height by class, each scaled to its own maximum; priors' ratios dotted."""
    ax = axes_or_new(ax, (5, 3.4))
    names, edges = list(ratios), np.geomspace(0.2, 5, 49)
    for name in names:
        counts, _ = np.histogram(np.asarray(ratios[name], dtype=float), edges)
        ax.stairs(counts / max(counts.max(), 1), edges, color=color_of(name, names), lw=1.8, label=name)
    for ratio in prior_ratios:
        ax.axvline(ratio, color=MUTED, lw=1, ls=":")
    ticks = (1 / 3, 1 / 2, 1, 2, 3)
    ax.set_xscale("log")
    ax.set_xticks(ticks, ["1:3", "1:2", "1:1", "2:1", "3:1"])
    ax.minorticks_off()
    ax.set(xlim=(0.25, 4), ylim=(0, 1.08), yticks=[], xlabel="width : height")
    if names:
        ax.legend(loc="upper right", fontsize=8)
    return ax


def count_histogram(ax: Axes | None, counts: Sequence[int], name: str, class_names: Sequence[str]) -> Axes:
    """How many images hold 0, 1, 2, ... objects of one class."""
    ax = axes_or_new(ax, (3.6, 3))
    images = np.bincount(np.asarray(counts, dtype=np.int64), minlength=2)
    ax.bar(np.arange(len(images)), images, width=0.9, color=color_of(name, class_names))
    ax.set(xlabel=f"{name} in an image", ylabel="images", xlim=(-0.7, len(images) - 0.3))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="x", visible=False)
    ax.set_title(name)
    return ax


def hidden_labels(ax: Axes | None, image: Any, target: Mapping[str, Any], hidden: Any) -> Axes:
    """Ground truth with the boxes where `hidden` (G,) is true filled in yellow: cells without a label."""
    ax = axes_or_new(ax, (4.2, 3.3))
    boxes, labels = np.asarray(target["boxes"]).reshape(-1, 4), np.asarray(target["labels"])
    hidden = np.asarray(hidden, dtype=bool)
    show_image(ax, image)
    draw_boxes(ax, boxes[~hidden], labels[~hidden])
    for xmin, ymin, xmax, ymax in boxes[hidden]:
        shape = (xmax - xmin, ymax - ymin)
        ax.add_patch(Rectangle((xmin, ymin), *shape, facecolor="#fde047", alpha=0.55, edgecolor="none"))
        ax.text(xmin + shape[0] / 2, ymin + shape[1] / 2, "?", ha="center", va="center", weight="bold",
                fontsize=14, color=INK, clip_on=True)  # fmt: skip
    return ax


def side_by_side(ax: Axes | None, images: Sequence[Any], title: str = "") -> Axes:
    """Images of the same height (H, W, 3) next to each other with a white gap."""
    ax = axes_or_new(ax, (7, 2.8))
    if len(images):
        gap = np.full((np.asarray(images[0]).shape[0], 12, 3), 255, np.uint8)
        pieces = [piece for image in images for piece in (np.asarray(image), gap)][:-1]
        show_image(ax, np.concatenate(pieces, axis=1), title)
    return ax
