"""Figures of how good a detector is: curves, tables, confusion, calibration and counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ssdlib.common.tables import number
from ssdlib.inference.draw import color_of
from ssdlib.plots.errors import FALSE_POSITIVE, TRUE_POSITIVE
from ssdlib.plots.style import INK, MUTED, say_missing

if TYPE_CHECKING:
    from ssdlib.evaluation.calibration import Reliability
    from ssdlib.evaluation.counting import ClassCounts, CountCurve
    from ssdlib.evaluation.metrics import PrecisionRecall

GREEN, ORANGE = TRUE_POSITIVE["color"], FALSE_POSITIVE["color"]


def precision_recall_by_hand(ax: Axes, curve: PrecisionRecall, *, eleven: bool = False) -> Axes:
    """The Axes with a short curve by points, its envelope, and its area or VOC 2007's eleven points."""
    ax = _precision_recall_axes(ax)
    recall, envelope = curve.recall, curve.envelope
    if len(recall):
        steps_x = np.concatenate([[0.0], recall, recall[-1:]])
        steps_y = np.concatenate([envelope[:1], envelope, [0.0]])
        ax.plot(steps_x, steps_y, drawstyle="steps-pre", color=INK, label="best precision from here on")
        if eleven:
            levels = np.arange(11) / 10
            heights = [max(envelope[recall >= level - 1e-9], default=0.0) for level in levels]
            ax.vlines(levels, 0, heights, color=GREEN, lw=2)
            ax.plot(levels, heights, "o", color=GREEN, ms=6, label="read at 11 recalls")
        else:
            ax.fill_between(steps_x, steps_y, step="pre", color=GREEN, alpha=0.15, lw=0, label="area = AP")
    ax.plot(recall, curve.precision, "o", ms=6, mfc="white", mec=INK, label="after each detection")
    if not eleven:
        for k, (x, y) in enumerate(zip(recall, curve.precision, strict=True), 1):
            ax.annotate(str(k), (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9, color=INK)
    ax.legend(loc="lower left" if not eleven else "upper right", fontsize=8)
    return ax


def precision_recall_curves(
    ax: Axes, curves: Mapping[str, PrecisionRecall], thresholds: Mapping[str, float]
) -> Axes:
    """The Axes with a precision-recall curve for each class, with a dot at its score threshold."""
    ax = _precision_recall_axes(ax)
    names = list(curves)
    for name, curve in curves.items():
        color = color_of(name, names)
        recall = np.concatenate([[0.0], curve.recall])
        precision = np.concatenate([curve.precision[:1], curve.precision]) if len(curve.scores) else [np.nan]
        ax.plot(recall, precision, color=color, label=f"{name}, AP {number(curve.voc12_ap)}")
        p, r, _ = curve.at(thresholds[name])
        if None not in (p, r):
            ax.plot([r], [p], "o", ms=9, color=color, mec="white", mew=1.5, zorder=3)
    if names:
        ax.legend(loc="lower left", fontsize=9)
    return ax


def _precision_recall_axes(ax: Axes) -> Axes:
    ax.set(xlim=(-0.02, 1.04), ylim=(0, 1.06), xlabel="recall", ylabel="precision")
    return ax


def ap_by_iou(ax: Axes, ious: Sequence[float], values: Mapping[str, Sequence[float | None]]) -> Axes:
    """The Axes with average precision against the IoU threshold: {class: AP at each of `ious`}."""
    names = list(values)
    for name in names:
        heights = [np.nan if value is None else value for value in values[name]]
        ax.plot(ious, heights, "o-", ms=5, color=color_of(name, names), label=name)
    ax.set(ylim=(0, 1.04), xlabel="IoU from which a detection is right", ylabel="average precision")
    if names:
        ax.legend(fontsize=9)
    return ax


def threshold_curves(
    ax: Axes, curve: PrecisionRecall, name: str, class_names: Sequence[str], chosen: float
) -> Axes:
    """The Axes with precision (solid), recall (dashed) and F1 (dotted) of one class against the threshold."""
    levels = np.linspace(0.01, 0.99, 99)
    points = [curve.at(level)[:2] for level in levels]
    precision, recall = np.array(points, dtype=float).T  # None becomes NaN
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.full(len(both), np.nan), where=both > 0)
    color = color_of(name, class_names)
    ax.plot(levels, precision, color=color, label="precision")
    ax.plot(levels, recall, "--", color=color, label="recall")
    ax.plot(levels, f1, ":", color=INK, label="F1")
    if not curve.ground_truth:
        say_missing(ax, "no object of this class, so no recall")
    ax.set(xlim=(0, 1), ylim=(0, 1.12), xlabel="score threshold", title=name)
    ax.set_yticks(np.linspace(0, 1, 6))
    return _mark_threshold(ax, chosen)


