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
import typer
from lxml import etree

from ssdlib.common.files import read_json, write_bytes, write_json
from ssdlib.common.tables import Table, number
from ssdlib.data.formats.records import iou_matrix
from ssdlib.data.formats.voc import add_object, read_objects, read_tree, set_box
from ssdlib.data.smears import HEIGHT, WIDTH, write_dataset
from ssdlib.data.source import DataSource, open_folder
from ssdlib.detector.model_file import shipped_weights
from ssdlib.evaluation.matching import match
from ssdlib.evaluation.metrics import PrecisionRecall
from ssdlib.inference.detections import Detections
from ssdlib.inference.predictor import Predictor
from ssdlib.tools.label_errors.folds import SCORE_FLOOR, FoldSettings, out_of_fold
from ssdlib.tools.label_errors.rank import CUTS as LISTED
from ssdlib.tools.label_errors.rank import KINDS, LabelIssue, find_label_issues
from tests.benchmarks.common import run_command, write_results

Box = Sequence[float]
Judge = Literal["folds", "shipped"]
Objects = Sequence[tuple[str, Box]]
"""(class name, xyxy pixels) of the labels of an image."""
Removed = dict[str, Objects]
"""The labels removed from each image."""

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

    def hide(tree: etree._Element, image: str, objects: Objects) -> None:
        nodes = tree.findall("object")
        hidden = [k for k in range(len(objects)) if draw.random() < share]
        for k in hidden:
            tree.remove(nodes[k])
        removed[image] = [objects[k] for k in hidden]

    _edited_copy(source, out, hide)
    return removed


def damage_labels(
    source: DataSource, out: str | Path, share: float = 0.04, seed: int = 0
) -> dict[str, dict[int, str]]:
    """Copy a dataset to `out` with a `share` of labels moved by half a cell, another renamed, and one label
    invented in the empty part of each image; return image -> object number -> what was done."""
    draw, done = random.Random(seed), {}

    def damage(tree: etree._Element, image: str, objects: Objects) -> None:
        marks = done[image] = {}
        for k, (node, (name, box)) in enumerate(zip(tree.findall("object"), objects, strict=True), 1):
            chance = draw.random()
            if chance < share:
                set_box(node.find("bndbox"), _moved(box, draw), fractions=True)
                marks[k] = "moved"
            elif chance < 2 * share:
                node.find("name").text = draw.choice([n for n in source.class_names if n != name])
                marks[k] = "renamed"
        if (box := _empty_place([box for _, box in objects], draw)) is not None:
            add_object(tree, "RBC", box, fractions=True)
            marks[len(objects) + 1] = "invented"

    _edited_copy(source, out, damage)
    return done


def _edited_copy(
    source: DataSource, out: str | Path, edit: Callable[[etree._Element, str, Objects], None]
) -> None:
    shutil.copytree(source.folder, out)
    for file in sorted((Path(out) / "Annotations").glob("*.xml")):
        tree = read_tree(file)
        edit(tree, file.stem, read_objects(file))
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
    truth = _corners(boxes)
    for _ in range(200):
        left, top = draw.randrange(WIDTH - side), draw.randrange(HEIGHT - side)
        box = [float(value) for value in (left, top, left + side, top + side)]
        if iou_matrix(_corners([box]), truth).max(initial=0.0) < 0.15:
            return box
    return None


def found_again(issues: Iterable[LabelIssue], removed: Removed, name: str | None = None) -> dict[str, Any]:
    """Precision and recall of the unlabeled objects against the labels that were removed.

    Highest score first, an issue is right if a removed label of its class, not yet found, overlaps it by at
    least 0.5. `name` keeps to one class. `curve` has (score, precision, recall) of what reaches each of CUTS;
    `at_90` is the last point down the ranking with that precision. What cannot be computed is None.
    """
    ranked = sorted((s for s in issues if s.kind == "unlabeled"), key=lambda s: -s.score)
    right = np.zeros(len(ranked), dtype=bool)
    for image, labels in removed.items():
        own = [k for k, issue in enumerate(ranked) if issue.image == image]
        overlap = iou_matrix(_corners(ranked[k].box for k in own), _corners(box for _, box in labels))
        same_class = [[ranked[k].class_name == label for label, _ in labels] for k in own]
        overlap[~np.array(same_class, dtype=bool).reshape(overlap.shape)] = -1
        right[own] = match(overlap, [MATCH_IOU])[0] >= 0
    chosen = [k for k, issue in enumerate(ranked) if name in (None, issue.class_name)]
    scores = np.array([ranked[k].score for k in chosen])
    total = sum(name in (None, label) for labels in removed.values() for label, _ in labels)
    curve = PrecisionRecall(scores, right[chosen], total)
    precision, recall, count = curve.at(0.0)
    points = {cut: curve.at(cut)[:2] for cut in CUTS}
    good = np.flatnonzero(curve.precision >= PRECISION)
    figures = {"score": scores, "precision": curve.precision, "recall": curve.recall}
    return {
        "removed": total,
        "issues": count,
        "right": int(right[chosen].sum()),
        "precision": precision,
        "recall": recall,
        "at_90": {name: float(v[good[-1]]) for name, v in figures.items()} if len(good) else None,
        "curve": [(cut, *point) for cut, point in points.items() if point[0] is not None],
    }


