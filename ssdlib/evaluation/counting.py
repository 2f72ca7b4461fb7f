"""Counting cells: the score thresholds that count best, and how well they count.

Thresholds are chosen on one split (val) and evaluated on another (test). The difference of two counts is
described as in Bland & Altman 1986, "Statistical methods for assessing agreement between two methods of
clinical measurement": its mean (bias) and the limits between which 95 % of the differences lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssdlib.config import DEFAULT_THRESHOLD
from ssdlib.evaluation.bootstrap import percentile_interval, resample_images
from ssdlib.evaluation.matching import Target, as_array, check_pairs
from ssdlib.evaluation.metrics import quotient
from ssdlib.evaluation.tables import LEVEL, Interval
from ssdlib.inference.detections import Detections, class_thresholds

CANDIDATES = np.arange(1, 100) / 100
_TOTAL_WITHIN = 0.02
_SPREAD = 1.96
"""Standard deviations that hold 95 % of a normal distribution."""


@dataclass(frozen=True, eq=False)
class CountCurve:
    """How well each of T candidate thresholds counts one class."""

    thresholds: np.ndarray
    """(T,) float64."""
    mae: np.ndarray
    """(T,) float64: mean absolute difference of an image's count; NaN without images."""
    bias: np.ndarray
    """(T,) float64: mean difference, counted less true; NaN without images."""
    objects: int
    """Objects of the class in all images."""
    images: int
    """The number of images."""

    def best(self) -> float:
        """The threshold of least MAE, of those the one of least |bias|, of those the nearest to 0.5.

        Where the split has no object of the class every count but 0 would be wrong and the highest threshold
        best, which says nothing: then 0.5 itself.
        """
        if not self.objects:
            return DEFAULT_THRESHOLD
        # Sums of whole numbers over the same number of images: equal ones may differ in the last bit.
        keys = (np.abs(self.thresholds - DEFAULT_THRESHOLD), np.abs(self.bias).round(9), self.mae.round(9))
        return float(self.thresholds[np.lexsort(keys)[0]])

    def unbiased(self) -> float:
        """Of the thresholds whose total is within 2 % of the truth, or else nearest to it, the one of least
        MAE, of those the nearest to 0.5.

        Where the split has no object of the class, 0.5.
        """
        if not self.objects:
            return DEFAULT_THRESHOLD
        off = np.abs(self.bias) * self.images
        right = off <= max(off.min(), _TOTAL_WITHIN * self.objects) + 1e-9
        keys = (np.abs(self.thresholds - DEFAULT_THRESHOLD), self.mae.round(9), ~right)
        return float(self.thresholds[np.lexsort(keys)[0]])


@dataclass(frozen=True)
class ClassCounts:
    """One class on N images. Differences are counted less true; intervals are over the images."""

    threshold: float | None
    """The score threshold; None where several classes with thresholds of their own are added up."""
    true: int
    counted: int
    mae: Interval
    """Mean absolute difference of an image's count."""
    bias: Interval
    """Mean difference."""
    lower_limit: Interval
    """Bias less 1.96 standard deviations of the differences; None for fewer than two images."""
    upper_limit: Interval
    r2: Interval
    """1 - sum of squared differences / sum of squares of the true counts about their mean: how well
    `counted = true` describes the counts. Negative if worse than always saying the mean; None if all true
    counts are equal."""
    pearson: Interval
    """Correlation; None where either count is the same on all images."""
    accuracy: Interval
    """Total counting accuracy in %: 100 (1 - |counted - true| / true), of the totals over all images, where
    misses and false positives of different images cancel. None without objects; below 0 past twice the truth.
    100 is the most, so a lucky value can lie above the interval of what other images would give."""
    ratio: Interval
    """Counted / true in %, of the totals: 100 is right, and both sides of it are possible."""
    exact: Interval
    """Share of the images counted exactly."""
    true_per_image: tuple[int, ...]
    counted_per_image: tuple[int, ...]


@dataclass(frozen=True)
class CountReport:
    """A split counted: each class, and all cells of an image together."""

    images: int
    per_class: dict[str, ClassCounts]
    together: ClassCounts
    samples: int
    seed: int
    level: float = LEVEL


