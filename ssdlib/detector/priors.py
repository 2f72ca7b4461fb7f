"""The priors (default boxes) that SSD300 corrects into detections. Liu et al. 2016, section 2.2."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ssdlib.config import IMAGE_SIZE, PriorConfig

if TYPE_CHECKING:
    from torch import Tensor


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


def make_priors(config: PriorConfig, image_size: int = IMAGE_SIZE) -> Tensor:
    """All priors of an image: (P, 4) float32, fractional cxcywh; P is 8732 with the paper's settings.

    Ordered by map (finest first), then row, column, and size, as the heads' outputs are. `image_size` only
    matters to configurations that count their strides in pixels. They are on the CPU, even where the device
    is set to another: arithmetic on the meta device would first import half of PyTorch.
    """
    import torch  # NumPy's are enough to detect with ONNX Runtime

    return torch.from_numpy(prior_array(config, image_size))


def prior_array(config: PriorConfig, image_size: int = IMAGE_SIZE) -> np.ndarray:
    """The same as a NumPy array."""
    levels = []
    for level, side in enumerate(config.feature_maps):
        # Fractional spacing: f locations of a row share the image evenly, unless the config counts pixels.
        spacing = 1 / side if config.strides is None else config.strides[level] / image_size
        centers = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(spacing)  # (f,)
        center_y, center_x = np.meshgrid(centers, centers, indexing="ij")  # (f, f) each
        centers_xy = np.stack([center_x, center_y], axis=-1).reshape(-1, 1, 2)  # (f*f, 1, 2)
        sizes = np.array(sizes_of_map(config, level), dtype=np.float32)[None]  # (1, n, 2)
        shape = (len(centers_xy), sizes.shape[1], 2)
        both = [np.broadcast_to(centers_xy, shape), np.broadcast_to(sizes, shape)]
        levels.append(np.concatenate(both, axis=-1).reshape(-1, 4))
    return np.concatenate(levels)
