"""VOC 2007 and 2012 average precision against their definitions, in exact fractions, on random detections."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssdlib.evaluation.metrics import evaluate_detections, precision_recall, weighted_metrics
from ssdlib.inference.detections import Detections
from tests.core_cases import fast

NAMES = ("WBC",)
SIZE = (100, 100)
LEVELS = 8
"""Few scores and few places make equal scores, equal overlaps and IoUs of exactly one half common."""

box = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3), st.integers(1, 3)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
scored = st.tuples(box, st.integers(1, LEVELS))
field = st.tuples(st.lists(box, max_size=5), st.lists(scored, max_size=8))
fields = st.lists(field, max_size=4)


def exact_iou(a, b) -> Fraction:
    """Of whole pixels, counted one by one."""
    pixels_a, pixels_b = (
        {(x, y) for x in range(one[0], one[2]) for y in range(one[1], one[3])} for one in (a, b)
    )
    return Fraction(len(pixels_a & pixels_b), len(pixels_a | pixels_b))


def operating_points(images) -> list[tuple[Fraction, Fraction]]:
    """(recall, precision) after each detection, best score first; images must hold objects."""
    ranked = [(-s, i, k) for i, (_, found) in enumerate(images) for k, (_, s) in enumerate(found)]
    claimed: set[tuple[int, int]] = set()
    objects, right, points = sum(len(truth) for truth, _ in images), 0, []
    for rank, (_, image, k) in enumerate(sorted(ranked), start=1):
        truth, found = images[image]
        overlaps = [exact_iou(found[k][0], one) for one in truth]
        nearest = (image, overlaps.index(max(overlaps))) if overlaps else None
        if nearest and max(overlaps) >= Fraction(1, 2) and nearest not in claimed:
            claimed.add(nearest)
            right += 1
        points.append((Fraction(right, objects), Fraction(right, rank)))
    return points


def interpolated(points, recall: Fraction) -> Fraction:
    """The best precision at this recall or a higher one (Everingham et al. 2010, equation 2)."""
    return max((precision for reached, precision in points if reached >= recall), default=Fraction(0))


def by_definition(images) -> tuple[Fraction, Fraction]:
    """(VOC 2007, VOC 2012): the mean at eleven recalls; the area under the interpolated step curve."""
    points = operating_points(images)
    eleven = sum(interpolated(points, Fraction(k, 10)) for k in range(11)) / 11
    steps = sorted({Fraction(0), *(recall for recall, _ in points)})
    area = sum(
        ((high - low) * interpolated(points, high) for low, high in pairwise(steps)),
        Fraction(0),
    )
    return eleven, area


def as_ours(images) -> tuple[list[Detections], list[dict]]:
    # 12.5 pixels a cell: exact in binary, and not whole.
    def boxes(rows):
        return 12.5 * torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)

    detections = [
        Detections(
            boxes([b for b, _ in found]), [s / LEVELS for _, s in found], [1] * len(found), SIZE, NAMES
        )
        for _, found in images
    ]
    return detections, [{"boxes": boxes(truth), "labels": [1] * len(truth)} for truth, _ in images]


A, B, FAR = (0, 0, 2, 2), (3, 3, 5, 5), (3, 0, 4, 1)


@pytest.mark.parametrize(
    ("images", "voc07", "voc12"),
    [
        ([([A], [])], 0, 0),
        ([([A], [(FAR, 8)])], 0, 0),
        ([([A], [(A, 8)])], 1, 1),
        # An overlap of exactly one half is enough, of a quarter is not.
        ([([A], [((0, 0, 1, 2), 8)])], 1, 1),
        ([([A], [((0, 0, 1, 1), 8)])], 0, 0),
        # Half the objects found at precision 1: recalls 0 to 0.5 are six of eleven points.
        ([([A, B], [(A, 8)])], "6/11", "1/2"),
        # Precision rises again later: the envelope takes 3/4 from the start.
        ([([], [(A, 8)])] + [([A], [(A, 7)])] * 3 + [([A], [])], "6/11", "9/16"),
        # Right, wrong, right on two objects: 1 up to recall 1/2, then 2/3.
        ([([A, B], [(A, 8), (FAR, 7), (B, 6)])], "28/33", "5/6"),
        # The second find of the same object is a false positive, although another object is free.
        ([([A, B], [(A, 8), (A, 7)])], "6/11", "1/2"),
        # Scores rank across images: wrong in the first image at 8, right in the second at 7.
        ([([A], [(FAR, 8)]), ([A], [(A, 7)])], "3/11", "1/4"),
        # Ten objects, three found: recall is 0.3 exactly, and the level 0.3 counts.
        ([([A], [(A, 8)])] * 3 + [([A], [])] * 7, "4/11", "3/10"),
        # False positives in an image without objects count as well.
        ([([], [(A, 8)]), ([A], [(A, 7)])], "1/2", "1/2"),
    ],
)
def test_by_hand(images, voc07, voc12):
    assert by_definition(images) == (Fraction(voc07), Fraction(voc12)), "the definition itself"
    metrics, exact = evaluate_detections(*as_ours(images), NAMES), (Fraction(voc07), Fraction(voc12))
    entry = metrics.per_class["WBC"]
    assert (entry.voc07_ap, entry.voc12_ap) == pytest.approx([float(one) for one in exact], abs=1e-12)
    assert (metrics.voc07_map, metrics.voc12_map) == (entry.voc07_ap, entry.voc12_ap)


@fast
@given(fields)
def test_random_fields_by_the_definition(images):
    detections, targets = as_ours(images)
    curve = precision_recall(detections, targets, 1)
    if not any(truth for truth, _ in images):
        assert curve.voc07_ap is curve.voc12_ap is None
        return
    exact = [float(figure) for figure in by_definition(images)]
    assert [curve.voc07_ap, curve.voc12_ap] == pytest.approx(exact, abs=1e-12)


@fast
@given(fields, st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_random_weights_by_the_definition(images, times):
    """A field of weight three is three fields; scores are made to differ, as ties may fall either way."""
    number = iter(range(1, 1000))
    images = [(truth, [(b, (s * 1000 + next(number)) / 1e4) for b, s in found]) for truth, found in images]
    counts = torch.tensor(times[: len(images)], dtype=torch.int64).reshape(1, -1).numpy()
    figures = weighted_metrics(*as_ours(images), NAMES, counts)
    listed = [image for image, count in zip(images, counts[0], strict=True) for _ in range(count)]
    if any(truth for truth, _ in listed):
        exact = [float(figure) for figure in by_definition(listed)]
        assert [figures["voc07_map"][0], figures["voc12_map"][0]] == pytest.approx(exact, abs=1e-12)
    else:
        assert figures["voc07_map"] != figures["voc07_map"], "NaN"
