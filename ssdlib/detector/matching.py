"""Matching of priors with ground-truth objects. Liu et al. 2016, section 2.2 ("Matching strategy")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssdlib.detector.boxes import cxcywh_to_xyxy, iou

BACKGROUND = -1
"""In `object_for_each_prior`: this prior is matched with no object."""


@dataclass(frozen=True)
class Matches:
    """The training target of every prior of a batch."""

    labels: Tensor
    """(N, P) int64 class of each prior's object; 0 is background."""
    boxes: Tensor
    """(N, P, 4) xyxy box of each prior's object; zeros for background."""
    object_for_each_prior: Tensor
    """(N, P) int64 index of the object within its image; -1 for background."""
    iou: Tensor
    """(N, P) IoU of each prior with its object; with the nearest object for background."""


def assign_own_priors(overlap: Tensor) -> Tensor:
    """The prior that each object gets for itself, the best overlaps first: (N, G, P) -> (N, G), -1 for none.

    This is the paper's bipartite step: take the largest overlap of all, pair the two, strike both out,
    repeat. Because both sides rank their partners by the same number, the result is also the one that
    deferred acceptance (Gale and Shapley 1962) reaches, and that runs for a whole batch at once: every
    object asks for the best prior that has not turned it down, every prior keeps the best of those that
    ask. Two or three rounds do for cells. Ties go to the object that comes first. An object that overlaps
    no prior (a point, padding) gets none.
    """
    images, objects, priors = overlap.shape
    if objects == 0:
        return overlap.new_empty((images, 0), dtype=torch.long)
    remaining = overlap.clone()
    order = torch.arange(objects, device=overlap.device).expand(images, objects)
    while True:
        best, choice = remaining.max(dim=2)  # (N, G) each object's favorite
        offered = overlap.new_zeros((images, priors)).scatter_reduce(1, choice, best, "amax")  # (N, P)
        wins = best == offered.gather(1, choice)  # (N, G), several where overlaps tie
        holder = torch.full_like(offered, objects, dtype=torch.long)
        holder = holder.scatter_reduce(1, choice, order.where(wins, objects), "amin")  # (N, P)
        lost = (best > 0) & (holder.gather(1, choice) != order)  # (N, G)
        if not lost.any():
            return choice.where(best > 0, BACKGROUND)
        image, loser = lost.nonzero(as_tuple=True)
        remaining[image, loser, choice[image, loser]] = 0


def match(
    boxes_xyxy: Sequence[Tensor],
    labels: Sequence[Tensor],
    priors_cxcywh: Tensor,
    iou_threshold: float = 0.5,
) -> Matches:
    """The targets of the priors (P, 4), matched with the objects of a batch of N images, all fractional.

    boxes_xyxy and labels hold (G, 4) and (G,) for each image; G may be 0. Each object keeps the prior that
    `assign_own_priors` gives it, however small their IoU; any other prior is matched with the object it
    overlaps most if their IoU is at least `iou_threshold`.
    """
    device, priors = priors_cxcywh.device, len(priors_cxcywh)
    images = len(boxes_xyxy)
    if images == 0 or max(len(b) for b in boxes_xyxy) == 0:
        return Matches(
            labels=torch.zeros((images, priors), dtype=torch.long, device=device),
            boxes=torch.zeros((images, priors, 4), device=device),
            object_for_each_prior=torch.full((images, priors), BACKGROUND, device=device),
            iou=torch.zeros((images, priors), device=device),
        )
    # Padding has no area, therefore IoU 0 with everything, therefore no prior.
    padded = pad_sequence([b.to(priors_cxcywh) for b in boxes_xyxy], batch_first=True)  # (N, G, 4)
    classes = pad_sequence([c.to(device) for c in labels], batch_first=True)  # (N, G)

    overlap = iou(padded, cxcywh_to_xyxy(priors_cxcywh))  # (N, G, P)
    best, object_for_each_prior = overlap.max(dim=1)  # (N, P)
    answers = (best >= iou_threshold) & (best > 0)  # not for padding, even at a threshold of 0
    object_for_each_prior = object_for_each_prior.where(answers, BACKGROUND)

    own = assign_own_priors(overlap)  # (N, G)
    image, index = (own != BACKGROUND).nonzero(as_tuple=True)
    object_for_each_prior[image, own[image, index]] = index
    best[image, own[image, index]] = overlap[image, index, own[image, index]]

    positive = object_for_each_prior != BACKGROUND
    gather = object_for_each_prior.clamp(min=0)
    return Matches(
        labels=classes.gather(1, gather).where(positive, 0),
        boxes=padded.gather(1, gather[..., None].expand(-1, -1, 4)).where(positive[..., None], 0),
        object_for_each_prior=object_for_each_prior,
        iou=best,
    )
