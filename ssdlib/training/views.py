"""What a network is shown in training: the views of fields, at one scale, as detection will cut them.

Fields whose red cells come at the usual share of the image are one view each; others are cut, or padded, to
views in which they do. An object belongs to the views that show at least `VISIBLE` of it, clipped to them;
less of it is taken for background, as in the labels of most data sets.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np

from ssdlib.config import Use
from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.inference.tiling import GUESSED_TOLERANCE, KNOWN_TOLERANCE, RED_CELL_UM, Tiling, clear_of_border

VISIBLE = 0.3
"""Share of an object's area that a view must show."""

_ENOUGH = 20
"""Objects of the reference class that tell the scale of a data set."""

_LEAST_VIEW = 150
"""Pixels, sqrt(width * height), of a view at least. The network sees it at twice that, and more enlarging
shows nothing more, while the views of a field become hundreds."""


def use_for(data: DetectionDataset, known: Use) -> Use:
    """How a network trained on `data` looks at images, where its initial weights do so as `known` says.

    Where the reference class has its usual share of the fields, the view is such a field; else it is the part
    of a field in which it has, but no less than `_LEAST_VIEW`. Of fields of several sizes, those with most
    objects of that class speak. Data without the reference class are looked at whole. Thresholds and
    appearance are left to be found anew.
    """
    sizes = np.array([(sample.width, sample.height) for sample in data.samples])
    whole = tuple(int(side) for side in np.median(sizes, axis=0))
    sides = reference_sides(data, known.reference)
    together = np.concatenate([np.empty(0), *sides.values()])
    if len(together) < _ENOUGH:
        return Use(view=whole, reference="", reference_side=math.sqrt(math.prod(whole)), um_per_pixel=None)
    size = max(sides, key=lambda size: len(sides[size]))
    side = float(np.median(sides[size]))
    view = size
    usual = known.reference_side / math.sqrt(math.prod(known.view))
    times = usual / (side / math.sqrt(math.prod(size)))
    if not KNOWN_TOLERANCE[0] <= times <= GUESSED_TOLERANCE:
        least = _LEAST_VIEW / math.sqrt(math.prod(known.view))
        scale = max(side / known.reference_side, least)
        view = tuple(round(length * scale) for length in known.view)
    um = round(RED_CELL_UM / side, 4) if known.um_per_pixel else None
    return Use(view=view, reference=known.reference, reference_side=round(side, 1), um_per_pixel=um)


def tilings(data: DetectionDataset, use: Use) -> dict[tuple[int, int], Tiling]:
    """How fields of each size (width, height) are cut, by their labels alone: no scale is looked for.

    Fields of one size in one data set are taken to come from one microscope.
    """
    sides = reference_sides(data, use.reference)
    known = {
        size: float(np.median(values)) / use.reference_side
        for size, values in sides.items()
        if len(values) >= _ENOUGH
    }
    sizes = {(sample.width, sample.height) for sample in data.samples}
    blind = use.replace(reference="")  # without a class that tells the scale none is looked for
    return {size: Tiling(use=blind, enlarge=known.get(size)) for size in sizes}


def cut_to_views(data: DetectionDataset, use: Use) -> DetectionDataset:
    """The data set whose samples are the views of the fields of `data`, with the objects that they show."""
    cuts = tilings(data, use)
    samples = [part for sample in data.samples for part in _views(sample, cuts[sample.width, sample.height])]
    return data.with_samples(samples)


def reference_sides(data: DetectionDataset, name: str) -> dict[tuple[int, int], np.ndarray]:
    """The sides, sqrt(width * height) in pixels, of a class's objects clear of the border, by field size."""
    sides: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
    label = data.class_names.index(name) + 1 if name in data.class_names else 0
    for sample in data.samples:
        size = sample.width, sample.height
        boxes = sample.boxes[sample.labels == label]
        boxes = boxes[clear_of_border(boxes, size, size)]
        sides[size].append(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)))
    return {size: np.concatenate(parts) for size, parts in sides.items()}


def _views(sample: Sample, tiling: Tiling) -> list[Sample]:
    """The sample cut as `tiling` says; itself where it is one view."""
    if tiling.is_one_tile(sample.width, sample.height):
        return [sample]
    parts = []
    for tile in tiling.tiles(sample.width, sample.height):
        corner = np.array(tile[:2] * 2, np.float32)
        size = np.array([tile[2] - tile[0], tile[3] - tile[1]] * 2, np.float32)
        boxes = np.clip(sample.boxes - corner, 0, size)
        areas, shown = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (sample.boxes, boxes))
        keep = shown >= VISIBLE * areas
        parts.append(
            replace(
                sample,
                width=int(size[0]),
                height=int(size[1]),
                boxes=boxes[keep],
                labels=sample.labels[keep],
                window=tile,
            )
        )
    return parts
