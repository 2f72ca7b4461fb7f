"""Figures of the network: one drawing of it, its work, what it sees, its features, and hard negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import LogLocator
from PIL import Image
from torch import nn

from ssdlib.config import IMAGE_SIZE, ModelConfig
from ssdlib.detector.model import SSD300
from ssdlib.plots.boxes import as_boxes, draw_boxes, show_image, tag_boxes
from ssdlib.plots.charts import scaled_histograms, stacked_bars
from ssdlib.plots.style import INK, LINE_COLORS, MUTED, new_figure


def share_bars(ax: Axes, values: Mapping[str, float], unit: str) -> Axes:
    """The Axes with a horizontal bar for each {part: value}, with the value and its share of the sum."""
    total = sum(values.values())
    ends = [f"{value:.1f} {unit} ({value / total:.0%})" for value in values.values()]
    ax = stacked_bars(ax, {name: [value] for name, value in values.items()}, ends, {unit: LINE_COLORS[0]})
    ax.set(xlabel=unit)
    return ax


def receptive_fields(ax: Axes, image: Any, fields: Mapping[str, int]) -> Axes:
    """The Axes with a (3, S, S) image and the receptive field of one location of each {map: side in pixels}.

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


def influence(ax: Axes, gradient: Any, side: float, center: float) -> Axes:
    """The Axes with |gradient| (S, S) of one location by each pixel, and its receptive field framed.

    side and center, the same in x and y, are the field's in pixels.
    """
    strength = np.abs(np.asarray(gradient, dtype=float))
    top = np.quantile(strength[strength > 0], 0.995) if (strength > 0).any() else 1.0
    ax.imshow(strength, cmap="magma", vmin=0, vmax=top)
    low, high = center - side / 2 - 0.5, center + side / 2 - 0.5  # pixel 0 is drawn from -0.5 to 0.5
    draw_boxes(ax, (low, low, high, high), color="white", lw=1.4, ls="--")
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


def negatives(ax: Axes, image: Any, priors_xyxy: Any, losses: Any, most: int = 40) -> Axes:
    """The Axes with the hardest of the priors (K, 4) in the image's pixels, colored by their (K,) losses.

    At most `most` are drawn, since hundreds would hide the image; a color bar tells their losses.
    """
    show_image(ax, image)
    corners, losses = as_boxes(priors_xyxy), np.asarray(losses, dtype=float)
    order = np.argsort(losses, kind="stable")[-most:]  # the hardest on top
    squares = [Rectangle((a, b), c - a, d - b) for a, b, c, d in corners[order]]
    drawn = PatchCollection(squares, facecolor="none", lw=1.6, cmap="plasma_r")
    drawn.set_array(losses[order])
    ax.add_collection(drawn, autolim=False)
    if len(order):
        ax.figure.colorbar(drawn, ax=ax, shrink=0.8, label="confidence loss")
    return ax


def loss_ranking(ax: Axes, losses: Sequence[float], picked: int) -> Axes:
    """The Axes with the negatives' confidence losses, largest first, the `picked` hardest ones shaded.

    Both axes are linear: areas are sums of losses, and the share of the shaded one is written beside it.
    """
    ranked = -np.sort(-np.asarray(losses, dtype=float))
    ranks = np.arange(1, len(ranked) + 1)
    share = ranked[:picked].sum() / max(ranked.sum(), 1e-12)
    label = f"learned from: {picked:,} of {len(ranked):,}\nwith {share:.0%} of all their loss"
    ax.fill_between(ranks[:picked], ranked[:picked], color=LINE_COLORS[1], alpha=0.45, label=label)
    ax.plot(ranks, ranked, color=INK, label="all negatives")
    ax.axvline(picked + 0.5, color=MUTED, ls="--", lw=1.2)
    ax.set(xlim=(0, max(4 * picked, 2)), ylim=(0, None), xlabel="rank", ylabel="confidence loss")
    ax.legend(fontsize=9)
    return ax


# --- one drawing of the whole network ---------------------------------------------------------------------

TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class DrawnMap:
    """What the drawing says of one map, read off a network."""

    name: str
    channels: int
    side: int
    priors: int
    """At each location."""
    scale: float
    """Side of the smallest square prior, as a share of the image's."""
    color: str

    @property
    def rows(self) -> int:
        """Predictions that come from this map."""
        return self.side**2 * self.priors