def _corners(boxes: Iterable[Box]) -> np.ndarray:
    """Boxes as (N, 4) float64."""
    return np.array([list(box) for box in boxes], dtype=np.float64).reshape(-1, 4)


def damage_found(
    source: DataSource, predictions: Mapping[str, Any], damage: Mapping[str, Mapping[int, str]]
) -> dict[str, dict[str, float | None]]:
    """How well each kind of damage is told from the undamaged labels, and all damage together."""
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
    return {name: told_apart(part) for name, part in {**kinds, "any": rows}.items()}


def told_apart(rows: Sequence[tuple[str | None, float]]) -> dict[str, float | None]:
    """The average precision of (damage or None, score) of each label: the mean precision at each damaged one
    down the ranking by score; None where nothing is damaged."""
    ranked = sorted(rows, key=lambda row: -row[1])
    damaged = np.array([mark is not None for mark, _ in ranked], dtype=bool)
    curve = PrecisionRecall(np.array([score for _, score in ranked]), damaged, int(damaged.sum()))
    precision = float(curve.precision[damaged].mean()) if damaged.any() else None
    return {"labels": len(rows), "damaged": curve.ground_truth, "average_precision": precision}


def shipped_judge(source: DataSource, progress: bool = True) -> list[Detections]:
    """What the weights of BCCD's figures, which are sure of drawn cells, find on every image."""
    samples = source.dataset("all").samples
    judge = Predictor.from_checkpoint(shipped_weights("bccd"), score_threshold=SCORE_FLOOR)
    found = judge.detect([sample.image_path for sample in samples], progress=progress)
    return [replace(own, image=sample.image_id) for own, sample in zip(found, samples, strict=True)]


def measure(out: Path, *, images: int, folds: int, epochs: int, share: float, judge: Judge) -> dict[str, Any]:
    """The whole measurement as plain values; folders and predictions stay in `out`."""
    whole = open_folder(write_dataset(out / "whole", train=images, val=0, test=0, seed=SMEARS_SEED))
    hidden, record = out / "hidden", out / "removed.json"
    if not record.exists():
        shutil.rmtree(hidden, ignore_errors=True)
        write_json(record, hide_labels(whole, hidden, share))
    source, removed = open_folder(hidden), read_json(record)
    about: dict[str, Any] = {"images": images, "judge": judge, "share_removed": share}
    if judge == "shipped":
        found = shipped_judge(source)
    else:
        found = out_of_fold(source, out / "run", FoldSettings(folds=folds, epochs=epochs))
        histories = [read_json(file)["epochs"] for file in sorted((out / "run/folds").glob("*/history.json"))]
        seconds = [round(sum(epoch["seconds"] for epoch in history)) for history in histories]
        about |= {"folds": folds, "epochs": epochs, "training_seconds": seconds}
    issues = find_label_issues(source.dataset("all"), found, cuts={**LISTED, "unlabeled": 0.0})
    listed = [issue for issue in issues if issue.score >= LISTED["unlabeled"]]
    classes = {"all": None, **{name: name for name in source.class_names}}
    shutil.rmtree(out / "damaged", ignore_errors=True)
    damage = damage_labels(source, out / "damaged")
    by_image = {detections.image: detections for detections in found}
    return {
        **about,
        "listed": {name: found_again(listed, removed, key) for name, key in classes.items()},
        "whole_ranking": {name: found_again(issues, removed, key) for name, key in classes.items()},
        "damage": damage_found(open_folder(out / "damaged"), by_image, damage),
    }


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
