"""The predictor that runs the network in PyTorch, on any device."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ssdlib.common.runtime import choose_device, choose_precision, keep_freed_memory
from ssdlib.detector.model import SSD300
from ssdlib.detector.model_file import load_model, shipped_weights
from ssdlib.detector.nms import detect_objects
from ssdlib.inference.image_detector import Found, ImageDetector


class Predictor(ImageDetector):
    """A trained PyTorch network that detects objects in images of any size.

    It works on a copy of `model` with BatchNorm folded into the convolutions, so later training of `model`
    does not show here. `settings` are those of `ImageDetector`. Raises ConfigError for impossible ones.
    """

    def __init__(
        self,
        model: SSD300,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        **settings: Any,
    ) -> None:
        self.device = choose_device(device)
        super().__init__(model.config, **settings)
        self.priors = model.priors.to(self.device)
        self.precision = choose_precision(precision, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        folded = fold_batch_norm(model).requires_grad_(False)
        self._model = folded.to(self.device, memory_format=torch.channels_last)
        if self.precision == "bf16":
            # Autocast would cast the weights anew for every batch.
            for module in self._model.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(torch.bfloat16)

    @classmethod
    def from_checkpoint(cls, path: str | Path | None = None, **settings: Any) -> Self:
        """A predictor with the weights in a file of `ssdlib.detector.model_file.save_model`, or, without a
        path, with the shipped ones, which find blood cells.

        Raises CheckpointError that names the file.
        """
        return cls(load_model(shipped_weights() if path is None else path), **settings)

    def raw(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Network outputs for resized images (N, 3, 300, 300) uint8: locs (N, P, 4), logits (N, P, C)."""
        pixels = pixels.to(self.device).contiguous(memory_format=torch.channels_last)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            return self._model(pixels)

    def find(self, pixels: np.ndarray) -> list[Found]:
        """What is found in each of the resized images (N, 3, 300, 300) uint8: see `ImageDetector.find`."""
        locs, logits = self.raw(torch.from_numpy(pixels))
        if not (torch.isfinite(locs).all() and torch.isfinite(logits).all()):
            raise FloatingPointError("the network's outputs")
        found = detect_objects(locs, logits, self.priors, **self._limits)
        return [tuple(values.cpu().numpy() for values in one) for one in found]


def fold_batch_norm(model: SSD300) -> SSD300:
    """A copy in evaluation mode whose BatchNorm layers are merged into the convolutions before them.

    In evaluation BatchNorm is a fixed scale and shift of each channel, which a convolution can do itself.
    """
    model = copy.deepcopy(model).eval()
    for block in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        layers = list(block.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(layers):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
                setattr(block, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(block, norm_name, nn.Identity())
    return model