def count_threshold_curve(
    ax: Axes, curve: CountCurve, name: str, class_names: Sequence[str], chosen: float
) -> Axes:
    """The Axes with the mean absolute (solid) and mean (dashed) count difference by threshold."""
    color = color_of(name, class_names)
    if not curve.objects:
        say_missing(ax, "no object of this class to choose by")
    ax.plot(curve.thresholds, curve.mae, color=color, label="mean |difference|")
    ax.plot(curve.thresholds, curve.bias, "--", color=color, label="mean difference")
    ax.axhline(0, color=MUTED, lw=0.8)
    # Low thresholds count so many that the interesting part would be flat.
    near = curve.mae[np.abs(curve.thresholds - chosen) <= 0.25]
    top = max(2.5 * float(np.nanmax(near)), 1.0) if len(near) and np.isfinite(near).any() else 1.0
    ax.set(xlim=(0, 1), ylim=(-top, top), xlabel="score threshold", title=name)
    return _mark_threshold(ax, chosen)


def _mark_threshold(ax: Axes, chosen: float) -> Axes:
    """Draw a line at a chosen threshold and write it beside the line, on the side with more room."""
    ax.axvline(chosen, color=MUTED, lw=1.2)
    left = chosen < 0.5
    ax.annotate(f"{chosen:.2f}", (chosen, 0.97), (4 if left else -4, 0), textcoords="offset points",
                xycoords=("data", "axes fraction"), fontsize=9, color=INK, va="top",
                ha="left" if left else "right")  # fmt: skip
    return ax


def confusion(ax: Axes, matrix: Any, class_names: Sequence[str]) -> Axes:
    """The Axes with the confusion matrix (C, C), background last, shaded by the share of the row.

    The row of a class without objects has no shares.
    """
    order = [*range(1, len(class_names) + 1), 0]
    counts = np.asarray(matrix)[np.ix_(order, order)]
    objects = counts.sum(axis=1)
    share = counts / np.maximum(objects, 1)[:, None]
    diagonal = np.eye(len(counts), dtype=bool)
    for mask, colors in ((diagonal, "Greens"), (~diagonal, "Oranges")):
        ax.imshow(np.ma.array(share, mask=~mask), cmap=colors, vmin=0, vmax=1.3)
    for (i, j), count in np.ndenumerate(counts):
        void = i == j == len(class_names)
        of_row = "" if i == len(class_names) else f"\n{share[i, j]:.0%}" if objects[i] else "\nn/a"
        text = "–" if void else f"{count}{of_row}"
        ax.text(j, i, text, ha="center", va="center", fontsize=11,
                color="white" if share[i, j] > 0.8 else INK)  # fmt: skip
    ax.set_xticks(range(len(order)), [*class_names, "nothing\n(missed)"])
    ax.set_yticks(range(len(order)), [*class_names, "nothing\n(false positive)"])
    ax.set(xlabel="detected as", ylabel="truth")
    ax.tick_params(length=0, labelcolor=INK)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def score_histogram(ax: Axes, curve: PrecisionRecall, title: str, threshold: float) -> Axes:
    """The Axes with histograms of the scores of one class's true and false positives, counts logarithmic."""
    edges = np.linspace(0, 1, 26)
    for mask, color, name in (
        (curve.true_positive, GREEN, "true positive"),
        (~curve.true_positive, ORANGE, "false positive"),
    ):
        counts, _ = np.histogram(curve.scores[mask], edges)
        ax.stairs(counts, edges, color=color, lw=1.8, fill=False, label=name)
        ax.stairs(counts, edges, color=color, alpha=0.2, fill=True, baseline=0.5)
    ax.axvline(threshold, color=MUTED, lw=1.2)
    ax.set(yscale="log", xlim=(0, 1), xlabel="score", title=title)
    ax.set_ylim(0.5, max(ax.get_ylim()[1], 20))
    return ax


