"""Tiling: fields larger than those in training are cut into overlapping tiles, and every cell counts once.

A tile covers what a training image covers (`Use.view`) and is then squeezed to 300 x 300 as a training image
is, so cells come at the size the network knows. Every cell smaller than the overlap lies whole in at least
one tile. Training cuts its images by the same rule (`ssdlib.training.views`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ssdlib.common.errors import ConfigError
from ssdlib.config import Use
from ssdlib.inference.detections import Detections
from ssdlib.inference.outputs import nms

RED_CELL_UM = 7.5
"""Diameter of a red cell on a dried smear, in micrometers: 7 to 8."""

OVERLAP = 0.25
"""Share of a tile's width that neighboring tiles share at least; 95 % of BCCD's red cells are at most a fifth
of a view wide."""

MARGIN = 0.025
"""Share of a tile's width: a box nearer to a tile's edge may be of a cut cell; clearances so near count as
equal."""

BORDER = 0.01
"""Share of the view's sides: boxes nearer to the border of an image may be of cells that it cuts."""

MERGE_IOU = 0.45
"""Boxes of two tiles that overlap more are of one cell."""

GUESSED_TOLERANCE = 1.4
"""A field at most so many times the view is one tile where its scale is only guessed: it may be a closer
look."""
KNOWN_TOLERANCE = (0.74, 1.35)
"""The same where the scale is known, and how much smaller than the view a field may be: the network finds
cells of so many times their usual size as well as others."""

_SIDES = (32, 10_000)
"""Of a tile in pixels, whatever the weights say: tiny ones would be without number, huge ones would fill the
memory."""

Tile = tuple[int, int, int, int]
"""xyxy in pixels of the original; it may reach beyond the right and lower border of a small image."""


