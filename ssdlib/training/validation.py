"""The loss on images that are not trained on, which shows overfitting before mAP does."""

from __future__ import annotations

import math

import torch

from ssdlib.common.distributed import gather, rank_and_count
from ssdlib.config import Recipe
from ssdlib.data.dataset import DetectionDataset
from ssdlib.detector.loss import multibox_loss
from ssdlib.detector.matching import match
from ssdlib.detector.model import IMAGE_SIZE
from ssdlib.inference.predictor import Predictor


def loss_on(
    predictor: Predictor, views: DetectionDataset, recipe: Recipe, background: str = "hard"
) -> float | None:
    """The recipe's loss on all `views` together, for each positive prior; None where it is not finite or no
    view has an object.

    views come as the network takes them, 300 x 300. background: as for `multibox_loss`. Each process of a
    distributed training takes its share of the batches; all must call it, and all get the whole.
    """
    rank, processes = rank_and_count()
    size, own = predictor.batch_size, []
    for first in range(rank * size, len(views), processes * size):
        images, targets = zip(*(views[k] for k in range(first, min(first + size, len(views)))), strict=True)
        locs, logits = predictor.raw(torch.stack(images))
        matches = match(
            [target["boxes"] / IMAGE_SIZE for target in targets],
            [target["labels"] for target in targets],
            predictor.priors,
            recipe.iou_threshold,
        )
        loss = multibox_loss(
            locs,
            logits,
            matches,
            predictor.priors,
            variances=predictor.config.variances,
            negatives_per_positive=recipe.negatives_per_positive,
            background=background,
            ignore_above=recipe.ignore_above,
            ignore_iou=recipe.ignore_iou,
        )
        # The loss is a mean over the batch's positives, and batches have different numbers of them.
        positives = int(loss.positives)
        own.append((first, float(loss.total) * max(positives, 1), positives))
    # In the order of the images, so that the sum does not depend on how many processes share them.
    parts = sorted(part for share in gather(own) for part in share)
    total, positives = (sum(part[k] for part in parts) for k in (1, 2))
    return total / positives if positives and math.isfinite(total) else None
