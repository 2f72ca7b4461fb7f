"""Tiling: fields larger than those in training are cut into overlapping tiles, and every cell counts once.

A tile covers what a training image covers and is then squeezed to 300 x 300 as a training image is, so cells
come at the size the network knows. Every cell smaller than the overlap lies whole in at least one tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ssdlib.common.errors import ConfigError
from ssdlib.inference.detections import Detections, Detector

TRAINING_FIELD = (640, 480)
"""Width and height in pixels of BCCD's images, of which every one is one tile."""

TRAINING_RED_CELL = 104
"""Median side, sqrt(width * height) in pixels, of the 1,785 red cells of BCCD's train clear of the border."""

TRAINING_UM_PER_PIXEL = 0.072
"""Micrometers per pixel of BCCD, which states none: red cells on smears measure 7 to 8, hence 7.5 / 104."""

OVERLAP = 160
"""Training pixels that neighboring tiles share at least; 95 % of BCCD's red cells are at most 129 wide."""

MARGIN = 16
"""Training pixels: a box nearer to a tile's edge may be of a cut cell; clearances so near count as equal."""

MERGE_IOU = 0.45
"""Boxes of two tiles that overlap more are of one cell."""

_TOLERANCE = {"known": 1.1, "guessed": 1.4}
"""A field at most so many times the training field is one tile: all but exact where the scale is known, and
generous where it is only guessed."""

Tile = tuple[int, int, int, int]
"""xyxy in pixels of the original; it may reach beyond the right and lower border of a small image."""


@dataclass(frozen=True)
class Tiling:
    """When and how images are cut into tiles. Raises ConfigError for impossible settings."""

    mode: str | int = "auto"
    """auto; off: every image is one tile; N: tiles N pixels wide and 3/4 N high, whatever the scale."""
    um_per_pixel: float | None = None
    """Micrometers per pixel of the images; None if unknown, which auto takes for the training scale."""

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "off") and not (isinstance(self.mode, int) and 32 <= self.mode <= 16384):
            raise ConfigError(f"tiles must be auto, off or 32 to 16384 pixels wide, not {self.mode!r}")
        if self.um_per_pixel is not None and not 0.01 <= self.um_per_pixel <= 0.5:
            raise ConfigError(
                f"{self.um_per_pixel:g} micrometers per pixel is not the scale of a blood smear: give 0.01 "
                f"to 0.5 (in training a pixel is {TRAINING_UM_PER_PIXEL}, and a red cell 7 to 8 micrometers)"
            )

    def tile_size(self) -> tuple[int, int]:
        """(width, height) of a tile in pixels of the original."""
        if isinstance(self.mode, int):
            return self.mode, round(self.mode * 0.75)
        shrink = TRAINING_UM_PER_PIXEL / (self.um_per_pixel or TRAINING_UM_PER_PIXEL)
        return round(TRAINING_FIELD[0] * shrink), round(TRAINING_FIELD[1] * shrink)

    def tiles(self, width: int, height: int) -> list[Tile]:
        """The tiles of an image, row by row; a single one, the whole image, where that will do."""
        tile = self.tile_size()
        if self.mode == "off" or self._near_enough(width / tile[0], height / tile[1]):
            return [(0, 0, width, height)]
        lefts, tops = (
            _starts(length, side, math.ceil(side * OVERLAP / training))
            for length, side, training in zip((width, height), tile, TRAINING_FIELD, strict=True)
        )
        return [(left, top, left + tile[0], top + tile[1]) for top in tops for left in lefts]

    def is_one_tile(self, width: int, height: int) -> bool:
        """Whether the network sees the image as it is, neither cut nor padded."""
        return self.tiles(width, height) == [(0, 0, width, height)]

    def _near_enough(self, across: float, down: float) -> bool:
        """Whether a whole image, so many tiles wide and high, may be squeezed into one tile."""
        if self.mode == "auto" and self.um_per_pixel is None:
            return max(across, down) <= _TOLERANCE["guessed"]  # a smaller image may be a closer look
        most = _TOLERANCE["known"]
        return max(across, down) <= most and min(across, down) >= 1 / most


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of as few tiles as cover `length`, evenly spread, sharing `overlap` at least."""
    if length <= tile:
        return [0]
    last = math.ceil((length - overlap) / (tile - overlap)) - 1
    return [round(number * (length - tile) / last) for number in range(last + 1)]


def crop(image: np.ndarray, tile: Tile) -> np.ndarray:
    """The pixels of a tile, (H, W, 3) uint8; beyond the image, the median color of the image's border."""
    left, top, right, bottom = tile
    inside = image[top:bottom, left:right]
    if inside.shape[:2] == (bottom - top, right - left):
        return inside
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    canvas = np.empty((bottom - top, right - left, 3), np.uint8)
    canvas[:] = np.median(border, axis=0)
    canvas[: inside.shape[0], : inside.shape[1]] = inside
    return canvas


