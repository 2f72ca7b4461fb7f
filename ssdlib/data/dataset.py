"""Images with ground truth, as a torch dataset in torchvision's v2 convention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from tqdm import tqdm

from ssdlib.common.errors import DataError
from ssdlib.common.threads import available_cores
from ssdlib.data.formats.records import LabeledObject
from ssdlib.data.images import crop, read_image

CACHE_BYTES = 2 * 1024**3
"""Decoded images kept in memory, at most; all of BCCD takes 0.34 GB. Beyond it, images are read anew."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with its ground truth; the image itself is read when it is asked for."""

    image_id: str
    image_path: Path
    width: int
    height: int
    boxes: np.ndarray
    """(G, 4) float32, xyxy pixels, inside the image and with an area."""
    labels: np.ndarray
    """(G,) int64, from 1; 0 is background and never here."""
    objects: tuple[LabeledObject, ...] = ()
    """Every object of the label file, in its order, those dropped for want of an area included."""
    label_file: Path | None = None
    window: tuple[int, int, int, int] | None = None
    """xyxy pixels of the part of the image that this sample is, whose size width, height and boxes are of; it
    may reach beyond the right and lower border. None: the whole image."""
    source: str = ""
    """The name of the source it comes from, where several are joined; else empty."""

    @property
    def repairs(self) -> tuple[str, ...]:
        """The kind of each repair of a box."""
        return tuple(kind for o in self.objects for kind in o.repairs)


class ImageCache:
    """Decoded images by path, up to a number of bytes. Travels empty to another process."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._images: dict[Path, np.ndarray] = {}

    def get(self, path: Path) -> np.ndarray:
        """The image as (H, W, 3) uint8 RGB, shared and read-only."""
        image = self._images.get(path)
        if image is None:
            image = read_image(path)
            if self._bytes + image.nbytes <= self._limit:
                self._images[path] = image
                self._bytes += image.nbytes
        return image

    def __len__(self) -> int:
        return len(self._images)

    def __getstate__(self) -> dict[str, Any]:
        return {"_limit": self._limit, "_bytes": 0, "_images": {}}


class DetectionDataset(Dataset):
    """Samples as (image, target) pairs.

    `dataset[i]` is a `tv_tensors.Image` uint8 (3, H, W) and a dict of "boxes" (`tv_tensors.BoundingBoxes`
    float32 (G, 4) xyxy pixels), "labels" (int64 (G,)) and "image_id" (str), after `transform(image, target)`
    if there is one. G may be 0. Reading an image raises DataError if the file is damaged.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        class_names: Sequence[str],
        transform: Callable[[Any, dict], tuple[Any, dict]] | None = None,
        *,
        cache: ImageCache | None = None,
    ) -> None:
        self.samples = list(samples)
        self.class_names = tuple(class_names)
        self.transform = transform
        self._cache = ImageCache() if cache is None else cache

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        pixels = torch.from_numpy(self._pixels(index))
        # A copy, because a transform may work in place; it stays channels-last, which resizes fastest.
        image = tv_tensors.Image(pixels.permute(2, 0, 1).clone())
        target = self.target(index)
        return (image, target) if self.transform is None else self.transform(image, target)

    def _pixels(self, index: int) -> np.ndarray:
        sample = self.samples[index]
        image = self._cache.get(sample.image_path)
        return image if sample.window is None else crop(image, sample.window)

    def target(self, index: int) -> dict[str, Any]:
        """Ground truth of one image in its own pixels, without decoding it."""
        sample = self.samples[index]
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(sample.boxes.copy()),
            format="XYXY",
            canvas_size=(sample.height, sample.width),
        )
        return {
            "boxes": boxes,
            "labels": torch.from_numpy(sample.labels.copy()),
            "image_id": sample.image_id,
        }

    def targets(self) -> list[dict[str, Any]]:
        """Ground truth of every image in its own pixels, without decoding any."""
        return [self.target(index) for index in range(len(self))]

    def class_counts(self, *, raw: bool = False) -> dict[str, int]:
        """Boxes of each class; with `raw`, every object the annotations list, point boxes included."""
        if raw:
            counts = Counter(o.name for sample in self.samples for o in sample.objects)
        else:
            counts = Counter(
                self.class_names[k - 1] for sample in self.samples for k in sample.labels.tolist()
            )
        return {name: counts[name] for name in self.class_names}

    def require_objects(self) -> None:
        """Raise DataError for images to train on that are none, or without an object."""
        if not self.samples:
            raise DataError("the training split has no images: add some to ImageSets/Main/train.txt")
        if not any(len(sample.labels) for sample in self.samples):
            raise DataError(
                f"none of the {len(self)} training images has an object ({self.samples[0].image_path} is the "
                "first), so there is nothing to learn: label some of them, take more, or put images with "
                "labels into train."
            )

    def image_path(self, index: int) -> Path:
        """The image's file."""
        return self.samples[index].image_path

    def image(self, index: int) -> np.ndarray:
        """The image as it is, (H, W, 3) uint8 RGB; a copy, yours to draw on."""
        return self._pixels(index).copy()

    def with_transform(self, transform: Callable[[Any, dict], tuple[Any, dict]] | None) -> Self:
        """The same images, sharing the cache, under another transform."""
        return type(self)(self.samples, self.class_names, transform, cache=self._cache)

    def with_samples(self, samples: Sequence[Sample]) -> Self:
        """Other samples of the same classes, sharing the cache, under the same transform."""
        return type(self)(samples, self.class_names, self.transform, cache=self._cache)

    def subset(self, count: int | None) -> Self:
        """The first `count` images (all if None), sharing the cache. Raises DataError if none is left."""
        samples = self.samples[:count]
        if count is not None and not samples:
            raise DataError(f"a subset of {count} images is empty; ask for at least 1.")
        return self.with_samples(samples)

    def joined(self, other: DetectionDataset) -> Self:
        """The images of both, this one's first, under this one's transform. DataError for other classes."""
        if self.class_names != other.class_names:
            raise DataError(
                f"images with the classes {', '.join(self.class_names)} and {', '.join(other.class_names)} "
                "cannot be one data set; give both the same classes in the same order."
            )
        return self.with_samples([*self.samples, *other.samples])

    def preload(self, *, progress: bool = False) -> Self:
        """Decode every image into the cache now, so that workers forked later share it. Returns self."""
        paths = [sample.image_path for sample in self.samples]
        with ThreadPoolExecutor(max_workers=available_cores()) as pool:
            done = pool.map(self._cache.get, paths)
            for _ in tqdm(done, "decode images", len(paths), unit="image", disable=not progress):
                pass
        return self
