"""A session as HTML, by the templates beside this file; pictures are inside it, so no file is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from ssdlib.common.pages import render
from ssdlib.common.tables import Table
from ssdlib.data.images import encode_image
from ssdlib.inference.detections import Detections
from ssdlib.inference.draw import color_of
from ssdlib.inference.quality import NOTES
from ssdlib.inference.slides import REFERENCE, class_table, diameter_text, nice_step, notes_text
from ssdlib.inference.tiling import RED_CELL_UM
from ssdlib.tools.app.session import Session

MOST_BARS = 18
"""In the histogram, about."""


def style(samples: Sequence[np.ndarray]) -> str:
    """The page's CSS, with each sample image (H, W, 3) uint8 RGB on its button."""
    small = [cv2.resize(one, (240, 180), interpolation=cv2.INTER_AREA) for one in samples]
    return render("tools/app/page.css", samples=[encode_image(one, ".jpg", quality=80) for one in small])


def header(class_names: Sequence[str], local: bool) -> str:
    """The page's head: what it does, what it is not, and whether images stay on this computer (`local`)."""
    return render("tools/app/header.html", names=class_names, local=local)


def refused(lines: Sequence[str]) -> str:
    """What could not be taken, a line each; empty if there is nothing."""
    return render("tools/app/refused.html", lines=lines)


def picture(session: Session, number: int) -> str:
    """One field with its cells outlined; a click shows it larger."""
    field, found = session.fields[number], session.shown[number]
    preview = session.preview(number)
    return render(
        "tools/app/picture.html",
        field=field,
        counted=", ".join(f"{count} {name}" for name, count in found.counts().items()),
        size=found.image_size,
        shrink=preview.shape[1] / found.image_size[0],
        red_cell_um=RED_CELL_UM,
        image=encode_image(preview, ".jpg", quality=88),
        meanings=NOTES,
    )


def counts(session: Session, number: int) -> str:
    """The count and the median size of each class in one field."""
    numbers, sizes = session.shown[number].counts(), session.sizes(number)
    tiles = [
        (name, numbers[name], float(np.median(values)) if len(values) else None, color_of(label))
        for label, (name, values) in enumerate(sizes.items(), start=1)
    ]
    return render("tools/app/counts.html", tiles=tiles, unit=session.unit(number))


def histogram(session: Session, number: int) -> str:
    """A histogram of the sizes of the cells in one field, stacked by class."""
    sizes = session.sizes(number)
    edges = bin_edges(np.concatenate(list(sizes.values())))
    stacked = np.array([np.histogram(values, edges)[0] for values in sizes.values()])  # (classes, bars)
    return render(
        "tools/app/sizes.html",
        unit=session.unit(number),
        edges=edges.tolist(),
        bars=[{name: n for name, n in zip(sizes, bar, strict=True) if n} for bar in stacked.T.tolist()],
        tallest=int(stacked.sum(axis=0).max()),
        colors={name: color_of(label) for label, name in enumerate(sizes, start=1)},
    )


def bin_edges(values: np.ndarray) -> np.ndarray:
    """From 0 beyond the largest value, in steps of 1, 2 or 5 times a power of ten, at most about `MOST_BARS`.

    As many bins as divide into five ticks.
    """
    largest = float(values.max(initial=0))
    rough = max(largest, 1e-6) / MOST_BARS
    step = nice_step(rough)
    bins = math.floor(largest / step) + 1
    return np.round(np.arange(math.ceil(bins / 5) * 5 + 1) * step, 9)


def all_images(session: Session) -> str:
    """The figures of all fields as one slide; above them, where there are several, the counts of each."""
    shown, slide = session.shown, session.slide()
    return render(
        "tools/app/all_images.html",
        table=_counts_table(session, shown) if len(shown) > 1 else None,
        slide=slide,
        classes=class_table(slide),
        diameters=diameter_text(slide),
        notes=notes_text(slide.notes),
        color=color_of(REFERENCE, session.class_names) if REFERENCE in session.class_names else "",
    )


def _counts_table(session: Session, shown: Sequence[Detections]) -> Table:
    numbers = np.array([[*found.counts().values(), len(found)] for found in shown])  # (images, classes + 1)
    names = [*(found.image for found in shown), f"all {len(shown)}"]
    rows = zip(names, [*numbers.tolist(), numbers.sum(axis=0).tolist()], strict=True)
    rows = [[name, *map(str, row)] for name, row in rows]
    return Table(["Image", *session.class_names, "Cells"], rows, total=True)
