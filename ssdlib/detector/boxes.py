"""Box arithmetic on tensors whose last dimension is 4: conversions, area, IoU, encode and decode.

`xyxy` is (xmin, ymin, xmax, ymax), `cxcywh` is (center x, center y, width, height). Every function takes
fractional (0 to 1) or pixel coordinates, as long as all its arguments use the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssdlib.config import MAX_LOG_RATIO


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) corners to (..., 4) center and size."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """(..., 4) center and size to (..., 4) corners."""
    center, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def area(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) -> (...). A box whose corners are the wrong way round has no area, not a negative one."""
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union (Jaccard overlap) of every a with every b.

    a (..., A, 4) and b (..., B, 4) -> (..., A, B) in [0, 1]; leading dimensions broadcast. Two boxes
    without area have IoU 0, where a bare division would give NaN.
    """
    # One coordinate at a time, each contiguous: a third of the time that tensors of (..., A, B, 2) take.
    a_x1, a_y1, a_x2, a_y2 = a_xyxy[..., :, None, :].movedim(-1, 0).contiguous()  # (..., A, 1) each
    b_x1, b_y1, b_x2, b_y2 = b_xyxy[..., None, :, :].movedim(-1, 0).contiguous()  # (..., 1, B) each
    width = (torch.minimum(a_x2, b_x2) - torch.maximum(a_x1, b_x1)).clamp(min=0)  # (..., A, B)
    height = (torch.minimum(a_y2, b_y2) - torch.maximum(a_y1, b_y1)).clamp(min=0)  # (..., A, B)
    intersection = width * height  # (..., A, B)
    union = area(a_xyxy)[..., :, None] + area(b_xyxy)[..., None, :] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def encode(boxes_xyxy: Tensor, priors_cxcywh: Tensor, variances: tuple[float, float] = (0.1, 0.2)) -> Tensor:
    """The outputs that turn each prior into its box: the targets of localization. SSD, equation 2.

    boxes (..., P, 4) xyxy and priors (P, 4) cxcywh -> (..., P, 4): center offsets in prior sizes divided by
    variances[0], logarithms of the size ratios divided by variances[1]. The variances bring both to about
    unit spread. Sizes are at least a millionth of the prior's, because log 0 would be -inf for a box without
    width or height.
    """
    boxes = xyxy_to_cxcywh(boxes_xyxy)
    offset = (boxes[..., :2] - priors_cxcywh[..., :2]) / priors_cxcywh[..., 2:]
    ratio = boxes[..., 2:] / priors_cxcywh[..., 2:]
    growth = ratio.clamp(min=1e-6).log()
    return torch.cat([offset / variances[0], growth / variances[1]], dim=-1)


def decode(locs: Tensor, priors_cxcywh: Tensor, variances: tuple[float, float] = (0.1, 0.2)) -> Tensor:
    """The inverse of `encode`: locs (..., P, 4) and priors (P, 4) cxcywh -> boxes (..., P, 4) xyxy."""
    center = priors_cxcywh[..., :2] + locs[..., :2] * variances[0] * priors_cxcywh[..., 2:]
    growth = (locs[..., 2:] * variances[1]).clamp(max=MAX_LOG_RATIO)
    half = priors_cxcywh[..., 2:] * growth.exp() / 2
    return torch.cat([center - half, center + half], dim=-1)


def clip(boxes_xyxy: Tensor, width: float = 1.0, height: float = 1.0) -> Tensor:
    """Boxes (..., 4) xyxy limited to an image of that size."""
    limit = boxes_xyxy.new_tensor([width, height, width, height])
    return boxes_xyxy.clamp(min=0).minimum(limit)
