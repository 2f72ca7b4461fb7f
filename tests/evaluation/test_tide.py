"""Kinds of errors: each by hand once, what fixing them gains, and the authors' package as yardstick."""

from __future__ import annotations

import json
from dataclasses import asdict

import matplotlib as mpl
import numpy as np
import pytest
import torch
from tidecv import TIDE, Data

from ssdlib.evaluation.metrics import evaluate_detections
from ssdlib.evaluation.tide import FALSE_POSITIVE_KINDS, KINDS, classify, tide_errors, worst_errors
from tests.evaluation.cases import NAMES, found, random_case, truth

TIDECV = dict(zip(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), KINDS, strict=True))


# A box moved by 20 of its 100 pixels has IoU 80 / 120 with itself, by 50: 1 / 3, by 90: 10 / 190.
@pytest.mark.parametrize(
    ("detections", "target", "kinds", "objects", "missed"),
    [
        (found(), truth(), [], [], []),
        (found(), truth((0, 1)), [], [], [True]),
        (found((0, 1, 0.9)), truth(), ["background"], [-1], []),
        (found((20, 1, 0.9)), truth((0, 1)), ["true positive"], [0], [False]),
        (found((20, 2, 0.9)), truth((0, 1)), ["class"], [0], [False]),
        (found((50, 1, 0.9)), truth((0, 1)), ["localization"], [0], [False]),
        (found((50, 2, 0.9)), truth((0, 1)), ["both"], [0], [True]),
        (found((0, 1, 0.9), (20, 1, 0.8)), truth((0, 1)), ["true positive", "duplicate"], [0, 0], [False]),
        (found((90, 1, 0.9)), truth((0, 1)), ["background"], [-1], [True]),
        # The higher score is right, wherever it stands in the list and however good the other's box is.
        (found((0, 1, 0.8), (20, 1, 0.9)), truth((0, 1)), ["true positive", "duplicate"], [0, 0], [False]),
        # Between an object of its class and one of another: the box is blamed before the class.
        (found((20, 1, 0.9)), truth((80, 1), (0, 2)), ["localization"], [0], [False, True]),
        # A second box on a cell that also covers another class: the class is blamed before the double.
        (
            found((0, 1, 0.9), (10, 1, 0.8)), truth((0, 1), (20, 2)),
            ["true positive", "class"], [0, 1], [False, False],
        ),
        # Falls back on a free object, as COCO's matching does.
        (found((0, 1, 0.9), (4, 1, 0.8)), truth((0, 1), (20, 1)), ["true positive"] * 2, [0, 1], [False] * 2),
    ],
)  # fmt: skip
def test_kinds_by_hand(detections, target, kinds, objects, missed):
    errors = classify(detections, target)
    assert errors.kinds.tolist() == kinds
    assert errors.objects.tolist() == objects
    assert errors.missed.tolist() == missed
    assert np.flatnonzero(errors.found).tolist() == sorted(errors.objects[errors.kinds == "true positive"])


def test_past_the_hundredth_of_a_class_nothing_counts():
    """As in COCO's average precision."""
    errors = classify(found(*((0, 1, 0.9 - k / 1000) for k in range(103)), (0, 2, 0.1)), truth((0, 1)))
    assert errors.kinds.tolist() == ["true positive"] + ["duplicate"] * 99 + [""] * 3 + ["class"]


