"""The evaluation of a detector on a split, as `ssdlib evaluate` and the model card report it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ssdlib.common.distributed import gather, rank_and_count
from ssdlib.common.errors import CheckpointError
from ssdlib.data.images import read_um_per_pixel
from ssdlib.evaluation.bootstrap import bootstrap_map
from ssdlib.evaluation.calibration import calibration_report
from ssdlib.evaluation.counting import count_report, count_thresholds
from ssdlib.evaluation.matching import DetectedImages
from ssdlib.evaluation.metrics import Metrics, evaluate_detections
from ssdlib.evaluation.tide import tide_errors
from ssdlib.inference.detections import Detections
from ssdlib.inference.fields import detect_fields
from ssdlib.inference.tiling import Tiling

if TYPE_CHECKING:
    from ssdlib.data.dataset import DetectionDataset
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

    Where the source joins several, `sources` has the same values for the images of each. `limit` takes the
    split's first images only. `analysis` adds the section of that name (see `analysis_section`), for which
    the network detects on val as well. Raises what `evaluate_model` and `DataSource.dataset` raise.
    """
    dataset = source.dataset(split, limit=limit)
    targets, names = dataset.targets(), predictor.class_names
    metrics, detections = evaluate_model(
        predictor, dataset, score_threshold=score_threshold, progress=progress
    )
    intervals = bootstrap_map(detections, targets, names, score_threshold=score_threshold)
    report = {
        "split": split,
        **asdict(metrics),
        "intervals": intervals.to_dict(),
        "data": source.describe(),
    }
    if parts := by_source(detections, dataset):
        report["sources"] = {
            name: {
                **asdict(evaluate_detections(*part, names, score_threshold=score_threshold)),
                "intervals": bootstrap_map(*part, names, score_threshold=score_threshold).to_dict(),
            }
            for name, part in parts.items()
        }
    if analysis:
        reported = chosen_on = (detections, targets)
        if split != "val":
            val = source.dataset("val", limit=limit)
            chosen_on = (evaluate_model(predictor, val, progress=progress)[1], val.targets())
        report["analysis"] = analysis_section(chosen_on, reported, names)
    return report


def by_source(detections: Sequence[Detections], dataset: DetectionDataset) -> dict[str, DetectedImages]:
    """Detections and ground truth of the images of each source that is joined in `dataset`; {} for one alone.

    The detections come in the dataset's order, as from `evaluate_model`.
    """
    parts: dict[str, DetectedImages] = {}
    if not any(sample.source for sample in dataset.samples):
        return parts
    for sample, found, target in zip(dataset.samples, detections, dataset.targets(), strict=True):
        detected, truth = parts.setdefault(sample.source, ([], []))
        detected.append(found)
        truth.append(target)
    return parts


def map_by_source(detections: Sequence[Detections], dataset: DetectionDataset) -> dict[str, float | None]:
    """mAP@0.5 on the images of each source, as for `by_source`; None where they have no objects."""
    parts = by_source(detections, dataset)
    return {name: evaluate_detections(*part, dataset.class_names).map_50 for name, part in parts.items()}


def analysis_section(
    choose_on: DetectedImages, report_on: DetectedImages, class_names: Sequence[str], *, samples: int = 1000
) -> dict[str, Any]:
    """Errors by kind, counts and calibration of `report_on`, as plain values for metrics.json.

    The score thresholds to count with and the temperature are chosen on `choose_on` (val), so that test
    remains a test.
    """
    thresholds = count_thresholds(*choose_on, class_names)
    counting = asdict(count_report(*report_on, class_names, thresholds, samples=samples))
    for one in (*counting["per_class"].values(), counting["together"]):
        del one["true_per_image"], one["counted_per_image"]  # hundreds of numbers that no table shows
    return {
        "images": len(report_on[1]),
        "errors": asdict(tide_errors(*report_on, class_names)),
        "counting": counting,
        "calibration": asdict(calibration_report(choose_on, report_on, class_names)),
    }


def evaluate_model(
    predictor: Predictor,
    dataset: DetectionDataset,
    *,
    score_threshold: float | Mapping[str, float] = 0.5,
    progress: bool = False,
    shared: bool = False,
    tilings: Mapping[tuple[int, int], Tiling] | None = None,
) -> tuple[Metrics, list[Detections]]:
    """The metrics and the detections of a network on every image of `dataset`, whose transform is not used.

    The images are looked at as `ssdlib detect` does, or, by their width and height, as `tilings` says, so
    that their scale need not be found. The detections carry the image ids and come in the dataset's order.
    With `shared` each process of a
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
    fields = ((dataset.image(index), read_um_per_pixel(dataset.image_path(index))) for index in own)
    seen = detect_fields(predictor, fields, tilings or Tiling(use=predictor.config.use))
    found = list(tqdm(seen, "evaluate", len(own), unit="img", disable=not progress))
    pairs = [(k, one.found) for k, one in zip(own, found, strict=True)]
    parts = gather(pairs) if shared else [pairs]
    by_index = dict(pair for part in parts for pair in part)
    detections = [replace(by_index[k], image=target["image_id"]) for k, target in enumerate(targets)]
    metrics = evaluate_detections(detections, targets, predictor.class_names, score_threshold=score_threshold)
    return metrics, detections
