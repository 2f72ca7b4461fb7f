"""What the tests of the detector's core share: random and degenerate boxes, and torchvision's own parts."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.detection import _utils as tv_utils
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.ssd import SSD

from ssdlib.config import PriorConfig
from ssdlib.detector.boxes import cxcywh_to_xyxy

fast = settings(derandomize=True, deadline=None, max_examples=100, database=None)
"""The same examples on every run, however slow the machine."""

FEW_PRIORS = PriorConfig(
    feature_maps=(5, 3, 1), scales=(0.2, 0.4, 0.8), aspect_ratios=((2.0,), (2.0, 3.0), (2.0,))
)
"""158 priors: small enough to try thousands of images on."""

GRID = 8
"""Coordinates that are multiples of 1/8 make exact IoU values, and therefore ties, common."""


def random_boxes(count: int, generator: torch.Generator, smallest: float = 0.02) -> Tensor:
    """(count, 4) fractional xyxy with sides of at least `smallest`, all inside the image."""
    size = smallest + (0.9 - smallest) * torch.rand(count, 2, generator=generator) ** 2
    low = torch.rand(count, 2, generator=generator) * (1 - size)
    return torch.cat([low, low + size], dim=1)


def grid_boxes(count: int, generator: torch.Generator) -> Tensor:
    """(count, 4) xyxy on a coarse grid: many duplicates, ties, points and lines."""
    corners = torch.randint(0, GRID + 1, (count, 2, 2), generator=generator).sort(dim=1).values
    return corners.reshape(count, 4) / GRID


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes_strategy(smallest: int = 0, largest: int = 6, area: bool = False) -> st.SearchStrategy[Tensor]:
    """Lists of xyxy boxes as (G, 4) tensors, on the coarse grid; with `area`, none is a point or a line."""
    least = 1 if area else 0
    side = st.integers(0, GRID - least).flatmap(
        lambda low: st.tuples(st.just(low), st.integers(low + least, GRID))
    )
    box = st.tuples(side, side).map(lambda sides: [sides[0][0], sides[1][0], sides[0][1], sides[1][1]])
    return st.lists(box, min_size=smallest, max_size=largest).map(
        lambda rows: torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) / GRID
    )


def torchvision_loss(
    locs: Tensor, logits: Tensor, boxes: list[Tensor], labels: list[Tensor], indices: Tensor, priors: Tensor
) -> tuple[Tensor, Tensor]:
    """(localization, confidence) by torchvision's SSD.compute_loss, given each prior's object."""
    parts = SimpleNamespace(box_coder=tv_utils.BoxCoder((10.0, 10.0, 5.0, 5.0)), neg_to_pos_ratio=3.0)
    targets = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]
    anchors = [cxcywh_to_xyxy(priors)] * len(boxes)
    outputs = {"bbox_regression": locs, "cls_logits": logits}
    losses = SSD.compute_loss(parts, targets, outputs, anchors, list(indices))
    return losses["bbox_regression"], losses["classification"]


PAPER_LIMITS = {"top_k": 200, "candidates": 400}
"""Of the paper and of torchvision; ours let a crowded field have more."""


def torchvision_detections(
    locs: Tensor,
    logits: Tensor,
    priors: Tensor,
    *,
    score: float = 0.01,
    iou: float = 0.45,
    top_k: int = 200,
    candidates: int = 400,
) -> list[dict[str, Tensor]]:
    """torchvision's SSD.postprocess_detections on an image of 300 pixels; boxes come back in pixels."""
    parts = SimpleNamespace(
        box_coder=tv_utils.BoxCoder((10.0, 10.0, 5.0, 5.0)),
        score_thresh=score,
        nms_thresh=iou,
        detections_per_img=top_k,
        topk_candidates=candidates,
    )
    outputs = {"bbox_regression": locs, "cls_logits": logits}
    images = len(locs)
    anchors = [cxcywh_to_xyxy(priors) * 300] * images
    return SSD.postprocess_detections(parts, outputs, anchors, [(300, 300)] * images)


def fill(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network made on the meta device random weights that keep the variance of the features."""
    network = network.to_empty(device="cpu").eval()
    generator = seeded(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.uniform_(module.bias, -0.1, 0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(tensor, low, high, generator=generator)
            module.num_batches_tracked.zero_()
    return network


def torchvision_ssd(classes: int, seed: int = 0) -> SSD:
    """A random ssd300_vgg16 whose scores differ. Built on the meta device, as VGG's 102 million fully
    connected weights, which SSD throws away, would cost seconds to draw."""
    with torch.device("meta"):
        network = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=classes)
    fill(network, seed)
    with torch.no_grad():
        network.backbone.scale_weight.uniform_(15, 25, generator=seeded(seed))
        # Its input spans 255, not 1: without this the features are in the hundreds.
        network.backbone.features[0].weight /= 70
        for head in network.head.children():
            for conv in head.module_list:
                conv.weight *= 0.5
    return network
