"""LabelIssues to look at: crops, contact sheets of them, and one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssdlib.common.files import write_text
from ssdlib.data.images import encode_image, read_image, write_image
from ssdlib.inference.draw import CLASS_COLORS
from ssdlib.plots.style import INK, MUTED
from ssdlib.tools.label_errors.rank import ACTIONS, KINDS, LabelIssue

DOUBTED, PROPOSED = "#f59e0b", "#16a34a"
"""The label in question is amber, what is proposed green; the other labels have their class's color."""

CONTEXT = 2.4
"""A crop is this many sides of its box wide, so that the neighbors can be seen."""

LEAST_CONTEXT = 110
"""And at least this many pixels: a platelet alone says little."""

ROWS, COLUMNS, SIDE = 4, 6, 200
MOST_OF_A_KIND = 96
"""Crops of each kind on sheets and page; the CSV and the decisions have all."""

_KEY = "amber: the label in doubt; green: what is proposed; thin: the other labels, each class its color"


def crop_of(issue: LabelIssue, side: int = SIDE) -> np.ndarray:
    """A square (side, side, 3) uint8 RGB crop with the boxes drawn in, gray where the image ends.

    Reads the image; raises DataError that names the file if it is damaged.
    """
    image = _image(issue.image_path)
    boxes = [box for box in (issue.box, issue.proposed_box) if box]
    left, top, size = _window(boxes)
    scale = side / size
    move = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    canvas = cv2.warpAffine(
        image,
        move,
        (side, side),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(235,) * 3,
    )

    def draw(box: Sequence[float], color: str, line: int) -> None:
        low = round((box[0] - left) * scale), round((box[1] - top) * scale)
        high = round((box[2] - left) * scale), round((box[3] - top) * scale)
        cv2.rectangle(canvas, low, high, _rgb(color), line, cv2.LINE_AA)

    thin, thick = max(1, side // 200), max(2, side // 90)
    classes = sorted({name for name, _ in issue.labels} | {issue.class_name}, key=_class_order)
    for name, box in issue.labels:
        draw(box, _class_color(name, classes), thin)
    if issue.object is not None:
        draw(issue.box, DOUBTED, thick)
    if issue.proposed_box is not None:
        draw(issue.proposed_box, PROPOSED, thick)
    return canvas


def _window(boxes: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Left, top and side of the square that is shown."""
    array = np.array(boxes, dtype=float)
    low, high = array[:, [0, 1]].min(0), array[:, [2, 3]].max(0)
    size = max(LEAST_CONTEXT, CONTEXT * float(max(high - low)))
    center = (low + high) / 2
    return center[0] - size / 2, center[1] - size / 2, size


@lru_cache(maxsize=128)
def _image(path: str) -> np.ndarray:
    return read_image(path)


def _class_order(name: str) -> tuple[int, str]:
    """BCCD's classes keep the colors that they have everywhere."""
    from ssdlib.config import BCCD_CLASSES

    return (BCCD_CLASSES.index(name), "") if name in BCCD_CLASSES else (len(BCCD_CLASSES), name)


def _class_color(name: str, classes: Sequence[str]) -> str:
    order = _class_order(name)[0]
    rank = order if order < 3 else 3 + [c for c in classes if _class_order(c)[0] == 3].index(name)
    return CLASS_COLORS[1 + rank % (len(CLASS_COLORS) - 1)]


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def contact_sheet(issues: Sequence[LabelIssue], title: str) -> np.ndarray:
    """One page of up to ROWS * COLUMNS crops with class, score and image under each, (H, W, 3) uint8 RGB."""
    gap, caption, head = 12, 36, 58
    rows = max(1, -(-len(issues) // COLUMNS))
    page = Image.new(
        "RGB", (COLUMNS * (SIDE + gap) + gap, head + rows * (SIDE + caption + gap) + gap), "white"
    )
    pen = ImageDraw.Draw(page)
    pen.text((gap, 10), title, INK, font=ImageFont.load_default(18))
    pen.text((gap, 34), _KEY, MUTED, font=ImageFont.load_default(12))
    for k, issue in enumerate(issues[: ROWS * COLUMNS]):
        x, y = gap + k % COLUMNS * (SIDE + gap), head + k // COLUMNS * (SIDE + caption + gap)
        page.paste(Image.fromarray(crop_of(issue)), (x, y))
        pen.text((x, y + SIDE + 2), _heading(issue), INK, font=ImageFont.load_default(13))
        pen.text((x, y + SIDE + 19), issue.image, MUTED, font=ImageFont.load_default(11))
    return np.asarray(page)


def _heading(issue: LabelIssue) -> str:
    change = f"{issue.class_name} -> {issue.proposed_class}" if issue.action == "rename" else ""
    return f"{change or issue.class_name} {issue.score:.2f}"


def write_sheets(issues: Iterable[LabelIssue], folder: str | Path) -> list[Path]:
    """Contact sheets KIND-01.png ... of the first MOST_OF_A_KIND of each kind, in place of older ones."""
    folder, written = Path(folder), []
    for old in folder.glob("*-[0-9][0-9].png"):
        old.unlink()
    for kind, members in _by_kind(issues).items():
        shown = members[:MOST_OF_A_KIND]
        pages = [shown[k : k + ROWS * COLUMNS] for k in range(0, len(shown), ROWS * COLUMNS)]
        for number, page in enumerate(pages, start=1):
            title = f"{kind.replace('_', ' ')}: {KINDS[kind]} ({len(members)}; page {number} of {len(pages)})"
            path = folder / f"{kind}-{number:02d}.png"
            write_image(path, contact_sheet(page, title))
            written.append(path)
    return written


def write_page(issues: Iterable[LabelIssue], path: str | Path, *, title: str, notice: str = "") -> None:
    """One HTML file with the crops inside: the first MOST_OF_A_KIND of each kind, and how many there are."""
    by_kind = _by_kind(issues)
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if notice:
        parts.append(f'<p class="notice">{html.escape(notice)}</p>')
    parts.append(f"<p>{_KEY}</p>")
    if not by_kind:
        parts.append("<p><b>No issues were found.</b></p>")
    for kind, members in by_kind.items():
        more = f", the first {MOST_OF_A_KIND} shown" if len(members) > MOST_OF_A_KIND else ""
        parts.append(f"<h2>{kind.replace('_', ' ')} <small>{len(members)}{more}</small></h2>")
        parts.append(f"<p>{KINDS[kind]}</p><div>{''.join(map(_card, members[:MOST_OF_A_KIND]))}</div>")
    write_text(path, _PAGE.format(title=html.escape(title), body="\n".join(parts)))


def _by_kind(issues: Iterable[LabelIssue]) -> dict[str, list[LabelIssue]]:
    found: dict[str, list[LabelIssue]] = {}
    for issue in issues:
        found.setdefault(issue.kind, []).append(issue)
    return {kind: found[kind] for kind in KINDS if kind in found}


def _card(issue: LabelIssue) -> str:
    picture = base64.b64encode(encode_image(crop_of(issue), ".jpg", quality=80)).decode()
    alt = html.escape(f"{issue.kind} {issue.class_name} in {issue.image}")
    return (
        f'<figure><img alt="{alt}" width="{SIDE}" height="{SIDE}" src="data:image/jpeg;base64,{picture}">'
        f"<figcaption><b>{html.escape(_heading(issue))}</b> {html.escape(issue.image)}<br>"
        f"{html.escape(issue.evidence)}; to accept is to {ACTIONS[issue.action]}</figcaption></figure>"
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2937 }}
body {{ max-width: 1320px; margin: 2rem auto; padding: 0 1rem }}
h2 small {{ color: #6b7280; font-weight: normal }}
div {{ display: flex; flex-wrap: wrap; gap: 12px }}
figure {{ margin: 0; width: 200px }} img {{ display: block; border-radius: 4px }}
figcaption {{ font-size: 12px; color: #4b5563; overflow-wrap: anywhere }}
.notice {{ background: #ffedd5; color: #9a3412; padding: .5rem 1rem; border-radius: 4px }}
</style></head><body>
{body}
</body></html>
"""
