"""What every predictor has: images in, `Detections` out, read ahead in threads and computed in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from ssdlib.common.errors import CheckpointError, ConfigError, DataError
from ssdlib.config import IMAGE_SIZE, NMS_IOU, ModelConfig
from ssdlib.data.images import read_image, read_um_per_pixel
from ssdlib.data.resize import resize_to
from ssdlib.inference.detections import Detections, ImageLike
from ssdlib.inference.fields import detect_fields
from ssdlib.inference.inputs import read_ahead
from ssdlib.inference.tiling import Tiling

Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes (D, 4) fractional xyxy, scores (D,) and labels (D,) of one image, best first."""


@dataclass(frozen=True)
class _Loaded:
    pixels: np.ndarray
    """(3, 300, 300) uint8."""
    size: tuple[int, int]
    """(width, height) before resizing."""
    name: str


class ImageDetector(ABC):
    """A base of predictors: images of any size in, `Detections` out; `find` runs the network.

    The settings are those of `ssdlib.detector.nms.detect_objects`. The default `score_threshold` keeps what
    an evaluation's precision-recall curve needs: to count cells, take what is
    `Detections.above(config.thresholds)`. `iou_threshold` is by default what the weights say for each class
    (`Use.nms_iou`). Raises ConfigError for impossible settings.
    """

    def __init__(
        self,
        config: ModelConfig,
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

    @property
    def _limits(self) -> dict[str, Any]:
        """What `detect_objects` of either engine is told."""
        return {
            "variances": self.config.variances,
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "top_k": self.top_k,
        }

    @abstractmethod
    def find(self, pixels: np.ndarray) -> list[Found]:
        """What is found in each of the resized images (N, 3, 300, 300) uint8, by the settings.

        Raises FloatingPointError for outputs of the network that are not finite numbers: else NaN scores
        would pass for an image without cells.
        """

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
        try:
            found = self.find(np.stack([loaded.pixels for loaded in batch]))
        except FloatingPointError as error:
            raise CheckpointError(
                f"the network's outputs for {batch[0].name or 'an image'} are not finite numbers: "
                "its weights are damaged. Use another checkpoint."
            ) from error
        for loaded, (boxes, scores, labels) in zip(batch, found, strict=True):
            # Boxes come clipped to [0, 1], hence to the image.
            pixels = boxes * np.array(loaded.size * 2, dtype=np.float32)
            yield Detections(pixels, scores, labels, loaded.size, self.class_names, loaded.name)


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
    return _Loaded(resize_to(rgb, IMAGE_SIZE), (rgb.shape[1], rgb.shape[0]), name)
