"""Judging a detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from ssdlib.detections import Detections
from ssdlib.errors import CheckpointError
from ssdlib.evaluation.metrics import Metrics, evaluate_detections

if TYPE_CHECKING:
    from ssdlib.data.dataset import DetectionDataset
    from ssdlib.predict import Predictor


def evaluate_model(
    predictor: Predictor,
    dataset: DetectionDataset,
    *,
    working_threshold: float | Mapping[str, float] = 0.5,
    progress: bool = False,
) -> tuple[Metrics, list[Detections]]:
    """Detect on every image of `dataset` (its transform is not used) and compare with its ground truth.

    The detections carry the image ids and come in the dataset's order. Raises CheckpointError if the network
    was made for other classes.
    """
    if predictor.class_names != tuple(dataset.class_names):
        raise CheckpointError(
            f"this network finds {', '.join(predictor.class_names)}, but the data holds "
            f"{', '.join(dataset.class_names)}: use a checkpoint trained on these classes, in this order."
        )
    targets = dataset.targets()
    images = (dataset.image(index) for index in range(len(dataset)))
    found = tqdm(predictor.stream(images), "evaluate", total=len(dataset), unit="img", disable=not progress)
    detections = [replace(one, image=target["image_id"]) for one, target in zip(found, targets, strict=True)]
    metrics = evaluate_detections(
        detections, targets, predictor.class_names, working_threshold=working_threshold
    )
    return metrics, detections
