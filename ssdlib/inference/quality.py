"""Notes on the quality of an image: what speaks against believing the number of its cells.

Light, stain, focus and size of the cells are measured on a few patches at the scale of the network's view,
which is 300 pixels wide and high, and compared with those of the images that it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

from ssdlib.config import Appearance, Interval
from ssdlib.inference.detections import Detections
from ssdlib.inference.tiling import clear_of_border

NOTES = {
    "too dark": "the background is darker than in training",
    "too bright": "the background is brighter than in training, or overexposed",
    "almost blank": "what is stained hardly differs from the background",
    "out of focus": "the sharpest edges are more blurred than in training",
    "colors unlike those trained on": "lamp, white balance or stain differ from training",
    "cell sizes unlike those trained on": "to the network red cells are larger or smaller than in training",
    "unsure": "most of what is stained lies in no box, or many scores are close to the threshold",
}
"""Every note that an image can have, with its meaning."""
DARK, BRIGHT, BLANK, BLURRED, COLORS, SIZES, UNSURE = NOTES

ANY_SMEAR = Appearance(
    brightness=(100, 253),
    tint=((-0.3, 0.3), (-0.3, 0.3)),
    density=(0.03, 1.2),
    stain=((-0.5, 1.6), (-0.5, 1.6)),
    blur=(0, 4),
)
"""Limits that no stained smear is beyond, for weights that do not say what they were trained on."""

WIDEN = 0.25
"""An `Appearance` goes beyond the interval of the training images by this share of its length either way."""
LEAST = {"brightness": 30, "tint": 0.06, "density": 0.04, "stain": 0.15, "blur": 0.7, "size": 0.05}
"""But at least by this: fields of one microscope are more alike than a network asks for."""
OVEREXPOSED = 253
"""Brightness above which channels are cut off, whatever training images were like."""
BLANK_BELOW = 0.02
"""Density below which cells are not told from noise."""
FULL, UNCOVERED = 0.1, 0.5
"""More than `FULL` of a field is stained, and more than `UNCOVERED` of that lies in no box: cells are missed.
With all cells labeled, at most 0.2 lies in no box (824 fields of three microscopes)."""
NEAR, DOUBTFUL = 0.1, 0.5
"""Scores nearer than `NEAR` to their threshold are doubtful; many are more than `DOUBTFUL` of the cells."""
ENOUGH = 5
"""Cells without which neither their sizes nor their scores are judged."""

VIEW_SIDE = 300
_BEFORE, _AGAIN = 1.0, 1.5  # standard deviations in pixels of the two blurs of `edge_blur`


@dataclass(frozen=True)
class Look:
    """The figures of an image: those of `Appearance`, and how much of what is stained was found."""

    brightness: float
    tint: tuple[float, float]
    density: float
    stain: tuple[float, float]
    blur: float
    size: float | None
    """None with fewer than `ENOUGH` reference cells clear of the border."""
    stained: float
    """Share of the image that is darker than the background."""
    uncovered: float
    """Share of what is stained that lies in no box."""


def quality_notes(
    image: np.ndarray,
    found: Detections,
    view: tuple[int, int],
    appearance: Appearance | None = None,
    *,
    thresholds: Mapping[str, float],
    reference: str = "RBC",
) -> tuple[str, ...]:
    """What speaks against believing the number of cells in an image, some of `NOTES`; empty if nothing does.

    `image` is (H, W, 3) uint8 RGB; `found` its detections, also those below the `thresholds` from which they
    count; `view` the width and height, in pixels of the image, that the network saw at a time; `reference`
    the class whose color and size are judged.
    """
    sure = found.above(thresholds)
    look = measure(image, sure, view, reference)
    usual = appearance or ANY_SMEAR
    red, pale = reference in sure.names, look.density < BLANK_BELOW
    colors = [*zip(look.tint, usual.tint, strict=True)]
    if red or not (pale or len(sure)):  # else there is no red cell to have the stain of
        colors += [(look.density, usual.density), *zip(look.stain, usual.stain, strict=True)]
    holds = {
        DARK: look.brightness < usual.brightness[0],
        BRIGHT: look.brightness > usual.brightness[1],
        BLANK: pale and not len(sure),
        BLURRED: look.blur > usual.blur[1],
        COLORS: any(not low <= value <= high for value, (low, high) in colors),
        SIZES: None not in (look.size, usual.size) and not usual.size[0] <= look.size <= usual.size[1],
        UNSURE: (look.stained > FULL and look.uncovered > UNCOVERED and not pale)
        or _doubtful(found, len(sure), thresholds),
    }
    if holds[BLANK]:  # of noise neither focus nor color can be said
        holds |= {BLURRED: False, COLORS: False}
    return tuple(note for note in NOTES if holds[note])


def _doubtful(found: Detections, sure: int, thresholds: Mapping[str, float]) -> bool:
    scores = zip(found.names, found.scores.tolist(), strict=True)
    near = sum(abs(score - thresholds[name]) < NEAR for name, score in scores)
    return near >= ENOUGH and near > DOUBTFUL * sure


def quality_text(notes: Iterable[str]) -> str:
    """The notes in one cell of a table: joined by `; `, or `ok` without any."""
    return "; ".join(notes) or "ok"


def notes_of(text: str) -> list[str]:
    """The notes that `quality_text` was given."""
    return [] if text == "ok" else text.split("; ")


def appearance_of(looks: Iterable[Look]) -> Appearance:
    """The appearance of training images, from `measure` of each with its labels as detections.

    Of each figure the interval that holds 98 % of the images, widened by `WIDEN` and at least by `LEAST`.
    Raises ValueError without images.
    """
    looks = list(looks)

    def interval(name: str, values: Iterable[float]) -> Interval:
        low, high = np.quantile(np.fromiter(values, float), [0.01, 0.99])
        more = max(WIDEN * (high - low), LEAST[name])
        return round(float(low - more), 4), round(float(high + more), 4)

    brightness = interval("brightness", (look.brightness for look in looks))
    sizes = [look.size for look in looks if look.size is not None]
    return Appearance(
        brightness=(brightness[0], min(brightness[1], OVEREXPOSED)),
        tint=tuple(interval("tint", (look.tint[k] for look in looks)) for k in range(2)),
        density=interval("density", (look.density for look in looks)),
        stain=tuple(interval("stain", (look.stain[k] for look in looks)) for k in range(2)),
        blur=interval("blur", (look.blur for look in looks)),
        size=interval("size", sizes) if sizes else None,
    )


def measure(image: np.ndarray, cells: Detections, view: tuple[int, int], reference: str = "RBC") -> Look:
    """The figures of an image with these cells; the other arguments are those of `quality_notes`.

    Otsu's threshold on the green channel parts background from cells; the background's color is the median
    above it, the red cells' the median below it without the darkest quarter, which is nuclei. What lies in
    boxes of other classes is left out: where one large nucleus is the darkest thing by far, the threshold
    would part it from red cells and background together.
    """
    boxes = cells.boxes
    own = np.array([name == reference for name in cells.names], bool)
    parts = list(_patches(image, view))
    # Every other pixel each way: a quarter of the work, and the same medians.
    small = np.concatenate([cv2.blur(part, (3, 3))[::2, ::2] for part, _ in parts])
    covered, other = (
        np.concatenate([_in_boxes(chosen, frame, part[::2, ::2].shape[:2]) for part, frame in parts])
        for chosen in (boxes, boxes[~own])
    )
    pixels = small[~other] if other.mean() < 0.9 else small.reshape(-1, 3)
    green = np.ascontiguousarray(pixels[:, 1])
    threshold, _ = cv2.threshold(green, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    background, stained = pixels[green > threshold], pixels[green <= threshold]
    if not (len(background) and len(stained)):
        background = stained = pixels  # of one color
    stained = stained[stained[:, 1] >= np.quantile(stained[:, 1], 0.25)]
    light, cell = (np.median(part[::2], axis=0).clip(1) for part in (background, stained))
    density = np.log10(light / cell)
    tint = np.log10(light / light[1])
    dark = small[..., 1] <= threshold
    clear = own & clear_of_border(boxes, cells.image_size, view)
    sides = np.sqrt((boxes[clear, 2:] - boxes[clear, :2]).prod(axis=1))
    return Look(
        brightness=float(light.mean()),
        tint=(float(tint[0]), float(tint[2])),
        density=float(density[1]),
        stain=tuple((density[[0, 2]] / max(density[1], BLANK_BELOW)).tolist()),
        blur=float(np.median([edge_blur(part[..., 1]) for part, _ in parts])),
        size=float(np.median(sides) / np.sqrt(view[0] * view[1])) if len(sides) >= ENOUGH else None,
        stained=float(dark.mean()),
        uncovered=float((dark & ~covered).sum() / max(dark.sum(), 1)),
    )


def edge_blur(gray: np.ndarray) -> float:
    """Standard deviation in pixels of the blur of the strongest edges of a gray image (H, W) uint8.

    An edge that is blurred once more loses the more of its slope the sharper it was, whatever its contrast:
    slopes before and after have the ratio R = sqrt((s^2 + a^2) / s^2) if the edge's blur is s and the second
    blur's a. Zhuo and Sim 2011, Defocus map estimation from a single image, Pattern Recognition 44:1852-1858.
    A first blur, taken off again from s, keeps noise from passing for edges. The median over
    what is steep among the steepest 2 % of the pixels; large where there is no edge.
    """
    first = cv2.GaussianBlur(gray.astype(np.float32), (0, 0), _BEFORE)
    slopes = [_slope(first), _slope(cv2.GaussianBlur(first, (0, 0), _AGAIN))]
    count = gray.size // 50 + 1
    steepest = np.argpartition(slopes[0], -count)[-count:]
    before, after = (one[steepest] for one in slopes)
    edge = before >= np.quantile(before, 0.75) / 2  # a field of few cells has less than 2 % of edges
    ratio = float(np.median(before[edge] / after[edge].clip(1e-6)))
    variance = _AGAIN**2 / max(ratio**2 - 1, 1e-3)
    return max(variance - _BEFORE**2, 0.0) ** 0.5


def _slope(gray: np.ndarray) -> np.ndarray:
    """(H * W,) the gradient's length."""
    across, down = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    return cv2.magnitude(across, down).ravel()


