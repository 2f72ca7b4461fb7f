"""Images that show the same field, found by their pixels."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ssdlib.common.errors import DataError
from ssdlib.common.threads import available_cores
from ssdlib.data.images import read_image

NEAR_DUPLICATE_BITS = 48
"""Two images whose 256-bit difference hashes differ in no more bits are the same picture. On BCCD one pair
differs in 27 bits and no other in fewer than 82."""

MAX_IMAGES = 1500
"""Among more images, overlapping fields are not looked for: every pair is compared at every shift."""

# See `_overlapping_fields`.
_COARSE, _FINE = (40, 30), (160, 120)
_MIN_OVERLAP = 0.25
_COARSE_CORRELATION = 0.8
_FINE_CORRELATION = 0.75
"""On BCCD every candidate has at least 0.85; drawn smears, all different, at most 0.67."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What is kept of a decoded image."""

    digest: str
    size: tuple[int, int]
    bits: np.ndarray
    coarse: np.ndarray
    fine: np.ndarray


def _picture(path: Path) -> Picture | DataError:
    try:
        rgb = read_image(path)
    except DataError as error:
        return error
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    tiny = cv2.resize(gray, (17, 16), interpolation=cv2.INTER_AREA).astype(np.int16)
    return Picture(
        digest=hashlib.sha256(str(rgb.shape).encode() + rgb.tobytes()).hexdigest(),
        size=(rgb.shape[1], rgb.shape[0]),
        bits=(tiny[:, 1:] > tiny[:, :-1]).ravel(),
        coarse=_flatten(gray, _COARSE),
        fine=_outlines(gray, _FINE),
    )


