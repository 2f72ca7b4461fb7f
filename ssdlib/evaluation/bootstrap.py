"""Percentile intervals of every metric by the bootstrap over images (Efron 1979).

Images, not objects, are resampled with replacement, because the cells of one field share stain, focus and
whoever labeled them. Which detections match does not depend on which images are resampled, so matching is
done once: a resample only says how often each image counts, and its metrics are weighted ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssdlib.evaluation.matching import Target
from ssdlib.evaluation.metrics import CLASS_FIGURES, MEANS, weighted_metrics
from ssdlib.evaluation.tables import LEVEL, Interval
from ssdlib.inference.detections import Detections


@dataclass(frozen=True)
class Intervals:
    """Every figure of `Metrics` with its interval over the images."""

    map_50: Interval
    map: Interval
    voc07_map: Interval
    voc12_map: Interval
    mar_100: Interval
    classes: dict[str, dict[str, Interval]]
    """The intervals of the figures CLASS_FIGURES of each class."""
    images: int
    samples: int
    seed: int
    level: float = LEVEL

    @property
    def per_class(self) -> dict[str, Interval]:
        """COCO's AP at IoU 0.5 of each class."""
        return {name: figures["ap_50"] for name, figures in self.classes.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, `per_class` among them."""
        return {**asdict(self), "per_class": {name: asdict(one) for name, one in self.per_class.items()}}


def bootstrap_map(
    detections: Sequence[Detections],
    targets: Sequence[Target],
    class_names: Sequence[str],
    *,
    score_threshold: float | Mapping[str, float] = 0.5,
    samples: int = 1000,
    seed: int = 0,
) -> Intervals:
    """Every figure as `evaluate_detections` gives it, with the interval of 95 % of the bootstrap resamples.

    Resamples without an object of a class say nothing about that class, and their mean is over the classes
    they have. A single image has figures, but no interval. Raises ConfigError for a
    bad threshold.
    """
    weights = resample_images(len(targets), samples, seed)
    figures = weighted_metrics(detections, targets, class_names, weights, score_threshold=score_threshold)
    return Intervals(
        **{mean: percentile_interval(figures[mean]) for mean in MEANS},
        classes={
            name: {figure: percentile_interval(figures[figure][k]) for figure in CLASS_FIGURES}
            for k, name in enumerate(class_names)
        },
        images=len(targets),
        samples=samples,
        seed=seed,
    )


def resample_images(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """The (1 + samples, images) int64 weights of the images: all of them once, then each resample.

    A resample is as many images as there are, with replacement. The same seed and number of images give the
    same ones. Of fewer than two images there are none: a single image resampled is the same image.
    """
    once = np.ones((1, images), dtype=np.int64)
    if images < 2:
        return once
    shares = np.full(images, 1 / images)
    return np.concatenate([once, np.random.default_rng(seed).multinomial(images, shares, size=samples)])


def percentile_interval(figures: np.ndarray) -> Interval:
    """The interval of one figure (1 + S,): of all images, then of each resample; NaN is undefined."""
    value, resampled = figures[0], figures[1:]
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(value):
        return Interval(None, None, None)
    if not len(resampled):
        return Interval(float(value), None, None)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