def _patches(
    image: np.ndarray, view: tuple[int, int]
) -> Iterator[tuple[np.ndarray, tuple[int, int, int, int]]]:
    """Parts of an image at the scale of the view, each with its xyxy in the image: the whole image, or of a
    large one four parts of half a view either way, so that every image takes the same time."""
    width_height = image.shape[1::-1]
    large = any(length > 1.5 * side for length, side in zip(width_height, view, strict=True))
    spans = []
    for length, side in zip(width_height, view, strict=True):
        half = max(1, side // 2)
        starts = [round(share * (length - half)) for share in (0.2, 0.8)]
        spans.append(
            [(start, start + half) for start in starts] if large and length > half else [(0, length)]
        )
    for (left, right), (top, bottom) in product(*spans):
        wide, high = (
            max(1, round(VIEW_SIDE * pixels / side))
            for pixels, side in zip((right - left, bottom - top), view, strict=True)
        )
        # Two pixels either way are enough for the mean that becomes one.
        rows, columns = (max(1, n // (2 * m)) for n, m in ((bottom - top, high), (right - left, wide)))
        part = image[top:bottom:rows, left:right:columns]
        yield cv2.resize(part, (wide, high), interpolation=cv2.INTER_AREA), (left, top, right, bottom)


def _in_boxes(boxes: np.ndarray, frame: tuple[int, int, int, int], shape: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: which pixels of a patch of this shape lie in a box; all xyxy in pixels of the image."""
    mask = np.zeros(shape, np.uint8)
    left, top, right, bottom = frame
    scale = np.array([shape[1] / (right - left), shape[0] / (bottom - top)] * 2)
    corners = ((boxes - [left, top, left, top]) * scale).round().clip(0, max(shape)).astype(int)
    for xmin, ymin, xmax, ymax in corners.tolist():
        mask[ymin:ymax, xmin:xmax] = 1
    return mask.astype(bool)
