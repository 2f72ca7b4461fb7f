"""Figures of detections: on the image, beside the ground truth, through NMS, and as counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssdlib.inference.draw import color_of
from ssdlib.plots.style import GRID, INK, axes_or_new, draw_boxes, show_image, table

if TYPE_CHECKING:
    from ssdlib.inference.detections import Detections

KEPT, SUPPRESSED = "#15803d", "#6b7280"


def counts_text(counts: Mapping[str, int]) -> str:
    """Such as "1 WBC, 12 RBC, 2 Platelets"."""
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def detected(
    ax: Axes | None, image: Any, detections: Detections, *, title: str | None = None, captions: bool = False
) -> Axes:
    """An image (H, W, 3) with its detections in class colors; the title tells the counts unless given.

    `captions` writes class and score at each box.
    """
    ax = axes_or_new(ax, (5.2, 4.1))
    show_image(ax, image, counts_text(detections.counts()) if title is None else title)
    return draw_boxes(
        ax, detections.boxes.numpy(), detections.labels.numpy(), detections.class_names,
        detections.scores.numpy(), width=1.8, captions=captions,
    )  # fmt: skip


def triptych(
    axes: Sequence[Axes], image: Any, detections: Detections, target: Mapping[str, Any]
) -> Sequence[Axes]:
    """Input, prediction and ground truth of one image on three Axes, with the counts of each."""
    given, predicted, truth = axes
    show_image(given, image, detections.image)
    detected(predicted, image, detections)
    labels = np.asarray(target["labels"])
    counts = {name: int((labels == k).sum()) for k, name in enumerate(detections.class_names, start=1)}
    show_image(truth, image, counts_text(counts))
    draw_boxes(truth, target["boxes"], labels, width=1.8)
    return axes


def suppression(
    ax: Axes | None,
    image: Any,
    boxes_xyxy: Any,
    *,
    kept: Iterable[int] = (),
    suppressed: Iterable[int] = (),
    color: str = INK,
) -> Axes:
    """A state of NMS: of the candidates (K, 4), kept ones thick green, suppressed gray, waiting ones thin."""
    ax = axes_or_new(ax, (4.2, 3.3))
    show_image(ax, image)
    boxes = np.asarray(boxes_xyxy, dtype=float).reshape(-1, 4)
    kept, suppressed = list(kept), list(suppressed)
    waiting = sorted(set(range(len(boxes))) - set(kept) - set(suppressed))
    draw_boxes(ax, boxes[suppressed], color=SUPPRESSED, width=0.8)
    draw_boxes(ax, boxes[waiting], color=color, width=0.8)
    draw_boxes(ax, boxes[kept], color=KEPT, width=2.4)
    return ax


def suppression_board(
    ax: Axes | None,
    boxes_xyxy: Any,
    scores: Sequence[float],
    *,
    kept: Iterable[int] = (),
    suppressed: Iterable[int] = (),
    size: float = 100,
) -> Axes:
    """The same for a drawn example: numbered boxes (K, 4) with their scores on an empty board."""
    ax = axes_or_new(ax, (3, 3))
    ax.set(xlim=(0, size), ylim=(size, 0), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color(GRID)
    kept, suppressed = set(kept), set(suppressed)
    boxes = np.asarray(boxes_xyxy, dtype=float).reshape(-1, 4)
    order = sorted(range(len(boxes)), key=lambda k: (k in kept, k not in suppressed))  # kept ones on top
    for k in order:
        color, style = (KEPT, "-") if k in kept else (SUPPRESSED, ":") if k in suppressed else (INK, "-")
        draw_boxes(ax, boxes[k], color=color, width=2.6 if k in kept else 1.4, style=style)
        # Neighbors are often shifted by little: every other tag goes to the opposite corner.
        x, y, ha, va = (*boxes[k, :2], "left", "top") if k % 2 == 0 else (*boxes[k, 2:], "right", "bottom")
        ax.text(x, y, f"{k + 1}  {scores[k]:.1f}", color="white", fontsize=8, ha=ha, va=va,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5})  # fmt: skip
    return ax


def counts_by_threshold(
    ax: Axes | None,
    detections: Sequence[Detections],
    true_counts: Mapping[str, int],
    thresholds: Mapping[str, float] | None = None,
) -> Axes:
    """Detections of each class in all images that reach a score, the true numbers dashed, on a log axis.

    A dot marks each class's working threshold.
    """
    ax = axes_or_new(ax, (7, 3.8))
    names = list(true_counts)
    for label, name in enumerate(names, start=1):
        parts = [one.scores.numpy()[one.labels.numpy() == label] for one in detections]
        scores = np.sort(np.concatenate([np.empty(0), *parts]))
        levels = np.linspace(0.01, 1, 200)
        count = len(scores) - np.searchsorted(scores, levels)
        color = color_of(name, names)
        ax.plot(levels, np.where(count > 0, count, np.nan), color=color, label=name)
        ax.axhline(max(true_counts[name], 0.5), color=color, lw=1.2, ls="--")
        if thresholds is not None:
            reached = len(scores) - np.searchsorted(scores, np.float32(thresholds[name]))
            ax.plot([thresholds[name]], [reached or np.nan], "o", ms=9, color=color, mec="white", mew=1.5)
    ax.set(yscale="log", xlim=(0, 1), xlabel="score threshold", ylabel="cells counted (logarithmic)")
    if names:
        ax.legend(loc="upper right", fontsize=9)
    return ax


def counts_table(
    ax: Axes | None, rows: Mapping[str, Sequence[tuple[int, int]]], names: Sequence[str]
) -> Axes:
    """{image: (counted, true) for each class} as a table; where the two differ, the cell is tinted."""
    ax = axes_or_new(ax, (8, 0.6 + 0.3 * len(rows)))
    if not rows:
        ax.set_axis_off()
        return ax
    texts = {image: [f"{c} / {t}" for c, t in pairs] for image, pairs in rows.items()}
    table(ax, [f"{name}\ncounted / true" for name in names], texts)
    drawn = ax.tables[0]
    for j in range(len(names)):
        drawn[0, j].set_height(drawn[0, j].get_height() * 1.6)
    for i, pairs in enumerate(rows.values(), start=1):
        for j, (counted, true) in enumerate(pairs):
            if counted != true:
                drawn[i, j].get_text().set_color("#c2410c")
                drawn[i, j].get_text().set_weight("bold")
    return ax


def scores_table(ax: Axes | None, detections: Sequence[Detections], names: Sequence[str]) -> Axes:
    """For each image and all together: the number of each class and its mean score."""
    ax = axes_or_new(ax, (8, 0.8 + 0.3 * len(detections)))
    rows = {}
    for one in detections:
        counts, means = one.counts(), one.mean_scores()
        rows[one.image] = [
            f"{counts[name]}" + ("" if means[name] is None else f"  ({means[name]:.2f})") for name in names
        ]
    scores = [one.scores.numpy() for one in detections]
    labels = [one.labels.numpy() for one in detections]
    score, label = (np.concatenate([np.empty(0), *parts]) for parts in (scores, labels))
    rows["together"] = [
        f"{(label == k).sum()}" + (f"  ({score[label == k].mean():.2f})" if (label == k).any() else "")
        for k in range(1, len(names) + 1)
    ]
    table(ax, [f"{name} (mean score)" for name in names], rows)
    return ax


def legend_of_states(figure: Figure, color: str = INK) -> Figure:
    """What the colors of `suppression` mean, above all Axes of the figure."""
    states = {"waiting": (color, 0.8), "kept": (KEPT, 2.4), "suppressed": (SUPPRESSED, 0.8)}
    handles = [Line2D([], [], color=shade, lw=width, label=name) for name, (shade, width) in states.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
    return figure
