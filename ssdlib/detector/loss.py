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


@dataclass(frozen=True)
class MultiBoxLoss:
    """Scalars of one batch, each already divided by the number of positive priors."""

    total: Tensor
    localization: Tensor
    confidence: Tensor
    positives: Tensor
    """The number of priors that are matched with an object (int64)."""


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


@torch.no_grad()
def ignored_background(
    logits: Tensor,
    matches: Matches,
    background: str = "hard",
    *,
    ignore_above: float = 0.2,
    ignore_iou: float = 0.3,
) -> Tensor | None:
    """The negatives that the loss leaves out, (N, P) bool; None where it leaves out none.

    logits (N, P, C). For labels with gaps, since an unlabeled cell is the hardest negative there is: "hard"
    leaves out none. "ignore_confident" leaves out a negative if the network gives an object, of whatever
    class, more than `ignore_above` there, unless it overlaps a labeled object at an IoU of `ignore_iou` or
    more. No gradient flows through the choice: the network cannot lower its loss by changing it.
    """
    if background == "hard":
        return None
    if background == "ignore_confident":
        objectness = 1 - logits.float().softmax(dim=-1)[..., 0]  # (N, P)
        return (objectness > ignore_above) & (matches.iou < ignore_iou) & (matches.labels == 0)
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

    background, ignore_above and ignore_iou, for labels with gaps: see `ignored_background`. An ignored
    negative costs nothing, so that hard negative mining gives its place to the next hardest.
    """
    locs, logits = locs.float(), logits.float()
    positive = matches.labels > 0  # (N, P)
    positives = positive.sum()
    normalizer = positives.clamp(min=1)

    targets = encode(matches.boxes, priors_cxcywh, variances)  # (N, P, 4)
    localization = F.smooth_l1_loss(locs[positive], targets[positive], reduction="sum") / normalizer

    confidence_loss = F.cross_entropy(logits.transpose(1, 2), matches.labels, reduction="none")  # (N, P)
    ignored = ignored_background(
        logits, matches, background, ignore_above=ignore_above, ignore_iou=ignore_iou
    )
    if ignored is not None:
        confidence_loss = confidence_loss.masked_fill(ignored, 0)
    learned = positive | hard_negatives(confidence_loss, positive, negatives_per_positive)
    confidence = (confidence_loss * learned).sum() / normalizer
    return MultiBoxLoss(localization + confidence, localization, confidence, positives)