def test_one_of_each_kind_and_what_fixing_it_gains():
    """One class with six objects; the false positives come first, so that fixing each is worth something."""
    detections = found(
        (1000, 1, 0.95),  # background
        (300, 1, 0.9),  # right
        (320, 1, 0.85),  # duplicate
        (50, 1, 0.8),  # badly located on 0
        (2000, 1, 0.75),  # of class 2: class
        (2350, 1, 0.7),  # near one of class 2: both
        (600, 1, 0.65),  # right
    )
    target = truth((0, 1), (300, 1), (600, 1), (900, 1), (2000, 2), (2300, 2))
    errors = tide_errors([detections], [target], NAMES)
    wbc, rbc = errors.per_class["WBC"], errors.per_class["RBC"]
    assert {kind: one.count for kind, one in errors.kinds.items()} == {
        "class": 1, "localization": 1, "both": 1, "duplicate": 1, "background": 1, "missed": 2,
    }  # fmt: skip
    # F T F F F F T, four objects: recalls up to 1/4 (26 of 101) at precision 1/2, up to 1/2 (25) at 2/7.
    ap = (26 * 1 / 2 + 25 * 2 / 7) / 101
    assert wbc.ap_50 == pytest.approx(ap)
    expected = {
        "class": (26 / 2 + 25 * 2 / 6) / 101,
        "both": (26 / 2 + 25 * 2 / 6) / 101,
        "duplicate": (26 / 2 + 25 * 2 / 6) / 101,
        "background": (26 * 1 + 25 * 2 / 6) / 101,
        "localization": (26 / 2 + 25 * 2 / 4 + 25 * 3 / 7) / 101,  # F T F T F F T
        "missed": (34 / 2 + 33 * 2 / 7) / 101,  # of three objects
    }
    for kind, fixed in expected.items():
        assert wbc.kinds[kind].delta_ap == pytest.approx(fixed - ap), kind
    assert wbc.false_positives.count == 5
    assert wbc.false_positives.delta_ap == pytest.approx(51 / 101 - ap)
    assert wbc.misses.count == 2 and wbc.misses.delta_ap == pytest.approx((51 / 2 + 50 * 2 / 7) / 101 - ap)
    # Its first object was called WBC: fixing that finds it, and the other stays missed.
    assert rbc.ap_50 == 0 and rbc.kinds["class"].delta_ap == pytest.approx(51 / 101)
    assert rbc.misses.count == 2 and rbc.misses.delta_ap == 1
    assert errors.map_50 == pytest.approx(ap / 2)
    assert errors.kinds["class"].delta_ap == pytest.approx((expected["class"] - ap + 51 / 101) / 2)
    assert errors.per_class["Platelets"].ap_50 is None


@pytest.mark.parametrize(
    ("detections", "targets", "counts", "map_50", "gain_of_missed"),
    [
        ([], [], (0, 0), None, None),
        ([found()], [truth()], (0, 0), None, None),
        ([found((0, 1, 0.9))], [truth()], (1, 0), None, None),
        ([found()], [truth((0, 1))], (0, 1), 0.0, 1.0),
        ([found((0, 1, 0.9))], [truth((0, 1))], (0, 0), 1.0, 0.0),
        ([found((0, 2, 0.9))], [truth((0, 1))], (1, 1), 0.0, 0.0),
    ],
)
def test_from_nothing_on(detections, targets, counts, map_50, gain_of_missed):
    errors = tide_errors(detections, targets, NAMES)
    assert (errors.false_positives.count, errors.misses.count) == counts
    assert errors.map_50 == map_50 and errors.kinds["missed"].delta_ap == gain_of_missed
    for entry in errors.per_class.values():
        costs = [*entry.kinds.values(), entry.false_positives, entry.misses]
        assert all((one.delta_ap is None) == (entry.objects == 0) for one in costs)
    values = json.loads(json.dumps(asdict(errors), allow_nan=False))
    assert list(values["kinds"]) == list(KINDS) and values["images"] == len(targets)
    assert len(worst_errors(detections, targets, NAMES)) <= sum(counts)


