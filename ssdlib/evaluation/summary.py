"""One split judged whole: what `ssdlib evaluate` prints and writes, and the model card repeats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssdlib import evaluation
from ssdlib.evaluation.bootstrap import bootstrap_map

if TYPE_CHECKING:
    from ssdlib.data.bccd import DataSource
    from ssdlib.predict import Predictor


def evaluate_split(
    predictor: Predictor,
    source: DataSource,
    split: str,
    *,
    limit: int | None = None,
    working_threshold: float | Mapping[str, float] = 0.5,
    progress: bool = False,
) -> dict[str, Any]:
    """Plain values of `Metrics`, `intervals` over the images, and which data these were.

    `limit` takes the split's first images only. Raises what `evaluate_model` and `DataSource.dataset` raise.
    """
    dataset = source.dataset(split, limit=limit)
    metrics, detections = evaluation.evaluate_model(
        predictor, dataset, working_threshold=working_threshold, progress=progress
    )
    intervals = bootstrap_map(detections, dataset.targets(), predictor.class_names)
    return {
        "split": split,
        **metrics.to_dict(),
        "intervals": intervals.to_dict(),
        "data": source.describe(),
    }
