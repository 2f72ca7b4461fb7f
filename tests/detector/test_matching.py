"""Matching: by hand, by a literal greedy loop, and by torchvision's SSDMatcher wherever we mean the same."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import SSDMatcher

from ssdlib.config import PriorConfig
from ssdlib.detector.boxes import area, cxcywh_to_xyxy, encode, iou, xyxy_to_cxcywh
from ssdlib.detector.matching import Matches, assign_own_priors, match
from ssdlib.detector.priors import make_priors
from tests.core_cases import FEW_PRIORS, boxes_strategy, fast, grid_boxes, random_boxes, seeded

# --- the worked example: two objects and five priors on a board of 8 x 8 squares -------------------------

OBJECTS = torch.tensor([[0, 0, 4, 4], [2, 0, 5, 4]]) / 8  # A, B
PRIORS = torch.tensor([[0, 0, 5, 4], [3, 2, 7, 4], [0, 0, 4, 8], [0, 0, 2, 2], [6, 6, 8, 8]]) / 8
OVERLAPS = [
    [16 / 20, 2 / 22, 16 / 32, 4 / 16, 0],
    [12 / 20, 4 / 16, 8 / 36, 0, 0],
]
A, B = 0, 1


def test_worked_example_overlaps():
    torch.testing.assert_close(iou(OBJECTS, PRIORS), torch.tensor(OVERLAPS, dtype=torch.float32))


def test_worked_example_matches():
    """Both objects like prior 0 best. A overlaps it more and keeps it; B takes its next best, prior 1, at
    0.25 only. Prior 2 reaches 0.5 with A. Prior 3 overlaps A by the same 0.25, yet is background."""
    matches = match([OBJECTS], [torch.tensor([1, 2])], xyxy_to_cxcywh(PRIORS))
    assert matches.object_for_each_prior.tolist() == [[A, B, A, -1, -1]]
    assert matches.labels.tolist() == [[1, 2, 1, 0, 0]]
    assert matches.iou.tolist() == [[pytest.approx(v) for v in (0.8, 0.25, 0.5, 0.25, 0)]]
    assert torch.equal(matches.boxes[0, :3], OBJECTS[[A, B, A]])
    assert matches.boxes[0, 3:].count_nonzero() == 0


def test_worked_example_codes():
    codes = encode(OBJECTS[[A, B, A]], xyxy_to_cxcywh(PRIORS)[:3])
    expected = [[-1, 0, -1.11572, 0], [-3.75, -5, -1.43841, 3.46574], [0, -2.5, 0, -3.46574]]
    torch.testing.assert_close(codes, torch.tensor(expected), atol=1e-4, rtol=0)


def test_worked_example_where_torchvision_differs():
    """There the later object takes prior 0, and A, which overlaps it more, loses it."""
    theirs = SSDMatcher(0.5)(iou(OBJECTS, PRIORS))
    assert theirs.tolist() == [B, -1, A, -1, -1]
    # In the other order A comes last and wins, but B is left with nothing.
    assert SSDMatcher(0.5)(iou(OBJECTS.flip(0), PRIORS)).tolist() == [1, -1, 1, -1, -1]
    ours = match([OBJECTS.flip(0)], [torch.tensor([2, 1])], xyxy_to_cxcywh(PRIORS))
    assert ours.labels.tolist() == [[1, 2, 1, 0, 0]]  # the order of the objects is of no account


# --- every object its own prior --------------------------------------------------------------------------


def greedy(overlap: Tensor) -> Tensor:
    """The paper's bipartite step to the letter, for one image: (G, P) -> (G,), -1 for none."""
    left = overlap.tolist()
    own = [-1] * len(left)
    while True:
        pairs = [(-v, g, p) for g, row in enumerate(left) for p, v in enumerate(row) if v > 0]
        if not pairs:
            return torch.tensor(own, dtype=torch.long)
        _, g, p = min(pairs)
        own[g] = p
        left[g] = [0.0] * len(left[g])
        for row in left:
            row[p] = 0.0


