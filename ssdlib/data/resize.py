"""The resize of images that a network is to look at. It needs NumPy and OpenCV alone."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

_ROWS = 10
"""Rows of the result made at once: so few that a matrix product pays, and that BLAS starts no threads."""
_MOST_BITS = 16
"""Fractional bits of weights whose products with 8-bit pixels float32 adds up without rounding."""


def resize_to(rgb: np.ndarray, size: int = 300) -> np.ndarray:
    """The image (H, W, 3) uint8 as (3, size, size): bilinear, antialiased, sides independently.

    To the bit what torchvision's `resize` makes of whole numbers in training and evaluation: first across,
    then down, each time rounded to uint8, with weights of 16 bits as in PyTorch's kernels and in Pillow-SIMD,
    which they are from. Neither is called, because torch alone takes seconds to import.
    """
    height, width = rgb.shape[:2]
    columns = _shortened(cv2.transpose(rgb).reshape(width, -1), size).reshape(size, height, 3)
    rows = _shortened(cv2.transpose(columns).reshape(height, -1), size).reshape(size, size, 3)
    return np.stack(cv2.split(rows))


def _shortened(rows: np.ndarray, size: int) -> np.ndarray:
    """The weighted means (size, M) uint8 of rows (L, M) uint8."""
    if len(rows) == size:
        return rows
    bands = _bands(len(rows), size)
    means = np.empty((size, rows.shape[1]), np.uint8)
    for into, of, weights in bands:
        sums = weights @ rows[of].astype(weights.dtype)
        sums += 0.5
        means[into] = sums
    return means


@lru_cache(maxsize=256)
def _bands(length: int, size: int) -> list[tuple[slice, slice, np.ndarray]]:
    """For some rows of the result at a time: which they are, the rows they are made of, and the weights."""
    scale = length / size
    reach = max(1.0, scale)  # a triangle as wide as a pixel of the result, or as one of the image
    centers = scale * (np.arange(size) + 0.5)
    first = np.maximum((centers - reach + 0.5).astype(int), 0)
    last = np.minimum((centers + reach + 0.5).astype(int), length)
    row = np.arange(length)
    weights = np.maximum(1.0 - np.abs((row - centers[:, None] + 0.5) / reach), 0.0)  # (size, length)
    weights[(row < first[:, None]) | (row >= last[:, None])] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    bits = min(int(np.log2((2**15 - 0.5) / weights.max())), 22)  # as many as leave each below 2 ** 15
    kind = np.float32 if bits <= _MOST_BITS else np.float64
    weights = (np.floor(weights * 2.0**bits + 0.5) * 2.0**-bits).astype(kind)
    groups = [slice(row, min(row + _ROWS, size)) for row in range(0, size, _ROWS)]
    spans = [slice(int(first[group].min()), int(last[group].max())) for group in groups]
    return [(into, of, weights[into, of]) for into, of in zip(groups, spans, strict=True)]
