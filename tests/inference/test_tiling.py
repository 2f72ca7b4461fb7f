"""Tiles: every pixel is looked at, and every cell is counted once, also at the seams."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from ssdlib.common.errors import ConfigError
from ssdlib.config import Use
from ssdlib.data.formats.records import iou_matrix
from ssdlib.data.images import crop
from ssdlib.data.smears import draw_smear
from ssdlib.detector.model_file import SHIPPED
from ssdlib.inference.detections import Detections
from ssdlib.inference.predictor import Predictor
from ssdlib.inference.tiling import OVERLAP, Tiling, merge

NAMES = ("WBC", "RBC")
UM = Use().um_per_pixel


@pytest.mark.parametrize(
    ("tiling", "size", "count"),
    [
        (Tiling(), (640, 480), 1),
        (Tiling(), (300, 200), 1),  # a closer look, perhaps: the scale is unknown
        (Tiling(), (896, 672), 1),
        (Tiling(), (480, 640), 1),
        (Tiling(), (897, 480), 2),
        (Tiling(), (1280, 960), 9),
        (Tiling(), (3840, 2160), 8 * 7),
        (Tiling("off"), (3840, 2160), 1),
        (Tiling("off", um_per_pixel=0.036), (3840, 2160), 1),
        (Tiling(640), (640, 480), 1),
        (Tiling(320), (640, 480), 9),
        (Tiling(1280), (1280, 960), 1),
        (Tiling(um_per_pixel=UM), (640, 480), 1),
        (Tiling(um_per_pixel=UM / 2), (1280, 960), 1),  # a closer look at the same field
        (Tiling(um_per_pixel=UM * 2), (320, 240), 1),
        (Tiling(um_per_pixel=UM * 2), (640, 480), 9),
        (Tiling(um_per_pixel=UM), (480, 640), 1),  # upright, squeezed as the other way round
        (Tiling(um_per_pixel=UM), (400, 800), 2),
        (Tiling(use=Use(view=(1280, 960))), (1280, 960), 1),  # trained on such fields
        (Tiling(use=Use(view=(320, 240))), (640, 480), 9),
        (Tiling(enlarge=2.0), (1280, 960), 1),
        (Tiling(use=Use(view=(1600, 60))), (3200, 120), 9),  # strips, lower than a quarter of their width
    ],
)
def test_how_many_views(tiling, size, count):
    views = tiling.tiles(*size)
    assert len(views) == count
    if count == 1 and tiling.mode != 320:
        assert views == [(0, 0, *size)]


def test_a_small_field_of_known_scale_is_padded_instead_of_enlarged():
    views = Tiling(um_per_pixel=UM).tiles(300, 200)
    assert views == [(0, 0, 640, 480)]
    image = np.full((200, 300, 3), (10, 20, 30), np.uint8)
    image[50:60, 50:60] = 255
    piece = crop(image, views[0])
    assert piece.shape == (480, 640, 3) and (piece[:200, :300] == image).all()
    assert (piece[200:] == (10, 20, 30)).all() and (piece[:, 300:] == (10, 20, 30)).all()


@pytest.mark.parametrize("size", [(897, 480), (1000, 1000), (641, 2000), (2592, 1944), (5000, 300)])
@pytest.mark.parametrize("tiling", [Tiling(), Tiling(320), Tiling(um_per_pixel=0.1)])
def test_views_cover_every_pixel_and_overlap_enough(tiling, size):
    views = tiling.tiles(*size)
    seen = np.zeros(size[::-1], bool)
    for left, top, right, bottom in views:
        assert left >= 0 and top >= 0 and (right - left, bottom - top) == tiling.tile_size()
        seen[top:bottom, left:right] = True
    assert seen.all()
    needed = OVERLAP * tiling.tile_size()[0]
    for axis in (0, 1):
        starts, tile = sorted({view[axis] for view in views}), tiling.tile_size()[axis]
        assert all(tile - (after - before) >= needed - 1 for before, after in pairwise(starts))


@pytest.mark.parametrize(
    "values", [("sometimes",), (31,), (20000,), ("auto", 0.0), ("auto", -1.0), ("auto", 2.0)]
)
def test_impossible_tilings_are_refused(values):
    with pytest.raises(ConfigError):
        Tiling(*values)


def see(piece: np.ndarray, rng: np.random.Generator, jitter: float) -> Detections:
    """A perfect detector of colored blocks, but for a little noise: red ones are RBC, blue ones WBC."""
    boxes, labels = [], []
    for label, channel in ((2, 0), (1, 2)):
        mask = (piece[..., channel] == 255) & (piece[..., 1] == 0)
        for x, y, w, h, _ in cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:]:
            boxes.append([x, y, x + w, y + h])
            labels.append(label)
    height, width = piece.shape[:2]
    noisy = np.array(boxes, np.float32).reshape(-1, 4) + rng.uniform(-jitter, jitter, (len(boxes), 4))
    noisy = noisy.clip(0, [width, height, width, height])
    return Detections(noisy, rng.uniform(0.5, 1, len(boxes)), labels, (width, height), NAMES)


def find(
    blocks: list[tuple[int, int, int, int, str]], size: tuple[int, int], tiling: Tiling, jitter: float = 0
) -> Detections:
    image = np.zeros((*size[::-1], 3), np.uint8)
    for left, top, right, bottom, name in blocks:
        image[top:bottom, left:right] = (255, 0, 0) if name == "RBC" else (0, 0, 255)
    views, rng = tiling.tiles(*size), np.random.default_rng(0)
    return merge([see(crop(image, view), rng, jitter) for view in views], views, size)


def assert_found(found: Detections, blocks: list[tuple[int, int, int, int, str]], atol: float) -> None:
    assert sorted(found.names) == sorted(block[4] for block in blocks)
    for *box, name in blocks:
        same = [i for i, other in enumerate(found.names) if other == name]
        assert np.abs(found.boxes[same] - box).max(axis=1).min() <= atol, box


def test_nothing_found_is_no_detections():
    assert len(find([], (1280, 960), Tiling())) == 0
    assert find([], (200, 100), Tiling(um_per_pixel=0.072)).image_size == (200, 100)


def test_a_cell_is_counted_once_wherever_it_lies():
    """Cells of 12 to 310 pixels anywhere, many too large for the overlap; each tile sees its part."""
    rng, size = np.random.default_rng(0), (1600, 1120)
    views = Tiling().tiles(*size)
    for _ in range(500):
        side = int(rng.integers(12, 310))
        corner = rng.integers(0, np.array(size) - side)
        noise, cell = min(4, 0.08 * side), np.concatenate([corner, corner + side])
        found = []
        for left, top, right, bottom in views:
            seen = cell.clip([left, top] * 2, [right, bottom] * 2) - [left, top] * 2
            seen = seen + rng.uniform(-noise, noise, 4) * (np.ptp(seen.reshape(2, 2), axis=0).min() > 8)
            visible = np.ptp(seen.reshape(2, 2), axis=0).min() > 8
            boxes = [seen.clip(0, [640, 480] * 2).tolist()] if visible else []
            found.append(Detections(boxes, [0.5] * len(boxes), [1] * len(boxes), (640, 480), NAMES))
        assert_found(merge(found, views, size), [(*cell.tolist(), "WBC")], 2 * noise + 1)


def test_neighbors_at_a_seam_stay_apart():
    """A full sheet of cells, 8 pixels from each other, and two classes that touch."""
    blocks = [
        (x, y, x + 96, y + 96, "RBC" if (x + y) % 208 else "WBC")
        for x in range(4, 1500, 104)
        for y in range(4, 1000, 104)
    ]
    assert_found(find(blocks, (1600, 1200), Tiling(), 2), blocks, 4)


def test_scale_changes_tiles_not_the_boxes():
    blocks = [(x, y, x + 50, y + 50, "RBC") for x in range(10, 900, 97) for y in range(5, 700, 83)]
    for tiling in (Tiling(), Tiling(320), Tiling("off"), Tiling(um_per_pixel=0.15)):
        assert_found(find(blocks, (1000, 800), tiling), blocks, 0)


def test_what_is_found_in_the_padding_is_dropped_and_boxes_end_with_the_image():
    views = Tiling(um_per_pixel=0.072).tiles(300, 200)
    found = Detections([[10, 10, 320, 90], [400, 10, 450, 60]], [0.9, 0.8], [1, 2], (640, 480), NAMES)
    assert merge([found], views, (300, 200)).boxes.tolist() == [[10, 10, 300, 90]]


@pytest.fixture(scope="module")
def big_smear():
    """Four smears put together, 1280 x 960, with the boxes and labels of all."""
    smears = [draw_smear(seed) for seed in (1, 2, 3, 4)]
    corners = [(0, 0), (640, 0), (0, 480), (640, 480)]
    rows = [np.hstack([smears[i].image, smears[i + 1].image]) for i in (0, 2)]
    boxes = np.concatenate([s.boxes + np.tile(c, 2) for s, c in zip(smears, corners, strict=True)])
    return np.vstack(rows), smears, np.array(boxes), np.concatenate([s.labels for s in smears])


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no shipped weights")
def test_a_big_smear_is_counted_as_its_four_parts_are(big_smear):
    image, smears, truth, labels = big_smear
    predictor = Predictor.from_checkpoint(SHIPPED, device="cpu", precision="fp32", score_threshold=0.5)
    parts = predictor.detect([smear.image for smear in smears])
    views = Tiling().tiles(1280, 960)
    found = merge(list(predictor.stream(crop(image, view) for view in views)), views, (1280, 960))
    red = found.boxes[found.labels == 2]
    apart = sum(part.counts()["RBC"] for part in parts)
    assert abs(len(red) - apart) <= 0.06 * apart, "cells cut by the joints of the smears are all that differs"
    # The seams of the tiles run where no smear ends: there a cell of the drawing has one box.
    centers = (truth[:, :2] + truth[:, 2:]) / 2
    cut = (truth[:, [0, 2]] % 640 < 3).any(axis=1) | (truth[:, [1, 3]] % 480 < 3).any(axis=1)
    # In x, tiles end at 320, 640 and 960, and at 240, 480 and 720 in y.
    at_seam = (np.abs(centers[:, 0] - 480) < 160) | (np.abs(centers[:, 0] - 800) < 160)
    wanted = truth[at_seam & ~cut & (labels == 2)]
    overlaps = iou_matrix(wanted, red) > 0.5
    assert len(wanted) > 15
    assert overlaps.any(axis=1).mean() > 0.9 and (overlaps.sum(axis=1) <= 1).mean() > 0.95
