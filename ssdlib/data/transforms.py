"""Augmentation for training and the plain resize for everything else, on `torchvision.transforms.v2`.

Images are uint8 from end to end, boxes follow them as `tv_tensors`. The order keeps it cheap: only the zooms
and the crop see the full image; flips and colors act on the small square, where they do the same.
Liu et al. 2016, sections 2.2, 3.6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ssdlib.config import AugmentConfig


class SquareResize(v2.Transform):
    """The resize to a square, antialiased: that of `ssdlib.data.resize`, for an image with its boxes."""

    def __init__(self, size: int = 300) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        resized = self._call_kernel(F.resize, inpt, size=[self.size, self.size])
        if isinstance(inpt, tv_tensors.Image):
            # Planes side by side again: the color arithmetic that follows is a quarter faster on them.
            return tv_tensors.wrap(resized.contiguous(), like=inpt)
        return resized


class ZoomOut(v2.RandomZoomOut):
    """`RandomZoomOut` whose canvas has the color of the image's own border instead of black.

    A black frame never occurs in a smear; the border's median is its background, so that only scale changes.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        image = next(item for item in flat_inputs if isinstance(item, tv_tensors.Image)).as_subclass(Tensor)
        edges = (image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1])
        background = torch.cat(edges, dim=1).median(dim=1).values  # (3, 2 W + 2 H) -> (3,)
        return {**super().make_params(flat_inputs), "fill": background.tolist()}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.pad, inpt, **params)


class IoUCrop(v2.RandomIoUCrop):
    """`RandomIoUCrop` that tries all its candidate crops at once, and leaves an image without boxes whole.

    Draws from the same distribution as torchvision's loop (the first valid of `trials` crops) at a tenth of
    its time. Boxes whose center is cut away become points: `SanitizeBoundingBoxes` must follow.
    """

    def __init__(self, min_iou: float, **options: Any) -> None:
        # 1.0 leaves the image whole; it is always among the options, so that the search ends.
        thresholds = [iou for iou in (0.1, 0.3, 0.5, 0.7, 0.9) if iou >= min_iou]
        super().__init__(sampler_options=[*thresholds, 1.0], **options)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        boxes = next(item for item in flat_inputs if isinstance(item, tv_tensors.BoundingBoxes))
        height, width = boxes.canvas_size
        boxes = boxes.as_subclass(Tensor)  # (G, 4) xyxy pixels
        while len(boxes):
            min_iou = self.options[int(torch.randint(len(self.options), ()))]
            if min_iou >= 1.0:
                break
            crops = self._candidates(height, width)  # (trials, 4) xyxy pixels
            centers = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((crops[:, None, :2] < centers) & (centers < crops[:, None, 2:])).all(-1)  # (trials, G)
            good = ((box_iou(crops, boxes) >= min_iou) & inside).any(1)
            shape = crops[:, 2:] - crops[:, :2]
            aspect = shape[:, 0] / shape[:, 1]
            good &= (aspect >= self.min_aspect_ratio) & (aspect <= self.max_aspect_ratio)
            if good.any():
                chosen = int(good.int().argmax())
                left, top, right, bottom = crops[chosen].int().tolist()
                return {
                    "top": top,
                    "left": left,
                    "height": bottom - top,
                    "width": right - left,
                    "is_within_crop_area": inside[chosen],
                }
        return {}

    def _candidates(self, height: int, width: int) -> Tensor:
        """Random crops (trials, 4), xyxy in whole pixels."""
        image = torch.tensor([width, height], dtype=torch.float32)
        draw = torch.rand(self.trials, 4)
        scale = self.min_scale + (self.max_scale - self.min_scale) * draw[:, :2]
        shape = (image * scale).floor().clamp(min=1)
        corner = ((image - shape) * draw[:, 2:]).floor()
        return torch.cat([corner, corner + shape], dim=1)


