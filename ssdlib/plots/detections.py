"""Figures of detections: on the image, beside the ground truth, through NMS, and as counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from ssdlib.inference.draw import color_of
from ssdlib.plots.boxes import Line, as_boxes, draw_boxes, show_image, tag_boxes
from ssdlib.plots.data import ground_truth
from ssdlib.plots.style import INK, MUTED

if TYPE_CHECKING:
    from ssdlib.inference.detections import Detections


def counts_text(counts: Mapping[str, int]) -> str:
    """The counts in one line, such as "1 WBC, 12 RBC, 2 Platelets"."""
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def detected(ax: Axes, image: Any, detections: Detections, title: str | None = None) -> Axes:
    """The Axes with an image (H, W, 3) and its detections; the title is their counts unless given."""
    show_image(ax, image, counts_text(detections.counts()) if title is None else title)
    return draw_boxes(ax, detections.boxes, detections.labels)


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


def mark_boxes(ax: Axes, boxes_xyxy: Any, symbol: str) -> Axes:
    """The Axes with a symbol in the middle of each of the (K, 4) boxes, black with a white rim."""
    rim = [withStroke(linewidth=2.5, foreground="white")]
    for xmin, ymin, xmax, ymax in as_boxes(boxes_xyxy):
        x, y = (xmin + xmax) / 2, (ymin + ymax) / 2
        ax.text(x, y, symbol, color=INK, size=13, weight="bold", ha="center", va="center", path_effects=rim)
    return ax


SUPPRESSION_LINES: dict[str, Line] = {
    "waiting": {"color": INK, "lw": 0.9},
    "kept": {"color": "#1d4ed8", "lw": 2.8},
    "suppressed": {"color": MUTED, "lw": 1.2, "ls": (0, (2.5, 2))},
}
"""How boxes are outlined in each state of NMS, told apart without color, too, by width and dashes."""


def suppression(
    ax: Axes,
    boxes_xyxy: Any,
    *,
    kept: Iterable[int] = (),
    suppressed: Iterable[int] = (),
    scores: Sequence[float] | None = None,
) -> Axes:
    """The Axes, which hold an image or a board, with a state of NMS: the candidates (K, 4), kept ones on top.

    With `scores` each box is tagged by its number, from 1, and its score.
    """
    boxes = as_boxes(boxes_xyxy)
    state_of = {**dict.fromkeys(suppressed, "suppressed"), **dict.fromkeys(kept, "kept")}
    states = [state_of.get(k, "waiting") for k in range(len(boxes))]
    for state in ("suppressed", "waiting", "kept"):
        draw_boxes(ax, boxes[[one == state for one in states]], **SUPPRESSION_LINES[state])
    if scores is not None:
        tags = [f"{number}  {score:.1f}" for number, score in enumerate(scores, 1)]
        tag_boxes(ax, boxes, tags, [SUPPRESSION_LINES[state]["color"] for state in states])
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
        parts = [one.scores[one.labels == label] for one in detections]
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
