"""How many removed labels are found again: the measured test of `ssdlib data label-errors`.

    python -m tests.benchmarks.label_errors --out runs/label-errors-bench --json result.json

Draws smears, whose labels are complete, removes a share of the labels at random, and looks for them as one
would in a set of one's own: networks trained from nothing, each without the images of its fold, on the
labels that are left. Then it moves, renames and invents some labels, and measures how well the score tells
these from the others. What is finished in --out is not done again.
With --judge shipped the detections are those of the shipped weights, which never saw these smears: the best
case.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from lxml import etree

from ssdlib.common.files import read_json, write_bytes, write_json
from ssdlib.common.tables import Table, number
from ssdlib.data.formats.voc import add_object, read_objects, read_tree, set_box
from ssdlib.data.smears import HEIGHT, WIDTH, write_dataset
from ssdlib.data.source import DataSource, open_folder
from ssdlib.detector.boxes import iou
from ssdlib.detector.model_file import shipped_weights
from ssdlib.inference.detections import Detections
from ssdlib.inference.predictor import Predictor
from ssdlib.tools.label_errors.folds import SCORE_FLOOR, FoldSettings, out_of_fold
from ssdlib.tools.label_errors.rank import CUTS as LISTED
from ssdlib.tools.label_errors.rank import KINDS, LabelIssue, find_label_issues
from tests.benchmarks.common import run_command, write_results

Box = Sequence[float]
Judge = Literal["folds", "shipped"]
Removed = dict[str, list[tuple[str, Box]]]
"""(class name, xyxy pixels) of the labels removed from each image."""

SMEARS_SEED = 7
"""Neither that of `--data smears` nor that of the shipped weights' training."""

MATCH_IOU = 0.5
PRECISION = 0.9

DAMAGES = ("moved", "renamed", "invented")
"""What is done to labels."""

CUTS = tuple(k / 20 for k in range(1, 20))
"""Scores at which precision and recall are given: 0.05 to 0.95."""


def hide_labels(source: DataSource, out: str | Path, share: float = 0.15, seed: int = 0) -> Removed:
    """Copy a dataset to `out` without a random `share` of its labels, and return those."""
    draw, removed = random.Random(seed), {}

    def hide(tree: etree._Element, file: Path) -> None:
        objects, nodes = read_objects(file), tree.findall("object")
        hidden = [k for k in range(len(objects)) if draw.random() < share]
        for k in hidden:
            tree.remove(nodes[k])
        removed[file.stem] = [objects[k] for k in hidden]

    _edited_copy(source, out, hide)
    return removed


def damage_labels(
    source: DataSource, out: str | Path, share: float = 0.04, seed: int = 0
) -> dict[str, dict[int, str]]:
    """Copy a dataset to `out` with a `share` of labels moved by half a cell, another renamed, and one label
    invented in the empty part of each image; return image -> object number -> what was done."""
    draw, done = random.Random(seed), {}

    def damage(tree: etree._Element, file: Path) -> None:
        marks = done[file.stem] = {}
        objects = read_objects(file)
        for k, (node, (name, box)) in enumerate(zip(tree.findall("object"), objects, strict=True), 1):
            chance = draw.random()
            if chance < share:
                set_box(node.find("bndbox"), _moved(box, draw))
                marks[k] = "moved"
            elif chance < 2 * share:
                node.find("name").text = draw.choice([n for n in source.class_names if n != name])
                marks[k] = "renamed"
        if (box := _empty_place([box for _, box in objects], draw)) is not None:
            add_object(tree, "RBC", box)
            marks[len(objects) + 1] = "invented"

    _edited_copy(source, out, damage)
    return done


def _edited_copy(source: DataSource, out: str | Path, edit: Callable[[etree._Element, Path], None]) -> None:
    shutil.copytree(source.folder, out)
    for file in sorted((Path(out) / "Annotations").glob("*.xml")):
        tree = read_tree(file)
        edit(tree, file)
        write_bytes(file, etree.tostring(tree, encoding="utf-8") + b"\n")


def _moved(box: Box, draw: random.Random) -> list[float]:
    wide, high = box[2] - box[0], box[3] - box[1]
    dx = draw.choice([-1, 1]) * draw.uniform(0.4, 0.6) * wide
    dy = draw.choice([-1, 1]) * draw.uniform(0.2, 0.4) * high
    left = min(max(box[0] + dx, 0), WIDTH - wide)
    top = min(max(box[1] + dy, 0), HEIGHT - high)
    return [round(side, 1) for side in (left, top, left + wide, top + high)]


