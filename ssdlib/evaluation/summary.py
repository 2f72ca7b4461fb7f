"""One split judged whole: what `ssdlib evaluate` prints and writes, and the model card repeats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssdlib import evaluation
from ssdlib.evaluation.bootstrap import Interval, bootstrap_map
from ssdlib.evaluation.laboratory import Judged, laboratory_section

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
    laboratory: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Plain values of `Metrics`, `intervals` over the images, and which data these were.

    `limit` takes the split's first images only. `laboratory` adds a section of that name (see
    `ssdlib.evaluation.laboratory`), for which the network looks at val as well. Raises what `evaluate_model`
    and `DataSource.dataset` raise.
    """
    dataset = source.dataset(split, limit=limit)
    metrics, detections = evaluation.evaluate_model(
        predictor, dataset, working_threshold=working_threshold, progress=progress
    )
    intervals = bootstrap_map(
        detections, dataset.targets(), predictor.class_names, working_threshold=working_threshold
    )
    report = {
        "split": split,
        **metrics.to_dict(),
        "intervals": intervals.to_dict(),
        "data": source.describe(),
    }
    if laboratory:
        own = detections, dataset.targets()
        report["laboratory"] = laboratory_section(
            _judged(predictor, source, "val", limit, progress) if split != "val" else own,
            own,
            predictor.class_names,
        )
    return report


def _judged(
    predictor: Predictor, source: DataSource, split: str, limit: int | None, progress: bool
) -> Judged:
    dataset = source.dataset(split, limit=limit)
    return evaluation.evaluate_model(predictor, dataset, progress=progress)[1], dataset.targets()


_FIGURES = {
    "ap_50": ("COCO AP at IoU 0.5", "map_50"),
    "ap": ("COCO AP", "map"),
    "voc07_ap": ("VOC07 AP", "voc07_map"),
    "voc12_ap": ("VOC12 AP", "voc12_map"),
    "precision": ("precision", ""),
    "recall": ("recall", ""),
    "ar_100": ("COCO AR at 100", "mar_100"),
}
"""Each figure of a class: its name and the mean over the classes."""


def interval_rows(intervals: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of `Intervals.to_dict`: a row for each figure, a column for each class and their mean.

    Sections written before all figures had intervals give the one row that they hold.
    """
    classes = intervals.get("classes") or {
        name: {"ap_50": value} for name, value in intervals["per_class"].items()
    }
    rows = []
    for figure, (words, mean) in _FIGURES.items():
        cells = [of_class.get(figure) for of_class in classes.values()] + [intervals.get(mean)]
        if any(cells):
            rows.append([words, *(str(Interval(**cell)) if cell else "" for cell in cells)])
    return ["", *classes, "mean"], rows
