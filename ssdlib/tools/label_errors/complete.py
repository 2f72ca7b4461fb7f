"""Missing labels, added in rounds to a copy: those finds of out-of-fold networks that are precise enough.

How precise they are is estimated without complete labels. Of the real objects of a class a share c has a
label, whatever score they get (Elkan and Noto 2008, "Learning classifiers from only positive and unlabeled
data"). So beside each detection that agrees with a label there are (1 - c) / c real ones without, and among
the finds of a score, f for each that agrees, a share of (1 - c) / (c f) is real. c is read off the
detections with the best scores, nearly all of which are real. At the border and between cells that overlap
fewer are labeled than elsewhere, so that each place has a c of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssdlib.common.errors import DataError
from ssdlib.common.files import (
    MAX_JSON_BYTES,
    new_folder,
    read_json,
    read_limited,
    shortened,
    write_json,
    write_text,
)
from ssdlib.common.tables import CSV_ENCODING, Table, csv_lines, number
from ssdlib.data.dataset import DetectionDataset
from ssdlib.data.formats.records import AddedObject
from ssdlib.data.source import DataSource, open_folder
from ssdlib.data.writers import copy_with_added
from ssdlib.evaluation.matching import match
from ssdlib.inference.detections import Detections
from ssdlib.inference.tiling import clear_of_border
from ssdlib.tools.label_errors.folds import FoldSettings, out_of_fold, read_predictions
from ssdlib.tools.label_errors.pages import write_page
from ssdlib.tools.label_errors.rank import COVERED_IOU, ImageLabels, LabelIssue, grouped, median_areas
from ssdlib.tools.label_errors.review import read_decisions, write_decisions
from ssdlib.tools.label_errors.search import DECISIONS_FILE

SAME_OBJECT_IOU = 0.4
"""A detection that overlaps a label or a better find this much is of the same object, of any class."""

INSIDE = 0.8
"""So is one that lies in the other with this share of its area, or has it in itself, if the classes are of
one size: half of a cell, or a box around two."""

ONE_SIZE = 4.0
"""Classes are of one size if their labels' median areas differ by less than this factor. Platelets are not of
the size of the cells that they lie on."""

TOUCHING = 0.02
"""Boxes overlap if their IoU is larger."""

LEAST = 20
"""Fewer detections that agree with a label say too little about a place or a class."""

BEST = 0.5
"""This share of as many detections as there must be real ones, the best, are taken to be real."""

LITTLE = 0.02
"""A round that adds less than this share of what is there is the last."""

PRECISION = 0.95
ROUNDS = 3

LISTED = 0.3
"""Finds that are less probably real than this are not shown for review."""

ADDED_FILE, ABOUT_FILE, COPY, PAGE_FILE = "added.csv", "completion.json", "data", "complete.html"


class Candidate(NamedTuple):
    """A detection that agrees with a label or, if it does not, may be an object without one."""

    issue: LabelIssue
    """The detection as a proposal; its score is the detector's."""
    agrees: bool
    place: str
    """Where the chances of a label differ: at the border, overlapping another, or alone."""


@dataclass(frozen=True)
class ClassEstimate:
    """What is estimated about the labels of one class."""

    name: str
    labels: int
    labeled: dict[str, float | None]
    """The share of the real objects that has a label, by place; None where too little is known."""
    missing: float
    """Real ones among the finds, expected."""
    added: int
    precision: float | None
    """Expected of what is added; None if nothing is."""


@dataclass(frozen=True)
class Round:
    """What one round found."""

    finds: list[LabelIssue]
    """Every object that may lack a label; the score is the estimated probability that it is real."""
    added: list[LabelIssue]
    classes: list[ClassEstimate]