def _empty_place(boxes: Iterable[Box], draw: random.Random, side: int = 85) -> list[float] | None:
    """A square of a red cell's size that overlaps no label by more than 0.15; None if there is no room."""
    truth = torch.tensor([list(box) for box in boxes], dtype=torch.float32).reshape(-1, 4)
    for _ in range(200):
        left, top = draw.randrange(WIDTH - side), draw.randrange(HEIGHT - side)
        box = [float(value) for value in (left, top, left + side, top + side)]
        if not len(truth) or float(iou(torch.tensor([box]), truth).max()) < 0.15:
            return box
    return None


def found_again(issues: Iterable[LabelIssue], removed: Removed, name: str | None = None) -> dict[str, Any]:
    """Precision and recall of the unlabeled objects against the labels that were removed.

    An issue is right if a removed label of its class, not yet found, overlaps it by at least 0.5. `name`
    keeps to one class. `curve` has (score, precision, recall) of what reaches each of CUTS; `at_90` is the
    last point down the ranking with that precision. What cannot be computed is None.
    """
    ranked = sorted(
        (s for s in issues if s.kind == "unlabeled" and name in (None, s.class_name)),
        key=lambda s: -s.score,
    )
    wanted = {
        image: [(n, box) for n, box in labels if name in (None, n)] for image, labels in removed.items()
    }
    total = sum(map(len, wanted.values()))
    points, right = [], 0
    for rank, issue in enumerate(ranked, start=1):
        right += _claim(issue, wanted.get(issue.image, []))
        points.append((issue.score, right / rank, right / total if total else None))
    good = [point for point in points if point[1] >= PRECISION]
    reached = [[point for point in points if point[0] >= cut] for cut in CUTS]
    return {
        "removed": total,
        "issues": len(ranked),
        "right": right,
        "precision": right / len(ranked) if ranked else None,
        "recall": right / total if total else None,
        "at_90": dict(zip(("score", "precision", "recall"), good[-1], strict=True)) if good else None,
        "curve": [(cut, *part[-1][1:]) for cut, part in zip(CUTS, reached, strict=True) if part],
    }


def _claim(issue: LabelIssue, labels: list[tuple[str, Box]]) -> bool:
    """Whether a label is found, which then is no longer in the list."""
    boxes = torch.tensor([list(box) for _, box in labels], dtype=torch.float32).reshape(-1, 4)
    overlaps = iou(torch.tensor([issue.box]), boxes)[0].tolist()
    for k in sorted(range(len(labels)), key=lambda k: -overlaps[k]):
        if overlaps[k] >= MATCH_IOU and labels[k][0] == issue.class_name:
            del labels[k]
            return True
    return False


