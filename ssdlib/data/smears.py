"""Synthetic blood smears: a stand-in for BCCD that needs no download and is never mistaken for data.

Each image is drawn by the Beer-Lambert law: cells add amounts of four dyes to a map, the dyes absorb red,
green and blue light by their own coefficients, and overlapping red cells come out darker by themselves.
Counts, sizes, colors and sharpness follow what was measured on BCCD (github.com/Shenggan/BCCD_Dataset).
A network that does well here has learned to find drawings; say so wherever a number from them is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.common.files import new_folder, read_json, write_json
from ssdlib.data.formats.voc import write_splits, write_voc
from ssdlib.data.images import encode_image
from ssdlib.data.splits import PARTS

SMEARS_VERSION = "1"  # raise it whenever the same seed would give other pixels or boxes
HARD_VERSION = "1"  # the same for hard smears
WIDTH, HEIGHT = 640, 480
MARKER = "smears.json"
PREFIX = "SmearImage_"
_DATABASE = "Synthetic smears, not real blood"
FOURTH_CLASS = "Echinocyte"
"""A burr cell: a red cell with short, even spicules all round and hardly a pale center. Only drawn on demand,
for practice with classes that the shipped weights do not know."""
NAMES = ("background", "WBC", "RBC", "Platelets", FOURTH_CLASS)
WBC, RBC, PLATELETS, ECHINOCYTE = 1, 2, 3, 4
COMPLETE = "Complete"
"""The folder of hard smears with an XML file for each image that has every cell, labeled or not."""
UNLABELED = {WBC: 0.02, RBC: 0.10, PLATELETS: 0.12}
"""The share of the cells of hard smears that have no label in `Annotations`."""

# BCCD's pictures are soft (upsampled by the camera), so everything is drawn at half size and enlarged:
# four times faster, and the edges come out as wide as the real ones. Lengths below are full-size pixels.
_STEP = 2
_ROWS, _COLUMNS = HEIGHT // _STEP, WIDTH // _STEP
_ANGLES = 256
_THETA = np.arange(_ANGLES, dtype=np.float32) * np.float32(2 * np.pi / _ANGLES)
_COS, _SIN = np.cos(_THETA), np.sin(_THETA)
_STRETCH = 1.015  # cells in BCCD are about 3 % wider than tall
_PROPOSALS = 60

# Red, green and blue absorbance of one unit of each dye. The camera's white balance lets the violet dyes
# come out bluer than the background, hence the negative figures.
_HAEMOGLOBIN = (0.108, 0.245, 0.390)
_NUCLEUS = (0.690, 1.120, 0.040)
_LILAC = (0.074, 0.265, 0.005)
_BLUE = (0.380, 0.260, -0.110)


class Smear(NamedTuple):
    """One drawn field of view."""

    image: np.ndarray  # (480, 640, 3) uint8 RGB
    boxes: np.ndarray  # (G, 4) float32 xyxy pixels, whole numbers, 1..640 and 1..480 as in BCCD
    labels: np.ndarray  # (G,) int64: 1 WBC, 2 RBC, 3 Platelets, 4 Echinocyte (only if asked for)


@dataclass(frozen=True)
class _Cell:
    """A closed outline around a center: `radii[k]` is the distance to the edge at angle k * 2 pi / 256."""

    label: int
    x: float
    y: float
    radii: np.ndarray
    kind: str = ""

    @property
    def extent(self) -> np.ndarray:
        """Uncropped xyxy."""
        across, down = self.radii * _COS, self.radii * _SIN
        edges = np.array([across.min(), down.min(), across.max(), down.max()], np.float64)
        return edges + np.array([self.x, self.y, self.x, self.y])

    @property
    def box(self) -> np.ndarray:
        """The extent cut to the image, in whole pixels; like BCCD's annotation tool, never below 1."""
        return np.clip(np.rint(self.extent), 1, 2 * (WIDTH, HEIGHT))

    @property
    def visible(self) -> float:
        """The smaller of the visible shares of width and height, 0 to 1."""
        extent, box = self.extent, self.box
        return float(((box[2:] - box[:2]) / (extent[2:] - extent[:2])).min())

    def distance(self, x: float, y: float) -> float:
        """Distance of a point from the edge in pixels, positive outside, along the ray from the center."""
        angle = np.arctan2(y - self.y, x - self.x) % (2 * np.pi)
        edge = self.radii[int(angle / (2 * np.pi) * _ANGLES) % _ANGLES]
        return float(np.hypot(x - self.x, y - self.y) - edge)


