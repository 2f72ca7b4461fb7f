"""Calibration of the scores: of the detections with a score near 0.8, eight in ten should be true positives.

Reliability and expected calibration error after Guo et al. 2017, "On Calibration of Modern Neural Networks",
with precision in the place of accuracy, as for detectors in Kuppers et al. 2020 ("Multivariate Confidence
Calibration for Object Detection"). True positives are those of `precision_recall` at IoU 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdlib.common.errors import ConfigError
from ssdlib.evaluation.matching import DetectedImages, Target
from ssdlib.evaluation.metrics import precision_recall
from ssdlib.inference.detections import Detections

FLOOR = 0.05
"""Detections with less say nothing to a user, and there are so many that they would hide all others."""
BINS = 10
_LEAST, _MOST = 0.05, 20.0  # temperatures
_STEPS = 60
_EPS = 1e-6  # keeps the logit of a score of 0 or 1 finite


@dataclass(frozen=True)
class Bin:
    """The detections with low <= score < high (the last bin holds a score of 1)."""

    low: float
    high: float
    count: int
    mean_score: float | None
    precision: float | None


@dataclass(frozen=True)
class Reliability:
    """The bins and how far they are from calibrated; None where there is no detection."""

    bins: tuple[Bin, ...]
    count: int
    mean_score: float | None
    precision: float | None
    ece: float | None
    """Expected calibration error: mean |precision - mean score| of the bins, by their counts."""
    mce: float | None
    """Maximum calibration error: the largest of these distances."""
    nll: float | None
    """Mean negative log-likelihood of true and false positives, in nats."""


@dataclass(frozen=True)
class Calibration:
    """A split's reliability, of each class and of all detections together, before or after scaling.

    `left_out` detections had a score below `floor` before any scaling.
    """

    floor: float
    left_out: int
    temperature: float
    together: Reliability
    per_class: dict[str, Reliability]


@dataclass(frozen=True)
class CalibrationReport:
    """A temperature fitted on one split, calibration of another with and without it; None where none fits."""

    temperature: float | None
    before: Calibration
    after: Calibration | None


def reliability(scores: Any, true_positive: Any) -> Reliability:
    """The reliability of (K,) scores and (K,) bool in ten bins of equal width over [0, 1]."""
    scores, true_positive = np.asarray(scores, dtype=np.float64), np.asarray(true_positive, dtype=bool)
    index = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    score_sums = np.bincount(index, weights=scores, minlength=BINS)
    found = np.bincount(index, weights=true_positive, minlength=BINS)
    bins = tuple(
        Bin(k / BINS, (k + 1) / BINS, int(n), _share(score_sums[k], n), _share(found[k], n))
        for k, n in enumerate(counts)
    )
    total = len(scores)
    gaps = np.abs(found - score_sums)
    probability = np.clip(scores, _EPS, 1 - _EPS)
    likelihood = np.log(np.where(true_positive, probability, 1 - probability))
    return Reliability(
        bins=bins,
        count=total,
        mean_score=_share(scores.sum(), total),
        precision=_share(true_positive.sum(), total),
        ece=_share(gaps.sum(), total),
        mce=float((gaps[counts > 0] / counts[counts > 0]).max()) if total else None,
        nll=_share(-likelihood.sum(), total),
    )


def _share(part: float, whole: int) -> float | None:
    return float(part / whole) if whole else None


def scale_scores(scores: Any, temperature: float) -> np.ndarray:
    """The (K,) scores after temperature scaling, sigmoid(logit(score) / T). Guo et al. 2017, 4.2.

    T > 1 makes scores less sure, and their order stays. A score of one half stays one half, so no temperature
    corrects scores that are all too high, as they are where cells that carry no label count as background.
    Raises ConfigError unless T > 0.
    """
    if not temperature > 0:
        raise ConfigError(f"the temperature must be greater than 0, not {temperature}")
    return _sigmoid(_logit(scores) / temperature)


def fit_temperature(scores: Any, true_positive: Any) -> float | None:
    """The T in [0.05, 20] for `scale_scores` that makes (K,) true and false positives most likely.

    None where there is none: no detections, all of them true positives with scores above one half, or scores
    that say nothing. The negative log-likelihood is convex in 1 / T, so its slope is bisected.
    """
    z, y = _logit(scores), np.asarray(true_positive, dtype=np.float64)

    def slope(inverse: float) -> float:
        return float(((_sigmoid(inverse * z) - y) * z).sum())

    low, high = 1 / _MOST, 1 / _LEAST
    if not (slope(low) < 0 < slope(high)):
        return None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def calibration(
    detections: Sequence[Detections],
    targets: Sequence[Target],
    class_names: Sequence[str],
    *,
    temperature: float | None = None,
) -> Calibration:
    """The reliability of a split's detections with a score of at least FLOOR, scaled by a temperature or not.

    Raises ConfigError unless the temperature is positive.
    """
    matched, left_out = _matched(detections, targets, len(class_names))
    if temperature is not None:
        matched = [(scale_scores(scores, temperature), true) for scores, true in matched]
    return Calibration(
        floor=FLOOR,
        left_out=left_out,
        temperature=1.0 if temperature is None else temperature,
        together=reliability(*_together(matched)),
        per_class={name: reliability(*pair) for name, pair in zip(class_names, matched, strict=True)},
    )


def calibration_report(
    fit_on: DetectedImages, report_on: DetectedImages, class_names: Sequence[str]
) -> CalibrationReport:
    """The calibration of one split before and after scaling by one temperature, fitted on another split."""
    matched, _ = _matched(*fit_on, len(class_names))
    temperature = fit_temperature(*_together(matched))
    return CalibrationReport(
        temperature=temperature,
        before=calibration(*report_on, class_names),
        after=None if temperature is None else calibration(*report_on, class_names, temperature=temperature),
    )


def _matched(
    detections: Sequence[Detections], targets: Sequence[Target], classes: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """(scores, true_positive) of each class from FLOOR on, and how many detections are below it."""
    matched, left_out = [], 0
    for label in range(1, classes + 1):
        curve = precision_recall(detections, targets, label)
        count = curve.at(FLOOR)[2]
        matched.append((curve.scores[:count], curve.true_positive[:count]))
        left_out += len(curve.scores) - count
    return matched, left_out


def _together(matched: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([np.empty(0), *(scores for scores, _ in matched)])
    return scores, np.concatenate([np.empty(0, bool), *(true for _, true in matched)])


def _logit(scores: Any) -> np.ndarray:
    probability = np.clip(np.asarray(scores, dtype=np.float64), _EPS, 1 - _EPS)
    return np.log(probability) - np.log1p(-probability)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(z / 2))  # no overflow, however large |z|
