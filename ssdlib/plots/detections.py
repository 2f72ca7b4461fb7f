"""Figures of detections: on the image, beside the ground truth, through NMS, and as counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from ssdlib.inference.draw import color_of
from ssdlib.plots.boxes import Line, as_boxes, draw_boxes, show_image, tag_boxes
from ssdlib.plots.data import ground_truth
from ssdlib.plots.style import INK, MUTED, table

if TYPE_CHECKING:
    from ssdlib.inference.detections import Detections


def counts_text(counts: Mapping[str, int]) -> str:
    """The counts in one line, such as "1 WBC, 12 RBC, 2 Platelets"."""
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def detected(ax: Axes, image: Any, detections: Detections, title: str | None = None) -> Axes:
    """The Axes with an image (H, W, 3) and its detections; the title is their counts unless given."""
    show_image(ax, image, counts_text(detections.counts()) if title is None else title)
    return draw_boxes(ax, detections.boxes.numpy(), detections.labels.numpy())


def triptych(
    axes: Sequence[Axes], image: Any, detections: Detections, target: Mapping[str, Any]
) -> Sequence[Axes]:
    """The three Axes with an image, its detections and its ground truth, the latter two with their counts."""
    given, predicted, truth = axes
    show_image(given, image, detections.image)
    detected(predicted, image, detections)
    labels = np.asarray(target["labels"])
    counts = {name: int((labels == k).sum()) for k, name in enumerate(detections.class_names, start=1)}
    ground_truth(truth, image, target, counts_text(counts))
    return axes


def suppression_lines(color: str = INK) -> dict[str, Line]:
    """How boxes are outlined in each state of NMS: {"waiting", "kept", "suppressed"}."""
    return {
        "waiting": {"color": color, "lw": 1.0},
        "kept": {"color": "#15803d", "lw": 2.5},
        "suppressed": {"color": MUTED, "lw": 1.2, "ls": (0, (1.5, 1.5))},
    }


def suppression(
    ax: Axes,
    boxes_xyxy: Any,
    *,
    kept: Iterable[int] = (),
    suppressed: Iterable[int] = (),
    scores: Sequence[float] | None = None,
    color: str = INK,
) -> Axes:
    """The Axes, which hold an image or a board, with a state of NMS: the candidates (K, 4), kept ones on top.

    With `scores` each box is tagged by its number, from 1, and its score.
    """
    boxes, lines = as_boxes(boxes_xyxy), suppression_lines(color)
    state_of = {**dict.fromkeys(suppressed, "suppressed"), **dict.fromkeys(kept, "kept")}
    states = [state_of.get(k, "waiting") for k in range(len(boxes))]
    for state in ("suppressed", "waiting", "kept"):
        draw_boxes(ax, boxes[[one == state for one in states]], **lines[state])
    if scores is not None:
        tags = [f"{number}  {score:.1f}" for number, score in enumerate(scores, 1)]
        tag_boxes(ax, boxes, tags, [lines[state]["color"] for state in states])
    return ax


def counts_by_threshold(
    ax: Axes,
    detections: Sequence[Detections],
    true_counts: Mapping[str, int],
    thresholds: Mapping[str, float] | None = None,
) -> Axes:
    """The Axes with the number of detections in all images that reach a score, against that score.

    A curve for each class; its true number is dashed, where it has objects, and a dot marks its working
    threshold.
    """
    names = list(true_counts)
    for label, name in enumerate(names, start=1):
        parts = [one.scores.numpy()[one.labels.numpy() == label] for one in detections]
        scores = np.sort(np.concatenate([np.empty(0), *parts]))
        levels = np.linspace(0.01, 1, 200)
        count = len(scores) - np.searchsorted(scores, levels)
        color = color_of(name, names)
        ax.plot(levels, np.where(count > 0, count, np.nan), color=color, label=name)
        if true_counts[name]:
            ax.axhline(true_counts[name], color=color, lw=1.2, ls="--")
        if thresholds is not None:
            reached = len(scores) - np.searchsorted(scores, np.float32(thresholds[name]))
            ax.plot([thresholds[name]], [reached or np.nan], "o", ms=9, color=color, mec="white", mew=1.5)
    ax.set(yscale="log", xlim=(0, 1), xlabel="score threshold", ylabel="cells counted (logarithmic)")
    if names:
        ax.legend(loc="upper right", fontsize=9)
    return ax


def counts_table(ax: Axes, rows: Mapping[str, Sequence[tuple[int, int]]], names: Sequence[str]) -> Axes:
    """The Axes with {image: (counted, true) for each class} as a table, in color where the two differ."""
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


def scores_table(ax: Axes, detections: Sequence[Detections], names: Sequence[str]) -> Axes:
    """The Axes with a table of each class's number and mean score, by image and together."""
    images = {one.image: [one] for one in detections}
    rows = {}
    for image, group in {**images, "together": detections}.items():
        scores = np.concatenate([[], *(one.scores.numpy() for one in group)])
        labels = np.concatenate([[], *(one.labels.numpy() for one in group)])
        own = [scores[labels == k] for k in range(1, len(names) + 1)]
        rows[image] = [f"{len(s)}" + (f"  ({s.mean():.2f})" if len(s) else "") for s in own]
    return table(ax, [f"{name} (mean score)" for name in names], rows)