def find_missing(
    dataset: DetectionDataset,
    detections: Sequence[Detections],
    precision: float = PRECISION,
    min_score: float | None = None,
) -> Round:
    """The objects that may lack a label, and those of them to add, by class, the most certain first.

    `detections` has one for each image, in order, down to low scores, by networks that were not trained on
    these labels. Of each class as many finds are added, best first, as keep the expected precision at
    `precision` or above; none of a class with fewer than LEAST detections that agree with a label. With
    `min_score` instead all finds of which the detector is as sure. Raises DataError where images and
    detections are not as many.
    """
    if len(dataset) != len(detections):
        raise DataError(f"{len(dataset)} images and {len(detections)} predictions: one for each is needed.")
    areas = median_areas(dataset.samples)
    images = map(ImageLabels, dataset.samples, detections)
    candidates = [candidate for image in images for candidate in _candidates(image, areas)]
    finds, added, classes = [], [], []
    for name, labels in dataset.class_counts().items():
        own = [candidate for candidate in candidates if candidate.issue.class_name == name]
        rated, labeled = _rated(own)
        rated.sort(key=lambda issue: (-issue.score, -issue.detector_score, issue.id))
        scores = np.array([issue.score for issue in rated])
        expected = np.cumsum(scores) / np.arange(1, len(scores) + 1)
        enough = sum(candidate.agrees for candidate in own) >= LEAST
        chosen = rated[: int((expected >= precision).sum())] if enough else []  # it only falls
        if min_score is not None:
            chosen = [issue for issue in rated if issue.detector_score >= min_score]
        estimate = float(np.mean([issue.score for issue in chosen])) if chosen else None
        classes.append(ClassEstimate(name, labels, labeled, float(scores.sum()), len(chosen), estimate))
        finds += rated
        added += chosen
    return Round(finds, added, classes)


def _candidates(image: ImageLabels, areas: Mapping[str, float]) -> list[Candidate]:
    """The detections of an image that agree with a label, and those that are of no labeled or better one."""
    boxes = np.array([label.box or (0, 0, 0, 0) for label in image.labels]).reshape(-1, 4)
    typical = np.array([areas.get(name, np.nan) for name in image.names])
    of_labels = np.array([areas.get(label.name, np.nan) for label in image.labels])
    worth = np.where(image.same, image.overlap, -1).T
    agrees = match(worth, [COVERED_IOU], priority=worth * image.scores[:, None])[0] >= 0
    labeled = _same_object(image.overlap.T, image.found, boxes, typical, of_labels).any(axis=1)
    twice = _same_object(image.between_found, image.found, image.found, typical, typical)
    kept: list[int] = []
    for d in np.argsort(-image.scores, kind="stable").tolist():
        if agrees[d] or not (labeled[d] or twice[d, kept].any()):
            kept.append(d)
    size = image.sample.width, image.sample.height
    at_border = ~clear_of_border(image.found, size, size)
    others = image.between_found - np.eye(len(image.found))
    touches = others[:, kept].max(axis=1, initial=0) > TOUCHING
    found = []
    for d in kept:
        proposal = (image.names[d], image.box(d))
        issue = image.issue("unlabeled", image.scores[d], None, d, proposal)
        place = "border" if at_border[d] else "overlapping" if touches[d] else "alone"
        found.append(Candidate(issue, bool(agrees[d]), place))
    return found


def _same_object(
    overlap: np.ndarray, a: np.ndarray, b: np.ndarray, typical_a: np.ndarray, typical_b: np.ndarray
) -> np.ndarray:
    """(A, B) bool: which boxes may be of one object, by their IoU and the typical areas of their classes."""
    area_a, area_b = (np.prod(box[:, 2:] - box[:, :2], axis=1) for box in (a, b))
    smaller = np.minimum(area_a[:, None], area_b)
    shared = overlap * (area_a[:, None] + area_b) / (1 + overlap)
    ratio = typical_a[:, None] / typical_b
    # Of a class without labels the size is not known; then boxes in one another count as one object.
    other_size = (ratio >= ONE_SIZE) | (ratio <= 1 / ONE_SIZE)
    return (overlap >= SAME_OBJECT_IOU) | ((shared >= INSIDE * smaller) & (smaller > 0) & ~other_size)


