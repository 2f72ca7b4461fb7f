"""One split judged whole: what `ssdlib evaluate` prints and writes, and the model card repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ssdlib.common.distributed import gather, rank_and_count
from ssdlib.common.errors import CheckpointError
from ssdlib.evaluation.analysis import Judged, analysis_section
from ssdlib.evaluation.bootstrap import bootstrap_map
from ssdlib.evaluation.metrics import Metrics, evaluate_detections
from ssdlib.inference.detections import Detections

if TYPE_CHECKING:
    from ssdlib.data.dataset import DetectionDataset
    from ssdlib.inference.predictor import Predictor

if TYPE_CHECKING:
    from ssdlib.data.source import DataSource
    from ssdlib.inference.predictor import Predictor


def evaluate_split(
    predictor: Predictor,
    source: DataSource,
    split: str,
    *,
    limit: int | None = None,
    score_threshold: float | Mapping[str, float] = 0.5,
    analysis: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Plain values of `Metrics`, `intervals` over the images, and which data these were.

    `limit` takes the split's first images only. `analysis` adds a section of that name (see
    `ssdlib.evaluation.analysis`), for which the network looks at val as well. Raises what `evaluate_model`
    and `DataSource.dataset` raise.
    """
    dataset = source.dataset(split, limit=limit)
    metrics, detections = evaluate_model(
        predictor, dataset, score_threshold=score_threshold, progress=progress
    )
    intervals = bootstrap_map(
        detections, dataset.targets(), predictor.class_names, score_threshold=score_threshold
    )
    report = {
        "split": split,
        **metrics.to_dict(),
        "intervals": intervals.to_dict(),
        "data": source.describe(),
    }
    if analysis:
        own = detections, dataset.targets()
        report["analysis"] = analysis_section(
            _judged(predictor, source, "val", limit, progress) if split != "val" else own,
            own,
            predictor.class_names,
        )
    return report


def _judged(
    predictor: Predictor, source: DataSource, split: str, limit: int | None, progress: bool
) -> Judged:
    dataset = source.dataset(split, limit=limit)
    return evaluate_model(predictor, dataset, progress=progress)[1], dataset.targets()


def evaluate_model(
    predictor: Predictor,
    dataset: DetectionDataset,
    *,
    score_threshold: float | Mapping[str, float] = 0.5,
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
    metrics = evaluate_detections(detections, targets, predictor.class_names, score_threshold=score_threshold)
    return metrics, detections