def _flatten(gray: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink and take off the slow changes in brightness, which are the lamp's and not the cells'."""
    small = cv2.resize(gray, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return small - cv2.GaussianBlur(small, (0, 0), 0.15 * size[0])


def _outlines(gray: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink and keep the outlines, all about equally strong: else one dark nucleus on another would do."""
    small = cv2.resize(gray, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= cv2.GaussianBlur(small, (0, 0), 4)
    return np.clip(small, -small.std(), small.std())


def same_fields(images: Mapping[str, Path], *, progress: bool = False) -> list[tuple[str, str]]:
    """Pairs of ids whose images show the same cells: copies, near copies and overlapping fields.

    What must not be parted when images are divided into folds. Damaged images are passed over.
    """
    return sorted(find_pairs(read_pictures(images, progress=progress)[0], progress=progress))


def find_pairs(
    pictures: Mapping[str, Picture], *, progress: bool = False
) -> dict[tuple[str, str], tuple[str, str]]:
    """Each pair of ids whose images show the same cells, with the kind and, in words, what the two show.

    The kinds are duplicate_image, near_duplicate and, among at most `MAX_IMAGES` images, overlapping_fields.
    """
    ids, pairs = sorted(pictures), {}
    for a, b, distance in _near_duplicates(ids, pictures):
        pairs[a, b] = ("near_duplicate", f"nearly the same picture ({distance} of 256 bits)")
        if pictures[a].digest == pictures[b].digest:
            pairs[a, b] = ("duplicate_image", "the same picture, pixel for pixel")
    if len(ids) <= MAX_IMAGES:
        for a, b, correlation, dx, dy in _overlapping_fields(ids, pictures, progress):
            what = f"the same cells, moved by about {dx}, {dy} pixels (correlation {correlation:.2f})"
            pairs.setdefault((a, b), ("overlapping_fields", what))
    return pairs


def read_pictures(
    images: Mapping[str, Path], *, progress: bool = False
) -> tuple[dict[str, Picture], dict[str, DataError]]:
    """What is compared of each image, by id, and the errors of those that cannot be read."""
    with ThreadPoolExecutor(max_workers=available_cores()) as pool:
        results = pool.map(_picture, images.values())
        results = list(tqdm(results, "read images", len(images), unit="image", disable=not progress))
    read = dict(zip(images, results, strict=True))
    damaged = {image_id: result for image_id, result in read.items() if isinstance(result, DataError)}
    return {image_id: read[image_id] for image_id in read if image_id not in damaged}, damaged


def _near_duplicates(ids: Sequence[str], pictures: Mapping[str, Picture]) -> Iterator[tuple[str, str, int]]:
    """Pairs whose difference hashes (Krawetz 2013: is each pixel brighter than its left neighbor?) agree."""
    if not ids:
        return
    bits = np.stack([pictures[image_id].bits for image_id in ids]).astype(np.float32)
    for k, row in enumerate(bits[:-1]):
        rest = bits[k + 1 :]
        distances = row.sum() + rest.sum(1) - 2 * rest @ row
        for j in np.flatnonzero(distances <= NEAR_DUPLICATE_BITS):
            yield ids[k], ids[k + 1 + j], int(distances[j])


def _overlapping_fields(
    ids: Sequence[str], pictures: Mapping[str, Picture], progress: bool
) -> Iterator[tuple[str, str, float, int, int]]:
    """Pairs of fields that share at least a quarter of their area, the stage having moved in between.

    The normalized cross-correlation of every pair at every shift, by FFT on 40 x 30 pixels; candidates are
    judged again on the outlines at 160 x 120, where only the same cells still agree.
    """
    if len(ids) < 2:
        return
    width, height = _COARSE
    shape = (2 * height, 2 * width)
    small = np.stack([pictures[image_id].coarse for image_id in ids])
    spectra, ones = np.fft.rfft2(small, s=shape), np.fft.rfft2(np.ones((height, width), np.float32), s=shape)
    squares = np.fft.rfft2(small**2, s=shape)
    enough = np.fft.irfft2(ones * ones.conj(), s=shape) > _MIN_OVERLAP * width * height
    # At each shift, the energy of the part of an image that lies under the other one.
    left = enough / np.sqrt(np.maximum(np.fft.irfft2(squares * ones.conj(), s=shape), 1e-3))
    right = 1 / np.sqrt(np.maximum(np.fft.irfft2(ones * squares.conj(), s=shape), 1e-3))
    conjugates = spectra.conj()

    def candidates(k: int) -> list[tuple[int, int, tuple[int, int]]]:
        scores = np.fft.irfft2(spectra[k] * conjugates[k + 1 :], s=shape)
        scores *= left[k]
        scores *= right[k + 1 :]
        scores = scores.reshape(len(scores), -1)
        likely = np.flatnonzero(scores.max(1) > _COARSE_CORRELATION)
        return [(k, k + 1 + int(j), _signed_shift(int(scores[j].argmax()), shape)) for j in likely]

    rows = range(len(ids) - 1)
    with ThreadPoolExecutor(max_workers=available_cores()) as pool:
        found = list(
            tqdm(pool.map(candidates, rows), "compare images", len(rows), unit="image", disable=not progress)
        )
    for i, j, shift in itertools.chain.from_iterable(found):
        a, b = pictures[ids[i]], pictures[ids[j]]
        correlation, dx, dy = _fine_correlation(a.fine, b.fine, shift)
        if correlation >= _FINE_CORRELATION:
            scale = a.size[0] / _FINE[0], a.size[1] / _FINE[1]
            yield ids[i], ids[j], correlation, round(dx * scale[0]), round(dy * scale[1])


def _signed_shift(index: int, shape: tuple[int, int]) -> tuple[int, int]:
    """(x, y) of a flat index into a circular correlation, whose second half holds the negative shifts."""
    dy, dx = divmod(index, shape[1])
    return dx - shape[1] * (dx >= shape[1] // 2), dy - shape[0] * (dy >= shape[0] // 2)


def _fine_correlation(a: np.ndarray, b: np.ndarray, coarse_shift: tuple[int, int]) -> tuple[float, int, int]:
    """Correlation of the common part, and the shift (x, y) that is best within one coarse pixel or so."""
    (height, width), reach = a.shape, 5
    dx, dy = (step * fine // coarse for step, fine, coarse in zip(coarse_shift, _FINE, _COARSE, strict=True))
    top, bottom = max(dy, 0), min(dy + height, height)
    start, end = max(dx, 0), min(dx + width, width)
    # The common part without a margin of `reach`, looked for in the other image's common part with it.
    inner = a[top + reach : bottom - reach, start + reach : end - reach]
    outer = b[top - dy : bottom - dy, start - dx : end - dx]
    if min(inner.shape) < 8:
        return 0.0, 0, 0
    scores = cv2.matchTemplate(outer, inner, cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(scores)
    return float(best), dx + reach - x, dy + reach - y
