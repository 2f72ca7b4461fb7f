"""The priors (default boxes) that SSD300 corrects into detections. Liu et al. 2016, section 2.2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssdlib.config import PriorConfig


def sizes_of_map(config: PriorConfig, level: int) -> list[tuple[float, float]]:
    """Fractional (width, height) of the priors at each location of one map.

    First the square of the map's scale, then the one between this scale and the next, then for each
    aspect ratio a wide and a tall one of the scale's area: torchvision's order, so that its weights fit.
    """
    scale = config.scales[level]
    following = (*config.scales, config.final_scale)[level + 1]
    between = math.sqrt(scale * following)
    sizes = [(scale, scale), (between, between)]
    for ratio in config.aspect_ratios[level]:
        root = math.sqrt(ratio)
        sizes += [(scale * root, scale / root), (scale / root, scale * root)]
    return [(min(w, 1.0), min(h, 1.0)) for w, h in sizes] if config.clip else sizes


def make_priors(config: PriorConfig, image_size: int = 300) -> Tensor:
    """All priors of an image: (P, 4) float32, fractional cxcywh; P is 8732 with the paper's settings.

    Ordered by map (finest first), then row, column, and size, as the heads' outputs are. `image_size` only
    matters to configurations that count their strides in pixels. They are on the CPU, even where the device
    is set to another: arithmetic on the meta device would first import half of PyTorch.
    """
    levels = []
    for level, side in enumerate(config.feature_maps):
        # Fractional spacing: f locations of a row share the image evenly, unless the config counts pixels.
        spacing = 1 / side if config.strides is None else config.strides[level] / image_size
        centers = (torch.arange(side, dtype=torch.float32, device="cpu") + 0.5) * spacing  # (f,)
        center_y, center_x = torch.meshgrid(centers, centers, indexing="ij")  # (f, f) each
        centers_xy = torch.stack([center_x, center_y], dim=-1).reshape(-1, 1, 2)  # (f*f, 1, 2)
        sizes = torch.tensor(sizes_of_map(config, level), device="cpu").reshape(1, -1, 2)  # (1, n, 2)
        shape = (centers_xy.shape[0], sizes.shape[1], 2)
        levels.append(torch.cat([centers_xy.expand(shape), sizes.expand(shape)], dim=-1).reshape(-1, 4))
    return torch.cat(levels)