def reliability_diagram(
    ax: Axes, reliability: Reliability, title: str, *, scaled: Reliability | None, color: str
) -> Axes:
    """The Axes with the share of true positives in each bin of scores, the bin's count above it.

    Calibrated scores lie on the diagonal. `scaled` adds the detections after temperature scaling, as rings.
    """
    ax.plot([0, 1], [0, 1], color=MUTED, lw=1.2, ls="--", zorder=1)
    for one in reliability.bins:
        middle = (one.low + one.high) / 2
        if one.precision is not None:
            ax.bar(middle, one.precision, 0.9 * (one.high - one.low), color=color, alpha=0.3, lw=0)
            ax.plot([one.mean_score] * 2, [one.mean_score, one.precision], color=color, lw=1.4, zorder=2)
        ax.text(middle, 1.03, f"{one.count}", fontsize=7, color=INK, ha="center", va="bottom")
    handles = [_points(ax, reliability, "as they came", color, color)]
    if scaled is not None:
        handles.append(_points(ax, scaled, "scaled", "white", INK))
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0.93), fontsize=8, handletextpad=0.3)
    ax.set(xlim=(0, 1), ylim=(0, 1.12), xlabel="score", ylabel="share right", title=title)
    ax.set_yticks(np.linspace(0, 1, 6))
    return ax


def _points(ax: Axes, reliability: Reliability, name: str, face: str, edge: str) -> Line2D:
    held = [one for one in reliability.bins if one.count]
    return ax.plot(
        [one.mean_score for one in held], [one.precision for one in held], "o", ms=6, mfc=face, mec=edge,
        zorder=3, label=f"{name}: ECE {number(reliability.ece)}",
    )[0]  # fmt: skip


def counts_scatter(
    ax: Axes, true: Sequence[int], counted: Sequence[int], name: str, class_names: Sequence[str]
) -> Axes:
    """The Axes with a dot an image: its objects counted against those in the ground truth.

    On the diagonal the two agree. Dots that fall on each other are drawn larger.
    """
    most = max([2, *true, *counted])
    margin = 0.06 * most + 0.3
    ax.plot([-1, most + 1], [-1, most + 1], color=MUTED, lw=1.2, ls="--", zorder=1)
    _dots(ax, true, counted, color_of(name, class_names))
    ax.set(xlim=(-margin, most + margin), ylim=(-margin, most + margin), aspect="equal")
    ax.set(xlabel="in the ground truth", ylabel="counted", title=name)
    return ax


def bland_altman(ax: Axes, counts: ClassCounts, name: str, class_names: Sequence[str]) -> Axes:
    """The Axes with each image's difference of counted and true against their mean (Bland & Altman 1986).

    The bias is a solid line, the 95 % limits of agreement are dashed, their intervals shaded. Dots that fall
    on each other are drawn larger.
    """
    true, counted = np.array(counts.true_per_image, float), np.array(counts.counted_per_image, float)
    mean, difference = (true + counted) / 2, counted - true
    ends = [1.0, *np.abs(difference)]
    ax.axhline(0, color=MUTED, lw=0.8)
    for label, line, style in (
        ("bias", counts.bias, "-"), ("", counts.lower_limit, "--"), ("95 %", counts.upper_limit, "--"),
    ):  # fmt: skip
        if line.value is None:
            continue
        ax.axhline(line.value, color=INK, lw=1.4, ls=style)
        if line.low is not None:
            ax.axhspan(line.low, line.high, color=INK, alpha=0.08, lw=0)
        ends += [abs(end) for end in (line.value, line.low, line.high) if end is not None]
        if style == "--" and line.value == counts.bias.value:
            continue  # its number would only be written over that of the bias
        ax.annotate(f"{label} {line.value:+.2f}".strip(), (1, line.value), (-2, 2), fontsize=8, color=INK,
                    xycoords=("axes fraction", "data"), textcoords="offset points", ha="right")  # fmt: skip
    _dots(ax, mean, difference, color_of(name, class_names))
    low, high = min(mean, default=0), max(mean, default=0)
    # Room at the right for the numbers of the lines.
    ax.set(xlim=(low - 0.08 * (high - low) - 0.3, high + 0.28 * (high - low) + 0.5))
    ax.set(ylim=(-1.15 * max(ends), 1.25 * max(ends)))
    ax.set(xlabel="mean of counted and true", ylabel="counted − true", title=name)
    return ax


def _dots(ax: Axes, x: Any, y: Any, color: str) -> None:
    """A dot for each pair, larger where several fall on each other; both axes with whole numbers."""
    spots, images = np.unique(np.stack([x, y], axis=1).reshape(-1, 2), axis=0, return_counts=True)
    ax.scatter(*spots.T, s=24 * images**0.7, color=color, alpha=0.75, lw=0, zorder=2)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