@pytest.mark.parametrize(
    ("overlap", "own"),
    [
        ([], []),
        ([[0.0, 0.0]], [-1]),
        ([[0.1, 0.2]], [1]),
        ([[0.2, 0.2]], [0]),
        ([[0.9, 0.1], [0.8, 0.7]], [0, 1]),
        ([[0.8, 0.7], [0.9, 0.1]], [1, 0]),
        # A tie goes to the object that comes first.
        ([[0.5, 0.1], [0.5, 0.1]], [0, 1]),
        # Two rounds: 2 loses prior 0 to 1, then prior 1 to 0.
        ([[0.1, 0.8, 0.0], [0.9, 0.0, 0.0], [0.7, 0.6, 0.5]], [1, 0, 2]),
        # More objects than priors, and one that overlaps only what others took.
        ([[0.9], [0.8], [0.7]], [0, -1, -1]),
        ([[0.9, 0.0], [0.8, 0.0], [0.0, 0.3]], [0, -1, 1]),
    ],
)
def test_own_priors_by_hand(overlap, own):
    table = torch.tensor(overlap, dtype=torch.float32).reshape(1, len(own), -1 if overlap else 3)
    before = table.clone()
    assert assign_own_priors(table)[0].tolist() == own == greedy(table[0]).tolist()
    assert torch.equal(table, before)


@pytest.mark.parametrize("levels", [1, 3, 10, 10**6])
def test_thousands_of_tables_equal_the_greedy_loop(levels):
    """Few levels: nearly everything ties."""
    generator = seeded(levels)
    for objects, priors in ((1, 5), (4, 4), (5, 9), (7, 3)):
        tables = torch.randint(0, levels + 1, (300, objects, priors), generator=generator) / levels
        own = assign_own_priors(tables)
        assert torch.equal(own, torch.stack([greedy(table) for table in tables]))


# --- whole batches ---------------------------------------------------------------------------------------


def slow_match(boxes: Tensor, labels: Tensor, priors: Tensor, threshold: float = 0.5) -> Tensor:
    """One image, one prior at a time -> the object of each prior."""
    overlap = iou(boxes, cxcywh_to_xyxy(priors))
    result = []
    for p in range(len(priors)):
        best = max(range(len(boxes)), key=lambda g: overlap[g, p].item(), default=-1)
        result.append(best if best >= 0 and overlap[best, p] >= threshold else -1)
    for g, p in enumerate(greedy(overlap).tolist()):
        if p >= 0:
            result[p] = g
    return torch.tensor(result)


def consistent(matches: Matches, boxes: list[Tensor], labels: list[Tensor], priors: Tensor) -> bool:
    """Labels, boxes and IoU say the same as the objects' indices."""
    for i, index in enumerate(matches.object_for_each_prior):
        positive = index >= 0
        assert torch.equal(positive, matches.labels[i] > 0)
        assert torch.equal(matches.labels[i, positive], labels[i][index[positive]])
        assert torch.equal(matches.boxes[i, positive], boxes[i][index[positive]])
        assert matches.boxes[i, ~positive].count_nonzero() == 0
        overlap = iou(boxes[i], cxcywh_to_xyxy(priors))
        if len(boxes[i]):
            expected = overlap.amax(0)
            expected[positive] = overlap[index[positive], positive.nonzero()[:, 0]]
            assert torch.equal(matches.iou[i], expected)
        # Every object that overlaps enough priors to choose from answers for at least one.
        visible = (overlap > 0).sum(1) >= len(boxes[i])
        assert set(visible.nonzero()[:, 0].tolist()) <= set(index.tolist())
    return True


def random_batch(images: int, make, seed: int, most: int = 8) -> tuple[list[Tensor], list[Tensor]]:
    generator = seeded(seed)
    counts = torch.randint(0, most + 1, (images,), generator=generator).tolist()
    boxes = [make(n, generator) for n in counts]
    return boxes, [torch.randint(1, 4, (n,), generator=generator) for n in counts]


@pytest.mark.parametrize("counts", [[], [0], [0, 0], [0, 3], [2, 0, 1], [5]])
def test_batches_of_any_shape(counts):
    priors = make_priors(FEW_PRIORS)
    boxes = [random_boxes(n, seeded(n)) for n in counts]
    labels = [torch.ones(n, dtype=torch.long) for n in counts]
    matches = match(boxes, labels, priors)
    shape = (len(counts), len(priors))
    assert matches.labels.shape == matches.iou.shape == matches.object_for_each_prior.shape == shape
    assert matches.boxes.shape == (*shape, 4)
    assert matches.labels.dtype == matches.object_for_each_prior.dtype == torch.int64
    assert consistent(matches, boxes, labels, priors)
    for i, n in enumerate(counts):
        assert (matches.labels[i] > 0).any() == (n > 0)


