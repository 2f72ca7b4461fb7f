"""Figures of a detector's errors: on the image, on a drawn example, by kind, and the worst of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssdlib.common.tables import number
from ssdlib.inference.draw import color_of
from ssdlib.plots.boxes import Line, board, draw_boxes, show_image, tag_boxes
from ssdlib.plots.charts import stacked_bars
from ssdlib.plots.style import MUTED, Source, new_figure

if TYPE_CHECKING:
    from ssdlib.evaluation.matching import Matches
    from ssdlib.evaluation.tide import TideErrors, WorstError
    from ssdlib.inference.detections import Detections

# Also told apart by width, dashes and marks: to a red-green blind eye, green and orange are two browns.
TRUE_POSITIVE: Line = {"color": "#065f46", "lw": 1.3}
FALSE_POSITIVE: Line = {"color": "#ea580c", "lw": 2.2}
MISSED: Line = {"color": "#1d4ed8", "lw": 2.2, "ls": (0, (2.5, 1.5))}
_CROSS: Line = {"marker": "X", "ms": 7, "mec": "white", "mew": 0.7}
MATCH_LINES = {
    "true positive": TRUE_POSITIVE, "false positive": {**FALSE_POSITIVE, **_CROSS}, "missed": MISSED,
}  # fmt: skip
"""How boxes are outlined, by name: `legend_above(figure, MATCH_LINES)` says so."""


def matched_image(
    ax: Axes,
    image: Any,
    detections: Detections,
    target: Mapping[str, Any],
    matches: Matches,
    title: str = "",
) -> Axes:
    """The Axes with an image (H, W, 3), its true and false positives, and the objects that were missed.

    A false positive has a cross at its upper left corner.
    """
    show_image(ax, image, title)
    boxes = detections.boxes
    draw_boxes(ax, boxes[matches.true_positive], **TRUE_POSITIVE)
    draw_boxes(ax, np.asarray(target["boxes"]).reshape(-1, 4)[matches.missed], **MISSED)
    wrong = boxes[~matches.true_positive]
    ax.autoscale(False)  # the image alone says how far the Axes go
    ax.plot(wrong[:, 0], wrong[:, 1], ls="", color=FALSE_POSITIVE["color"], **_CROSS)
    return draw_boxes(ax, wrong, **FALSE_POSITIVE)


def matched_board(
    ax: Axes, objects_xyxy: Any, boxes_xyxy: Any, right: Sequence[bool], *, size: float
) -> Axes:
    """A board with objects (G, 4) named A, B, ... and boxes (D, 4) numbered from 1, each right or wrong.

    A true positive is green, its number has a tick; a false positive is orange and has a cross.
    """
    ax = board(ax, size, objects_xyxy)
    lines = [TRUE_POSITIVE if one else FALSE_POSITIVE for one in right]
    for box, line in zip(boxes_xyxy, lines, strict=True):
        draw_boxes(ax, box, **{**line, "lw": 2.2})
    tags = [f"{k} {'✓' if one else '✗'}" for k, one in enumerate(right, start=1)]
    return tag_boxes(ax, boxes_xyxy, tags, [line["color"] for line in lines])


def delta_ap_bars(ax: Axes, errors: TideErrors) -> Axes:
    """The Axes with a bar for each kind of error: the points (0.01) of mAP to gain without it, by class."""
    names = list(errors.per_class)
    gains = {kind: [one.kinds[kind].delta_ap for one in errors.per_class.values()] for kind in errors.kinds}
    held = max(sum(gain is not None for gain in next(iter(gains.values()), [])), 1)
    rows = {kind: [100 * (gain or 0.0) / held for gain in values] for kind, values in gains.items()}
    ends = [
        f"{number(None if one.delta_ap is None else 100 * one.delta_ap, '.1f')}  ({one.count:,})"
        for one in errors.kinds.values()
    ]
    ax = stacked_bars(ax, rows, ends, {name: color_of(name, names) for name in names})
    ax.set(xlabel="mAP at IoU 0.5 to gain, in points (and number of errors)")
    if names:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=min(len(names), 4), fontsize=9)
    return ax


def error_grid(
    errors: Sequence[WorstError],
    image_of: Callable[[int], Any],
    *,
    columns: int = 6,
    source: Source | None = None,
) -> Figure:
    """A figure with a crop of each error, its kind, class and score above it.

    `image_of(image_index)` gives the image (H, W, 3). Detections are orange; objects that were missed, or
    that a false positive overlaps, are dashed blue.
    """
    rows = max(-(-len(errors) // columns), 1)
    figure, axes = new_figure(rows, columns, (2.05 * columns, 2.5 * rows), source, squeeze=False)
    for ax in axes:
        ax.set_axis_off()
    if not errors:
        axes[0].text(0, 0.5, "no errors", transform=axes[0].transAxes, color=MUTED)
    images = {index: image_of(index) for index in {one.image_index for one in errors}}
    for ax, one in zip(axes, errors, strict=False):
        missed = one.score is None or one.kind == "missed"
        crop(ax, images[one.image_index], one.box, MISSED if missed else FALSE_POSITIVE, _caption(one))
        if one.true_box is not None:
            draw_boxes(ax, one.true_box, **MISSED)
    return figure


def _caption(error: WorstError) -> str:
    said = f"{error.name} {'–' if error.score is None else f'{error.score:.2f}'}"
    if error.true_name not in (None, error.name):
        said += f" on {error.true_name}"
    return f"{error.kind}\n{said}"


def crop(ax: Axes, image: Any, box_xyxy: Any, line: Line, title: str = "") -> Axes:
    """The Axes with the surroundings of one box (4,), about twice its side or 80 pixels, and the box.

    At the image's border the window is moved inside.
    """
    show_image(ax, image)
    ax.set_title(title, fontsize=9, weight="normal")
    xmin, ymin, xmax, ymax = np.asarray(box_xyxy, dtype=float)
    half = max(0.9 * max(xmax - xmin, ymax - ymin), 40)
    height, width = np.asarray(image).shape[:2]
    half = min(half, height / 2, width / 2)
    x, y = (
        np.clip((a + b) / 2, half, size - half) for a, b, size in ((xmin, xmax, width), (ymin, ymax, height))
    )
    draw_boxes(ax, box_xyxy, **line)
    ax.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
    return ax
