"""Counting, the task a analysis has: the score thresholds that count best, and how well they count.

Thresholds are chosen on one split (val) and judged on another (test). The difference of two ways to count is
described as in Bland & Altman 1986, "Statistical methods for assessing agreement between two methods of
clinical measurement": its mean (bias) and the limits between which 95 % of the differences lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssdlib.common.errors import ConfigError
from ssdlib.evaluation.bootstrap import LEVEL, draws_after_the_whole, percentile_interval
from ssdlib.evaluation.matching import as_array, check_pairs, quotient, threshold_of
from ssdlib.evaluation.tables import Interval
from ssdlib.inference.detections import Detections

CANDIDATES = np.arange(1, 100) / 100
FALLBACK = 0.5
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

    def best(self, fallback: float = FALLBACK) -> float:
        """The threshold of least MAE, of those the one of least |bias|, of those the nearest to `fallback`.

        Where the split has no object of the class every count but 0 would be wrong and the highest threshold
        best, which says nothing: then `fallback` itself.
        """
        if not self.objects:
            return fallback
        # Sums of whole numbers over the same number of images: equal ones may differ in the last bit.
        keys = (np.abs(self.thresholds - fallback), np.abs(self.bias).round(9), self.mae.round(9))
        return float(self.thresholds[np.lexsort(keys)[0]])


@dataclass(frozen=True)
class ClassCounts:
    """One class on N images. Differences are counted less true; intervals are over the images."""

    threshold: float | None
    """Of the scores; None where several classes with thresholds of their own are added up."""
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
    misses and false alarms of different images cancel. None without objects; below 0 past twice the truth.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def count_curve(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    label: int,
    thresholds: np.ndarray = CANDIDATES,
) -> CountCurve:
    """Count one class at each of the (T,) rising thresholds, as `Detections.above` would.

    Raises DataError where the two sequences differ in length.
    """
    check_pairs(detections, targets)
    true = _true_counts(targets, label)
    # float32 like the scores, or 0.7 would not reach 0.7.
    levels = np.asarray(thresholds, dtype=np.float32)
    counted = np.zeros((len(detections), len(levels)), dtype=np.int64)
    for row, found in enumerate(detections):
        scores = found.scores.numpy()[found.labels.numpy() == label]
        counted[row] = len(scores) - np.searchsorted(np.sort(scores), levels)
    difference = (counted - true[:, None]).astype(np.float64)
    images = len(targets) or np.nan
    return CountCurve(
        np.asarray(thresholds, dtype=np.float64),
        np.abs(difference).sum(axis=0) / images,
        difference.sum(axis=0) / images,
        int(true.sum()),
    )


def count_thresholds(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    fallback: float = FALLBACK,
) -> dict[str, float]:
    """The score threshold of each class that counts best on these images (val), of 0.01, 0.02, ... 0.99.

    See `CountCurve.best` for ties and for classes without objects.
    """
    curves = (count_curve(detections, targets, label) for label in range(1, len(class_names) + 1))
    return {name: curve.best(fallback) for name, curve in zip(class_names, curves, strict=True)}


def count_report(
    detections: Sequence[Detections],
    targets: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    thresholds: float | Mapping[str, float] = FALLBACK,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> CountReport:
    """Count the detections that reach their class's threshold, image by image, against the ground truth.

    Percentile intervals are over images drawn again, the same draws as `bootstrap_map`'s of the same seed;
    draws for which a figure is undefined are left out of its interval. Raises DataError where the two
    sequences differ in length, ConfigError where a class lacks a threshold.
    """
    check_pairs(detections, targets)
    if isinstance(thresholds, Mapping) and (unknown := set(thresholds) - set(class_names)):
        raise ConfigError(f"score thresholds for unknown classes: {', '.join(sorted(unknown))}")
    draws = draws_after_the_whole(len(targets), samples, seed)
    rows: dict[str, tuple[float, np.ndarray, np.ndarray]] = {}
    for label, name in enumerate(class_names, start=1):
        least = threshold_of(name, thresholds)
        counted = [
            np.count_nonzero((one.labels.numpy() == label) & (one.scores.numpy() >= np.float32(least)))
            for one in detections
        ]
        rows[name] = float(least), _true_counts(targets, label), np.array(counted, dtype=np.int64)
    nothing = np.zeros(len(targets), dtype=np.int64)
    all_true = sum((true for _, true, _ in rows.values()), nothing)
    all_counted = sum((counted for _, _, counted in rows.values()), nothing)
    return CountReport(
        images=len(targets),
        per_class={name: _class_counts(*row, draws, level) for name, row in rows.items()},
        together=_class_counts(None, all_true, all_counted, draws, level),
        samples=samples,
        seed=seed,
        level=level,
    )


def _true_counts(targets: Sequence[Mapping[str, Any]], label: int) -> np.ndarray:
    """(N,) int64."""
    counts = [np.count_nonzero(as_array(target["labels"]) == label) for target in targets]
    return np.array(counts, dtype=np.int64)


def _class_counts(
    threshold: float | None, true: np.ndarray, counted: np.ndarray, draws: np.ndarray, level: float
) -> ClassCounts:
    figures = _figures(true, counted, draws)
    intervals = {name: percentile_interval(values, level) for name, values in figures.items()}
    return ClassCounts(
        threshold=threshold,
        true=int(true.sum()),
        counted=int(counted.sum()),
        **intervals,
        true_per_image=tuple(true.tolist()),
        counted_per_image=tuple(counted.tolist()),
    )


def _figures(true: np.ndarray, counted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Each figure of `ClassCounts` for each of the (S, N) draws: (S,) float64, NaN where undefined."""
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