def count_curve(detections: Sequence[Detections], targets: Sequence[Target], label: int) -> CountCurve:
    """How well one class is counted at each threshold 0.01, 0.02, ... 0.99, as `Detections.above` would."""
    check_pairs(detections, targets)
    true = _true_counts(targets, label)
    # float32 like the scores, or 0.7 would not reach 0.7.
    levels = CANDIDATES.astype(np.float32)
    counted = np.zeros((len(detections), len(levels)), dtype=np.int64)
    for row, found in enumerate(detections):
        scores = found.scores[found.labels == label]
        counted[row] = len(scores) - np.searchsorted(np.sort(scores), levels)
    difference = (counted - true[:, None]).astype(np.float64)
    images = len(targets) or np.nan
    mae, bias = np.abs(difference).sum(axis=0) / images, difference.sum(axis=0) / images
    return CountCurve(CANDIDATES, mae, bias, int(true.sum()), len(targets))


def count_thresholds(
    detections: Sequence[Detections], targets: Sequence[Target], class_names: Sequence[str]
) -> dict[str, float]:
    """The score threshold of each class that counts best on these images (val), of 0.01, 0.02, ... 0.99.

    See `CountCurve.best` for ties and for classes without objects.
    """
    return {
        name: count_curve(detections, targets, label).best()
        for label, name in enumerate(class_names, start=1)
    }


def count_report(
    detections: Sequence[Detections],
    targets: Sequence[Target],
    class_names: Sequence[str],
    thresholds: float | Mapping[str, float] = DEFAULT_THRESHOLD,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> CountReport:
    """The counts of the detections that reach their class's threshold, image by image, and the true counts.

    Percentile intervals are over bootstrap resamples of the images, the same as `bootstrap_map`'s of the same
    seed; those for which a figure is undefined are left out of its interval. Raises
    ConfigError for an impossible threshold.
    """
    check_pairs(detections, targets)
    weights = resample_images(len(targets), samples, seed)
    thresholds = class_thresholds(thresholds, class_names)
    kept = [one.above(thresholds) for one in detections]
    labels = range(1, len(class_names) + 1)
    true = np.array([_true_counts(targets, label) for label in labels])  # (classes, N)
    counted = np.array([list(one.counts().values()) for one in kept]).reshape(len(kept), len(labels)).T
    return CountReport(
        images=len(targets),
        per_class={
            name: _class_counts(threshold, *pair, weights)
            for (name, threshold), *pair in zip(thresholds.items(), true, counted, strict=True)
        },
        together=_class_counts(None, true.sum(axis=0), counted.sum(axis=0), weights),
        samples=samples,
        seed=seed,
    )


def _true_counts(targets: Sequence[Target], label: int) -> np.ndarray:
    """The (N,) int64 numbers of objects of one class in each image."""
    counts = [np.count_nonzero(as_array(target["labels"]) == label) for target in targets]
    return np.array(counts, dtype=np.int64)


def _class_counts(
    threshold: float | None, true: np.ndarray, counted: np.ndarray, weights: np.ndarray
) -> ClassCounts:
    figures = _figures(true, counted, weights)
    intervals = {name: percentile_interval(values) for name, values in figures.items()}
    return ClassCounts(
        threshold=threshold,
        true=int(true.sum()),
        counted=int(counted.sum()),
        **intervals,
        true_per_image=tuple(true.tolist()),
        counted_per_image=tuple(counted.tolist()),
    )


def _figures(true: np.ndarray, counted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Each figure of `ClassCounts` for each of the (S, N) weightings: (S,) float64, NaN where undefined."""
    difference = counted - true
    parts = (
        np.abs(difference), difference, difference**2, true, counted, true**2, counted**2, true * counted,
        difference == 0,
    )  # fmt: skip
    # Sums of whole numbers, exact in float64, so that a variance of 0 is exactly 0.
    sums = (weights @ np.stack(parts, axis=1).astype(np.int64)).astype(np.float64).T  # (9, S)
    absolute, total, squared, t, c, tt, cc, tc, exact = sums
    n = weights.sum(axis=1).astype(np.float64)
    bias = quotient(total, n)
    deviation = np.sqrt(quotient(n * squared - total**2, n * (n - 1)))
    spread_t, spread_c = n * tt - t**2, n * cc - c**2  # n times the sums of squares about the mean
    return {
        "mae": quotient(absolute, n),
        "bias": bias,
        "lower_limit": bias - _SPREAD * deviation,
        "upper_limit": bias + _SPREAD * deviation,
        "r2": 1 - quotient(n * squared, spread_t),
        "pearson": quotient(n * tc - t * c, np.sqrt(spread_t * spread_c)),
        "accuracy": 100 * (1 - quotient(np.abs(total), t)),
        "ratio": 100 * quotient(c, t),
        "exact": quotient(exact, n),
    }
