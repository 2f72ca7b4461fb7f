"""How many missing labels `ssdlib data complete` adds, and how many of these are right.

    python -m tests.benchmarks.complete --out runs/complete-bench --removed 0.15 --removed 0.3 --removed 0.5

draws smears, whose labels are complete, removes a share of the labels at random, and has them completed, by
networks that are fine-tuned from the shipped weights in each fold, or with --judge shipped by what these find
as they are: they never saw these smears. What is finished in --out is not done again.

    python -m tests.benchmarks.complete --copy runs/complete/data --truth labels/

judges a completed copy by complete labels of all or some of its images: a folder of YOLO's text files, whose
classes count as the copy's do, or any data set.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ssdlib.common.errors import DataError
from ssdlib.common.files import write_json
from ssdlib.common.tables import Table, number
from ssdlib.data.formats.records import iou_matrix
from ssdlib.data.formats.yolo import read_labels
from ssdlib.data.smears import write_dataset
from ssdlib.data.source import DataSource, open_folder
from ssdlib.tools.label_errors.complete import ADDED_FILE, COPY, PRECISION, complete
from ssdlib.tools.label_errors.folds import FoldSettings
from ssdlib.tools.label_errors.rank import LabelIssue
from tests.benchmarks.common import run_command, write_results
from tests.benchmarks.label_errors import (
    MATCH_IOU,
    SMEARS_SEED,
    Judge,
    Objects,
    found_again,
    hide_labels,
    shipped_judge,
)


def complete_labels(folder: str | Path, copy: DataSource) -> dict[str, Objects]:
    """The complete labels of each image of the copy that has any in `folder`."""
    files = {file.stem: file for file in Path(folder).glob("*.txt")}
    if not files:
        images = open_folder(folder).dataset("all").samples
        return {image.image_id: [(o.name, o.box) for o in image.objects if o.box] for image in images}
    found = {}
    for image in copy.labels.images:
        if image.image_id in files:
            own = replace(image, label_file=files[image.image_id], objects=[], findings=[])
            read_labels(own, copy.class_names, Path(folder))
            found[image.image_id] = [(o.name, o.box) for o in own.objects if o.box]
    if not found:
        raise DataError(
            f"{folder} has no labels of an image in {copy.folder}: give labels of the same images."
        )
    return found


def added_issues(copy: DataSource) -> list[LabelIssue]:
    """What was added in a completed copy, scored by its estimated precision."""
    with (copy.folder / ADDED_FILE).open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    issues = []
    for row in rows:
        box = tuple(float(row[side]) for side in ("xmin", "ymin", "xmax", "ymax"))
        name, certain, score = row["class"], float(row["precision"]), float(row["score"])
        place = f"{row['image']}/{row['object']}"
        issues.append(
            LabelIssue(
                place, row["image"], "unlabeled", name, box, certain, None, name, box, name, score, 0.0
            )
        )
    return issues


def judge(copy: DataSource, truth: Mapping[str, Objects]) -> dict[str, dict[str, Any]]:
    """By class: the complete labels, those that were missing, and precision and recall of what was added.

    An object was missing if no label that was not added overlaps it by MATCH_IOU; what was added is right if
    it overlaps one of these as much, one to one.
    """
    added = [issue for issue in added_issues(copy) if issue.image in truth]
    new = {issue.id for issue in added}
    missing: dict[str, Objects] = {}
    for image_id, objects in truth.items():
        image = copy.labels.by_id[image_id]
        labels = [o for k, o in enumerate(image.objects, 1) if o.box and f"{image_id}/{k}" not in new]
        missing[image_id] = [
            (name, box)
            for name, box in objects
            if _overlap(box, [label.box for label in labels if label.name == name]) < MATCH_IOU
        ]
    result = {}
    for name in copy.class_names:
        complete_count = sum(label == name for objects in truth.values() for label, _ in objects)
        result[name] = {"complete": complete_count, **found_again(added, missing, name)}
    return result


def _overlap(box: Iterable[float], others: Iterable[Iterable[float]]) -> float:
    overlaps = iou_matrix(np.array([list(box)]), np.array([list(o) for o in others]).reshape(-1, 4))
    return float(overlaps.max(initial=0.0))


def judged_table(result: Mapping[str, Mapping[str, Any]]) -> Table:
    """The judgment as a table, a class a row."""
    rows = [
        (name, *(str(row[key]) for key in ("complete", "removed", "issues")), *map(number, _shares(row)))
        for name, row in result.items()
    ]
    return Table(("class", "complete", "missing", "added", "precision", "recall"), rows)


def _shares(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return row["precision"], row["recall"]


def measure_smears(
    out: Path, share: float, *, images: int, folds: int, epochs: int, rounds: int, precision: float, by: Judge
) -> dict[str, dict[str, Any]]:
    """The judgment on smears of which a share of the labels was removed; all files stay in `out`."""
    whole = open_folder(write_dataset(out / "whole", train=images, val=0, test=0, seed=SMEARS_SEED))
    own = out / f"removed-{share:g}"
    hidden, record = own / "hidden", own / "removed.json"
    if not record.exists():
        shutil.rmtree(hidden, ignore_errors=True)
        write_json(record, hide_labels(whole, hidden, share))
    source, predictions = open_folder(hidden), None
    if by == "shipped":
        predictions = own / "predictions"
        if not (file := predictions / "all.json").exists():
            write_json(file, [detections.to_dict() for detections in shipped_judge(source)])
    settings = FoldSettings(split="all", folds=folds, epochs=epochs, init="shipped")
    completed = own / by
    shutil.rmtree(completed / COPY, ignore_errors=True)
    complete(
        source,
        completed,
        settings,
        predictions=predictions,
        precision=precision,
        rounds=1 if predictions else rounds,
    )
    return judge(open_folder(completed / COPY), complete_labels(whole.folder, source))


def main(
    out: Annotated[Path | None, typer.Option(help="Folder for smears, networks and copies.")] = None,
    removed: Annotated[list[float] | None, typer.Option(help="Share of labels; may be repeated.")] = None,
    images: Annotated[int, typer.Option(min=6)] = 40,
    folds: Annotated[int, typer.Option(min=2)] = 2,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    rounds: Annotated[int, typer.Option(min=1)] = 2,
    precision: Annotated[float, typer.Option(min=0.5, max=1)] = PRECISION,
    by: Annotated[Judge, typer.Option("--judge", help="folds or shipped.")] = "folds",
    copy: Annotated[Path | None, typer.Option(help="Judge this completed copy instead.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Folder with its complete labels.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Measure how many missing labels `ssdlib data complete` adds, and how many of these are right."""
    if (copy is None) != (truth is None) or (copy is None) == (out is None):
        raise DataError("give --out to measure on smears, or --copy and --truth to judge a copy.")
    if copy is not None:
        source = open_folder(copy)
        results = {"copy": judge(source, complete_labels(truth, source))}
    else:
        chosen = {"images": images, "folds": folds, "epochs": epochs, "rounds": rounds}
        results = {
            f"{share:.0%} of the labels removed": measure_smears(
                out, share, **chosen, precision=precision, by=by
            )
            for share in removed or (0.15, 0.3, 0.5)
        }
    for title, result in results.items():
        print(f"{title}\n{judged_table(result).to_text()}\n")
    if json_file is not None:
        write_results(json_file, results)


if __name__ == "__main__":
    run_command(main)
