"""How every part of the project looks at a field: in one view or many, at a scale that is found if unknown.

Detection, evaluation, the page and the archive all come through `detect_fields`, so the same image gives the
same cells in each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from ssdlib.data.images import crop
from ssdlib.inference.detections import Detections, Detector
from ssdlib.inference.tiling import Tile, Tiling, clear_of_border, merge

PROBE_SCORE = 0.3
"""Score from which a detection tells the size of cells."""

_ENOUGH = 5
"""Cells that tell the scale of an image, by their median."""
_FITS = (0.72, 1.45)
"""Cells whose median is so many times training's need no other scale: an image has few, and they differ."""
_LADDER = (0.5, 2.0)
"""Scales tried beside the first where it shows too few cells: an octave either way."""
_PROBES = 4
"""Tiles, evenly spread, that are looked at to find the scale of a large field."""
_ROUNDS = 3
_UNIFORM = 1.7
"""Third quartile over first of the sizes of red cells, at most; nine of ten fields of BCCD have under 1.2."""
_FARTHEST = 4.0
"""Scales are looked for up to two octaves either way."""
_FLAT = 12.0
"""Levels of green between the 2nd and the 98th percentile, below which an image is blank at any scale."""

SCALES = ("given", "file", "cells", "assumed", "off")
"""Where the scale of an image is from: the caller; the file's tags; the size of the red cells; nowhere, so
that the network's own was taken (the cells fit it, or were too few to tell); or it played no part."""


@dataclass(frozen=True)
class Seen:
    """What was found in one field, and how it was looked at."""

    found: Detections
    tiles: int
    view: tuple[int, int]
    """Width and height of a tile in pixels of the image."""
    scale: str
    """One of `SCALES`."""
    um_per_pixel: float | None
    """Micrometers per pixel, measured (given, file), or those at which the cells have their usual size."""

    @property
    def measured_um(self) -> float | None:
        """Micrometers per pixel, unless they are derived from the cells, whose size they cannot measure."""
        return self.um_per_pixel if self.scale in ("given", "file") else None


def detect_fields(
    predictor: Detector,
    fields: Iterable[tuple[np.ndarray, float | None]],
    tiling: Tiling | Mapping[tuple[int, int], Tiling],
) -> Iterator[Seen]:
    """What is found in each image (H, W, 3) uint8 RGB, in order; with each goes its file's um per pixel.

    `tiling` is one for all or one for each size of images. Images of a batch that are one tile are computed
    together, others by themselves.
    """
    fields = iter(fields)
    while group := list(islice(fields, predictor.batch_size)):
        asked = [tiling if isinstance(tiling, Tiling) else tiling[_size(image)] for image, _ in group]
        starts = [_start(one, um) for one, (_, um) in zip(asked, group, strict=True)]
        whole = [k for k, (one, _) in enumerate(starts) if one.is_one_tile(*_size(group[k][0]))]
        first = dict(zip(whole, predictor.stream([group[k][0] for k in whole]), strict=True))
        for k, ((image, _), (one, source)) in enumerate(zip(group, starts, strict=True)):
            yield _look(predictor, image, one, source, {0: first[k]} if k in first else {})


def detect_image(
    predictor: Detector,
    image: np.ndarray,
    tiling: Tiling,
    *,
    um_in_file: float | None = None,
    on_tiles: Callable[[int, int], None] = lambda done, tiles: None,
) -> Seen:
    """What is found in an (H, W, 3) uint8 RGB image, as by `detect_fields`.

    `on_tiles` is called with the number of tiles done and of all, first with 0, and ends the work if it
    raises.
    """
    start, source = _start(tiling, um_in_file)
    return _look(predictor, image, start, source, {}, on_tiles)


def _size(image: np.ndarray) -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def _start(tiling: Tiling, um_in_file: float | None) -> tuple[Tiling, str]:
    """The tiles to begin with, and where their scale is from; "assumed" and "file" are to be checked."""
    if tiling.mode != "auto" or tiling.enlarge:
        return tiling, "off"
    if tiling.um_per_pixel:
        return tiling, "given"
    if um_in_file and tiling.use.um_per_pixel:
        return replace(tiling, um_per_pixel=um_in_file), "file"
    return tiling, "assumed"


