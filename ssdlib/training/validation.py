"""The loss as a recipe sets it: of a batch, and on images that are not trained on.

The second shows overfitting before mAP does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ssdlib.common.distributed import gather, rank_and_count
from ssdlib.config import IMAGE_SIZE, Recipe
from ssdlib.data.dataset import DetectionDataset
from ssdlib.detector.loss import MultiBoxLoss, multibox_loss
from ssdlib.detector.matching import match
from ssdlib.detector.model import SSD300
from ssdlib.inference.predictor import Predictor


def recipe_loss(
    recipe: Recipe,
    network: SSD300 | Predictor,
    locs: Tensor,
    logits: Tensor,
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    background: str = "hard",
) -> MultiBoxLoss:
    """The loss of what `network` made of N images: locs (N, P, 4) and logits (N, P, C).

    boxes and labels of each image are (G, 4) xyxy, fractions of the image, and (G,). background: as for
    `multibox_loss`.
    """
    return multibox_loss(
        locs,
        logits,
        match(boxes, labels, network.priors, recipe.iou_threshold),
        network.priors,
        variances=network.config.variances,
        negatives_per_positive=recipe.negatives_per_positive,
        background=background,
        ignore_above=recipe.ignore_above,
        ignore_iou=recipe.ignore_iou,
    )


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
        boxes = [target["boxes"].to(locs.device) / IMAGE_SIZE for target in targets]
        labels = [target["labels"].to(locs.device) for target in targets]
        loss = recipe_loss(recipe, predictor, locs, logits, boxes, labels, background)
        # The loss is a mean over the batch's positives, and batches have different numbers of them.
        positives = int(loss.positives)
        own.append((first, float(loss.total) * max(positives, 1), positives))
    # In the order of the images, so that the sum does not depend on how many processes share them.
    parts = sorted(part for share in gather(own) for part in share)
    total, positives = (sum(part[k] for part in parts) for k in (1, 2))
    return total / positives if positives and math.isfinite(total) else None
