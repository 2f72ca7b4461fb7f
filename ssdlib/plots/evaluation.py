"""Figures that judge a detector: curves, tables, confusion, counts, and pictures of its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ssdlib.inference.draw import color_of
from ssdlib.plots.style import INK, MUTED, axes_or_new, draw_boxes, show_image, table

if TYPE_CHECKING:
    from ssdlib.evaluation.matching import Matches
    from ssdlib.evaluation.metrics import Metrics, PrecisionRecall
    from ssdlib.evaluation.tables import Interval
    from ssdlib.inference.detections import Detections

RIGHT, WRONG, MISSED = "#15803d", "#ea580c", "#1d4ed8"
"""True positives (thin green), false positives (thick orange), missed objects (dashed blue)."""


def judged(
    ax: Axes | None,
    image: Any,
    detections: Detections,
    target: Mapping[str, Any],
    matches: Matches,
    *,
    title: str = "",
    scores: bool = False,
) -> Axes:
    """One image (H, W, 3) with its detections as right or wrong, and the objects that were missed.

    `scores` writes class and score on the wrong ones.
    """
    ax = axes_or_new(ax, (4.2, 3.3))
    show_image(ax, image, title)
    boxes = detections.boxes.numpy()
    wrong = ~matches.true_positive
    draw_boxes(ax, boxes[matches.true_positive], color=RIGHT, width=1.3)
    draw_boxes(ax, np.asarray(target["boxes"]).reshape(-1, 4)[matches.missed], color=MISSED, width=2.2,
               style=(0, (2.5, 1.5)))  # fmt: skip
    draw_boxes(
        ax, boxes[wrong], detections.labels.numpy()[wrong], detections.class_names,
        detections.scores.numpy()[wrong], color=WRONG, width=2.2, captions=scores,
    )  # fmt: skip
    return ax


def verdict_legend(figure: Figure) -> Figure:
    """What the three colors of `judged` mean, above all Axes of the figure."""
    kinds = {
        "right": (RIGHT, "-", 1.3),
        "false alarm": (WRONG, "-", 2.2),
        "missed": (MISSED, (0, (2.5, 1.5)), 2.2),
    }
    handles = [Line2D([], [], color=c, ls=ls, lw=lw, label=name) for name, (c, ls, lw) in kinds.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
    return figure


def judged_board(
    ax: Axes | None, objects_xyxy: Any, boxes_xyxy: Any, right: Sequence[bool], *, size: float
) -> Axes:
    """A drawn example: objects (G, 4) named A, B, ..., and boxes (D, 4) numbered from 1 and judged."""
    ax = axes_or_new(ax, (5, 4))
    ax.set(xlim=(0, size), ylim=(size, 0), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    for i, (xmin, ymin, xmax, ymax) in enumerate(np.asarray(objects_xyxy, dtype=float).reshape(-1, 4)):
        ax.add_patch(Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, color=MUTED, alpha=0.25, lw=0))
        ax.text((xmin + xmax) / 2, (ymin + ymax) / 2, "ABCDEFGH"[i], ha="center", va="center",
                fontsize=16, weight="bold", color=MUTED)  # fmt: skip
    for i, box in enumerate(np.asarray(boxes_xyxy, dtype=float).reshape(-1, 4)):
        color = RIGHT if right[i] else WRONG
        draw_boxes(ax, box, color=color, width=2.2)
        ax.text(box[2], box[3], f"{i + 1}", color="white", fontsize=9, weight="bold", ha="right", va="bottom",
                bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5})  # fmt: skip
    return ax


def precision_recall_by_hand(ax: Axes | None, curve: PrecisionRecall, *, eleven: bool = False) -> Axes:
    """A short curve point by point, its envelope, and the area under it or the eleven points of VOC 2007."""
    ax = _precision_recall_axes(axes_or_new(ax, (4.6, 3.8)))
    recall, envelope = curve.recall, curve.envelope
    if len(recall):
        steps_x = np.concatenate([[0.0], recall, recall[-1:]])
        steps_y = np.concatenate([envelope[:1], envelope, [0.0]])
        ax.plot(steps_x, steps_y, drawstyle="steps-pre", color=INK, label="best precision from here on")
        if eleven:
            levels = np.arange(11) / 10
            heights = [max(envelope[recall >= level - 1e-9], default=0.0) for level in levels]
            ax.vlines(levels, 0, heights, color=RIGHT, lw=2)
            ax.plot(levels, heights, "o", color=RIGHT, ms=6, label="read at 11 recalls")
        else:
            ax.fill_between(steps_x, steps_y, step="pre", color=RIGHT, alpha=0.15, lw=0, label="area = AP")
    ax.plot(recall, curve.precision, "o", ms=6, mfc="white", mec=INK, label="after each detection")
    if not eleven:
        for k, (x, y) in enumerate(zip(recall, curve.precision, strict=True), 1):
            ax.annotate(str(k), (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9, color=INK)
    ax.legend(loc="lower left" if not eleven else "upper right", fontsize=8)
    return ax


def precision_recall_curves(
    ax: Axes | None,
    curves: Mapping[str, PrecisionRecall],
    thresholds: Mapping[str, float] | None = None,
) -> Axes:
    """A curve for each class in its color; a dot where its working threshold lies."""
    ax = _precision_recall_axes(axes_or_new(ax, (5.4, 4.2)))
    names = list(curves)
    for name, curve in curves.items():
        color = color_of(name, names)
        ap = "n/a" if curve.ap is None else f"{curve.ap:.3f}"
        recall = np.concatenate([[0.0], curve.recall])
        precision = np.concatenate([curve.precision[:1], curve.precision]) if len(curve.scores) else [np.nan]
        ax.plot(recall, precision, color=color, label=f"{name}, AP {ap}")
        if thresholds and curve.ground_truth:
            p, r, _ = curve.at(thresholds[name])
            if p is not None:
                ax.plot([r], [p], "o", ms=9, color=color, mec="white", mew=1.5, zorder=3)
    if names:
        ax.legend(loc="lower left", fontsize=9)
    return ax


def _precision_recall_axes(ax: Axes) -> Axes:
    ax.set(xlim=(-0.02, 1.04), ylim=(0, 1.06), xlabel="recall", ylabel="precision")
    return ax


def ap_bars(ax: Axes | None, values: Mapping[str, Mapping[str, float | None]]) -> Axes:
    """Average precision of {way of counting: {class: AP}} as bars; a missing value is written as n/a."""
    ax = axes_or_new(ax, (8, 3.2))
    shades, width = np.linspace(1.0, 0.4, max(len(values), 2)), 0.8 / max(len(values), 1)
    for k, (way, by_class) in enumerate(values.items()):
        names = list(by_class)
        for i, name in enumerate(names):
            x, value = i + (k - (len(values) - 1) / 2) * width, by_class[name]
            ax.bar(x, value or 0.0, width * 0.92, color=color_of(name, names), alpha=shades[k])
            label = f"{'n/a' if value is None else f'{value:.2f}'}\n{way}"
            ax.text(x, (value or 0.0) + 0.02, label, ha="center", va="bottom", fontsize=8)
        ax.set_xticks(range(len(names)), names)
    ax.set(ylim=(0, 1.2), ylabel="average precision")
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.grid(axis="x", visible=False)
    return ax


def interval_dots(ax: Axes | None, values: Mapping[str, Interval]) -> Axes:
    """{class or "mean": value with interval} as dots with whiskers, the first on top; n/a is left empty."""
    ax = axes_or_new(ax, (6, 2.4))
    classes = [name for name in values if name != "mean"]
    for row, (name, one) in enumerate(values.items()):
        if one.value is None:
            continue
        color = INK if name == "mean" else color_of(name, classes)
        if one.low is not None:
            ax.plot([one.low, one.high], [row, row], color=color, lw=5, alpha=0.35, solid_capstyle="butt")
        ax.plot(one.value, row, "o", ms=9, color=color)
        ax.annotate(f"{one.value:.3f}", (one.value, row), (0, 9), textcoords="offset points", ha="center")
    ax.set_yticks(range(len(values)), list(values))
    ax.update_datalim([(0.85, 0), (1.0, 0)])  # at least this much, so that nothing looks worse than it is
    ax.autoscale_view()
    ax.set(ylim=(len(values) - 0.5, -0.8), xlabel="AP at IoU 0.5")
    ax.grid(axis="y", visible=False)
    return ax


def metrics_table(ax: Axes | None, metrics: Metrics) -> Axes:
    """One row a class, then the means: average precision in each way, and what holds at the threshold."""
    ax = axes_or_new(ax, (9, 1.9))
    columns = ["objects", "VOC07 AP", "VOC12 AP", "AP at 0.5", "AP (COCO)", "precision", "recall"]
    rows = {
        name: [
            str(c.ground_truth),
            *map(_number, (c.voc07_ap, c.voc12_ap, c.ap_50, c.ap, c.precision, c.recall)),
        ]
        for name, c in metrics.per_class.items()
    }
    means = (metrics.voc07_map, metrics.voc12_map, metrics.map_50, metrics.map)
    objects = sum(c.ground_truth for c in metrics.per_class.values())
    return table(ax, columns, {**rows, "mean": [str(objects), *map(_number, means), "", ""]})


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def ap_by_iou(ax: Axes | None, ious: Sequence[float], values: Mapping[str, Sequence[float | None]]) -> Axes:
    """{class: AP at each IoU threshold}: how fast it falls as boxes are asked to fit better."""
    ax = axes_or_new(ax, (5.4, 3.6))
    names = list(values)
    for name in names:
        heights = [np.nan if value is None else value for value in values[name]]
        ax.plot(ious, heights, "o-", ms=5, color=color_of(name, names), label=name)
    ax.set(ylim=(0, 1.04), xlabel="IoU from which a detection is right", ylabel="average precision")
    if names:
        ax.legend(fontsize=9)
    return ax


def threshold_curves(
    ax: Axes | None, curve: PrecisionRecall, name: str, class_names: Sequence[str], chosen: float
) -> Axes:
    """Precision (solid), recall (dashed) and F1 (dotted gray) of one class against the score threshold."""
    ax = axes_or_new(ax, (3.7, 3.2))
    levels = np.linspace(0.01, 0.99, 99)
    points = [curve.at(level) for level in levels]
    precision = np.array([np.nan if p is None else p for p, _, _ in points])
    recall = np.array([np.nan if r is None else r for _, r, _ in points])
    color = color_of(name, class_names)
    ax.plot(levels, precision, color=color, label="precision")
    ax.plot(levels, recall, "--", color=color, label="recall")
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.full(len(both), np.nan), where=both > 0)
    ax.plot(levels, f1, ":", color=INK, label="F1")
    ax.axvline(chosen, color=MUTED, lw=1.2)
    # Beside the line, on the side with more room.
    ax.annotate(f"{chosen:.2f}", (chosen, 1.04), xytext=(4 if chosen < 0.5 else -4, 0), fontsize=9,
                textcoords="offset points", ha="left" if chosen < 0.5 else "right", color=INK)  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(0, 1.12), xlabel="score threshold", title=name)
    ax.set_yticks(np.linspace(0, 1, 6))
    return ax


def confusion(ax: Axes | None, matrix: Any, class_names: Sequence[str]) -> Axes:
    """The (C, C) counts, background last, shaded by their share of the row: green right, orange wrong."""
    ax = axes_or_new(ax, (5, 4.2))
    order = [*range(1, len(class_names) + 1), 0]
    counts = np.asarray(matrix)[np.ix_(order, order)]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(len(counts), dtype=bool)
    for mask, colors in ((diagonal, "Greens"), (~diagonal, "Oranges")):
        ax.imshow(np.ma.array(share, mask=~mask), cmap=colors, vmin=0, vmax=1.3)
    for (i, j), count in np.ndenumerate(counts):
        void = i == j == len(class_names)
        text = "–" if void else f"{count}\n{share[i, j]:.0%}" if i < len(class_names) else str(count)
        ax.text(j, i, text, ha="center", va="center", fontsize=11,
                color="white" if share[i, j] > 0.8 else INK)  # fmt: skip
    ax.set_xticks(range(len(order)), [*class_names, "nothing\n(missed)"])
    ax.set_yticks(range(len(order)), [*class_names, "nothing\n(false alarm)"])
    ax.set(xlabel="detected as", ylabel="truth")
    ax.tick_params(length=0, labelcolor=INK)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def score_histogram(
    ax: Axes | None, curve: PrecisionRecall, title: str = "", threshold: float | None = None
) -> Axes:
    """Scores of the right detections and of the false alarms of one class, on a logarithmic axis."""
    ax = axes_or_new(ax, (3.7, 3.0))
    edges = np.linspace(0, 1, 26)
    for mask, color, name in (
        (curve.true_positive, RIGHT, "right"),
        (~curve.true_positive, WRONG, "false alarm"),
    ):
        counts, _ = np.histogram(curve.scores[mask], edges)
        ax.stairs(counts, edges, color=color, lw=1.8, fill=False, label=name)
        ax.stairs(counts, edges, color=color, alpha=0.2, fill=True, baseline=0.5)
    if threshold is not None:
        ax.axvline(threshold, color=MUTED, lw=1.2)
    ax.set(yscale="log", xlim=(0, 1), xlabel="score", title=title)
    ax.set_ylim(0.5, max(ax.get_ylim()[1], 20))
    return ax


def counts_scatter(
    ax: Axes | None, true: Sequence[int], counted: Sequence[int], name: str, class_names: Sequence[str]
) -> Axes:
    """One dot an image: objects in the ground truth and objects counted; on the diagonal they agree.

    Dots that fall on each other are drawn larger.
    """
    ax = axes_or_new(ax, (3.7, 3.6))
    pairs = np.stack([np.asarray(true, dtype=int), np.asarray(counted, dtype=int)], axis=1).reshape(-1, 2)
    spots, images = np.unique(pairs, axis=0, return_counts=True)
    most = max(pairs.max(initial=0), 2)
    ax.plot([-1, most + 1], [-1, most + 1], color=MUTED, lw=1.2, ls="--", zorder=1)
    ax.scatter(spots[:, 0], spots[:, 1], s=26 * images**0.7, color=color_of(name, class_names), alpha=0.75,
               lw=0, zorder=2)  # fmt: skip
    margin = 0.06 * most + 0.3
    ax.set(xlim=(-margin, most + margin), ylim=(-margin, most + margin), aspect="equal")
    ax.set(xlabel="in the ground truth", ylabel="counted", title=name)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return ax


def hidden_label_curves(
    ax: Axes | None, shares: Sequence[float], values: Mapping[str, Sequence[float]]
) -> Axes:
    """{quantity: its value} when a share of all labels is taken away."""
    ax = axes_or_new(ax, (5.6, 3.4))
    styles = ("o-", "s--", "^:", "d-.")
    colors = (RIGHT, MISSED, INK, WRONG)
    for i, (name, numbers) in enumerate(values.items()):
        ax.plot(100 * np.asarray(shares), numbers, styles[i % 4], ms=5, color=colors[i % 4], label=name)
    ax.set(ylim=(0, 1.04), xlabel="labels taken away, %")
    if values:
        ax.legend(fontsize=9)
    return ax


def crop(ax: Axes | None, image: Any, box_xyxy: Any, *, title: str = "", color: str = WRONG) -> Axes:
    """The surroundings of one box (4,), about twice its side or 80 pixels, with the box drawn.

    At the image's border the window is moved inside.
    """
    ax = axes_or_new(ax, (2, 2.2))
    show_image(ax, image)
    ax.set_title(title, fontsize=9, weight="normal")
    xmin, ymin, xmax, ymax = np.asarray(box_xyxy, dtype=float)
    half = max(0.9 * max(xmax - xmin, ymax - ymin), 40)
    height, width = np.asarray(image).shape[:2]
    half = min(half, height / 2, width / 2)
    x, y = (
        np.clip((a + b) / 2, half, size - half) for a, b, size in ((xmin, xmax, width), (ymin, ymax, height))
    )
    draw_boxes(ax, box_xyxy, color=color, width=2)
    ax.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
    return ax