def maps_of(network: SSD300) -> list[DrawnMap]:
    """The six maps of a network on the meta device, finest first."""
    parts = (network.backbone.to_conv4_3, network.backbone.to_conv7, *network.extras.blocks)
    names = [[n for n, layer in part.named_children() if isinstance(layer, nn.Conv2d)][-1] for part in parts]
    features = network.feature_maps(torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE, device="meta"))
    heads, scales = network.loc_heads.convs, network.config.priors.scales
    return [
        DrawnMap(name, values.shape[1], values.shape[-1], head.out_channels // 4, scale, color)
        for name, values, head, scale, color in zip(names, features, heads, scales, LINE_COLORS, strict=False)
    ]


def ssd_drawing(config: ModelConfig) -> Figure:
    """A figure of SSD300 as `config` has it: image, six maps, a head on each, and the rows they predict.

    Sizes, channels and counts are read off the network itself, built on the meta device. Below each map
    stand its smallest square prior in the image, its head, and its share of the rows.
    """
    with torch.device("meta"):
        network = SSD300(config)
    maps, values, total = maps_of(network), 4 + config.num_classes, len(network.priors)
    figure, ax = new_figure(size=(11, 7.1))
    ax.set(xlim=(0, 110), ylim=(71, 0))
    ax.set_axis_off()
    _stage(ax, (1, 55.5), "BACKBONE: VGG16", network.backbone)
    _stage(ax, (56.5, 109), "NECK: extra layers", network.extras)
    _drawn_smear(ax, 3, 11.6, 12)
    _named(ax, 9, 26.2, "image", (3, IMAGE_SIZE, IMAGE_SIZE), INK)
    for y, name, what in (
        (36, "PRIORS", "smallest square one"),
        (46.4, "HEADS", f"3 {TIMES} 3 convolutions"),
        (53.3, "ROWS", "permute and flatten"),
    ):
        _say(ax, 1.5, y - 1.1, name, ha="left", va="center", weight="bold")
        _say(ax, 1.5, y + 1.1, what, color=MUTED, ha="left", va="center")
    ends, left = 15.0, 1.5
    for one, x in zip(maps, (28.5, 46.5, 63, 76, 89, 102), strict=True):
        start, length = ends + 0.7, max(107 * one.rows / total, 0.35)
        begins, ends = _solid(ax, x, 17.3, one, max(m.channels for m in maps))
        _arrow(ax, start, begins - 0.7, 17.3)
        _named(ax, x, 26.2, one.name, (one.channels, one.side, one.side), one.color)
        _column(ax, x, one, values)
        _ribbon(ax, (x - 5.3, x + 5.3), 55.6, (left, left + length), 63.4, one.color)
        ax.add_patch(Rectangle((left, 63.4), length, 3.4, color=one.color, lw=0))
        if length > 5:
            _say(ax, left + length / 2, 65.1, f"{one.rows / total:.0%}", color="white", va="center",
                 weight="bold")  # fmt: skip
        left += length
    _say(ax, 28.5, 41.9, "small objects", va="center", style="italic")
    _say(ax, 102, 41.9, "large objects", va="center", style="italic")
    _arrow(ax, 34.6, 95.9, 41.9)
    _say(ax, 55, 67.6, f"{total:,} rows, one for each prior: 4 box offsets (locs) and "
         f"{config.num_classes} scores (logits), one of them for background")  # fmt: skip
    return figure


def save_ssd_drawing(path: str, config: ModelConfig | None = None) -> None:
    """Write the drawing as a PNG of 2,200 pixels in 256 colors, a third of what all colors take.

    README's:  python -c 'from ssdlib.plots.model import *; save_ssd_drawing("data/pictures/ssd300.png")'
    """
    figure = ssd_drawing(config or ModelConfig())
    figure.set_dpi(200)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(256).save(path, optimize=True)
    plt.close(figure)


def _say(ax: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Text of the drawing, hung from its upper edge and centered unless the style says otherwise."""
    ax.text(
        x,
        y,
        text,
        **{"fontsize": 10.5, "color": INK, "ha": "center", "va": "top", "linespacing": 1.25} | style,
    )


def _tint(color: str, share: float) -> tuple[float, ...]:
    """The color mixed with white; share is how much of it is left."""
    return tuple(share * value + 1 - share for value in to_rgb(color))


def _by(*numbers: int) -> str:
    """Numbers with a times sign between them."""
    return f" {TIMES} ".join(map(str, numbers))


def _stage(ax: Axes, ends: tuple[float, float], name: str, part: nn.Module) -> None:
    """A panel behind a part of the network, with its name and the number of its convolutions."""
    ax.add_patch(FancyBboxPatch((ends[0], 1), ends[1] - ends[0], 29.9, facecolor="#f3f4f6", edgecolor="none",
                                boxstyle="round,pad=0,rounding_size=1.2", zorder=0))  # fmt: skip
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in part.modules())
    _say(ax, ends[0] + 1.6, 4.4, name, va="baseline", ha="left", weight="bold")
    _say(ax, ends[1] - 1.6, 4.4, f"{convolutions} convolutions", color=MUTED, va="baseline", ha="right")


def _named(ax: Axes, x: float, y: float, name: str, shape: tuple[int, ...], color: str) -> None:
    """The name of a map, and below it its shape."""
    _say(ax, x, y + 1.3, name, color=color, weight="bold", va="baseline")
    _say(ax, x, y + 3.5, _by(*shape), va="baseline")


def _arrow(ax: Axes, start: float, end: float, y: float) -> None:
    ax.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "-|>", "color": MUTED, "lw": 1.4,
                                                      "shrinkA": 0, "shrinkB": 0})  # fmt: skip


def _solid(ax: Axes, x: float, y: float, one: DrawnMap, most: int) -> tuple[float, float]:
    """A map as a solid around (x, y), its locations on the front face; returns its left and right end.

    Its depth stands for its channels; `most` are those of the deepest map.
    """
    side, depth = 2.3 * one.side**0.5, one.channels / most  # by the root, or the last would be a speck
    right, up = 2.7 * depth, 1.9 * depth
    a, b = x - (side + right) / 2, x - (side + right) / 2 + side
    low, high = y + (side + up) / 2, y + (side + up) / 2 - side  # y runs downward
    faces = (
        ([(a, high), (b, high), (b + right, high - up), (a + right, high - up)], 0.28),
        ([(b, high), (b + right, high - up), (b + right, low - up), (b, low)], 0.8),
        ([(a, high), (b, high), (b, low), (a, low)], 0.55),
    )
    for corners, share in faces:
        ax.add_patch(Polygon(corners, facecolor=_tint(one.color, share), edgecolor=one.color, lw=1.0))
    steps = np.linspace(0, side, one.side + 1)[1:-1]
    grid = [[(a + s, low), (a + s, high)] for s in steps] + [[(a, high + s), (b, high + s)] for s in steps]
    fine = one.side > 20
    ax.add_collection(LineCollection(grid, colors="white", lw=0.45 if fine else 0.9, snap=False))
    return a, b + right


def _drawn_smear(ax: Axes, left: float, top: float, side: float) -> None:
    """A few cells on a square: the image that comes in."""
    ax.add_patch(Rectangle((left, top), side, side, facecolor="#fbf3f1", edgecolor=MUTED, lw=1))
    red = ((2.2, 2.4), (5.2, 1.9), (2.0, 6.0), (9.9, 9.6), (6.6, 10.0), (3.3, 9.3), (10.0, 1.9))
    for x, y in red:
        ax.add_patch(Circle((left + x, top + y), 1.35, facecolor="#e3a0a0", edgecolor="#c98787", lw=0.6))
        ax.add_patch(Circle((left + x, top + y), 0.55, facecolor="#f0c8c4", lw=0))
    ax.add_patch(Circle((left + 7.6, top + 5.6), 2.3, facecolor="#c9bfe6", edgecolor="#9d8fc9", lw=0.6))
    for x, y in ((6.9, 5.0), (8.3, 5.2), (7.6, 6.5)):
        ax.add_patch(Circle((left + x, top + y), 0.95, facecolor="#6d4fa3", lw=0))
    for x, y in ((4.4, 4.2), (11.0, 6.2), (0.9, 10.9)):
        ax.add_patch(Circle((left + x, top + y), 0.42, facecolor="#8a6bbd", lw=0))


def _column(ax: Axes, x: float, one: DrawnMap, values: int) -> None:
    """What hangs below a map: its smallest prior in the image's frame, its head, and its rows."""
    for top, bottom, share in ((31.7, 46.4, 0.14), (46.4, 55.6, 0.28)):
        ax.add_patch(Rectangle((x - 5.3, top), 10.6, bottom - top, color=_tint(one.color, share), lw=0))
    frame, middle = 5.4, x - 2.2
    for side, face, edge, width in (
        (frame, "white", "#9ca3af", 1.0),
        (frame * min(one.scale, 1.0), _tint(one.color, 0.28), one.color, 1.8),
    ):
        ax.add_patch(Rectangle((middle - side / 2, 36 - side / 2), side, side, facecolor=face,
                               edgecolor=edge, lw=width))  # fmt: skip
    _say(ax, x + 2.9, 36, f"{one.scale * IMAGE_SIZE:.0f}\npx", va="center")
    ax.add_patch(FancyBboxPatch((x - 5.3, 44.0), 10.6, 4.8, boxstyle="round,pad=0,rounding_size=0.8",
                                facecolor=one.color, edgecolor="none"))  # fmt: skip
    _say(ax, x, 46.4, f"{one.priors} {TIMES} (4 + {values - 4})", color="white", va="center", weight="bold")
    _say(ax, x, 50, f"{_by(one.side, one.side, one.priors)}\n= {one.rows:,}")


def _ribbon(
    ax: Axes, above: tuple[float, float], top: float, below: tuple[float, float], bottom: float, color: str
) -> None:
    """A band from a head to its rows in the bar."""
    middle = top + 0.55 * (bottom - top)
    corners = [
        (above[0], top), (above[0], middle), (below[0], middle), (below[0], bottom),
        (below[1], bottom), (below[1], middle), (above[1], middle), (above[1], top), (above[0], top),
    ]  # fmt: skip
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    ax.add_patch(PathPatch(Path(corners, codes), facecolor=_tint(color, 0.28), edgecolor="none", zorder=0.8))
