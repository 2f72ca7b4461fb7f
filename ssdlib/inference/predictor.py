"""Predictors: images in, `Detections` out, read ahead in threads and computed in batches."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from ssdlib.common.errors import CheckpointError, ConfigError, DataError
from ssdlib.common.runtime import choose_device, choose_precision, keep_freed_memory
from ssdlib.config import ModelConfig
from ssdlib.data.images import read_image, read_um_per_pixel
from ssdlib.data.resize import resize_to
from ssdlib.detector.model import IMAGE_SIZE, SSD300
from ssdlib.detector.model_file import load_model, shipped_weights
from ssdlib.detector.nms import NMS_IOU, detect_objects
from ssdlib.inference.detections import Detections, ImageLike
from ssdlib.inference.fields import detect_fields
from ssdlib.inference.inputs import read_ahead
from ssdlib.inference.tiling import Tiling


@dataclass(frozen=True)
class _Loaded:
    pixels: Tensor
    """(3, 300, 300) uint8."""
    size: tuple[int, int]
    """(width, height) before resizing."""
    name: str


class ImageDetector(ABC):
    """A base of predictors: images of any size in, `Detections` out; `raw` runs the network.

    The settings are those of `ssdlib.detector.nms.detect_objects`; `priors` (P, 4) are the network's. The
    default `score_threshold` keeps what an evaluation's precision-recall curve needs: to count cells, take
    what is `Detections.above(config.thresholds)`. `iou_threshold` is by default what the weights say for
    each class (`Use.nms_iou`). Raises ConfigError for impossible settings.
    """

    def __init__(
        self,
        config: ModelConfig,
        priors: Tensor,
        *,
        score_threshold: float = 0.01,
        iou_threshold: float | None = None,
        top_k: int | None = None,
        batch_size: int = 8,
    ) -> None:
        for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} must be in [0, 1], not {value}")
        for name, value in (("top_k", top_k), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        self.score_threshold = score_threshold
        of_class = config.use.nms_iou or {}
        self.iou_threshold = [
            of_class.get(name, NMS_IOU) if iou_threshold is None else iou_threshold
            for name in config.class_names
        ]
        self.top_k = top_k
        self.batch_size = batch_size
        self.config = config
        self.class_names = config.class_names
        self.priors = priors

    @abstractmethod
    def raw(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Network outputs for resized images (N, 3, 300, 300) uint8: locs (N, P, 4), logits (N, P, C)."""

    def stream(self, images: ImageLike | Iterable[ImageLike]) -> Iterator[Detections]:
        """The detections of each image (a file or an RGB array) seen as one view, in order, in its pixels.

        The next images are decoded and resized in threads while the network runs, and few are held at a time,
        so `images` may be endless. Raises DataError for an image that cannot be read, after the detections of
        the batches before it.
        """
        with closing(read_ahead(_load, _several(images), ahead=2 * self.batch_size)) as loaded:
            while batch := list(islice(loaded, self.batch_size)):
                for image in batch:
                    if isinstance(image, DataError):
                        raise image
                yield from self._detect_batch(batch)

    def detect(self, images: ImageLike | Iterable[ImageLike], progress: bool = False) -> list[Detections]:
        """The detections of each image as a list, looked at as `ssdlib detect` does; a progress bar goes to
        stderr.

        So large fields are cut into views, and a scale that does not fit is found by the red cells. Raises
        DataError as `stream` does.
        """
        images = _several(images)
        total = len(images) if isinstance(images, Sized) else None
        names: deque[str] = deque()

        def fields() -> Iterator[tuple[np.ndarray, float | None]]:
            with closing(read_ahead(_read, images, ahead=2 * self.batch_size)) as read:
                for one in read:
                    if isinstance(one, DataError):
                        raise one
                    names.append(one[2])
                    yield one[0], one[1]

        seen = detect_fields(self, fields(), Tiling(use=self.config.use))
        bar = tqdm(seen, "detect", total, unit="img", disable=not progress)
        return [replace(one.found, image=names.popleft()) for one in bar]

    def _detect_batch(self, batch: list[_Loaded]) -> Iterator[Detections]:
        locs, logits = self.raw(torch.stack([loaded.pixels for loaded in batch]))
        if not (torch.isfinite(locs).all() and torch.isfinite(logits).all()):
            # Else NaN scores would pass for an image without cells.
            raise CheckpointError(
                f"the network's outputs for {batch[0].name or 'an image'} are not finite numbers: "
                "its weights are damaged. Use another checkpoint."
            )
        found = detect_objects(
            locs,
            logits,
            self.priors,
            variances=self.config.variances,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            top_k=self.top_k,
        )
        for loaded, (boxes, scores, labels) in zip(batch, found, strict=True):
            # Boxes come clipped to [0, 1], hence to the image.
            pixels = boxes.float().cpu() * torch.tensor(loaded.size * 2, dtype=torch.float32)
            yield Detections(pixels, scores, labels, loaded.size, self.class_names, loaded.name)


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
        super().__init__(model.config, model.priors.to(self.device), **settings)
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


def _several(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    return [images] if isinstance(images, ImageLike) else images


def _read(image: ImageLike) -> tuple[np.ndarray, float | None, str]:
    """The image (H, W, 3), read if it is a file, its micrometers per pixel by the file, and its name."""
    if isinstance(image, np.ndarray):
        rgb, um, name = image, None, ""
    else:
        rgb, um, name = read_image(image), read_um_per_pixel(image), str(image)
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise DataError(
            f"an image array of {rgb.dtype} {rgb.shape} cannot be used: pass (height, width, 3) uint8 RGB."
        )
    return rgb, um, name


def _load(image: ImageLike) -> _Loaded:
    """The image, read if it is a file, and resized."""
    rgb, _, name = _read(image)
    height, width = rgb.shape[:2]
    # As a view with channels last, which torchvision resizes fastest; a copy only for odd strides.
    tensor = torch.from_numpy(np.require(rgb, requirements=["C", "W"])).permute(2, 0, 1)
    return _Loaded(resize_to(tensor, IMAGE_SIZE), (width, height), name)