@pytest.mark.parametrize(
    ("config", "images", "smallest", "objects", "enough"),
    [(FEW_PRIORS, 3000, 0.02, 6, 1500), (PriorConfig(), 24, 0.05, 12, 12)],
    ids=["few priors", "the real priors"],
)
def test_thousands_of_images_equal_torchvision(config, images, smallest, objects, enough):
    """Wherever no two objects want the same prior and all have an area, both mean the same."""
    priors = make_priors(config)
    boxes, labels = random_batch(images, partial(random_boxes, smallest=smallest), seed=11, most=objects)
    matches = match(boxes, labels, priors)
    assert images > 100 or consistent(matches, boxes, labels, priors)
    matcher, compared = SSDMatcher(0.5), 0
    for i, b in enumerate(boxes):
        if len(b) == 0:
            assert (matches.object_for_each_prior[i] == -1).all()
            continue
        overlap = iou(b, cxcywh_to_xyxy(priors))
        if len(overlap.argmax(1).unique()) == len(b):
            assert torch.equal(matches.object_for_each_prior[i], matcher(overlap).clamp(min=-1))
            compared += 1
    assert compared > enough


def test_grid_boxes_equal_the_slow_way():
    """Points, lines, duplicates and exact ties, with a batch's padding."""
    priors = make_priors(FEW_PRIORS)[::3]
    boxes, labels = random_batch(60, grid_boxes, seed=13)
    matches = match(boxes, labels, priors)
    assert consistent(matches, boxes, labels, priors)
    for i in range(len(boxes)):
        assert torch.equal(matches.object_for_each_prior[i], slow_match(boxes[i], labels[i], priors))


@fast
@given(st.lists(boxes_strategy(), max_size=3), st.sampled_from([0.3, 0.5, 0.75]))
def test_an_image_matches_the_same_alone_and_in_a_batch(boxes, threshold):
    priors = make_priors(FEW_PRIORS)
    labels = [torch.arange(1, len(b) + 1) for b in boxes]
    together = match(boxes, labels, priors, threshold)
    assert consistent(together, boxes, labels, priors)
    for i in range(len(boxes)):
        alone = match(boxes[i : i + 1], labels[i : i + 1], priors, threshold)
        assert torch.equal(together.object_for_each_prior[i], alone.object_for_each_prior[0])
        assert torch.equal(together.iou[i], alone.iou[0])


def test_an_object_without_area_gets_no_prior():
    """On purpose unlike torchvision, whose matcher hands prior 0 to a point."""
    priors = make_priors(FEW_PRIORS)
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.6, 0.6], [0.1, 0.4, 0.9, 0.4]])
    assert (area(boxes) == 0).tolist() == [True, False, True]
    matches = match([boxes], [torch.tensor([1, 2, 3])], priors)
    assert set(matches.object_for_each_prior.unique().tolist()) == {-1, 1}
    assert 0 in SSDMatcher(0.5)(iou(boxes[:1], cxcywh_to_xyxy(priors)))
    only_points = match([boxes[[0, 2]]], [torch.tensor([1, 3])], priors)
    assert only_points.labels.count_nonzero() == 0


def test_a_box_that_is_no_number_harms_no_other():
    priors = make_priors(FEW_PRIORS)
    bad = torch.tensor([[float("nan")] * 4, [0.2, 0.2, 0.6, 0.6], [float("inf")] * 4])
    matches = match([bad], [torch.tensor([1, 2, 3])], priors)
    good = match([bad[1:2]], [torch.tensor([2])], priors)
    assert torch.equal(matches.labels, good.labels)
    assert matches.boxes.isfinite().all()


def test_threshold_zero_gives_no_prior_to_padding():
    """An image without objects stays background beside one with objects, whatever the threshold."""
    priors = make_priors(FEW_PRIORS)
    matches = match(
        [torch.empty(0, 4), random_boxes(2, seeded(1))],
        [torch.empty(0, dtype=torch.long), torch.tensor([1, 2])],
        priors,
        iou_threshold=0.0,
    )
    assert (matches.object_for_each_prior[0] == -1).all()
