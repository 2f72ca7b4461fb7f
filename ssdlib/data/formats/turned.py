"""Labels of pictures that EXIF turns: some tools label them upright, others as the raster is stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssdlib.common.errors import DataError
from ssdlib.data.formats.records import Corners, LabeledFolder, LabeledImage
from ssdlib.data.images import read_image, turned_corners

_LOOKED_AT = 12
"""The most pictures that are decoded to find out which raster their labels fit."""

_CLEAR = 2.0
"""Levels of gray by which one reading must separate cells from background better than the other."""


def settle_turned(folder: LabeledFolder) -> None:
    """Read the labels of turned pictures by the raster that they fit, and report how that was found out.

    A stated size tells it where a picture is turned by 90 degrees. Else the pixels do: what is labeled is
    darker than what lies around it. Where neither does, the labels are taken to be of the upright picture.
    """
    turned = [image for image in folder.images if image.orientation != 1]
    if not turned:
        return
    open_ones = [image for image in turned if image.on_raster is None and image.objects]
    if open_ones:
        sure, as_stored = _by_pixels(open_ones, folder)
        for image in open_ones:
            image.on_raster = as_stored
    else:
        sure = True
    stored = [image for image in turned if image.on_raster]
    for image in stored:
        _turn(image, folder)
    message = (
        f"{len(turned)} {'picture is' if len(turned) == 1 else 'pictures are'} turned by EXIF, "
        f"{turned[0].path.name} first: the labels of {len(turned) - len(stored)} are read as drawn on the "
        f"upright picture, of {len(stored)} on the raster as it is stored."
    )
    if open_ones:
        message += f" No stated size tells which, of {len(open_ones)}: " + (
            "it is what fits the cells." if sure else "it is a guess."
        )
    remedy = "Look at the boxes (`data convert` writes upright pictures that every tool shows alike)."
    folder.report("turned_picture", "warning" if open_ones else "info", message, remedy)


def _by_pixels(images: Sequence[LabeledImage], folder: LabeledFolder) -> tuple[bool, bool]:
    """Whether the pixels tell it clearly, and whether the labels are of the raster as it is stored."""
    gains = []
    for image in images[:_LOOKED_AT]:
        try:
            gray = read_image(image.path).mean(axis=2)
        except DataError:
            continue
        upright = _contrast(gray, [o.written for o in image.objects])
        stored = _contrast(gray, [_turned(o.written, image, folder) for o in image.objects])
        gains.append(stored - upright)
    gain = float(np.mean(gains)) if gains else 0.0
    return abs(gain) > _CLEAR, gain > _CLEAR


def _contrast(gray: np.ndarray, boxes: Sequence[Corners]) -> float:
    """How much darker the pixels (H, W) in the boxes are than the others, in levels of gray."""
    inside = np.zeros(gray.shape, bool)
    for box in boxes:
        left, top, right, bottom = (max(0, round(side)) for side in box)
        inside[top:bottom, left:right] = True
    return float(gray[~inside].mean() - gray[inside].mean()) if inside.any() and not inside.all() else 0.0


def _turned(corners: Corners, image: LabeledImage, folder: LabeledFolder) -> Corners:
    """The corners, read as of the stored raster, on the upright picture."""
    width, height = image.width, image.height
    if image.orientation in (5, 6, 7, 8):
        if folder.kind == "yolo":  # its fractions were taken of the upright sides
            x_scale, y_scale = height / width, width / height
            corners = tuple(v * s for v, s in zip(corners, 2 * (x_scale, y_scale), strict=True))
        width, height = height, width
    return turned_corners(corners, (width, height), image.orientation)


def _turn(image: LabeledImage, folder: LabeledFolder) -> None:
    objects = image.objects
    repairs = {kind for o in objects for kind in o.repairs}
    image.findings = [finding for finding in image.findings if finding.kind not in repairs]
    image.objects, image._written = [], set()
    for number, one in enumerate(objects, 1):
        image.add(one.name, _turned(one.written, image, folder), f"object {number}")
