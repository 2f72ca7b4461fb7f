"""report.html of `ssdlib detect`: each slide's figures and pictures of its fields, in one file.

Thumbnails lie inside the page and open what is in `pictures/`. Their number is limited, and records are read
one at a time, so that the page of an archive is no larger than that of a hundred images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import cv2

from ssdlib.common.errors import DataError
from ssdlib.common.files import write_text
from ssdlib.common.pages import render
from ssdlib.common.tables import Table, number
from ssdlib.data.images import encode_image, read_image
from ssdlib.inference.detections import Detections
from ssdlib.inference.draw import annotate, color_of
from ssdlib.inference.inputs import ImageTask, pixels_of, read_ahead
from ssdlib.inference.quality import NOTES
from ssdlib.inference.results import DONE, Record, picture_name
from ssdlib.inference.slides import (
    BORDER_RULES,
    REFERENCE,
    Slide,
    class_table,
    diameter_text,
    notes_text,
    slide_of,
)

REPORT = "report.html"
MOST_SLIDES = 100
"""Slides in the page; slides.csv has all."""
MOST_THUMBNAILS = 120
"""Thumbnails in the page, some 15 kB each, as many for each slide, but at least one."""
MOST_FAILURES = 20
THUMBNAIL = 320
"""Pixels of a thumbnail's longer side, twice what it has on the page: for fine screens and for print."""


@dataclass(frozen=True)
class Shown:
    """A field as the page shows it."""

    name: str
    counted: str
    notes: Sequence[str]
    picture: str | None
    """Path of the picture below the page's folder; None where none was written."""
    thumbnail: bytes | None
    """A JPEG file; None where the image is not there any more."""


def write_report(
    out: Path,
    pairs: Callable[[], Iterable[tuple[ImageTask, Record]]],
    slides: Sequence[Slide],
    together: Slide,
    settings: Mapping[str, str],
    *,
    group: re.Pattern[str] | None = None,
    pictures: bool = True,
) -> None:
    """Write report.html to the folder `out`.

    `pairs` reads all images with their records anew; `slides` and `together` are of
    `ssdlib.inference.slides.slides_of` with the same `group`; `settings` are what the results depend on, by
    name; `pictures`: those of the fields lie in `out`.
    """
    detailed = slides[:MOST_SLIDES]
    each = max(1, MOST_THUMBNAILS // max(len(detailed), 1))
    fields: dict[str, list[Shown]] = {slide.name: [] for slide in detailed}
    chosen = _chosen(pairs(), detailed, each, group)
    for shown, slide in read_ahead(
        lambda one: (_shown(*one, pictures), slide_of(one[1]["image"], group)),
        chosen,
        ahead=8,
        pixels=lambda one: pixels_of(one[0].path),
    ):
        fields[slide].append(shown)
    unreadable = (record for _, record in pairs() if record["state"] != DONE)
    failures = list(islice(unreadable, min(MOST_FAILURES, together.unreadable)))
    page = render(
        "inference/report.html",
        title="Cells found",
        together=together,
        slides=[(slide, class_table(slide), diameter_text(slide), fields[slide.name]) for slide in detailed],
        more_slides=len(slides) - len(detailed),
        table=_slide_table(slides, together),
        links={slide.name: f"#slide-{n}" for n, slide in enumerate(detailed, start=1)},
        colors={name: color_of(label) for label, name in enumerate(together.counts, start=1)},
        color=color_of(REFERENCE, tuple(together.counts)) if REFERENCE in together.counts else color_of(1),
        reference=REFERENCE,
        notes_text=notes_text,
        meanings=NOTES,
        failures=failures,
        border=[BORDER_RULES.get(rule, rule) for rule in together.border],
        settings=Table([], list(settings.items())),
        grouped=group.pattern if group else None,
    )
    write_text(out / REPORT, page)


def _chosen(
    pairs: Iterable[tuple[ImageTask, Record]],
    slides: Sequence[Slide],
    each: int,
    group: re.Pattern[str] | None,
) -> Iterator[tuple[ImageTask, Record]]:
    """The first fields of each slide, `each` of them, those with notes before the others."""
    room = {}
    for slide in slides:
        noted = min(slide.noted, each)
        room[slide.name] = {True: noted, False: each - noted}
    for task, record in pairs:
        left = room.get(slide_of(record["image"], group))
        if record["state"] == DONE and left and left[bool(record["quality"])]:
            left[bool(record["quality"])] -= 1
            yield task, record


def _shown(task: ImageTask, record: Record, pictures: bool) -> Shown:
    counted = " · ".join(f"{count} {name}" for name, count in record["counts"].items())
    try:
        image = read_image(task.path)
    except DataError:
        small = None
    else:
        shrink = min(1.0, THUMBNAIL / max(image.shape[:2]))
        size = tuple(max(1, round(side * shrink)) for side in image.shape[1::-1])
        found = Detections.from_dict(record)
        found = replace(found, boxes=found.boxes * shrink, image_size=size)
        small = annotate(cv2.resize(image, size, interpolation=cv2.INTER_AREA), found, letters=False)
    return Shown(
        name=task.name,
        counted=counted,
        notes=record["quality"],
        picture=picture_name(task) if pictures else None,
        thumbnail=None if small is None else encode_image(small, ".jpg", quality=80),
    )


def _slide_table(slides: Sequence[Slide], together: Slide) -> Table:
    """A row for each slide, and one for all where there are several."""
    others = tuple(together.per_100)
    header = [
        "slide", "fields", *together.counts, *(f"{name} per 100 {REFERENCE}" for name in others),
        *([f"{REFERENCE} diameter", "variation"] if others else []), "fields with notes",
    ]  # fmt: skip

    def row(slide: Slide) -> list[str]:
        d = slide.diameters
        sizes = ["n/a", "n/a"]
        if d is not None:
            sizes = [f"{d.median:{'.2f' if d.unit == 'µm' else '.0f'}} {d.unit}", number(d.variation, ".1%")]
        return [
            slide.name, f"{slide.fields:,}", *(f"{count:,}" for count in slide.counts.values()),
            *(number(slide.per_100[name].value, ".2f") for name in others),
            *(sizes if others else []), f"{slide.noted:,}" if slide.noted else "",
        ]  # fmt: skip

    rows = [row(slide) for slide in slides[:MOST_SLIDES]]
    return Table(header, [*rows, row(together)] if len(slides) > 1 else rows, total=len(slides) > 1)