@pytest.mark.parametrize("seed", range(4))
def test_the_authors_package_agrees(seed, monkeypatch):
    # Its recall levels are k / 100; COCO's np.linspace makes some of them, such as 0.07, a bit larger.
    monkeypatch.setattr("ssdlib.evaluation.metrics.COCO_RECALLS", np.arange(101) / 100)
    detections, targets = random_case(seed)
    objects, boxes = Data("truth"), Data("found")
    for index, (one, target) in enumerate(zip(detections, targets, strict=True)):
        objects.add_image(index, str(index))
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            objects.add_ground_truth(index, int(label), xywh(box))
        for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True):
            boxes.add_detection(index, int(label), float(score), xywh(box))
    with mpl.rc_context():  # it sets a style of its own
        run = TIDE().evaluate(objects, boxes, mode=TIDE.BOX)
    ours = tide_errors(detections, targets, NAMES)
    assert ours.map_50 == pytest.approx(run.ap / 100, abs=1e-9)
    counts, costs = run.count_errors(), run.fix_main_errors()
    for kind, count in counts.items():
        mine = ours.kinds[TIDECV[kind.short_name]]
        assert mine.count == count > 0, kind
        assert mine.delta_ap == pytest.approx(costs[kind] / 100, abs=1e-9), kind
    false_positives, misses = run.fix_special_errors().values()
    assert ours.false_positives.delta_ap == pytest.approx(false_positives / 100, abs=1e-9)
    assert ours.misses.delta_ap == pytest.approx(misses / 100, abs=1e-9)


def xywh(box) -> list[float]:
    xmin, ymin, xmax, ymax = np.asarray(box, dtype=np.float64).tolist()
    return [xmin, ymin, xmax - xmin, ymax - ymin]


@pytest.mark.parametrize("seed", range(3))
def test_books_balance(seed):
    detections, targets = random_case(seed)
    errors = tide_errors(detections, targets, NAMES)
    metrics = evaluate_detections(detections, targets, NAMES)
    assert errors.map_50 == pytest.approx(metrics.map_50, abs=1e-6)
    for name, entry in errors.per_class.items():
        assert entry.ap_50 == pytest.approx(metrics.per_class[name].ap_50, abs=1e-6)
        assert entry.false_positives.count == sum(entry.kinds[kind].count for kind in FALSE_POSITIVE_KINDS)
        right = entry.detections - entry.false_positives.count
        assert (
            right + entry.misses.count == entry.objects and entry.kinds["missed"].count <= entry.misses.count
        )
        everything = [*entry.kinds.values(), entry.false_positives, entry.misses]
        assert all(0 <= one.delta_ap <= 1 - entry.ap_50 + 1e-12 for one in everything)
        assert max(entry.kinds[kind].delta_ap for kind in ("both", "duplicate", "background")) <= (
            entry.false_positives.delta_ap + 1e-12
        )
    # What a detection is depends on those above it alone.
    for one, target in zip(detections, targets, strict=True):
        cut = one.above(0.5)
        assert classify(cut, target).kinds.tolist() == classify(one, target).kinds[: len(cut)].tolist()


def test_the_worst_first():
    """False positives by score; a large object without any hint of it before small and doubtful ones."""
    detections = found(
        (3000, 1, 0.7), (6000, 2, 0.95), (0, 1, 0.9), (20, 2, 0.8), (1000, 1, 0.4), (0, 3, 0.2)
    )
    target = truth((0, 1), (1000, 1), (2000, 1))
    target["boxes"] = torch.cat([target["boxes"], torch.tensor([[5000.0, 0, 5010, 10]])])
    target["labels"] = torch.tensor([1, 1, 1, 1])
    worst = worst_errors([found(), detections], [truth(), target], NAMES)
    assert [(one.kind, one.name, one.score and round(one.score, 4)) for one in worst] == [
        ("background", "RBC", 0.95),
        ("class", "RBC", 0.8),
        ("background", "WBC", 0.7),
        ("missed", "WBC", None),
        ("missed", "WBC", 0.4),
        ("missed", "WBC", None),
    ]
    assert all(one.image_index == 1 and one.image == "field" for one in worst)
    assert worst[1].true_name == "WBC" and worst[1].true_box == (0, 0, 100, 10)
    assert worst[0].true_box is None and worst[3].box == (2000, 0, 2100, 10)
    few = worst_errors([found(), detections], [truth(), target], NAMES, false_positives=1, misses=0)
    assert few == worst[:1]
    lower = dict.fromkeys(NAMES, 0.3)
    assert [one.score for one in worst_errors([detections], [target], NAMES, threshold=lower)][-2:] == [
        None
    ] * 2