def _rated(own: Sequence[Candidate]) -> tuple[list[LabelIssue], dict[str, float | None]]:
    """The finds of a class, scored by their probability to be real, and the labeled share by place.

    A place with too few agreeing detections is rated by all places together.
    """
    rated, labeled = [], {}
    together = _probabilities(own)
    for place in ("alone", "overlapping", "border"):
        members = [candidate for candidate in own if candidate.place == place]
        known = sum(candidate.agrees for candidate in members) >= LEAST
        share, probability = _probabilities(members) if known else together
        labeled[place] = share if known else None
        for candidate in members:
            if not candidate.agrees:
                rated.append(replace(candidate.issue, score=round(probability(candidate.issue.score), 4)))
    return rated, labeled


def _probabilities(members: Sequence[Candidate]) -> tuple[float, Callable[[float], float]]:
    """The labeled share c of the real objects, and the probability that a find of a score is real."""
    ranked = sorted(members, key=lambda candidate: candidate.issue.score)
    scores = np.array([candidate.issue.score for candidate in ranked])
    agrees = np.array([candidate.agrees for candidate in ranked], dtype=float)
    share = 1.0
    for _ in range(2):  # at first as if all were labeled, which takes the fewest
        best = max(LEAST, round(BEST * agrees.sum() / share))
        share = agrees[-best:].mean() if len(agrees) else 0.0
        if share == 0:
            return 0.0, lambda score: 0.0
    agrees[-best:] = share
    real = np.minimum(1.0, _rising(agrees) / share)  # of all detections with this score
    rest = 1 - real * share
    of_finds = np.divide(real * (1 - share), rest, out=np.zeros_like(rest), where=rest > 0)
    return float(share), lambda score: float(np.interp(score, scores, of_finds))


def _rising(values: np.ndarray) -> np.ndarray:
    """The (N,) means that rise or stay and fit the values best: isotonic regression, by pooling neighbors
    that fall. Barlow et al. 1972."""
    blocks: list[list[float]] = []  # sum and number
    for value in values.tolist():
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    return np.concatenate([np.full(int(count), total / count) for total, count in blocks])


def complete(
    source: DataSource,
    out: str | Path,
    settings: FoldSettings,
    *,
    predictions: str | Path | None = None,
    precision: float = PRECISION,
    min_score: float | None = None,
    rounds: int = ROUNDS,
    review: bool = False,
) -> Round:
    """The finds of the round that adds most; a copy of the data with them added is written to `out`/data.

    The first round's networks learn from the labels as they are, those of each further one from the labels
    completed by the round before; every round decides anew about all finds. Rounds end after `rounds`, or
    when one adds less than LITTLE of what is there to what the round before added; what a round adds that
    finds less than the one before does not count. The copy has the layout of the data; its added.csv lists
    what was added, its completion.json says how. Called again it goes on where it stopped.

    precision, min_score: what is added, as for `find_missing`.
    predictions: a folder of JSON files as `ssdlib detect --json` writes, used in the first round instead of
    training networks. The caller vouches that their detector was not trained on these labels.
    review: instead of adding anything after the first round, write decisions.json and complete.html to `out`
    for `apply_finds`.

    Raises errors as `out_of_fold` and `find_missing`, and DataError where a copy has other content.
    """
    out, dataset = Path(out), source.dataset(settings.split)
    current, result, there = source, Round([], [], []), sum(dataset.class_counts().values())
    rule = {"precision": precision} if min_score is None else {"min_score": min_score}
    for k in range(1, rounds + 1):
        folder = out / f"round-{k}"
        if predictions is not None and k == 1:
            found = read_predictions(predictions, dataset)
        else:
            found = out_of_fold(current, folder, settings, kept=out)
        this = find_missing(dataset, found, precision, min_score)
        if review:
            _write_review(source, dataset, out, this)
            return this
        before = len(result.added)
        result = max(this, result, key=lambda one: len(one.added))
        if k == rounds or len(result.added) - before < LITTLE * (there + before):
            break
        write_copy(source, folder / COPY, result.added, rule)
        current = open_folder(folder / COPY)
    write_copy(source, out / COPY, result.added, rule)
    return result


