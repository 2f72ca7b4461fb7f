"""The one resize of images for the network."""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_ARM = ("aarch64", "arm64")


def resize_to(image: Tensor, size: int = 300) -> Tensor:
    """The uint8 image (3, H, W) as (3, size, size): bilinear, antialiased, sides independently.

    Training, evaluation and prediction all resize through here, so a network sees the same pixels in each.
    They are those of torchvision's `resize`, which is not called because torchvision takes as long to import
    as torch itself.
    """
    channels, height, width = image.shape
    if (height, width) == (size, size):
        return image
    pixels = image[None]
    if pixels.is_contiguous(memory_format=torch.channels_last) and image.numel() != pixels.stride(0):
        # Only with this stride of the batch does torch see that channels are last, and resize without a copy.
        pixels = image.as_strided((1, *image.shape), (image.numel(), *image.stride()))
    # Where torch has no fast way for whole numbers, torchvision takes float32 and rounds.
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in _ARM
    whole = image.device.type == "cpu" and fast
    resized = interpolate(pixels if whole else pixels.float(), (size, size), mode="bilinear", antialias=True)
    return (resized if whole else resized.round_().to(image.dtype)).reshape(channels, size, size)
