"""Judging a detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from ssdlib.detections import Detections
from ssdlib.distributed import gather, rank_and_count
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
    shared: bool = False,
) -> tuple[Metrics, list[Detections]]:
    """Detect on every image of `dataset` (its transform is not used) and compare with its ground truth.

    The detections carry the image ids and come in the dataset's order. With `shared` each process of a
    distributed training detects on its share of the images; all must call it, and all get the whole result.
    Raises CheckpointError if the network was made for other classes.
    """
    if predictor.class_names != tuple(dataset.class_names):
        raise CheckpointError(
            f"this network finds {', '.join(predictor.class_names)}, but the data holds "
            f"{', '.join(dataset.class_names)}: use a checkpoint trained on these classes, in this order."
        )
    targets = dataset.targets()
    rank, processes = rank_and_count() if shared else (0, 1)
    # Whole batches are dealt out, as one process would make them, so that not even rounding differs.
    own = [k for k in range(len(dataset)) if k // predictor.batch_size % processes == rank]
    images = (dataset.image(index) for index in own)
    found = list(tqdm(predictor.stream(images), "evaluate", len(own), unit="img", disable=not progress))
    pairs = list(zip(own, found, strict=True))
    parts = gather(pairs) if shared else [pairs]
    by_index = dict(pair for part in parts for pair in part)
    detections = [replace(by_index[k], image=target["image_id"]) for k, target in enumerate(targets)]
    metrics = evaluate_detections(
        detections, targets, predictor.class_names, working_threshold=working_threshold
    )
    return metrics, detections