def _write_review(source: DataSource, dataset: DetectionDataset, out: Path, result: Round) -> None:
    listed = [issue for issue in result.finds if issue.score >= LISTED]
    write_decisions(out / DECISIONS_FILE, source, listed)
    title = f"Labels that may be missing in {len(dataset)} images"
    write_page(listed, dataset, out / PAGE_FILE, title=title, notice=source.notice)


def apply_finds(source: DataSource, decisions: str | Path, out: str | Path) -> list[LabelIssue]:
    """The accepted finds of a decisions.json, which are added in a copy of the data, written to `out`.

    Raises DataError if nothing was accepted, if something else than an addition was, if the decisions are
    about other data, or if `out` holds something else.
    """
    accepted = [issue for issue, decision in read_decisions(decisions, source) if decision == "accept"]
    if not accepted:
        raise DataError(f"nothing is accepted in {decisions}: the copy would be the same as the original.")
    if other := next((issue for issue in accepted if issue.action != "add"), None):
        raise DataError(
            f"{decisions} has accepted issues that add nothing, such as {shortened(other.id)}: "
            "apply it with `ssdlib data label-errors`."
        )
    write_copy(source, Path(out), accepted)
    return accepted


def write_copy(
    source: DataSource, folder: Path, added: Sequence[LabelIssue], rule: Mapping[str, float] | None = None
) -> None:
    """Write a copy of the data in their own layout to `folder`, with the objects added and marked.

    added.csv in it lists them, completion.json says of which data it is the copy, and by which rule. A copy
    with the same content is left as it is. Raises DataError if `folder` holds anything else.
    """
    about = {"of": source.describe(root=False), "rule": dict(rule or {}), "added": len(added)}
    by_image = grouped(added, "image")
    table = added_csv(source, by_image)
    if (folder / ADDED_FILE).is_file() and (folder / ABOUT_FILE).is_file():
        same = read_limited(folder / ADDED_FILE, MAX_JSON_BYTES) == table.encode(CSV_ENCODING)
        if same and read_json(folder / ABOUT_FILE) == about:
            return
    objects = {image_id: [_object(issue) for issue in issues] for image_id, issues in by_image.items()}
    with new_folder(folder) as partial:
        copy_with_added(source, partial, objects)
        write_text(partial / ADDED_FILE, table, CSV_ENCODING)
        write_json(partial / ABOUT_FILE, about)


def _object(issue: LabelIssue) -> AddedObject:
    marks = {"score": issue.detector_score, "precision": issue.score}
    return AddedObject(issue.proposed_class, issue.proposed_box, marks)


def added_csv(source: DataSource, by_image: Mapping[str, Sequence[LabelIssue]]) -> str:
    """A CSV file with one row for each added object: where it is, what it is, and how sure that is.

    `object` is its number among the image's labels in the copy, from 1; `score` the detector's; `precision`
    the estimated probability that it is real.
    """
    rows = [["image", "object", "class", "xmin", "ymin", "xmax", "ymax", "score", "precision"]]
    for image_id, issues in by_image.items():
        first = len(source.labels.by_id[image_id].objects) + 1
        for k, one in enumerate(issues, first):
            rows.append([image_id, k, one.proposed_class, *one.proposed_box, one.detector_score, one.score])
    return "".join(csv_lines(rows))


def completion_table(result: Round) -> Table:
    """What is estimated about each class, and what was added."""
    places = list(dict.fromkeys(place for one in result.classes for place in one.labeled))
    rows = [
        [
            one.name,
            str(one.labels),
            *(number(one.labeled.get(place)) for place in places),
            f"{one.missing:.0f}",
            str(one.added),
            number(one.precision),
        ]
        for one in result.classes
    ]
    shares = (f"labeled, {place}" for place in places)
    return Table(["class", "labels", *shares, "missing", "added", "precision"], rows)
