"""Detections drawn into the pixels of an image, for files rather than figures; the color of each class."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ssdlib.inference.detections import Detections

FONT = cv2.FONT_HERSHEY_SIMPLEX

CELL = 60
"""Pixels: a cell so large has letters of the smallest size that reads well, as wide as itself."""

LETTERED = 36
"""Pixels: smaller cells would vanish below their letters, which are some 60 wide."""


def annotate(
    image: np.ndarray, detections: Detections, *, letters: bool = True, scratch: bool = False
) -> np.ndarray:
    """A copy of an (H, W, 3) uint8 RGB image with every box, its class and its score in the class's color.

    Lines and letters grow with the cells, as far as the image does, so they read alike in a photograph of a
    few large cells and in a field of thousands. Where cells are too small for letters, or without `letters`,
    boxes stand alone. With `scratch` they are drawn into the image itself, which saves the memory of a copy.
    """
    canvas = image if scratch and image.flags.writeable else np.ascontiguousarray(image).copy()
    if not len(detections):
        return canvas
    sides = (detections.boxes[:, 2:] - detections.boxes[:, :2]).mean(axis=1)
    side = float(np.quantile(sides, 0.5, method="lower"))
    unit = max(1.0, min(side / CELL, min(canvas.shape[:2]) / 480))
    lettered = letters and side >= LETTERED * unit
    line, size = max(1, round(1.6 * unit)) if lettered else 1, 0.42 * unit
    corners = [tuple(round(side) for side in box) for box in detections.boxes.tolist()]
    colors = [_rgb(color_of(label)) for label in detections.labels.tolist()]
    # The surest last, so that it lies on top; labels after all boxes, whose lines would cross them.
    for (left, top, right, bottom), color in reversed(list(zip(corners, colors, strict=True))):
        cv2.rectangle(canvas, (left, top), (right, bottom), color, line, cv2.LINE_AA)
    if not lettered:
        return canvas
    tags = [
        f"{name} {score:.2f}"
        for name, score in zip(detections.names, detections.scores.tolist(), strict=True)
    ]
    for tag, (left, top, *_), color in reversed(list(zip(tags, corners, colors, strict=True))):
        _tag(canvas, tag, (left, top), color, size)
    return canvas


def _tag(canvas: np.ndarray, text: str, corner: tuple[int, int], color: tuple[int, ...], size: float) -> None:
    """White text on a filled tag above the box's corner, or inside it where the image ends."""
    (wide, high), base = cv2.getTextSize(text, FONT, size, 1)
    pad = max(2, base // 2)
    left = max(0, min(corner[0], canvas.shape[1] - wide - 2 * pad))
    top = corner[1] - high - 2 * pad if corner[1] >= high + 2 * pad else corner[1]
    cv2.rectangle(canvas, (left, top), (left + wide + 2 * pad, top + high + 2 * pad), color, cv2.FILLED)
    cv2.putText(canvas, text, (left + pad, top + high + pad), FONT, size, (255, 255, 255), 1, cv2.LINE_AA)


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


CLASS_COLORS = ("#6b7280", "#7c3aed", "#d62839", "#0d9488", "#b45309", "#2563eb", "#be185d", "#4d7c0f")
"""By label: background gray, then WBC violet, RBC red, platelets teal, and more for other data."""


def color_of(label: int | str, class_names: Sequence[str] = ()) -> str:
    """The color of a label (0 is background) or of a class name."""
    index = class_names.index(label) + 1 if isinstance(label, str) else int(label)
    return CLASS_COLORS[index % len(CLASS_COLORS)]
