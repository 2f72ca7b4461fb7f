"""Pictures of label issues: a crop of each, a contact sheet of some, and an HTML page of all kinds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssdlib.common.files import write_text
from ssdlib.common.pages import render
from ssdlib.data.dataset import DetectionDataset
from ssdlib.data.images import encode_image, read_image
from ssdlib.inference.draw import color_of
from ssdlib.tools.label_errors.rank import ACTIONS, KINDS, LabelIssue, grouped

DOUBTED, PROPOSED = "#f59e0b", "#16a34a"
KEY = "amber: the label in doubt; green: what is proposed; thin: the other labels, each class in its color"

CONTEXT = 2.4
"""A crop is this many sides of its box wide, so that the neighbors can be seen."""

LEAST_CONTEXT = 110
"""And at least this many pixels: a platelet alone says little."""

SIDE = 200
"""Width and height of a crop in pixels."""

ROWS, COLUMNS = 4, 6
"""Crops on a contact sheet."""

MOST_OF_A_KIND = 96
"""Crops of each kind on the page; the CSV and the decisions have all."""


def crop_of(issue: LabelIssue, dataset: DetectionDataset, side: int = SIDE) -> np.ndarray:
    """A square (side, side, 3) uint8 RGB crop with the boxes drawn in, gray where the image ends.

    `dataset` holds the issue's image. Raises DataError that names the file if the image is damaged.
    """
    sample = {sample.image_id: sample for sample in dataset.samples}[issue.image]
    left, top, size = _window([box for box in (issue.box, issue.proposed_box) if box])
    crop = Image.fromarray(read_image(sample.image_path)).transform(
        (side, side),
        Image.Transform.EXTENT,
        (left, top, left + size, top + size),
        Image.Resampling.BICUBIC,
        fillcolor=(235, 235, 235),
    )
    pen = ImageDraw.Draw(crop)

    def draw(box: Sequence[float], color: str, line: int) -> None:
        corners = (np.reshape(box, (2, 2)) - (left, top)) * (side / size)
        # In order, because a label may have been written with swapped corners.
        pen.rectangle([*corners.min(axis=0), *corners.max(axis=0)], outline=color, width=line)

    thin, thick = max(1, side // 200), max(2, side // 90)
    for box, label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
        draw(box, color_of(label), thin)
    if issue.object is not None:
        draw(issue.box, DOUBTED, thick)
    if issue.proposed_box is not None:
        draw(issue.proposed_box, PROPOSED, thick)
    return np.array(crop)


def _window(boxes: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Left, top and side of the square that is shown."""
    corners = np.reshape(boxes, (-1, 2))
    low, high = corners.min(axis=0), corners.max(axis=0)
    size = max(LEAST_CONTEXT, CONTEXT * float(max(high - low)))
    left, top = ((low + high - size) / 2).tolist()
    return left, top, size


def contact_sheet(issues: Sequence[LabelIssue], dataset: DetectionDataset, title: str) -> np.ndarray:
    """One picture of up to ROWS * COLUMNS crops with heading and image id under each, (H, W, 3) uint8 RGB."""
    gap, caption, head = 12, 36, 58
    rows = max(1, -(-len(issues) // COLUMNS))
    size = COLUMNS * (SIDE + gap) + gap, head + rows * (SIDE + caption + gap) + gap
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)

    def write(x: int, y: int, text: str, points: int, color: str = "black") -> None:
        pen.text((x, y), text, color, font=ImageFont.load_default(points))

    write(gap, 10, title, 18)
    write(gap, 34, KEY, 12, "dimgray")
    for k, issue in enumerate(issues[: ROWS * COLUMNS]):
        row, column = divmod(k, COLUMNS)
        x, y = gap + column * (SIDE + gap), head + row * (SIDE + caption + gap)
        page.paste(Image.fromarray(crop_of(issue, dataset)), (x, y))
        write(x, y + SIDE + 2, issue.heading, 13)
        write(x, y + SIDE + 19, issue.image, 11, "dimgray")
    return np.asarray(page)


def write_page(
    issues: Iterable[LabelIssue], dataset: DetectionDataset, path: str | Path, *, title: str, notice: str = ""
) -> None:
    """Write one HTML file with the crops of the first MOST_OF_A_KIND issues of each kind inside."""
    kinds = []
    for kind, members in grouped(issues, "kind").items():
        crops = [encode_image(crop_of(issue, dataset), quality=80) for issue in members[:MOST_OF_A_KIND]]
        kinds.append({"name": kind, "meaning": KINDS[kind], "issues": members, "crops": crops})
    values = {"title": title, "notice": notice, "key": KEY, "kinds": kinds, "actions": ACTIONS, "side": SIDE}
    write_text(path, render("tools/label_errors/page.html", **values))
