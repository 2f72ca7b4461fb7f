"""VGG16 cut for SSD, and the extra layers on top. Simonyan and Zisserman 2015; Liu et al. 2016, section 3.

Module names are the paper's layer names, so that a printed network can be read beside its figure 2.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layers = list[tuple[str, nn.Module]]


def scaled(channels: int, width: float) -> int:
    """Channels of a layer in a network of that width, a multiple of 8 as vector units like it."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)


def conv_relu(name: str, inputs: int, outputs: int, batch_norm: bool, **options: int) -> Layers:
    """A convolution, BatchNorm if wanted, ReLU. BatchNorm's shift makes the convolution's bias redundant."""
    options = {"kernel_size": 3, "padding": 1} | options
    layers: Layers = [(f"conv{name}", nn.Conv2d(inputs, outputs, **options, bias=not batch_norm))]
    if batch_norm:
        layers.append((f"norm{name}", nn.BatchNorm2d(outputs)))
    return [*layers, (f"relu{name}", nn.ReLU(inplace=True))]


class L2Norm(nn.Module):
    """Scale each position's feature vector to a learned length. Liu et al. 2015 (ParseNet), section 3.3.

    conv4_3 is much larger in magnitude than the deeper maps; without this its heads would dominate.
    """

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, features: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape, each position of length `scale` (0 stays 0)."""
        return F.normalize(features, dim=1) * self.scale[:, None, None]

    def extra_repr(self) -> str:
        return f"{len(self.scale)}"


class VGG16(nn.Module):
    """VGG16's convolutions with SSD's changes: images (N, 3, 300, 300) -> conv4_3 and conv7.

    - pool3 rounds up: 75 -> 38, the size the priors assume (rounding down gives 37, then 18);
    - pool5 is 3x3 with stride 1, so conv7 stays 19x19 (VGG's own halves it to 9, and conv11_2 would find
      a map smaller than its kernel);
    - the fully connected fc6 and fc7 become conv6 (3x3, dilated by 6 to see as far as before) and conv7.

    Returns (N, 512, 38, 38) and (N, 1024, 19, 19) at width 1.
    """

    def __init__(self, batch_norm: bool = False, width: float = 1.0) -> None:
        super().__init__()
        sizes = [scaled(c, width) for c in (64, 128, 256, 512, 512)]
        stages: list[Layers] = []
        inputs = 3
        for stage, (channels, depth) in enumerate(zip(sizes, (2, 2, 3, 3, 3), strict=True), start=1):
            layers: Layers = []
            for i in range(1, depth + 1):
                layers += conv_relu(f"{stage}_{i}", inputs, channels, batch_norm)
                inputs = channels
            stages.append(layers)
        pools: Layers = [(f"pool{i}", nn.MaxPool2d(2, ceil_mode=i == 3)) for i in range(1, 5)]
        fc = scaled(1024, width)
        self.channels = (sizes[3], fc)
        self.to_conv4_3 = nn.Sequential(
            OrderedDict([*stages[0], pools[0], *stages[1], pools[1], *stages[2], pools[2], *stages[3]])
        )
        self.to_conv7 = nn.Sequential(
            OrderedDict(
                [
                    pools[3],
                    *stages[4],
                    ("pool5", nn.MaxPool2d(3, stride=1, padding=1)),
                    *conv_relu("6", inputs, fc, batch_norm, padding=6, dilation=6),
                    *conv_relu("7", fc, fc, batch_norm, kernel_size=1, padding=0),
                ]
            )
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized images (N, 3, 300, 300) -> conv4_3 (N, 512, 38, 38), conv7 (N, 1024, 19, 19)."""
        conv4_3 = self.to_conv4_3(images)
        return conv4_3, self.to_conv7(conv4_3)

    def freeze(self, stages: int) -> None:
        """Keep the first `stages` of the five stages as they are: no gradients, BatchNorm's statistics fixed.

        To be called after `train()`, which sets BatchNorm to learning again.
        """
        for name, layer in (*self.to_conv4_3.named_children(), *self.to_conv7.named_children()):
            stage = name.removeprefix("conv").removeprefix("norm").partition("_")
            if stage[1] and stage[0].isdecimal() and int(stage[0]) <= stages:
                layer.eval().requires_grad_(False)


class ExtraLayers(nn.Module):
    """conv8_1 to conv11_2: four more maps, each about half the last. 19 -> 10, 5, 3, 1."""

    def __init__(self, inputs: int, batch_norm: bool = False, width: float = 1.0) -> None:
        super().__init__()
        plan = ((256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0))
        self.channels = tuple(scaled(out, width) for _, out, _, _ in plan)
        self.blocks = nn.ModuleList()
        for number, (squeeze, out, stride, padding) in enumerate(plan, start=8):
            middle, outputs = scaled(squeeze, width), scaled(out, width)
            # The last map is one cell: BatchNorm would have only the batch itself to average over.
            norm_last = batch_norm and number < 11
            layers = conv_relu(f"{number}_1", inputs, middle, batch_norm, kernel_size=1, padding=0)
            layers += conv_relu(f"{number}_2", middle, outputs, norm_last, stride=stride, padding=padding)
            self.blocks.append(nn.Sequential(OrderedDict(layers)))
            inputs = outputs

    def forward(self, conv7: Tensor) -> list[Tensor]:
        """(N, 1024, 19, 19) -> (N, 512, 10, 10), (N, 256, 5, 5), (N, 256, 3, 3), (N, 256, 1, 1)."""
        maps = []
        for block in self.blocks:
            conv7 = block(conv7)
            maps.append(conv7)
        return maps
