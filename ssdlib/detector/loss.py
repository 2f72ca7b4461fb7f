"""The MultiBox loss. Liu et al. 2016, equations 1 to 3, and section 2.2 ("Hard negative mining")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdlib.common.errors import ConfigError
from ssdlib.config import BACKGROUNDS
from ssdlib.detector.boxes import encode
from ssdlib.detector.matching import Matches

NEGATIVES_OF_AN_EMPTY_IMAGE = 30
"""An image without objects teaches as much background as one with ten positive priors would."""

SOFT_FLOOR, SOFT_SHIFT, SOFT_STEEPNESS = 0.25, 50.0, 20.0
"""a, b and c of `soft_weights`, after Wu et al."""


@dataclass(frozen=True)
class MultiBoxLoss:
    """Scalars of one batch, each already divided by the number of positive priors."""

    total: Tensor
    localization: Tensor
    confidence: Tensor
    positives: Tensor
    """How many priors answer for an object (int64)."""


def hard_negatives(confidence_loss: Tensor, positive: Tensor, ratio: float = 3.0) -> Tensor:
    """The negatives to learn from: in each image `ratio` times as many as its positives, hardest first.

    confidence_loss (N, P) and positive (N, P) bool -> (N, P) bool. Almost all of the 8732 priors are
    background; learning from each of them would drown the objects. An image without positives still gives
    NEGATIVES_OF_AN_EMPTY_IMAGE: fields without cells exist, and must come out empty.
    """
    positives = positive.sum(dim=1, keepdim=True)  # (N, 1)
    wanted = (positives * ratio).where(positives > 0, NEGATIVES_OF_AN_EMPTY_IMAGE)
    candidates = confidence_loss.detach().masked_fill(positive, -torch.inf)
    order = candidates.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, ranks)
    return (rank < wanted) & ~positive


def soft_weights(overlap: Tensor) -> Tensor:
    """How much background counts by its IoU with the nearest labeled object, elementwise: 0.25 to 1.

    A Gompertz curve, a + (1 - a) exp(-b exp(-c IoU)): 0.25 far from all labels, 0.55 at an IoU of 0.2,
    0.91 at 0.3. What overlaps a labeled object is known to be no other (or the annotator would have been
    there); far from any, nobody may have looked. Wu et al. 2019, "Soft Sampling for Robust Object Detection".
    """
    curve = torch.exp(-SOFT_SHIFT * torch.exp(-SOFT_STEEPNESS * overlap))
    return SOFT_FLOOR + (1 - SOFT_FLOOR) * curve


@torch.no_grad()
def background_weights(
    logits: Tensor,
    matches: Matches,
    background: str = "hard",
    *,
    ignore_above: float = 0.2,
    ignore_iou: float = 0.3,
) -> Tensor | None:
    """What the cross entropy of each prior counts, (N, P) in [0, 1], 1 for positives; None where all count 1.

    logits (N, P, C). For labels with gaps, since an unlabeled cell is the hardest negative there is:
    "hard" counts every prior in full. "soft" is `soft_weights`. "ignore_confident" counts a negative as 0
    if the network gives an object, of whatever class, more than `ignore_above` there, unless it overlaps a
    labeled object at an IoU of `ignore_iou` or more. No gradient flows through the weights: the network
    cannot lower its loss by changing them.
    """
    if background == "hard":
        return None
    positive = matches.labels > 0
    if background == "soft":
        return soft_weights(matches.iou).masked_fill(positive, 1.0)
    if background == "ignore_confident":
        objectness = 1 - logits.float().softmax(dim=-1)[..., 0]  # (N, P)
        ignored = (objectness > ignore_above) & (matches.iou < ignore_iou) & ~positive
        return 1 - ignored.float()
    raise ConfigError(f"background must be one of {', '.join(BACKGROUNDS)}, not {background!r}")


def multibox_loss(
    locs: Tensor,
    logits: Tensor,
    matches: Matches,
    priors_cxcywh: Tensor,
    *,
    variances: tuple[float, float] = (0.1, 0.2),
    negatives_per_positive: float = 3.0,
    background: str = "hard",
    ignore_above: float = 0.2,
    ignore_iou: float = 0.3,
) -> MultiBoxLoss:
    """Smooth L1 on the positives' boxes plus cross entropy on positives and hard negatives.

    locs (N, P, 4) and logits (N, P, C) are the network's raw outputs, priors (P, 4) cxcywh fractional.
    Both parts are summed and divided by the batch's positives (by 1 where there are none, so that a batch
    without objects has a finite loss and still teaches background). Computed in float32 whatever the
    network ran in.

    background, ignore_above and ignore_iou, for labels with gaps: see `background_weights`. Negatives are
    mined by their bare loss, and weighted then, but one that counts nothing is no candidate: its place goes
    to the next. Were soft background mined by what it counts, the places would go to the borders of the
    labeled objects, which count in full, and push down the scores of the objects themselves. Neither the
    number of negatives nor the normalizer changes, so weights below 1 make the background's part of the
    loss smaller, not the others larger.
    """
    locs, logits = locs.float(), logits.float()
    positive = matches.labels > 0  # (N, P)
    positives = positive.sum()
    normalizer = positives.clamp(min=1)

    targets = encode(matches.boxes, priors_cxcywh, variances)  # (N, P, 4)
    localization = F.smooth_l1_loss(locs[positive], targets[positive], reduction="sum") / normalizer

    confidence_loss = F.cross_entropy(logits.transpose(1, 2), matches.labels, reduction="none")  # (N, P)
    weights = background_weights(
        logits, matches, background, ignore_above=ignore_above, ignore_iou=ignore_iou
    )
    if weights is None:
        learned = positive | hard_negatives(confidence_loss, positive, negatives_per_positive)
    else:
        candidates = confidence_loss.detach() * (weights > 0)
        learned = positive | hard_negatives(candidates, positive, negatives_per_positive)
        confidence_loss = confidence_loss * weights
    confidence = (confidence_loss * learned).sum() / normalizer
    return MultiBoxLoss(localization + confidence, localization, confidence, positives)
