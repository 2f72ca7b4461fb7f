"""SSD300: VGG16, extra layers, and a pair of small heads on each of six maps. Liu et al. 2016, figure 2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssdlib.common.errors import ConfigError
from ssdlib.config import IMAGE_SIZE, ModelConfig
from ssdlib.detector.backbone import VGG16, ExtraLayers, L2Norm
from ssdlib.detector.priors import make_priors

FEATURE_MAPS = (38, 19, 10, 5, 3, 1)
"""Side of each map the heads look at, for 300-pixel images."""


class Heads(nn.Module):
    """One 3x3 convolution a map, `values` outputs for each prior of a location."""

    def __init__(self, channels: Sequence[int], per_location: Sequence[int], values: int) -> None:
        super().__init__()
        self.values = values
        self.convs = nn.ModuleList(
            nn.Conv2d(c, n * values, kernel_size=3, padding=1)
            for c, n in zip(channels, per_location, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Six maps (N, channels, f, f) -> (N, P, values), in the order of the priors."""
        outputs = [  # (N, f*f*n, values) each
            conv(features).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.values))
            for conv, features in zip(self.convs, maps, strict=True)
        ]
        return torch.cat(outputs, dim=1)


class SSD300(nn.Module):
    """Single Shot MultiBox Detector for 300x300 images, in the shape that `config` gives.

    The constructor leaves PyTorch's default initialization; `ssdlib.detector.weights.build_model` gives a
    network that is ready to train. Raises ConfigError for priors that do not belong to this network's maps.
    """

    priors: Tensor
    """(P, 4) fractional cxcywh; a buffer that moves with the model and is not saved with it."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        if config.priors.feature_maps != FEATURE_MAPS:
            raise ConfigError(
                f"SSD300 has maps of {FEATURE_MAPS}, but the priors are for {config.priors.feature_maps}"
            )
        self.backbone = VGG16(config.batch_norm, config.width)
        self.norm4_3 = L2Norm(self.backbone.channels[0], config.l2norm_scale)
        self.extras = ExtraLayers(self.backbone.channels[1], config.batch_norm, config.width)
        channels = (*self.backbone.channels, *self.extras.channels)
        self.loc_heads = Heads(channels, config.priors.per_location, 4)
        self.class_heads = Heads(channels, config.priors.per_location, config.num_classes)
        self.register_buffer("priors", make_priors(config.priors, IMAGE_SIZE), persistent=False)
        self.register_buffer("mean", torch.tensor(config.mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).reshape(3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8, or float in [0, 1], to the zero mean and unit spread that the backbone expects."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        return (images - self.mean) / self.std

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The six maps that the heads look at, finest first: 38, 19, 10, 5, 3 and 1 locations a side."""
        conv4_3, conv7 = self.backbone(self.normalize(images))
        return [self.norm4_3(conv4_3), conv7, *self.extras(conv7)]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (N, 3, 300, 300) uint8 or float in [0, 1] -> locs (N, P, 4), logits (N, P, C).

        Both are raw: `ssdlib.detector.nms.detect_objects` turns them into boxes and scores.
        """
        if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"SSD300 takes images of shape (N, 3, 300, 300), not {tuple(images.shape)}")
        maps = self.feature_maps(images)
        return self.loc_heads(maps), self.class_heads(maps)