def merge(found: Sequence[Detections], tiles: Sequence[Tile], image_size: tuple[int, int]) -> Detections:
    """The detections of an image from those of its tiles: one box for each cell.

    Three steps. A box is left to the tile that sees it best: it goes if another tile has it at least `MARGIN`
    further inside, so what a tile cuts is reported by the neighbor that has the whole. Parts of a cell too
    large for any overlap are joined. What two tiles see equally well is found twice, which NMS mends.
    """
    width, height = image_size
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    margin = MARGIN * (tiles[0][2] - tiles[0][0]) / TRAINING_FIELD[0]
    frames = torch.tensor(tiles, dtype=torch.float32)  # (T, 4)
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for number, one in enumerate(found):
        boxes = one.boxes + frames[number, [0, 1, 0, 1]]
        # A padded tile may find something in its padding.
        inside = ((boxes[:, :2] + boxes[:, 2:]) / 2 < limits[2:]).all(dim=1)
        boxes = boxes.minimum(limits)
        keep = inside & ~_better_elsewhere(boxes, number, frames, limits, margin)
        owner = torch.full((int(keep.sum()),), number)
        kept.append((boxes[keep], one.scores[keep], one.labels[keep], owner))
    boxes, scores, labels, owner = (torch.cat(parts) for parts in zip(*kept, strict=True))
    boxes, scores, labels = _join_parts(boxes, scores, labels, frames[owner], limits, margin)
    best = batched_nms(boxes, scores, labels, MERGE_IOU)
    return Detections(boxes[best], scores[best], labels[best], image_size, found[0].class_names)


def detect_image(
    predictor: Detector,
    image: np.ndarray,
    tiling: Tiling,
    *,
    on_tiles: Callable[[int, int], None] = lambda done, tiles: None,
) -> Detections:
    """The detections of an (H, W, 3) uint8 RGB image, found tile by tile in a large field.

    `on_tiles` is called with the number of tiles done and of all, first with 0, and ends the work if it
    raises.
    """
    size = image.shape[1], image.shape[0]
    tiles = tiling.tiles(*size)
    found: list[Detections] = []
    on_tiles(0, len(tiles))
    while len(found) < len(tiles):
        batch = tiles[len(found) : len(found) + predictor.batch_size]
        found += predictor.stream(crop(image, tile) for tile in batch)
        on_tiles(len(found), len(tiles))
    return found[0] if tiling.is_one_tile(*size) else merge(found, tiles, size)


def _gaps(boxes: Tensor, tiles: Tensor, limits: Tensor) -> Tensor:
    """How far each side of boxes (..., 4) lies inside tiles (..., 4), all xyxy -> (..., 4); infinite where
    the tile ends with the image, which cuts for every tile alike."""
    gaps = torch.cat([boxes[..., :2] - tiles[..., :2], tiles[..., 2:] - boxes[..., 2:]], dim=-1)
    outer = torch.cat([tiles[..., :2] <= 0, tiles[..., 2:] >= limits[2:]], dim=-1)
    return gaps.masked_fill(outer.expand_as(gaps), torch.inf)