@dataclass(frozen=True)
class Tiling:
    """When and how images are cut into tiles. Raises ConfigError for impossible settings."""

    mode: str | int = "auto"
    """auto; off: every image is one tile; N: tiles N pixels wide, of the view's shape, whatever the scale."""
    um_per_pixel: float | None = None
    """Micrometers per pixel of the images; None if unknown, which auto takes for the training scale."""
    use: Use = field(default_factory=Use)
    """The view that the network was trained on."""
    enlarge: float | None = None
    """How many times as large as in training cells are in the images, in pixels, where that was found out
    otherwise than by `um_per_pixel`."""

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "off") and not (isinstance(self.mode, int) and 32 <= self.mode <= 16384):
            raise ConfigError(f"tiles must be auto, off or 32 to 16384 pixels wide, not {self.mode!r}")
        if self.um_per_pixel is not None and not plausible_scale(self.um_per_pixel):
            trained = self.use.um_per_pixel
            known = f"in training a pixel is {trained:g}, and " if trained else ""
            raise ConfigError(
                f"{self.um_per_pixel:g} micrometers per pixel is not the scale of a blood smear: give 0.01 "
                f"to 0.5 ({known}a red cell measures 7 to 8 micrometers)"
            )

    @property
    def known(self) -> float | None:
        """How many times as large as in training cells are in pixels; None where it is not known."""
        if self.um_per_pixel and self.use.um_per_pixel:
            return self.use.um_per_pixel / self.um_per_pixel
        return self.enlarge

    def tile_size(self) -> tuple[int, int]:
        """(width, height) of a tile in pixels of the original."""
        width, height = self.use.view
        if isinstance(self.mode, int):
            return self.mode, max(1, round(self.mode * height / width))
        times = self.known or 1.0
        low, high = _SIDES
        return round(min(high, max(low, width * times))), round(min(high, max(low, height * times)))

    def tiles(self, width: int, height: int) -> list[Tile]:
        """The tiles of an image, row by row; a single one, the whole image, where that will do."""
        tile = self.tile_size()
        if self.mode == "off" or self._near_enough(width / tile[0], height / tile[1]):
            return [(0, 0, width, height)]
        lefts, tops = (
            # As much both ways, for cells are as tall as wide; a tile as low as a strip overlaps by half.
            _starts(length, side, min(math.ceil(tile[0] * OVERLAP), side // 2))
            for length, side in zip((width, height), tile, strict=True)
        )
        return [(left, top, left + tile[0], top + tile[1]) for top in tops for left in lefts]

    def is_one_tile(self, width: int, height: int) -> bool:
        """Whether the network sees the image as it is, neither cut nor padded."""
        return self.tiles(width, height) == [(0, 0, width, height)]

    def _near_enough(self, across: float, down: float) -> bool:
        """Whether a whole image, so many tiles wide and high, may be squeezed into one tile."""
        if self.mode == "auto" and self.known is None:
            return max(across, down) <= GUESSED_TOLERANCE
        low, high = KNOWN_TOLERANCE
        # Squeezing evens out what is too wide against what is too low, but only so far.
        return low <= math.sqrt(across * down) <= high and max(across, down) <= GUESSED_TOLERANCE


def plausible_scale(um_per_pixel: float) -> bool:
    """Whether so many micrometers per pixel can be those of a blood smear under a microscope."""
    return 0.01 <= um_per_pixel <= 0.5


def clear_of_border(boxes: np.ndarray, size: tuple[int, int], view: tuple[int, int]) -> np.ndarray:
    """(D,) bool: which boxes (D, 4), xyxy in pixels, keep `BORDER` of the view off the border of an image.

    The others may be of cells that it cuts. `size` is the image's width and height, `view` the view's.
    """
    margin = BORDER * np.asarray(view)
    return (boxes[:, :2] > margin).all(axis=1) & (boxes[:, 2:] < np.asarray(size) - margin).all(axis=1)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of as few tiles as cover `length`, evenly spread, sharing `overlap` at least."""
    if length <= tile:
        return [0]
    last = math.ceil((length - overlap) / (tile - overlap)) - 1
    return [round(number * (length - tile) / last) for number in range(last + 1)]


def merge(found: Sequence[Detections], tiles: Sequence[Tile], image_size: tuple[int, int]) -> Detections:
    """The detections of an image from those of its tiles: one box for each cell.

    Three steps. A box is left to the tile that sees it best: it goes if another tile has it at least `MARGIN`
    further inside, so what a tile cuts is reported by the neighbor that has the whole. Parts of a cell too
    large for any overlap are joined. What two tiles see equally well is found twice, which NMS removes.
    """
    limits = np.array(image_size * 2, dtype=np.float32)
    margin = MARGIN * (tiles[0][2] - tiles[0][0])
    frames = np.array(tiles, dtype=np.float32)  # (T, 4)
    kept: list[tuple[np.ndarray, ...]] = []
    for number, one in enumerate(found):
        boxes = one.boxes + frames[number, [0, 1, 0, 1]]
        # A padded tile may find something in its padding.
        inside = ((boxes[:, :2] + boxes[:, 2:]) / 2 < limits[2:]).all(axis=1)
        boxes = np.minimum(boxes, limits)
        keep = inside & ~_better_elsewhere(boxes, number, frames, limits, margin)
        kept.append((boxes[keep], one.scores[keep], one.labels[keep], np.full(keep.sum(), number)))
    boxes, scores, labels, owner = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    boxes, scores, labels = _join_parts(boxes, scores, labels, frames[owner], limits, margin)
    best = nms(boxes, scores, labels, MERGE_IOU)
    return Detections(boxes[best], scores[best], labels[best], image_size, found[0].class_names)


def _gaps(boxes: np.ndarray, tiles: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """How far each side of boxes (..., 4) lies inside tiles (..., 4), all xyxy -> (..., 4); infinite where
    the tile ends with the image, which cuts for every tile alike."""
    gaps = np.concatenate([boxes[..., :2] - tiles[..., :2], tiles[..., 2:] - boxes[..., 2:]], axis=-1)
    outer = np.concatenate([tiles[..., :2] <= 0, tiles[..., 2:] >= limits[2:]], axis=-1)
    return np.where(outer, np.inf, gaps)


def _better_elsewhere(
    boxes: np.ndarray, own: int, tiles: np.ndarray, limits: np.ndarray, margin: float
) -> np.ndarray:
    """(D,) bool: whether another tile has the box at least `margin` further inside than its own tile.

    On the whole; or in one direction, if the two tiles are of one row or column and cut alike in the other.
    """
    mine = tiles[own]
    near = ((tiles[:, :2] < mine[2:]) & (tiles[:, 2:] > mine[:2])).all(axis=1)
    near[own] = False
    others = tiles[near]
    if not len(others):
        return np.zeros(len(boxes), dtype=bool)
    # Gaps to the left and right, above and below: (D, 2) here and (D, T, 2) there.
    here = np.maximum(_gaps(boxes, mine, limits).reshape(-1, 2, 2).min(axis=1), 0)
    there = _gaps(boxes[:, None], others[None], limits)
    there = there.reshape(len(boxes), len(others), 2, 2).min(axis=2)
    aligned = (others[:, :2] == mine[:2])[:, ::-1]  # of one row: compare across; of one column: down
    on_the_whole = there.min(axis=-1) >= here.min(axis=-1, keepdims=True) + margin
    in_one = (aligned & (there >= here[:, None] + margin)).any(axis=-1)
    return (on_the_whole | in_one).any(axis=1)


def _join_parts(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    tiles: np.ndarray,
    limits: np.ndarray,
    margin: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of one class that both fill the strip which their tiles share become one around both.

    Only cells larger than the overlap are still cut here, so there are few; the score is the best part's. A
    part left alone goes if four fifths of it lie in a larger box of its class.
    """
    cut = _gaps(boxes, tiles, limits) < margin  # (D, 4): at the left, top, right, bottom edge of its tile
    every = np.arange(len(boxes))
    group = every.copy()  # the index of the box that a box becomes a part of
    for axis in (0, 1):  # beside each other, then above each other
        before, after = np.flatnonzero(cut[:, axis + 2]), np.flatnonzero(cut[:, axis])
        for first in before.tolist():
            a, strip_end = boxes[first], tiles[first, axis + 2]
            b, strip_start = boxes[after], tiles[after, axis]
            other = 1 - axis
            shared = np.minimum(a[other + 2], b[:, other + 2]) - np.maximum(a[other], b[:, other])
            spanned = np.maximum(a[other + 2], b[:, other + 2]) - np.minimum(a[other], b[:, other])
            linked = (
                (labels[after] == labels[first])
                & (tiles[first, axis] < strip_start)
                & (strip_start < strip_end)
                & (a[axis] < strip_start + margin)
                & (b[:, axis + 2] > strip_end - margin)
                & (shared > 0.5 * spanned)
            )
            group[np.isin(group, group[after[linked]])] = group[first]
    low, high, best = boxes[:, :2].copy(), boxes[:, 2:].copy(), scores.copy()
    np.minimum.at(low, group, boxes[:, :2])
    np.maximum.at(high, group, boxes[:, 2:])
    np.maximum.at(best, group, scores)
    areas = (high - low).prod(axis=1)
    stay = group == every
    alone = np.bincount(group, minlength=len(boxes)) == 1
    for index in np.flatnonzero(cut.any(axis=1) & alone).tolist():
        inside = (np.minimum(high, high[index]) - np.maximum(low, low[index])).clip(min=0).prod(axis=1)
        larger = stay & (labels == labels[index]) & (areas > areas[index])
        stay[index] = not (larger & (inside >= 0.8 * areas[index])).any()
    return np.concatenate([low, high], axis=1)[stay], best[stay], labels[stay]
