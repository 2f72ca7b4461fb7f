"""The MultiBox loss: worked by number, against torchvision's, and finite on whatever comes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ssdlib.common.errors import ConfigError
from ssdlib.config import BACKGROUNDS, PriorConfig, Recipe
from ssdlib.detector.boxes import xyxy_to_cxcywh
from ssdlib.detector.loss import (
    NEGATIVES_OF_AN_EMPTY_IMAGE,
    MultiBoxLoss,
    hard_negatives,
    ignored_background,
    multibox_loss,
)
from ssdlib.detector.matching import Matches, match
from ssdlib.detector.priors import make_priors
from tests.core_cases import (
    FEW_PRIORS,
    grid_boxes,
    random_boxes,
    seeded,
    torchvision_loss,
)

SMALL = make_priors(FEW_PRIORS)


def loss_of(locs, logits, boxes, labels, priors=SMALL, **options) -> MultiBoxLoss:
    return multibox_loss(locs, logits, match(boxes, labels, priors), priors, **options)


@pytest.mark.parametrize(
    ("losses", "positive", "learned"),
    [
        ([], [], []),
        # Without positives 30 are taken: here all.
        ([1, 2, 3], [0, 0, 0], [1, 1, 1]),
        # One positive: three negatives, the hardest; the positive's own loss does not count.
        ([9, 1, 5, 4, 3, 2], [1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0]),
        # Fewer negatives than wanted: all of them, and never a positive.
        ([9, 1, 5, 4], [1, 0, 1, 0], [0, 1, 0, 1]),
        ([1, 1], [1, 1], [0, 0]),
        # A positive takes no negative's place, even where nothing is left to learn.
        ([9, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 1, 0]),
        # Ties go to the first.
        ([0, 2, 2, 2, 2, 2], [1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0]),
    ],
)
def test_hard_negatives_by_hand(losses, positive, learned):
    losses = torch.tensor([losses], dtype=torch.float32)
    mask = hard_negatives(losses, torch.tensor([positive], dtype=torch.bool))
    assert mask.tolist() == [[bool(x) for x in learned]]


def test_hard_negatives_count_for_each_image():
    generator = seeded(1)
    losses = torch.rand(500, 200, generator=generator)
    positive = torch.rand(500, 200, generator=generator) < torch.rand(500, 1, generator=generator) * 0.5
    positive[:20] = False
    for ratio in (1.0, 3.0):
        mask = hard_negatives(losses, positive, ratio)
        assert not (mask & positive).any()
        for i in range(500):
            n = int(positive[i].sum())
            wanted = min(int(n * ratio) if n else NEGATIVES_OF_AN_EMPTY_IMAGE, 200 - n)
            assert mask[i].sum() == wanted
            easiest_learned = losses[i, mask[i]].min() if wanted else math.inf
            left_out = losses[i, ~mask[i] & ~positive[i]]
            assert len(left_out) == 0 or left_out.max() <= easiest_learned


def test_worked_example():
    """The two objects and five priors of tests/test_matching.py, before the network has learned anything.

    Indifferent logits over four classes: every prior costs log 4. Three positives want nine negatives and
    there are two, so all five priors are learned. Boxes: |x| - 0.5 for each code beyond 1, x^2 / 2 below.
    """
    objects = torch.tensor([[0, 0, 4, 4], [2, 0, 5, 4]]) / 8
    priors = torch.tensor([[0, 0, 5, 4], [3, 2, 7, 4], [0, 0, 4, 8], [0, 0, 2, 2], [6, 6, 8, 8]]) / 8
    loss = loss_of(
        torch.zeros(1, 5, 4),
        torch.zeros(1, 5, 4),
        [objects],
        [torch.tensor([1, 2])],
        xyxy_to_cxcywh(priors),
    )
    first = 0.5 + 0.61572
    second = 3.25 + 4.5 + 0.93841 + 2.96574
    third = 2.0 + 2.96574
    assert loss.positives == 3
    assert loss.localization.item() == pytest.approx((first + second + third) / 3, abs=1e-4)
    assert loss.confidence.item() == pytest.approx(5 * math.log(4) / 3, abs=1e-5)
    assert loss.total.item() == pytest.approx(5.91196 + 2.31049, abs=1e-4)


def random_problem(images: int, priors: torch.Tensor, seed: int, classes: int = 4, most: int = 4):
    generator = seeded(seed)
    counts = torch.randint(1, most + 1, (images,), generator=generator).tolist()
    boxes = [random_boxes(n, generator, smallest=0.05) for n in counts]
    labels = [torch.randint(1, classes, (n,), generator=generator) for n in counts]
    locs = torch.randn(images, len(priors), 4, generator=generator) * 2
    logits = torch.randn(images, len(priors), classes, generator=generator) * 3
    return locs, logits, boxes, labels


@pytest.mark.parametrize("seed", range(40))
def test_thousands_of_images_equal_torchvision(seed):
    """40 batches of 64: the same sums where each image has a positive and enough negatives."""
    locs, logits, boxes, labels = random_problem(64, SMALL, seed)
    matches = match(boxes, labels, SMALL)
    positives = (matches.labels > 0).sum(1)
    usable = positives <= len(SMALL) // 4
    assert usable.sum() > 50
    keep = usable.nonzero()[:, 0].tolist()
    locs, logits = locs[keep], logits[keep]
    boxes, labels = [boxes[i] for i in keep], [labels[i] for i in keep]
    ours = loss_of(locs, logits, boxes, labels)
    indices = match(boxes, labels, SMALL).object_for_each_prior
    localization, confidence = torchvision_loss(locs, logits, boxes, labels, indices, SMALL)
    torch.testing.assert_close(ours.localization, localization, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.confidence, confidence, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.total, localization + confidence, rtol=1e-4, atol=1e-5)
    assert ours.positives == (indices >= 0).sum()


def test_the_real_priors_and_gradients_equal_torchvision():
    priors = make_priors(PriorConfig())
    locs, logits, boxes, labels = random_problem(4, priors, seed=99, classes=21, most=12)
    gradients = []
    for ours in (True, False):
        a, b = locs.clone().requires_grad_(), logits.clone().requires_grad_()
        if ours:
            total = loss_of(a, b, boxes, labels, priors).total
        else:
            indices = match(boxes, labels, priors).object_for_each_prior
            total = sum(torchvision_loss(a, b, boxes, labels, indices, priors))
        total.backward()
        gradients.append((total.detach(), a.grad, b.grad))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_an_image_without_objects_still_teaches_background():
    """On purpose unlike torchvision, where such an image adds nothing: its 30 hardest negatives count."""
    locs, logits, boxes, labels = random_problem(2, SMALL, seed=7)
    boxes[1], labels[1] = boxes[1][:0], labels[1][:0]
    ours = loss_of(locs, logits, boxes, labels)
    indices = match(boxes, labels, SMALL).object_for_each_prior
    localization, confidence = torchvision_loss(locs, logits, boxes, labels, indices, SMALL)
    background = F.cross_entropy(logits[1], torch.zeros(len(SMALL), dtype=torch.long), reduction="none")
    extra = background.topk(30).values.sum() / ours.positives
    torch.testing.assert_close(ours.localization, localization, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.confidence, confidence + extra, rtol=1e-4, atol=1e-5)
    assert extra > 0.1


def test_a_batch_without_objects_is_finite_and_teaches():
    logits = torch.zeros(2, len(SMALL), 4, requires_grad=True)
    locs = torch.zeros(2, len(SMALL), 4, requires_grad=True)
    nothing = [torch.empty(0, 4)] * 2
    loss = loss_of(locs, logits, nothing, [torch.empty(0, dtype=torch.long)] * 2)
    assert loss.positives == 0 and loss.localization == 0
    assert loss.confidence.item() == pytest.approx(2 * 30 * math.log(4), rel=1e-5)
    loss.total.backward()
    assert (logits.grad[..., 0].sum(1) < 0).all()  # background's logit is pushed up in both images
    assert locs.grad.isfinite().all()


def test_positives_never_count_twice():
    """On purpose unlike torchvision, where positives fill up a lack of negatives."""
    priors = xyxy_to_cxcywh(torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.9, 1.0], [0.0, 0.0, 0.1, 0.1]]))
    boxes, labels = [torch.tensor([[0.0, 0.0, 1.0, 1.0]])], [torch.tensor([1])]
    locs, logits = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)
    indices = match(boxes, labels, priors).object_for_each_prior
    assert indices.tolist() == [[0, 0, -1]]
    ours = loss_of(locs, logits, boxes, labels, priors)
    _, theirs = torchvision_loss(locs, logits, boxes, labels, indices, priors)
    assert ours.confidence.item() == pytest.approx(3 * math.log(4) / 2)
    assert theirs.item() == pytest.approx(5 * math.log(4) / 2)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["nothing", "points", "outside", "tiny", "grid", "wild outputs"])
def test_loss_and_gradient_are_finite(case, dtype, background):
    generator = seeded(3)
    boxes = {
        "nothing": torch.empty(0, 4),
        "points": torch.rand(5, 2, generator=generator).repeat(1, 2),
        "outside": random_boxes(5, generator) + 3,
        "tiny": torch.tensor([[0.5, 0.5, 0.5 + 1e-7, 0.5 + 1e-7]]),
        "grid": grid_boxes(20, generator),
        "wild outputs": random_boxes(5, generator),
    }[case]
    scale = 3e4 if case == "wild outputs" else 1
    labels = torch.ones(len(boxes), dtype=torch.long)
    locs = (torch.randn(2, len(SMALL), 4, generator=generator) * scale).clamp(-6e4, 6e4)
    logits = (torch.randn(2, len(SMALL), 4, generator=generator) * scale).clamp(-6e4, 6e4)
    locs, logits = (t.to(dtype).requires_grad_() for t in (locs, logits))
    loss = loss_of(locs, logits, [boxes] * 2, [labels] * 2, background=background)
    assert loss.total.dtype == torch.float32
    assert loss.total.isfinite() and loss.total >= 0
    loss.total.backward()
    assert locs.grad.isfinite().all() and logits.grad.isfinite().all()
    assert locs.grad.dtype == dtype
    assert logits.grad.count_nonzero() > 0 or background != "hard"


# --- background where labels have gaps -------------------------------------------------------------------


def matches_of(labels, overlaps) -> Matches:
    labels = torch.tensor([labels], dtype=torch.long)
    return Matches(
        labels=labels,
        boxes=torch.zeros(*labels.shape, 4),
        object_for_each_prior=labels - 1,
        iou=torch.tensor([overlaps], dtype=torch.float32),
    )


def logits_of(objectness) -> torch.Tensor:
    """(1, P, 3) logits by which the two classes of objects share that probability."""
    p = torch.tensor([objectness], dtype=torch.float64)[..., None]
    return torch.cat([1 - p, p * 0.75, p * 0.25], dim=-1).log().float()


@pytest.mark.parametrize(
    ("objectness", "labels", "overlaps", "settings", "ignored"),
    [
        ([], [], [], {}, []),
        # More than the threshold, and no less; background only.
        ([0.19, 0.21, 0.21], [0, 0, 1], [0.0, 0.0, 0.6], {}, [0, 1, 0]),
        ([0.4, 0.6, 0.95], [0, 0, 0], [0.0, 0.0, 0.0], {"ignore_above": 0.9}, [0, 0, 1]),
        ([0.9, 0.9], [0, 0], [0.0, 0.49], {"ignore_above": 1.0}, [0, 0]),
        # Beside a labeled object it stays a negative, unless told otherwise.
        ([0.9, 0.9, 0.9], [0, 0, 0], [0.29, 0.31, 0.49], {}, [1, 0, 0]),
        ([0.9, 0.9, 0.9], [0, 0, 0], [0.29, 0.31, 0.49], {"ignore_iou": 1.0}, [1, 1, 1]),
        ([0.9, 0.1], [0, 0], [0.29, 0.0], {"ignore_iou": 0.0}, [0, 0]),
    ],
)
def test_confident_negatives_are_ignored_by_hand(objectness, labels, overlaps, settings, ignored):
    found = ignored_background(
        logits_of(objectness), matches_of(labels, overlaps), "ignore_confident", **settings
    )
    assert found.tolist() == [[bool(value) for value in ignored]]


def test_hard_background_leaves_out_nothing_and_another_name_is_refused():
    matches = matches_of([0], [0.0])
    assert ignored_background(torch.zeros(1, 1, 3), matches) is None
    with pytest.raises(ConfigError, match="hard, ignore_confident, not 'mirror'"):
        ignored_background(torch.zeros(1, 1, 3), matches, "mirror")


PRIORS = torch.tensor([[0.2, 0.2, 0.2, 0.2], *[[0.7, 0.7, 0.2 + k / 100, 0.2] for k in range(5)]])
"""One on the only labeled object, five far from it."""


def gradients(objectness, **settings):
    """(P, 3) gradients of the logits of PRIORS that give an object these probabilities, and the loss."""
    matches = match([torch.tensor([[0.1, 0.1, 0.3, 0.3]])], [torch.tensor([1])], PRIORS)
    assert matches.labels.tolist() == [[1, 0, 0, 0, 0, 0]]
    logits = logits_of(objectness).requires_grad_()
    loss = multibox_loss(torch.zeros(1, 6, 4), logits, matches, PRIORS, **settings)
    loss.total.backward()
    return logits.grad[0], loss.confidence.item()


def test_an_unlabeled_cell_the_network_sees_teaches_nothing():
    objectness = [0.5, 0.9, 0.4, 0.3, 0.2, 0.1]
    positive = -math.log(0.5 * 0.75)
    before, loss = gradients(objectness)
    assert before[1].abs().sum() > 1  # the hardest negative of all
    assert loss == pytest.approx(positive - math.log(0.1 * 0.6 * 0.7), abs=1e-5)
    after, loss = gradients(objectness, background="ignore_confident", ignore_above=0.5)
    assert after[1].tolist() == [0, 0, 0]
    # Its place goes to the next one: as many negatives as before.
    assert (after.abs().sum(1) > 0).tolist() == [True, False, True, True, True, False]
    assert loss == pytest.approx(positive - math.log(0.6 * 0.7 * 0.8), abs=1e-5)


def test_where_all_negatives_are_ignored_only_the_object_teaches():
    found, loss = gradients([0.5] + [0.9] * 5, background="ignore_confident")
    assert (found.abs().sum(1) > 0).tolist() == [True] + [False] * 5
    assert loss == pytest.approx(-math.log(0.5 * 0.75), abs=1e-5)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_no_value_is_read_back_on_the_way(background):
    """Tensors without values stand in for a GPU's: reading one, as `.item()` does, raises."""
    ignored = ignored_background(
        torch.empty(2, 9, 4, device="meta"),
        Matches(
            labels=torch.empty(2, 9, dtype=torch.long, device="meta"),
            boxes=torch.empty(2, 9, 4, device="meta"),
            object_for_each_prior=torch.empty(2, 9, dtype=torch.long, device="meta"),
            iou=torch.empty(2, 9, device="meta"),
        ),
        background,
    )
    assert ignored is None if background == "hard" else ignored.shape == (2, 9)


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        ({}, 0, "hard"),
        ({"background": "ignore_confident", "ignore_after": 0.3}, 0, "hard"),
        ({"background": "ignore_confident", "ignore_after": 0.3}, 29, "hard"),
        ({"background": "ignore_confident", "ignore_after": 0.3}, 30, "ignore_confident"),
        ({"background": "ignore_confident", "ignore_after": 0.0}, 0, "ignore_confident"),
        ({"background": "ignore_confident", "ignore_after": 1.0}, 99, "hard"),
    ],
)
def test_when_the_network_is_trusted(settings, step, expected):
    assert Recipe(**settings).background_at(step, steps=100) == expected