def _better_elsewhere(boxes: Tensor, own: int, tiles: Tensor, limits: Tensor, margin: float) -> Tensor:
    """(D,) bool: whether another tile has the box at least `margin` further inside than its own tile.

    On the whole; or in one direction, if the two tiles are of one row or column and cut alike in the other.
    """
    mine = tiles[own]
    near = ((tiles[:, :2] < mine[2:]) & (tiles[:, 2:] > mine[:2])).all(dim=1)
    near[own] = False
    others = tiles[near]
    if not len(others):
        return torch.zeros(len(boxes), dtype=torch.bool)
    # Gaps to the left and right, above and below: (D, 2) here and (D, T, 2) there.
    here = _gaps(boxes, mine, limits).unflatten(-1, (2, 2)).amin(dim=1).clamp(min=0)
    there = _gaps(boxes[:, None], others[None], limits).unflatten(-1, (2, 2)).amin(dim=2)
    aligned = (others[:, :2] == mine[:2]).flip(-1)  # of one row: compare across; of one column: down
    on_the_whole = there.amin(dim=-1) >= here.amin(dim=-1, keepdim=True) + margin
    in_one = (aligned & (there >= here[:, None] + margin)).any(dim=-1)
    return (on_the_whole | in_one).any(dim=1)


def _join_parts(
    boxes: Tensor, scores: Tensor, labels: Tensor, tiles: Tensor, limits: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of one class that both fill the strip which their tiles share become one around both.

    Only cells larger than the overlap are still cut here, so there are few; the score is the best part's. A
    part left alone goes if four fifths of it lie in a larger box of its class.
    """
    cut = _gaps(boxes, tiles, limits) < margin  # (D, 4): at the left, top, right, bottom edge of its tile
    every = torch.arange(len(boxes))
    group = every.clone()  # the index of the box that a box becomes a part of
    for axis in (0, 1):  # beside each other, then above each other
        before, after = cut[:, axis + 2].nonzero().flatten(), cut[:, axis].nonzero().flatten()
        for first in before.tolist():
            a, strip_end = boxes[first], tiles[first, axis + 2]
            b, strip_start = boxes[after], tiles[after, axis]
            other = 1 - axis
            shared = a[other + 2].minimum(b[:, other + 2]) - a[other].maximum(b[:, other])
            spanned = a[other + 2].maximum(b[:, other + 2]) - a[other].minimum(b[:, other])
            linked = (
                (labels[after] == labels[first])
                & (tiles[first, axis] < strip_start)
                & (strip_start < strip_end)
                & (a[axis] < strip_start + margin)
                & (b[:, axis + 2] > strip_end - margin)
                & (shared > 0.5 * spanned)
            )
            group[torch.isin(group, group[after[linked]])] = int(group[first])
    pairs = group[:, None].expand(-1, 2)
    low = boxes[:, :2].scatter_reduce(0, pairs, boxes[:, :2], "amin")
    high = boxes[:, 2:].scatter_reduce(0, pairs, boxes[:, 2:], "amax")
    boxes, scores = torch.cat([low, high], dim=1), scores.scatter_reduce(0, group, scores, "amax")
    areas = (high - low).prod(dim=1)
    stay = group == every
    alone = torch.bincount(group, minlength=len(boxes)) == 1
    for index in (cut.any(dim=1) & alone).nonzero().flatten().tolist():
        inside = (high.minimum(high[index]) - low.maximum(low[index])).clamp(min=0).prod(dim=1)
        larger = stay & (labels == labels[index]) & (areas > areas[index])
        stay[index] = not (larger & (inside >= 0.8 * areas[index])).any()
    return boxes[stay], scores[stay], labels[stay]