def _look(
    predictor: Detector,
    image: np.ndarray,
    tiling: Tiling,
    source: str,
    found: dict[int, Detections],
    on_tiles: Callable[[int, int], None] = lambda done, tiles: None,
) -> Seen:
    """Detect at the scale of `tiling`; at another, where the red cells say so and the scale was not given.

    `found` holds what is known already, by the number of the tile.
    """
    size = _size(image)
    searching = source in ("assumed", "file") and tiling.use.reference in predictor.class_names
    tried, begun = _ROUNDS if searching else 0, 0.0
    while tried:
        tiles = tiling.tiles(*size)
        found = _detect_tiles(predictor, image, tiles, found, _spread(tiles), on_tiles)
        sizes = _sizes(found, tiles, tiling)
        times = _median(sizes) if _tell(sizes) else None
        if times is None and tried == _ROUNDS:
            times = _climb(predictor, image, tiling, len(sizes))
        if times is None or _FITS[0] <= times <= _FITS[1]:
            break
        now = _enlargement(tiles[0], tiling)
        begun = begun or now
        if not 1 / _FARTHEST <= now * times / begun <= _FARTHEST:
            break  # no scale of cells: an untrained network's, or of what are no cells
        tiling, source, found = replace(tiling, um_per_pixel=None, enlarge=now * times), "cells", {}
        tried -= 1
    tiles = tiling.tiles(*size)
    found = _detect_tiles(predictor, image, tiles, found, range(len(tiles)), on_tiles)
    alone = len(tiles) == 1 and tiles[0] == (0, 0, *size)
    whole = found[0] if alone else merge([found[k] for k in range(len(tiles))], tiles, size)
    left, top, right, bottom = tiles[0]
    um = tiling.um_per_pixel
    if source == "cells":
        um = tiling.use.um_per_pixel / tiling.enlarge if tiling.use.um_per_pixel else None
    return Seen(whole, len(tiles), (right - left, bottom - top), source, um)


def _detect_tiles(
    predictor: Detector,
    image: np.ndarray,
    tiles: Sequence[Tile],
    found: dict[int, Detections],
    wanted: Iterable[int],
    on_tiles: Callable[[int, int], None] = lambda done, tiles: None,
) -> dict[int, Detections]:
    """`found` and the detections of those of the `wanted` tiles that it lacks."""
    found, missing = dict(found), [k for k in wanted if k not in found]
    on_tiles(len(found), len(tiles))
    for start in range(0, len(missing), predictor.batch_size):
        batch = missing[start : start + predictor.batch_size]
        seen = predictor.stream([crop(image, tiles[k]) for k in batch])
        found |= dict(zip(batch, seen, strict=True))
        on_tiles(len(found), len(tiles))
    return found


def _spread(tiles: Sequence[Tile]) -> list[int]:
    """The numbers of at most `_PROBES` tiles, evenly spread."""
    count = min(len(tiles), _PROBES)
    return sorted({round((k + 0.5) * len(tiles) / count - 0.5) for k in range(count)})


def _enlargement(tile: Tile, tiling: Tiling) -> float:
    """How many times as large as in training, in pixels, a cell is that looks as in training in this tile."""
    width, height = tiling.use.view
    return math.sqrt((tile[2] - tile[0]) * (tile[3] - tile[1]) / (width * height))


def _sizes(found: dict[int, Detections], tiles: Sequence[Tile], tiling: Tiling) -> np.ndarray:
    """How many times as large as in training each whole cell in these tiles looks: (K,)."""
    use, sides = tiling.use, [np.empty(0, np.float32)]
    for number, one in found.items():
        left, top, right, bottom = tiles[number]
        size = right - left, bottom - top
        label = one.class_names.index(use.reference) + 1
        boxes = one.boxes[(one.labels == label) & (one.scores >= PROBE_SCORE)]
        boxes = boxes[clear_of_border(boxes, size, size)]
        shares = (boxes[:, 2:] - boxes[:, :2]) / np.array(size, np.float32)
        sides.append(np.sqrt(shares.prod(axis=1)))
    usual = use.reference_side / math.sqrt(use.view[0] * use.view[1])
    return np.concatenate(sides) / np.float32(usual)


def _median(sizes: np.ndarray) -> float:
    return float(np.quantile(sizes, 0.5, method="lower"))  # one of them, as there may be five


def _tell(sizes: np.ndarray) -> bool:
    """Whether so many cells of these sizes tell a scale: enough, and about as uniform as red cells are."""
    if len(sizes) < _ENOUGH:
        return False
    low, high = np.quantile(sizes, (0.25, 0.75))
    return bool(high <= _UNIFORM * low)


def _climb(predictor: Detector, image: np.ndarray, tiling: Tiling, known: int) -> float | None:
    """How many times as large as assumed cells are, by a look an octave up and down; None if it fails."""
    green = image[:: max(1, image.shape[0] // 120), :: max(1, image.shape[1] // 160), 1]
    if float(np.ptp(np.percentile(green, (2, 98)))) < _FLAT:
        return None
    now = _enlargement(tiling.tiles(*_size(image))[0], tiling)
    best, most = None, max(_ENOUGH, 2 * known)  # a sparse field stays as it is
    for step in _LADDER:
        other = replace(tiling, um_per_pixel=None, enlarge=now * step)
        tiles = other.tiles(*_size(image))
        found = _detect_tiles(predictor, image, tiles, {}, _spread(tiles))
        sizes = _sizes(found, tiles, other)
        if len(sizes) >= most and _tell(sizes):
            best, most = _enlargement(tiles[0], tiling) / now * _median(sizes), len(sizes) + 1
    return best