def average_precision(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """Mean precision at each right one down the ranking by score; None where nothing is right."""
    order = np.argsort(-np.asarray(scores, dtype=float), kind="stable")
    hits = np.asarray(right, dtype=bool)[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean()) if hits.any() else None


def damage_found(
    source: DataSource, predictions: Mapping[str, Any], damage: Mapping[str, Mapping[int, str]]
) -> dict[str, dict[str, float | None]]:
    """Average precision of each kind of damage among the undamaged labels, and of all damage together."""
    dataset = source.dataset("all")
    detections = [predictions[sample.image_id] for sample in dataset.samples]
    issues = find_label_issues(dataset, detections, cuts=dict.fromkeys(KINDS, 0.0))
    doubtful = ("badly_located", "no_detection", "other_class")
    scores = {(s.image, s.object): s.score for s in issues if s.kind in doubtful}
    rows = [
        (damage[sample.image_id].get(number), scores.get((sample.image_id, number), 0.0))
        for sample in dataset.samples
        for number, label in enumerate(sample.objects, start=1)
        if label.box is not None
    ]
    kinds = {name: [row for row in rows if row[0] in (None, name)] for name in DAMAGES}
    return {name: _told_apart(part) for name, part in {**kinds, "any": rows}.items()}


def _told_apart(rows: Sequence[tuple[str | None, float]]) -> dict[str, float | None]:
    """From (damage or None, score) of each label."""
    damaged = [mark is not None for mark, _ in rows]
    precision = average_precision([score for _, score in rows], damaged)
    return {"labels": len(rows), "damaged": sum(damaged), "average_precision": precision}


def shipped_judge(source: DataSource, progress: bool) -> list[Detections]:
    """What the shipped weights find on every image."""
    dataset = source.dataset("all")
    judge = Predictor.from_checkpoint(shipped_weights(), score_threshold=SCORE_FLOOR)
    found = judge.detect([sample.image_path for sample in dataset.samples], progress=progress)
    return [
        replace(detections, image=sample.image_id)
        for detections, sample in zip(found, dataset.samples, strict=True)
    ]


def measure(
    out: Path,
    *,
    images: int,
    folds: int,
    epochs: int,
    share: float,
    judge: str = "folds",
    progress: bool = True,
) -> dict[str, Any]:
    """The whole measurement as plain values; folders and predictions stay in `out`."""
    whole = open_folder(
        write_dataset(out / "whole", train=images, val=0, test=0, seed=SMEARS_SEED, progress=progress)
    )
    hidden, record = out / "hidden", out / "removed.json"
    if not record.exists():
        shutil.rmtree(hidden, ignore_errors=True)
        write_json(record, hide_labels(whole, hidden, share))
    source, removed = open_folder(hidden), read_json(record)
    seconds: list[int] = []
    if judge == "shipped":
        found = shipped_judge(source, progress)
    else:
        found = out_of_fold(source, out / "run", FoldSettings(folds=folds, epochs=epochs, progress=progress))
        histories = [read_json(file)["epochs"] for file in sorted((out / "run/folds").glob("*/history.json"))]
        seconds = [round(sum(epoch["seconds"] for epoch in epochs)) for epochs in histories]
    dataset = source.dataset("all")
    issues = find_label_issues(dataset, found, cuts={**LISTED, "unlabeled": 0.0})
    listed = find_label_issues(dataset, found)
    classes = {"all": None, **{name: name for name in source.class_names}}
    shutil.rmtree(out / "damaged", ignore_errors=True)
    damage = damage_labels(source, out / "damaged")
    by_image = {detections.image: detections for detections in found}
    return {
        "images": images,
        "judge": judge,
        "folds": folds if judge == "folds" else None,
        "epochs": epochs if judge == "folds" else None,
        "training_seconds": seconds,
        "share_removed": share,
        "listed": {name: _without_curve(found_again(listed, removed, key)) for name, key in classes.items()},
        "whole_ranking": {name: found_again(issues, removed, key) for name, key in classes.items()},
        "damage": damage_found(open_folder(out / "damaged"), by_image, damage),
    }


def _without_curve(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("curve", "at_90")}


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Two tables of the measurement: the removed labels by class, and the labels damaged by kind."""
    removed = []
    for name, row in result["listed"].items():
        at = result["whole_ranking"][name]["at_90"] or {}
        counts = str(row["removed"]), str(row["issues"])
        shares = row["precision"], row["recall"], at.get("recall"), at.get("score")
        removed.append((name, *counts, *map(number, shares)))
    header = ("class", "removed", "listed", "precision", "recall", "recall at precision 0.9", "score there")
    damage = [
        (name, str(row["labels"]), str(row["damaged"]), number(row["average_precision"]))
        for name, row in result["damage"].items()
    ]
    return [Table(header, removed), Table(("damage", "labels", "damaged", "AP"), damage)]


def main(
    out: Annotated[Path, typer.Option(help="Folder for smears, networks and predictions.")],
    images: Annotated[int, typer.Option(min=6)] = 120,
    folds: Annotated[int, typer.Option(min=2)] = 3,
    epochs: Annotated[int, typer.Option(min=1)] = 15,
    share: Annotated[float, typer.Option(help="Of the labels, removed.", min=0, max=1)] = 0.15,
    judge: Annotated[Judge, typer.Option(help="folds or shipped.")] = "folds",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Measure how many removed labels `ssdlib data label-errors` finds again."""
    result = measure(out, images=images, folds=folds, epochs=epochs, share=share, judge=judge)
    print("\n\n".join(table.to_text() for table in tables(result)))
    if json_file is not None:
        write_results(json_file, result)


if __name__ == "__main__":
    run_command(main)
