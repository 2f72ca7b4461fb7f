"""A session as HTML. Whatever a visitor sent is escaped; pictures are inside the page, so no file is kept."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

import cv2
import numpy as np

from ssdlib.data.images import encode_image
from ssdlib.inference.draw import color_of
from ssdlib.inference.tiling import TRAINING_RED_CELL, Tiling
from ssdlib.tools.app.session import Field, Session

NOT_A_DEVICE = (
    "<b>Not a medical device.</b> For teaching and research: not validated for diagnosis, and no basis for "
    "any decision about a person. It misses cells and finds some that are not there: look at every field."
)
BARS = 18
"""Of the histogram, about."""


def header(class_names: Sequence[str], local: bool) -> str:
    """The page's head: what it does, what it is not, and where images go."""
    where = "this computer" if local else "the computer that serves this page"
    return (
        '<header class="ssd-head"><h1>Count the cells in a field</h1>'
        f"<p>Finds {escape(_listed(class_names))} in photographs of stained blood smears. "
        f"Images are looked at on {where}, and forgotten when you clear or close the page.</p>"
        f'<p class="ssd-notice" role="note">{NOT_A_DEVICE}</p></header>'
    )


def messages(refused: Sequence[str]) -> str:
    """What could not be taken, a line each."""
    if not refused:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in refused)
    return f'<ul class="ssd-refused" role="alert">{lines}</ul>'


def picture(session: Session, number: int) -> str:
    """One field with its cells outlined; a click shows it larger."""
    field, found = session.fields[number], session.shown(number)
    width, height = found.image_size
    counted = ", ".join(f"{count} {name}" for name, count in found.counts().items())
    seen = f", in {field.tiles} tiles" if field.tiles > 1 else ""
    if width > field.preview.shape[1]:
        seen += f", shown at {100 * field.preview.shape[1] / width:.0f}&nbsp;%"
    source = data_uri(encode_image(session.preview(number), ".jpg", quality=88), "image/jpeg")
    shown = escape(field.name)
    return (
        '<figure class="ssd-picture"><label title="Larger or smaller"><input type="checkbox" '
        f'aria-label="Show the picture larger"><span><img src="{source}" '
        f'alt="{shown}, outlined: {escape(counted)}"></span></label>'
        f"<figcaption><b>{shown}</b><span>{width} × {height} pixels{seen}</span></figcaption>"
        f"{_scale_note(field)}</figure>"
    )


def _scale_note(field: Field) -> str:
    """What a large image was taken for, where nobody said how large its pixels are."""
    if field.tiles == 1 or field.um_per_pixel is not None:
        return ""
    wide, high = Tiling().tile_size()
    return (
        f'<p class="ssd-note" role="note">The scale of this image is not known: it was looked at '
        f"in tiles of {wide} × {high} pixels, which is right where a red cell is about {TRAINING_RED_CELL} "
        "pixels wide. Are cells missed or cut? Give the micrometers per pixel and look again.</p>"
    )


def tiles(session: Session, number: int) -> str:
    """Count and median size of each class in one field."""
    sizes, counts = session.sizes(number), session.shown(number).counts()
    items = "".join(
        f'<div class="ssd-tile" style="--color:{color_of(label)}" data-class="{escape(name)}">'
        f"<span>{escape(name)}</span><b>{counts[name]}</b>"
        f"<small>median {_median(sizes[name], session.unit)}</small></div>"
        for label, name in enumerate(session.class_names, start=1)
    )
    return f'<div class="ssd-tiles">{items}</div>'


def histogram(session: Session, number: int) -> str:
    """Sizes of the cells in one field, stacked by class; HTML rather than a picture, so it fits any page."""
    sizes = session.sizes(number)
    unit = session.unit
    title = '<h3>Cell sizes</h3><p class="ssd-soft">Mean of a box\'s width and height'
    title += f", in {'micrometers' if unit == 'µm' else 'pixels'}.</p>"
    if not any(len(values) for values in sizes.values()):
        return f'<section class="ssd-sizes">{title}<p class="ssd-soft">n/a: no cell is shown.</p></section>'
    edges = bin_edges(np.concatenate(list(sizes.values())))
    stacked = {name: np.histogram(values, edges)[0] for name, values in sizes.items()}
    tallest = int(sum(stacked.values()).max())
    bars = "".join(_bar(stacked, edges, column, tallest, unit) for column in range(len(edges) - 1))
    ticks = "".join(f"<span>{edge:g}</span>" for edge in edges[:: max(1, (len(edges) - 1) // 5)])
    return (
        f'<section class="ssd-sizes">{title}<div class="ssd-plot" role="img" '
        f'aria-label="Histogram of cell sizes, {edges[0]:g} to {edges[-1]:g} {unit}">'
        f'<span class="ssd-most">{tallest}</span><div class="ssd-bars">{bars}</div></div>'
        f'<div class="ssd-ticks">{ticks}</div></section>'
    )


def bin_edges(values: np.ndarray) -> np.ndarray:
    """From 0 beyond the largest value, in steps of 1, 2 or 5 times a power of ten, at most about `BARS`.

    As many bins as divide into five ticks.
    """
    rough = max(float(values.max()), 1e-6) / BARS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    bins = math.floor(float(values.max()) / step) + 1
    return np.round(np.arange(math.ceil(bins / 5) * 5 + 1) * step, 9)


def table(session: Session) -> str:
    """Counts of all fields, with their sum, where there is more than one."""
    shown = session.all_shown()
    if len(shown) < 2:
        return ""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in session.class_names)
    rows = "".join(_row(found.image, list(found.counts().values())) for found in shown)
    sums = [sum(found.counts()[name] for found in shown) for name in session.class_names]
    total = _row(f"all {len(shown)}", sums)
    return (
        '<section class="ssd-all"><h3>All images</h3><div class="ssd-scroll"><table>'
        f"<thead><tr><th scope=col>Image</th>{head}<th scope=col>Cells</th></tr></thead><tbody>{rows}</tbody>"
        f"<tfoot>{total}</tfoot></table></div></section>"
    )


def thumbnail(image: np.ndarray) -> str:
    """An (H, W, 3) uint8 RGB image as the data URI of a JPEG file 240 pixels wide."""
    height = max(1, round(240 * image.shape[0] / image.shape[1]))
    small = cv2.resize(image, (240, height), interpolation=cv2.INTER_AREA)
    return data_uri(encode_image(small, ".jpg", quality=80), "image/jpeg")


def data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _row(name: str, counts: Sequence[int]) -> str:
    cells = "".join(f"<td>{count}</td>" for count in [*counts, sum(counts)])
    return f"<tr><th scope=row>{escape(name)}</th>{cells}</tr>"


def _bar(stacked: Mapping[str, np.ndarray], edges: np.ndarray, column: int, tallest: int, unit: str) -> str:
    parts = "".join(
        f'<i style="height:{100 * int(counts[column]) / tallest:.2f}%;background:{color_of(label)}"></i>'
        for label, counts in enumerate(stacked.values(), start=1)
        if counts[column]
    )
    said = ", ".join(f"{counts[column]} {name}" for name, counts in stacked.items() if counts[column])
    title = f"{edges[column]:g} to {edges[column + 1]:g} {unit}: {said or 'none'}"
    return f'<div title="{escape(title)}">{parts}</div>'


def _median(values: np.ndarray, unit: str) -> str:
    return f"{np.median(values):.3g}&nbsp;{unit}" if len(values) else "n/a"


def _listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))
