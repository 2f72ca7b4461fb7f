"""Are the scores honest? Of the detections with a score near 0.8, eight in ten should be right.

Reliability and expected calibration error after Guo et al. 2017, "On Calibration of Modern Neural Networks",
with precision in the place of accuracy, as for detectors in Kuppers et al. 2020 ("Multivariate Confidence
Calibration for Object Detection"): a detection is right if `precision_recall` says so at IoU 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssdlib.common.errors import ConfigError
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
    right: float | None
    """The share that is right: the precision."""


@dataclass(frozen=True)
class Reliability:
    """The bins and how far they are from honest; None where there is no detection."""

    bins: tuple[Bin, ...]
    count: int
    mean_score: float | None
    right: float | None
    ece: float | None
    """Expected calibration error: mean |share right - mean score| of the bins, by their counts."""
    mce: float | None
    """The largest of these distances."""
    nll: float | None
    """Mean negative log-likelihood of right and wrong, in nats."""


@dataclass(frozen=True)
class Calibration:
    """A split's reliability, of each class and of all detections together, its scores as they came or scaled.

    `left_out` detections had a score below `floor` before any scaling.
    """

    floor: float
    left_out: int
    temperature: float
    together: Reliability
    per_class: dict[str, Reliability]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CalibrationReport:
    """Temperature fitted on one split, calibration of another with and without it; None where none fits."""

    temperature: float | None
    before: Calibration
    after: Calibration | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def reliability(scores: Any, right: Any, bins: int = BINS) -> Reliability:
    """Bins of equal width over [0, 1] for (K,) scores and (K,) bool."""
    scores, right = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=bool)
    index = np.minimum((scores * bins).astype(np.int64), bins - 1)
    counts = np.bincount(index, minlength=bins)
    score_sums = np.bincount(index, weights=scores, minlength=bins)
    right_sums = np.bincount(index, weights=right, minlength=bins)
    held = tuple(
        Bin(k / bins, (k + 1) / bins, int(n), _share(score_sums[k], n), _share(right_sums[k], n))
        for k, n in enumerate(counts)
    )
    total = len(scores)
    gaps = np.abs(right_sums - score_sums)
    probability = np.clip(scores, _EPS, 1 - _EPS)
    likelihood = np.log(np.where(right, probability, 1 - probability))
    return Reliability(
        bins=held,
        count=total,
        mean_score=_share(scores.sum(), total),
        right=_share(right.sum(), total),
        ece=_share(gaps.sum(), total),
        mce=float((gaps[counts > 0] / counts[counts > 0]).max()) if total else None,
        nll=_share(-likelihood.sum(), total),
    )


def _share(part: float, whole: int) -> float | None:
    return float(part / whole) if whole else None


def temper(scores: Any, temperature: float) -> np.ndarray:
    """(K,) sigmoid(logit(score) / T): T > 1 makes scores less sure, their order stays. Guo et al. 2017, 4.2.

    A score of one half stays one half, so no temperature mends scores that are all too high, as they are
    where sure detections are charged as false because their cells carry no label.
    Raises ConfigError unless T > 0.
    """
    if not temperature > 0:
        raise ConfigError(f"the temperature must be greater than 0, not {temperature}")
    return _sigmoid(_logit(scores) / temperature)


def fit_temperature(scores: Any, right: Any) -> float | None:
    """The T in [0.05, 20] that makes (K,) right and wrong most likely under `temper`.

    None where there is none: no detections, all of them right with scores above one half, or scores that say
    nothing. The negative log-likelihood is convex in 1 / T, so its slope is bisected.
    """
    z, y = _logit(scores), np.asarray(right, dtype=np.float64)

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
    targets: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    floor: float = FLOOR,
    bins: int = BINS,
    temperature: float = 1.0,
) -> Calibration:
    """Reliability of a split's detections with a score of at least `floor`, at a temperature.

    Raises DataError where the two sequences differ in length, ConfigError unless the temperature is positive.
    """
    judged, left_out = _judged(detections, targets, len(class_names), floor)
    if temperature != 1:
        judged = [(temper(scores, temperature), right) for scores, right in judged]
    return Calibration(
        floor=floor,
        left_out=left_out,
        temperature=temperature,
        together=reliability(*_together(judged), bins),
        per_class={
            name: reliability(scores, right, bins)
            for name, (scores, right) in zip(class_names, judged, strict=True)
        },
    )


def calibration_report(
    fit_on: tuple[Sequence[Detections], Sequence[Mapping[str, Any]]],
    report_on: tuple[Sequence[Detections], Sequence[Mapping[str, Any]]],
    class_names: Sequence[str],
    *,
    floor: float = FLOOR,
    bins: int = BINS,
) -> CalibrationReport:
    """One temperature for all classes from (detections, targets) of one split, judged on another."""
    judged, _ = _judged(*fit_on, len(class_names), floor)
    temperature = fit_temperature(*_together(judged))
    before, after = (
        None if t is None else calibration(*report_on, class_names, floor=floor, bins=bins, temperature=t)
        for t in (1.0, temperature)
    )
    assert before is not None
    return CalibrationReport(temperature, before, after)


def _judged(
    detections: Sequence[Detections], targets: Sequence[Mapping[str, Any]], classes: int, floor: float
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """(scores, right) of each class from the floor on, and how many are below it."""
    judged, left_out = [], 0
    for label in range(1, classes + 1):
        curve = precision_recall(detections, targets, label)
        count = curve.at(floor)[2]
        judged.append((curve.scores[:count], curve.true_positive[:count]))
        left_out += len(curve.scores) - count
    return judged, left_out


def _together(judged: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([np.empty(0), *(scores for scores, _ in judged)])
    return scores, np.concatenate([np.empty(0, bool), *(right for _, right in judged)])


def _logit(scores: Any) -> np.ndarray:
    probability = np.clip(np.asarray(scores, dtype=np.float64), _EPS, 1 - _EPS)
    return np.log(probability) - np.log1p(-probability)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(z / 2))  # no overflow, however large |z|