@dataclass(frozen=True)
class _Look:
    """What one slide under one lamp has in common."""

    dyes: np.ndarray  # (3, 4) absorbance of haemoglobin, nucleus, lilac, blue
    light: tuple[float, float, float]
    depth: float  # how much haemoglobin (brown) a typical red cell shows
    eosin: float  # how much lilac it has taken up
    pallor: float  # how pale the centers are, 0 to 1
    edge: float  # half width of a cell's edge
    blur: float  # extra defocus, sigma at half size
    crowding: float  # chance that a red cell is put beside another
    rouleaux: int = 0  # stacks of red cells
    debris: int = 0  # specks of dye that look like platelets


def draw_smear(seed: int, *, fourth_class: bool = False, hard: bool = False) -> Smear:
    """Draw one smear. The same seed gives the same pixels, boxes and labels, whatever the thread count.

    Every white cell, red cell and platelet in the picture has its box, cut at the border of the image; dust,
    bubbles and debris have none. `fourth_class` turns some of the red cells of many fields into echinocytes.
    `hard` draws fields that detectors fail on: out of focus, pale or dark, crowded, with stacks of red cells
    (rouleaux) and debris that looks like platelets. With neither, the picture is what it always was. Raises
    ConfigError for a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"smear seed {seed} is negative: choose 0 or more.")
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    look = _choose_look(rng)
    if hard:
        look = _harden(np.random.default_rng(np.random.SeedSequence([seed, 0])), look)
    cells = _place_cells(rng, look)
    if fourth_class:
        cells = _crenate(np.random.default_rng(np.random.SeedSequence([seed, ECHINOCYTE])), cells)
    labeled = [cell for cell in cells if cell.label]
    boxes = np.array([cell.box for cell in labeled], np.float32).reshape(-1, 4)
    labels = np.array([cell.label for cell in labeled], np.int64)
    return Smear(_photograph(rng, look, _stain(rng, look, cells)), boxes, labels)


# What is there -------------------------------------------------------------------------------------------


def _choose_look(rng: np.random.Generator) -> _Look:
    dyes = np.array([_HAEMOGLOBIN, _NUCLEUS, _LILAC, _BLUE]).T
    dyes = dyes * rng.normal(1, (0.08, 0.09, 0.10, 0.12), (3, 4))
    gray = rng.normal(202, 3.0)
    light = (gray + rng.normal(-1, 2), gray + rng.normal(1.5, 1.5), gray + rng.normal(-3, 3.5))
    depth = float(0.18 + 1.25 * rng.beta(1.4, 1.6))
    return _Look(
        dyes=dyes.astype(np.float32),
        light=light,
        depth=depth,
        eosin=float(np.clip(rng.normal(0.74 - 0.38 * depth, 0.10), 0.12, 0.85)),
        pallor=float(rng.uniform(0.30, 0.95)),
        edge=float(rng.uniform(2.2, 3.8)),
        blur=float(rng.choice([0.0, 0.5, 0.9, 1.6], p=[0.46, 0.34, 0.14, 0.06])),
        crowding=float(rng.uniform(0.1, 0.75)),
    )


def _harden(rng: np.random.Generator, look: _Look) -> _Look:
    """The look of a slide that was stained, smeared or focused badly, in some of these ways or in none."""
    stain = float(rng.choice([0.4, 0.65, 1.0, 1.5], p=[0.2, 0.2, 0.4, 0.2]))
    lamp = float(rng.choice([1.0, rng.uniform(0.6, 0.9)], p=[0.75, 0.25]))
    return replace(
        look,
        dyes=look.dyes * np.float32(stain),
        light=tuple(lamp * channel for channel in look.light),
        blur=float(rng.choice([0.0, 0.9, 1.8, 3.0], p=[0.4, 0.3, 0.2, 0.1])),
        crowding=float(rng.uniform(0.3, 0.95)),
        rouleaux=int(rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])),
        debris=int(rng.choice(6, p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.05])),
    )


def _place_cells(rng: np.random.Generator, look: _Look) -> list[_Cell]:
    """White cells first, then red ones around them, then platelets in the gaps."""
    white: list[_Cell] = []
    red: list[_Cell] = []
    platelets: list[_Cell] = []
    # Each is the first proposal that fits; in a field too full for it the cell is left out, label and all.
    for _ in range(rng.choice(3, p=[0.016, 0.945, 0.039])):
        proposals = (_new_white(rng) for _ in range(_PROPOSALS))
        white += islice((cell for cell in proposals if not _crowded(cell, white, -10)), 1)
    wanted = 0 if rng.random() < 0.025 else round(float(np.clip(rng.normal(11.9, 4.0), 3, 27)))
    for _ in range(wanted):
        beside = red if red and rng.random() < look.crowding else None
        proposals = (_new_red(rng, beside) for _ in range(_PROPOSALS))
        apart = (cell for cell in proposals if cell.visible > 0.74 and not _crowded(cell, white, -16))
        red += islice((cell for cell in apart if not _piled(cell, red)), 1)
    for _ in range(look.rouleaux):
        stacks = (_new_rouleau(rng) for _ in range(_PROPOSALS))
        apart = ([cell for cell in stack if not _crowded(cell, white, -16)] for stack in stacks)
        red += next((s for s in apart if len(s) > 2 and not any(_piled(c, red) for c in s)), [])
    for _ in range(rng.choice(7, p=[0.448, 0.264, 0.189, 0.058, 0.033, 0.005, 0.003])):
        others = platelets + (white if rng.random() < 0.10 else white + red)
        proposals = (_new_platelet(rng) for _ in range(_PROPOSALS))
        fitting = (cell for cell in proposals if cell.visible > 0.75 and not _crowded(cell, others, 0))
        platelets += islice(fitting, 1)
    return white + red + platelets + [_new_debris(rng) for _ in range(look.debris)]


def _crowded(cell: _Cell, others: list[_Cell], gap: float) -> bool:
    """Whether the cell comes nearer than `gap` pixels to another; a negative gap allows some overlap."""
    reach = float(cell.radii.mean())
    return any(other.distance(cell.x, cell.y) < reach + gap for other in others)


def _piled(cell: _Cell, others: list[_Cell]) -> bool:
    """Whether the cell lies so much upon another that even a person could not tell the two apart."""
    return any(np.hypot(cell.x - other.x, cell.y - other.y) < 58 for other in others)


def _outline(
    rng: np.random.Generator, diameter: float, aspect: float, roughness: float, tail: float = 0.0
) -> np.ndarray:
    """Radii (256,) of an ellipse at a random angle, made uneven by a few low harmonics, maybe with a tail."""
    turned = _THETA - rng.uniform(0, 2 * np.pi)
    long, short = diameter / 2 * np.sqrt(aspect), diameter / 2 / np.sqrt(aspect)
    radii = 1 / np.hypot(np.cos(turned) / long, np.sin(turned) / short)
    orders = np.arange(2, 8)
    sizes = rng.normal(0, roughness, 6) / np.sqrt(orders)
    phases = rng.uniform(0, 2 * np.pi, 6)
    radii *= 1 + (sizes[:, None] * np.cos(orders[:, None] * _THETA + phases[:, None])).sum(0)
    if tail:
        off = np.angle(np.exp(1j * turned))
        radii *= 1 + tail * np.exp(-((off / 0.38) ** 2))
    # Stretching across turns every point a little; at 3 % the angle's change is below what can be seen.
    return (radii * (1 + (_STRETCH - 1 / _STRETCH) / 2 * np.cos(2 * _THETA))).astype(np.float32)


_WHITE_KINDS = {  # share; mean diameter, its spread, aspect's spread, roughness
    "neutrophil": (0.52, (208, 24, 0.15, 0.024)),
    "eosinophil": (0.22, (180, 26, 0.13, 0.018)),
    "lymphocyte": (0.17, (138, 20, 0.13, 0.024)),
    "monocyte": (0.09, (210, 28, 0.18, 0.050)),
}


def _new_white(rng: np.random.Generator) -> _Cell:
    shares = [share for share, _ in _WHITE_KINDS.values()]
    kind = list(_WHITE_KINDS)[rng.choice(len(shares), p=shares)]
    _, (mean, spread, aspect, roughness) = _WHITE_KINDS[kind]
    diameter = float(np.clip(rng.normal(mean, spread), 100, 270))
    radii = _outline(rng, diameter, float(np.exp(abs(rng.normal(0, aspect)))), roughness)
    x = float(np.clip(rng.normal(300, 118), 40, WIDTH - 40))
    y = float(np.clip(rng.normal(262, 105), 35, HEIGHT - 35))
    return _Cell(WBC, x, y, radii, kind)


def _new_red(rng: np.random.Generator, beside: list[_Cell] | None) -> _Cell:
    diameter = float(np.clip(rng.normal(102.5, 10.5), 72, 148))
    tail = float(rng.uniform(0.2, 0.4)) if rng.random() < 0.03 else 0.0
    radii = _outline(rng, diameter, float(np.exp(abs(rng.normal(0, 0.22)))), 0.027, tail)
    if beside:
        neighbor = beside[rng.integers(len(beside))]
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.62, 1.02) * diameter
        return _Cell(RBC, neighbor.x + far * np.cos(angle), neighbor.y + far * np.sin(angle), radii)
    return _Cell(RBC, rng.uniform(-15, WIDTH + 15), rng.uniform(-15, HEIGHT + 15), radii)


def _new_platelet(rng: np.random.Generator) -> _Cell:
    diameter = float(np.clip(rng.normal(40, 8.0), 22, 75))
    radii = _outline(rng, diameter, float(np.exp(abs(rng.normal(0, 0.18)))), 0.06)
    return _Cell(PLATELETS, rng.uniform(8, WIDTH - 8), rng.uniform(8, HEIGHT - 8), radii)


def _new_rouleau(rng: np.random.Generator) -> list[_Cell]:
    """Three to six red cells that lie upon each other like coins in a row, along a slightly bent line."""
    x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
    angle, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.15)
    diameter, cells = float(np.clip(rng.normal(98, 8), 76, 120)), []
    for _ in range(int(rng.integers(3, 7))):
        radii = _outline(rng, diameter * rng.uniform(0.94, 1.06), 1.05, 0.02)
        cells.append(_Cell(RBC, x, y, radii))
        far = rng.uniform(0.42, 0.58) * diameter
        x, y, angle = x + far * np.cos(angle), y + far * np.sin(angle), angle + bend
    return [cell for cell in cells if cell.visible > 0.74]


def _new_debris(rng: np.random.Generator) -> _Cell:
    """A speck of precipitated dye, about as large as a platelet, of label 0: it is no cell."""
    diameter = float(np.clip(rng.normal(30, 8), 14, 52))
    radii = _outline(rng, diameter, float(np.exp(abs(rng.normal(0, 0.35)))), 0.10)
    return _Cell(0, rng.uniform(8, WIDTH - 8), rng.uniform(8, HEIGHT - 8), radii)


def _crenate(rng: np.random.Generator, cells: list[_Cell]) -> list[_Cell]:
    """Some red cells shrunk to burr cells, in two fields of three; it goes by slide and by patch, so some
    fields have many. They lie where they lay: nothing else moves."""
    share = rng.uniform(0.15, 0.6) if rng.random() < 0.67 else 0.0
    return [_burr(rng, cell) if cell.label == RBC and rng.random() < share else cell for cell in cells]


def _burr(rng: np.random.Generator, cell: _Cell) -> _Cell:
    """The cell rounder, a little smaller, with 10 to 16 spicules of about equal size."""
    size = 0.9 * float(cell.radii.mean())
    spicules, phase = int(rng.integers(10, 17)), rng.uniform(0, 2 * np.pi)
    # They stand apart by slightly uneven steps and differ a little in length; much, and it would be an
    # acanthocyte.
    angles = _THETA + phase + 0.08 * np.sin(3 * _THETA + rng.uniform(0, 2 * np.pi))
    points = (0.5 + 0.5 * np.cos(spicules * angles)) ** 1.6
    height = rng.uniform(0.16, 0.26) * (1 + 0.2 * np.sin(2 * _THETA + rng.uniform(0, 2 * np.pi)))
    round_part = size * (0.6 + 0.4 * cell.radii / cell.radii.mean())
    return _Cell(ECHINOCYTE, cell.x, cell.y, (round_part * (0.93 + height * points)).astype(np.float32))


# How much dye it holds -----------------------------------------------------------------------------------


@cache
def _noise(sigma: float) -> np.ndarray:
    """A (384, 448) float32 field of unit variance, smooth on the scale of `sigma`; the same each time."""
    rng = np.random.default_rng(np.random.SeedSequence(round(sigma * 1000) + 7))
    field = rng.standard_normal((384, 448), dtype=np.float32)
    field = cv2.GaussianBlur(field, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return (field - field.mean()) / field.std()


def _texture(rng: np.random.Generator, sigma: float, rows: int, columns: int) -> np.ndarray:
    """A window at a random place of a ready-made field: much cheaper than drawing fresh noise."""
    field = _noise(sigma)
    row = rng.integers(field.shape[0] - rows + 1)
    column = rng.integers(field.shape[1] - columns + 1)
    return field[row : row + rows, column : column + columns]


def _ramp(x: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at x <= 0 to 1 at x >= 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


@dataclass(frozen=True)
class _Window:
    """The part of the half-size map that one cell covers, and where its pixels lie from its center."""

    place: tuple[slice, slice]
    dx: np.ndarray  # full-size pixels right of the center
    dy: np.ndarray
    inside: np.ndarray  # full-size pixels inside the edge; negative outside
    share: np.ndarray  # distance from the center as a share of the edge's


def _window(cell: _Cell, margin: float) -> _Window:
    left, top, right, bottom = cell.extent
    c1, c2 = (max(0, int((left - margin) / _STEP)), min(_COLUMNS, int((right + margin) / _STEP) + 1))
    r1, r2 = (max(0, int((top - margin) / _STEP)), min(_ROWS, int((bottom + margin) / _STEP) + 1))
    across = (np.arange(c1, c2, dtype=np.float32) + 0.5) * _STEP - np.float32(cell.x)
    down = (np.arange(r1, r2, dtype=np.float32) + 0.5) * _STEP - np.float32(cell.y)
    dx, dy = np.meshgrid(across, down)
    far, angle = cv2.cartToPolar(dx, dy)
    edge = cell.radii[(angle * np.float32(_ANGLES / (2 * np.pi))).astype(np.int32) % _ANGLES]
    return _Window((slice(r1, r2), slice(c1, c2)), dx, dy, edge - far, far / edge)


def _stain(rng: np.random.Generator, look: _Look, cells: list[_Cell]) -> np.ndarray:
    """The dye map (240, 320, 4) float32 that the cells give."""
    dye = np.zeros((_ROWS, _COLUMNS, 4), np.float32)

    def add(labels: tuple[int, ...], draw: Callable[..., None]) -> None:
        for cell in cells:
            if cell.label in labels:
                draw(rng, look, dye, cell)

    add((RBC, ECHINOCYTE), _add_red)
    # Stacked cells press each other flat: twice the cells is less than twice the dye.
    dye /= 1 + 0.75 * dye
    add((WBC,), _add_white)
    add((PLATELETS,), _add_platelet)
    add((0,), _add_debris)
    return dye


def _add_red(rng: np.random.Generator, look: _Look, dye: np.ndarray, cell: _Cell) -> None:
    """A disc with a pale center, seldom quite in the middle, and a thin violet rim."""
    window = _window(cell, 8)
    rows, columns = window.dx.shape
    radius = float(cell.radii.mean())
    body = _ramp(window.inside / (2 * look.edge) + 0.5)

    pallor = float(np.clip(look.pallor + rng.normal(0, 0.20), 0, 0.97))
    if cell.label == ECHINOCYTE:
        pallor *= 0.3
    slant, squeeze = rng.uniform(0, np.pi), np.exp(abs(rng.normal(0, 0.28)))
    ox, oy = rng.normal(0, 0.09 * radius, 2)
    u = (window.dx - ox) * np.cos(slant) + (window.dy - oy) * np.sin(slant)
    v = (window.dy - oy) * np.cos(slant) - (window.dx - ox) * np.sin(slant)
    width = radius * rng.uniform(0.26, 0.56)
    from_hollow = cv2.magnitude(u / np.float32(squeeze), v * np.float32(squeeze)) / np.float32(width)
    hollow = _ramp((1.35 - from_hollow) / rng.uniform(0.4, 0.9))

    # Dense cells often have no hollow; a few ghosts have lost most of their haemoglobin.
    depth = float(np.clip(rng.normal(1, 0.17), 0.55, 1.5)) * (1.22 - 0.22 * pallor)
    if rng.random() < 0.05:
        depth *= 0.55
    thickness = 1 - pallor * hollow + 0.035 * _texture(rng, 4.0, rows, columns)
    tilt = rng.normal(0, 0.07, 2).astype(np.float32) / np.float32(radius)
    thickness += tilt[0] * window.dx + tilt[1] * window.dy
    rim = _ramp(1 - np.abs(window.inside - 5) / 9)
    thickness *= body * np.float32(depth)
    dye[(*window.place, 0)] += np.float32(look.depth) * thickness
    dye[(*window.place, 2)] += np.float32(look.eosin) * thickness
    dye[(*window.place, 2)] += np.float32(rng.uniform(0.10, 0.35)) * body * rim


def _add_white(rng: np.random.Generator, look: _Look, dye: np.ndarray, cell: _Cell) -> None:
    """Granular cytoplasm and a violet nucleus; what lies below the cell is hidden."""
    window = _window(cell, 8)
    rows, columns = window.dx.shape
    body = _ramp(window.inside / (2 * look.edge + 1.5) + 0.5)
    nucleus = _nucleus(rng, cell, window)
    grain = _texture(rng, 0.9, rows, columns) + 0.8 * _texture(rng, 4.0, rows, columns)
    chromatin = _texture(rng, 2.2, rows, columns) + 0.8 * _texture(rng, 6.0, rows, columns)
    pink, lilac, blue, strength = {
        "neutrophil": (0.16, 0.66, 0.07, 0.18),
        "eosinophil": (0.52, 0.60, 0.02, 0.20),
        "lymphocyte": (0.00, 0.30, 0.62, 0.10),
        "monocyte": (0.04, 0.55, 0.40, 0.20),
    }[cell.kind]
    amount = float(np.clip(rng.normal(1, 0.2), 0.6, 1.5))
    cytoplasm = (1 + strength * grain) * np.float32(amount)
    # The edge of the cytoplasm is thinner, and bluish where it is out of focus.
    thin = 0.65 + 0.35 * _ramp(window.inside / 26)
    deep = float(np.clip(rng.normal(0.66, 0.18), 0.36, 1.3))
    own = np.empty((rows, columns, 4), np.float32)
    outside_nucleus = 1 - 0.6 * nucleus
    own[..., 0] = pink * cytoplasm * outside_nucleus
    own[..., 1] = nucleus * np.float32(deep) * (1 + 0.13 * chromatin)
    own[..., 2] = lilac * cytoplasm * thin * outside_nucleus
    own[..., 3] = blue * cytoplasm * outside_nucleus + 0.10 * _ramp(1 - np.abs(window.inside) / 8)
    under = dye[window.place]
    under += (own - under) * body[..., None]


def _nucleus(rng: np.random.Generator, cell: _Cell, window: _Window) -> np.ndarray:
    """The nucleus as a soft mask (rows, columns) in 0..1: lobes on a bow, a kidney, or one large disc."""
    rows, columns = window.dx.shape
    mask = np.zeros((rows, columns), np.uint8)
    middle = np.array([-window.dx[0, 0], -window.dy[0, 0]]) / _STEP
    radius = float(cell.radii.mean()) / _STEP
    start = rng.uniform(0, 2 * np.pi)

    def at(angle: float, far: float) -> tuple[int, int]:
        x, y = middle + far * radius * np.array([np.cos(angle), np.sin(angle)])
        return round(float(x) * 16), round(float(y) * 16)

    def lobe(center: tuple[int, int], long: float, short: float, turn: float) -> None:
        axes = (max(1, round(long * radius * 16)), max(1, round(short * radius * 16)))
        cv2.ellipse(mask, center, axes, float(np.degrees(turn)), 0, 360, 255, -1, cv2.LINE_AA, 4)

    def bridge(points: list[tuple[int, int]], width: float) -> None:
        line = np.array(points, np.int32).reshape(-1, 1, 2)
        cv2.polylines(mask, [line], False, 255, max(1, round(width * radius)), cv2.LINE_AA, 4)

    if cell.kind in ("neutrophil", "eosinophil"):
        lobes = int(rng.integers(3, 6) if cell.kind == "neutrophil" else rng.integers(2, 4))
        size = {2: 0.44, 3: 0.37, 4: 0.31, 5: 0.27}[lobes]
        bend = rng.uniform(0.75, 1.0) * (5.2 if lobes > 3 else 4.0 if lobes == 3 else 2.6)
        angles = start + np.linspace(0, bend, lobes) + rng.normal(0, 0.10, lobes)
        far = rng.uniform(0.42, 0.54, lobes)
        centers = [at(a, f) for a, f in zip(angles, far, strict=True)]
        for angle, center in zip(angles, centers, strict=True):
            long = size * rng.uniform(1.0, 1.35)
            lobe(center, long, size * rng.uniform(0.78, 1.0), angle + np.pi / 2 + rng.normal(0, 0.4))
        steps = np.linspace(0, 1, 9)
        bow = np.interp(steps, np.linspace(0, 1, lobes), angles)
        reach = np.interp(steps, np.linspace(0, 1, lobes), far)
        bridge([at(a, f) for a, f in zip(bow, reach, strict=True)], rng.uniform(0.10, 0.26))
    elif cell.kind == "monocyte":
        bow = start + np.linspace(0, rng.uniform(2.2, 3.6), 9)
        bridge([at(a, 0.36 + 0.05 * np.sin(2 * a)) for a in bow], rng.uniform(0.52, 0.66))
        lobe(at(float(bow[4]), 0.30), 0.42, 0.36, float(bow[4]))
    else:
        off = rng.uniform(0.02, 0.12)
        lobe(at(start, off), rng.uniform(0.80, 0.90), rng.uniform(0.70, 0.84), rng.uniform(0, np.pi))

    soft = cv2.GaussianBlur(mask, (0, 0), 2.0).astype(np.float32) / 255
    uneven = soft + 0.085 * _texture(rng, 2.2, rows, columns) + 0.05 * _texture(rng, 6.0, rows, columns)
    # Kept inside the cell, so that the box around the outline holds all of it.
    return _ramp((uneven - 0.26) / 0.48) * _ramp((1.0 - window.share) / 0.10)


def _add_platelet(rng: np.random.Generator, look: _Look, dye: np.ndarray, cell: _Cell) -> None:
    """A violet core that fades outwards into a blue-gray halo; the box holds the halo."""
    window = _window(cell, 4)
    rows, columns = window.dx.shape
    core = _ramp((1.0 - window.share) / rng.uniform(0.55, 0.85))
    halo = _ramp((1.04 - window.share) / 0.5)
    core = core * np.clip(1 + 0.22 * _texture(rng, 2.2, rows, columns), 0.2, 2)
    violet = float(rng.beta(1.8, 1.8))
    strength = float(np.clip(rng.normal(0.58, 0.2), 0.25, 1.1))
    dye[(*window.place, 0)] *= 1 - 0.5 * halo
    dye[(*window.place, 1)] += np.float32(strength * (0.16 + 0.50 * violet)) * core
    dye[(*window.place, 3)] += np.float32(strength * (0.80 - 0.60 * violet)) * core + 0.13 * halo


def _add_debris(rng: np.random.Generator, look: _Look, dye: np.ndarray, cell: _Cell) -> None:
    """A dark, grainy clump of violet dye with a clear edge, and no halo as a platelet has."""
    window = _window(cell, 4)
    rows, columns = window.dx.shape
    grain = np.clip(1 + 0.4 * _texture(rng, 0.9, rows, columns), 0.1, 2)
    strength = np.float32(rng.uniform(0.25, 0.8))
    dye[(*window.place, 1)] += strength * _ramp((1.0 - window.share) / 0.3) * grain


# How it is seen ------------------------------------------------------------------------------------------


@cache
def _field() -> tuple[np.ndarray, np.ndarray]:
    """Places across and down the half-size image, each (240, 320) float32 in -1..1."""
    return tuple(np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in (_COLUMNS, _ROWS))))


@cache
def _grain() -> np.ndarray:
    """Sensor noise about 128, (544, 704, 3) uint8: mostly common to the three channels, a little smeared."""
    rng = np.random.default_rng(np.random.SeedSequence(11))
    common = rng.standard_normal((544, 704, 1), dtype=np.float32)
    noise = common + 0.55 * rng.standard_normal((544, 704, 3), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 0.8)
    return np.clip(np.round(128 + 1.5 * noise / noise.std()), 0, 255).astype(np.uint8)


def _photograph(rng: np.random.Generator, look: _Look, dye: np.ndarray) -> np.ndarray:
    """The dye map seen through lamp, lens and camera: (480, 640, 3) uint8 RGB."""
    across, down = _field()
    slope = rng.normal((0.014, 0.012), (0.014, 0.012)).astype(np.float32)
    fall = np.float32(rng.uniform(0.005, 0.045))
    lamp = 1 + slope[0] * across + slope[1] * down - fall * (across * across + down * down)
    lamp = lamp + np.float32(0.004) * _texture(rng, 12.0, _ROWS, _COLUMNS)
    _add_specks(rng, lamp)
    seen = cv2.exp(-cv2.transform(dye, look.dyes))
    seen *= lamp[..., None] * np.array(look.light, np.float32)
    seen = cv2.GaussianBlur(seen, (0, 0), 0.48 + look.blur)
    # Lateral color error: red and blue lie half a small pixel apart, which tints the edges.
    shift = float(rng.uniform(0.15, 0.5))
    seen[1:, :, 0] += shift * (seen[:-1, :, 0] - seen[1:, :, 0])
    seen[:-1, :, 2] += shift * (seen[1:, :, 2] - seen[:-1, :, 2])
    small = cv2.convertScaleAbs(seen)
    large = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    row, column = rng.integers(65, size=2)
    grain = _grain()[row : row + HEIGHT, column : column + WIDTH]
    return cv2.addWeighted(large, 1.0, grain, 1.0, -128)


def _add_specks(rng: np.random.Generator, lamp: np.ndarray) -> None:
    """Small round bubbles with a bright middle, and now and then a smudge of dust on the lens."""
    vivid = 2.2 if rng.random() < 0.2 else 1.0
    for smudge in [False] * int(rng.poisson(12)) + [True] * int(rng.random() < 0.4):
        size = rng.uniform(5, 10) if smudge else rng.uniform(1.6, 3.4) * np.sqrt(vivid)
        x, y = rng.uniform(14, _COLUMNS - 14), rng.uniform(14, _ROWS - 14)
        c, r = int(x), int(y)
        down, across = np.ogrid[-14:15, -14:15]
        far = np.hypot(across - (x - c), down - (y - r)) / size
        if smudge:
            change = -rng.uniform(0.05, 0.16) * np.exp(-(far**2))
        else:
            ring = 0.9 * np.exp(-(far**2) * 4) - np.exp(-(((far - 0.9) / 0.3) ** 2))
            change = vivid * rng.uniform(0.03, 0.14) * ring
        lamp[r - 14 : r + 15, c - 14 : c + 15] *= (1 + change).astype(np.float32)


# A data set of them --------------------------------------------------------------------------------------


def write_dataset(
    root: str | Path,
    *,
    train: int = 205,
    val: int = 87,
    test: int = 72,
    seed: int = 0,
    fourth_class: bool = False,
    hard: bool = False,
    progress: bool = True,
) -> Path:
    """The folder `root`, to which smears were written in BCCD's layout (Pascal VOC).

    `smears.json` beside them says what the folder holds. An interrupted run leaves nothing behind. Where
    `root` already holds exactly this data set, nothing is written. `fourth_class` and `hard` as for
    `draw_smear`; of hard smears some cells have no label, as in data labeled by hand (`UNLABELED`), and the
    folder `Complete` has the labels of all. Raises ConfigError for negative numbers, DataError if `root`
    holds something else or is incomplete, SsdError if the disk refuses.
    """
    root = Path(root)
    contents = {"version": SMEARS_VERSION, "seed": seed, "train": train, "val": val, "test": test}
    if fourth_class:
        contents["fourth_class"] = FOURTH_CLASS
    if hard:
        contents["hard"] = HARD_VERSION
    if min(seed, train, val, test) < 0:
        raise ConfigError(f"cannot write smears with {contents}: seed and counts must be 0 or more.")
    if _already_there(root, contents):
        return root
    with new_folder(root, already=lambda: _already_there(root, contents)) as folder:
        _fill(folder, contents, progress)
    return root


def _already_there(root: Path, contents: dict) -> bool:
    """True if `root` holds the data set, False if it is absent or empty; DataError for anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / MARKER).is_file():
        raise DataError(f"{root} exists and is not a set of synthetic smears: choose another folder.")
    found = read_json(root / MARKER, hint="Delete the folder and run again.", shape=dict)
    if found != contents:
        raise DataError(
            f"{root} holds other smears ({found}) than asked for ({contents}): "
            "choose another folder, or delete this one to have it written again."
        )
    images = sum(contents[split] for split in PARTS)
    for folder, pattern in (("JPEGImages", "*.jpg"), ("Annotations", "*.xml")):
        count = sum(1 for _ in (root / folder).glob(pattern))
        if count != images:
            raise DataError(
                f"{root / folder} holds {count} files and should hold {images}: "
                "delete the whole data set to have it written again."
            )
    return True


