"""What background counts where labels have gaps: worked by number, and off by default to the last bit."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ssdlib.common.errors import ConfigError
from ssdlib.config import BACKGROUNDS, Recipe
from ssdlib.detector.boxes import encode
from ssdlib.detector.loss import background_weights, hard_negatives, multibox_loss, soft_weights
from ssdlib.detector.matching import Matches, match
from ssdlib.detector.priors import make_priors
from tests.core_cases import FEW_PRIORS, grid_boxes, random_boxes, seeded

SMALL = make_priors(FEW_PRIORS)


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


def problem(seed: int, images: int = 3):
    generator = seeded(seed)
    boxes = [random_boxes(k, generator, smallest=0.1) for k in range(images)]
    labels = [torch.randint(1, 4, (k,), generator=generator) for k in range(images)]
    locs = torch.randn(images, len(SMALL), 4, generator=generator)
    logits = torch.randn(images, len(SMALL), 4, generator=generator) * 2
    return locs, logits, match(boxes, labels, SMALL)


@pytest.mark.parametrize(
    ("overlaps", "weights"),
    [
        ([], []),
        # a + (1 - a) exp(-50 exp(-20 IoU)) with a = 0.25
        ([0.0], [0.25]),
        ([0.1, 0.2, 0.3], [0.250864, 0.550153, 0.912576]),
        ([0.5, 1.0], [0.998299, 1.0]),
    ],
)
def test_soft_weights_by_hand(overlaps, weights):
    assert soft_weights(torch.tensor(overlaps)).tolist() == pytest.approx(weights, abs=1e-5)


def test_soft_weights_grow_with_the_overlap():
    steps = soft_weights(torch.linspace(0, 1, 201)).diff()
    assert (steps >= 0).all() and steps.sum() == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize(
    ("objectness", "labels", "overlaps", "settings", "weights"),
    [
        ([], [], [], {}, []),
        # More than the threshold, and no less; background only.
        ([0.19, 0.21, 0.21], [0, 0, 1], [0.0, 0.0, 0.6], {}, [1, 0, 1]),
        ([0.4, 0.6, 0.95], [0, 0, 0], [0.0, 0.0, 0.0], {"ignore_above": 0.9}, [1, 1, 0]),
        ([0.9, 0.9], [0, 0], [0.0, 0.49], {"ignore_above": 1.0}, [1, 1]),
        # Beside a labeled object it stays a negative, unless told otherwise.
        ([0.9, 0.9, 0.9], [0, 0, 0], [0.29, 0.31, 0.49], {}, [0, 1, 1]),
        ([0.9, 0.9, 0.9], [0, 0, 0], [0.29, 0.31, 0.49], {"ignore_iou": 1.0}, [0, 0, 0]),
        ([0.9, 0.1], [0, 0], [0.29, 0.0], {"ignore_iou": 0.0}, [1, 1]),
    ],
)
def test_confident_negatives_are_ignored_by_hand(objectness, labels, overlaps, settings, weights):
    found = background_weights(
        logits_of(objectness), matches_of(labels, overlaps), "ignore_confident", **settings
    )
    assert found.tolist() == [[float(w) for w in weights]]


@pytest.mark.parametrize(
    ("labels", "overlaps", "weights"),
    [
        ([], [], []),
        ([0, 0, 0], [0.0, 0.2, 0.45], [0.25, 0.550153, 0.995379]),
        # A positive counts in full, even the one that an object has for want of a better.
        ([2, 1, 0], [0.04, 0.8, 0.04], [1.0, 1.0, 0.25]),
    ],
)
def test_soft_background_by_hand(labels, overlaps, weights):
    found = background_weights(torch.zeros(1, len(labels), 3), matches_of(labels, overlaps), "soft")
    assert found[0].tolist() == pytest.approx(weights, abs=1e-5)


def test_hard_background_has_no_weights_and_another_name_is_refused():
    matches = matches_of([0], [0.0])
    assert background_weights(torch.zeros(1, 1, 3), matches) is None
    with pytest.raises(ConfigError, match="hard, soft, ignore_confident, not 'mirror'"):
        background_weights(torch.zeros(1, 1, 3), matches, "mirror")


@pytest.mark.parametrize("seed", range(5))
def test_by_default_nothing_has_changed_to_the_last_bit(seed):
    """The loss written out as it was before there was a choice, gradients included."""
    results = []
    for given in (None, {}, {"background": "hard", "ignore_above": 0.1, "ignore_iou": 0.0}):
        locs, logits, matches = problem(seed)
        locs, logits = locs.requires_grad_(), logits.requires_grad_()
        if given is None:
            positive = matches.labels > 0
            normalizer = positive.sum().clamp(min=1)
            targets = encode(matches.boxes, SMALL, (0.1, 0.2))
            boxes = F.smooth_l1_loss(locs[positive], targets[positive], reduction="sum") / normalizer
            entropy = F.cross_entropy(logits.transpose(1, 2), matches.labels, reduction="none")
            learned = positive | hard_negatives(entropy, positive, 3.0)
            total = boxes + (entropy * learned).sum() / normalizer
        else:
            total = multibox_loss(locs, logits, matches, SMALL, **given).total
        total.backward()
        results.append((total.detach(), locs.grad, logits.grad))
    for other in results[1:]:
        for before, now in zip(results[0], other, strict=True):
            assert torch.equal(before, now)


PRIORS = torch.tensor([[0.2, 0.2, 0.2, 0.2], *[[0.7, 0.7, 0.2 + k / 100, 0.2] for k in range(5)]])
"""One on the only labeled object, five far from it."""


def gradients(objectness, **settings):
    """Of the logits of PRIORS when they give an object these probabilities: (P, 3), and the loss."""
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


def test_soft_background_far_from_labels_counts_a_quarter():
    objectness = [0.5, 0.9, 0.4, 0.3, 0.2, 0.1]
    hard, _ = gradients(objectness)
    soft, loss = gradients(objectness, background="soft")
    torch.testing.assert_close(soft[0], hard[0])
    torch.testing.assert_close(soft[1:], hard[1:] / 4)
    assert loss == pytest.approx(-math.log(0.5 * 0.75) - math.log(0.1 * 0.6 * 0.7) / 4, abs=1e-5)


def test_soft_background_is_mined_by_its_bare_loss():
    """Two places. Beside the label at IoU 1/3 a loss of 0.51 counts 0.48; far off one of 1.20 counts 0.30,
    and still takes the place."""
    near = torch.tensor([[0.3, 0.2, 0.2, 0.2]])  # half over the object: IoU 1/3
    priors = torch.cat([PRIORS[:1], near, PRIORS[1:4]])
    matches = match([torch.tensor([[0.1, 0.1, 0.3, 0.3]])], [torch.tensor([1])], priors)
    for background, weight in (("hard", 1.0), ("soft", 0.25)):
        values = logits_of([0.5, 0.4, 0.7, 0.7, 0.6]).requires_grad_()
        loss = multibox_loss(
            torch.zeros(1, 5, 4), values, matches, priors, negatives_per_positive=2, background=background
        )
        loss.total.backward()
        assert (values.grad[0].abs().sum(1) > 0).tolist() == [True, False, True, True, False]
        expected = -math.log(0.5 * 0.75) - weight * 2 * math.log(0.3)
        assert loss.confidence.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3e4])
def test_every_background_is_finite_and_fully_traced(background, dtype, scale):
    generator = seeded(3)
    cases = [torch.empty(0, 4), grid_boxes(9, generator)]
    matches = match(cases, [torch.ones(len(b), dtype=torch.long) for b in cases], SMALL)
    locs = torch.zeros(2, len(SMALL), 4, dtype=dtype, requires_grad=True)
    logits = (torch.randn(2, len(SMALL), 4, generator=generator) * scale).to(dtype).requires_grad_()
    loss = multibox_loss(locs, logits, matches, SMALL, background=background)
    loss.total.backward()
    assert loss.total.isfinite() and loss.total.dtype == torch.float32
    assert logits.grad.isfinite().all() and logits.grad.dtype == dtype


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_no_value_is_read_back_on_the_way(background):
    """Tensors without values stand in for a GPU's: reading one, as `.item()` does, raises."""
    weights = background_weights(
        torch.empty(2, 9, 4, device="meta"),
        Matches(
            labels=torch.empty(2, 9, dtype=torch.long, device="meta"),
            boxes=torch.empty(2, 9, 4, device="meta"),
            object_for_each_prior=torch.empty(2, 9, dtype=torch.long, device="meta"),
            iou=torch.empty(2, 9, device="meta"),
        ),
        background,
    )
    assert weights is None if background == "hard" else weights.shape == (2, 9)


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        ({}, 0, "hard"),
        ({"background": "soft"}, 0, "soft"),
        ({"background": "ignore_confident", "ignore_after": 0.3}, 0, "hard"),
        ({"background": "ignore_confident", "ignore_after": 0.3}, 29, "hard"),
        ({"background": "ignore_confident", "ignore_after": 0.3}, 30, "ignore_confident"),
        ({"background": "ignore_confident", "ignore_after": 0.0}, 0, "ignore_confident"),
        ({"background": "ignore_confident", "ignore_after": 1.0}, 99, "hard"),
    ],
)
def test_when_the_network_is_trusted(settings, step, expected):
    assert Recipe(**settings).background_at(step, steps=100) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"background": ""}, "background must be hard, soft, ignore_confident, not ''"),
        ({"ignore_above": 1.1}, r"ignore_above must be in \[0, 1\]"),
        ({"ignore_iou": -0.1}, "ignore_iou must be"),
        ({"ignore_after": float("nan")}, "ignore_after must be"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(values)