class ZoomIn(v2.RandomIoUCrop):
    """With chance `p`, a crop that magnifies by 1 to `most`; its shape is the image's within 10 %.

    Only the choice of the crop is its own; `RandomIoUCrop` cuts image and boxes.

    Boxes whose center is cut away become points: `SanitizeBoundingBoxes` must follow. An image that has
    boxes keeps at least one, or stays whole where ten draws find none.
    """

    ASPECT = 1.1
    TRIALS = 10  # not `trials`, which is the base's own

    def __init__(self, most: float, p: float = 0.5) -> None:
        super().__init__()
        self.most, self.p = most, p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        boxes = next(item for item in flat_inputs if isinstance(item, tv_tensors.BoundingBoxes))
        height, width = boxes.canvas_size
        boxes = boxes.as_subclass(Tensor)  # (G, 4) xyxy pixels
        if torch.rand(()) >= self.p:
            return {}
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        for scale, aspect, left, top in torch.rand(self.TRIALS, 4).tolist():
            side = 1 / (1 + (self.most - 1) * scale)
            stretch = self.ASPECT ** (2 * aspect - 1)
            shape = int(min(1.0, side * stretch) * width), int(min(1.0, side / stretch) * height)
            corner = int(left * (width - shape[0] + 1)), int(top * (height - shape[1] + 1))
            low, high = torch.tensor(corner), torch.tensor(corner) + torch.tensor(shape)
            inside = ((centers > low) & (centers < high)).all(1)  # (G,)
            if inside.any() or not len(boxes):
                window = {"left": corner[0], "top": corner[1], "width": shape[0], "height": shape[1]}
                return {**window, "is_within_crop_area": inside}
        return {}


class Photometric(v2.RandomPhotometricDistort):
    """`RandomPhotometricDistort` without its swap of color channels.

    Brightness, contrast, saturation and hue vary with stain and lamp; a green nucleus occurs in no smear.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class Stain(v2.Transform):
    """Another lamp and another stain: each channel's background moves, and its optical density is scaled.

    Stain absorbs light exponentially (Beer and Lambert), so that with the background B of an image a channel
    I becomes B' (I / B)^k: the same cells, paler or darker, in another color. The ranges reach well past what
    the microscopes of BCCD and TXL-PBC differ by.
    """

    BACKGROUND = (115.0, 255.0)
    """New background, the same for the three channels, which then differ by up to `TINT`."""
    TINT = 1.3
    DENSITY = 2.5
    """Factor, either way, of all channels' density; each channel's own is up to `HUE` beside it."""
    HUE = 1.9
    _BRIGHT = 0.9
    """Quantile of a channel's pixels that is its background, even in a crowded field."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        if torch.rand(()) >= self.p:
            return {}
        image = next(item for item in flat_inputs if isinstance(item, tv_tensors.Image)).as_subclass(Tensor)
        sample = image[:, ::7, ::7].flatten(1).float()
        before = sample.quantile(self._BRIGHT, dim=1, keepdim=True).clamp(min=1)  # (3, 1)
        draw = 2 * torch.rand(2, 3, 1) - 1
        low, high = self.BACKGROUND
        after = ((low + (high - low) * torch.rand(())) * self.TINT ** draw[0]).clamp(max=255)
        density = self.DENSITY ** (2 * torch.rand(()) - 1) * self.HUE ** draw[1]
        levels = torch.arange(256.0)[None] / before  # (3, 256)
        return {"table": (after * levels**density).round().clamp(0, 255).to(torch.uint8)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not params or not isinstance(inpt, tv_tensors.Image):
            return inpt
        planes = [
            table[plane.int()] for table, plane in zip(params["table"], inpt.as_subclass(Tensor), strict=True)
        ]
        return tv_tensors.wrap(torch.stack(planes), like=inpt)


def train_transform(config: AugmentConfig, size: int = 300) -> v2.Transform:
    """The augmentation that `config` asks for, ending in a uint8 image (3, size, size).

    Call it as `image, target = transform(image, target)` with `tv_tensors`, boxes xyxy in pixels. Boxes that
    a crop removes take their labels along; an image may have none before or after.
    """
    steps: list[v2.Transform] = []
    if config.zoom_out > 1 and config.zoom_out_chance > 0:
        steps.append(ZoomOut(side_range=(1.0, config.zoom_out), p=config.zoom_out_chance))
    if config.zoom_in > 1 and config.zoom_in_chance > 0:
        steps.append(ZoomIn(config.zoom_in, config.zoom_in_chance))
    if config.iou_crop > 0:
        steps.append(IoUCrop(config.iou_crop))
    steps.append(SquareResize(size))
    steps.append(v2.SanitizeBoundingBoxes(min_size=1))
    if config.horizontal_flip > 0:
        steps.append(v2.RandomHorizontalFlip(config.horizontal_flip))
    if config.vertical_flip > 0:
        steps.append(v2.RandomVerticalFlip(config.vertical_flip))
    if config.photometric > 0:
        steps.append(Photometric(p=config.photometric))
    if config.stain > 0:
        steps.append(Stain(config.stain))
    if config.blur > 0:
        steps.append(v2.RandomApply([v2.GaussianBlur(7, (0.3, 1.5))], config.blur))
    return v2.Compose(steps)


def eval_transform(size: int = 300) -> v2.Transform:
    """Only the resize, for images that are evaluated: every box is kept."""
    return v2.Compose([SquareResize(size)])