def _fill(folder: Path, contents: dict, progress: bool) -> None:
    hard = "hard" in contents
    for part in ("Annotations", "JPEGImages", *([COMPLETE] if hard else [])):
        (folder / part).mkdir()
    names = [f"{PREFIX}{k:05d}" for k in range(sum(contents[split] for split in PARTS))]
    rest = iter(names)
    splits = {split: list(islice(rest, contents[split])) for split in PARTS}
    options = {name: True for name in ("fourth_class", "hard") if name in contents}
    for index, name in enumerate(tqdm(names, desc="drawing smears", unit="image", disable=not progress)):
        state = np.random.SeedSequence([contents["seed"], index]).generate_state(2, np.uint64)
        smear = draw_smear(int(state[0]), **options)
        quality = 73 + int(state[1] % 6)
        image = encode_image(smear.image, quality=quality)
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(image)
        everything = np.ones(len(smear.labels), bool)
        rng = np.random.default_rng(np.random.SeedSequence([contents["seed"], index, 1]))
        shares = [UNLABELED.get(int(label), 0.0) for label in smear.labels]
        labeled = rng.random(len(shares)) >= shares if hard else everything
        for part, kept in (("Annotations", labeled), *([(COMPLETE, everything)] if hard else [])):
            write_voc(
                folder / part / f"{name}.xml",
                width=WIDTH,
                height=HEIGHT,
                boxes=smear.boxes[kept],
                names=[NAMES[label] for label in smear.labels[kept]],
                database=_DATABASE,
            )
    write_splits(folder, {**splits, "trainval": sorted(splits["train"] + splits["val"])})
    write_json(folder / MARKER, contents)  # last: a folder without it is not whole
