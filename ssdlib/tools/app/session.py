"""What one visitor of the page does: fields in, detections kept, thresholds moved, tables out. No Gradio."""

from __future__ import annotations

import csv
import io
import json
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from ssdlib.common.errors import ConfigError, DataError, SsdError
from ssdlib.data.images import decode_image, encode_image
from ssdlib.inference.detections import Detections
from ssdlib.inference.draw import annotate
from ssdlib.inference.tiling import Tiling, crop, merge

LEAST_SCORE = 0.05
"""Detections below are not kept, so a threshold cannot go lower."""

FIRST_THRESHOLD = 0.5

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""Pillow's names. It knows many more, some of which start other programs: not for strangers' files."""

PREVIEW_SIDE = 1600
"""Pixels of the longer side on screen; the download has all of them."""


@dataclass(frozen=True)
class Limits:
    """What a visitor may bring. Numbers of one file are checked before a pixel is decoded."""

    file_bytes: int = 20_000_000
    pixels: int = 60_000_000
    fields: int = 24
    total_bytes: int = 120_000_000
    """Of all files of a session together: they stay in memory, for the picture in full size."""

    def __post_init__(self) -> None:
        if min(self.file_bytes, self.pixels, self.fields, self.total_bytes) < 1:
            raise ConfigError("limits of the page must be at least 1")


@dataclass(frozen=True, eq=False)
class Field:
    """One image with what was found in it."""

    name: str
    content: bytes
    """The file as it came."""
    preview: np.ndarray
    """(H, W, 3) uint8 RGB, at most `PREVIEW_SIDE` long."""
    detections: Detections
    """With score >= `LEAST_SCORE`, in pixels of the original."""
    um_per_pixel: float | None
    """The scale at which it was looked at."""

    @property
    def tiles(self) -> int:
        """How many views the network had."""
        return len(Tiling(um_per_pixel=self.um_per_pixel).tiles(*self.detections.image_size))


@dataclass(frozen=True, eq=False)
class Arrival:
    """An image that waits to be looked at."""

    name: str
    content: bytes
    replaces: Field | None = None
    """What was found in it at another scale, shown until it has been looked at again."""


class Stopped(Exception):
    """The visitor does not wait for this image any more."""


Look = Callable[[np.ndarray, float | None, Callable[[int, int], None]], Detections]
"""(H, W, 3) uint8 RGB, micrometers per pixel (or None), and what to tell of the tiles done and of all."""


class Session:
    """The fields of one visitor, in the order they came."""

    def __init__(self, class_names: Sequence[str], limits: Limits | None = None) -> None:
        self.class_names = tuple(class_names)
        self.limits = limits or Limits()
        self.fields: list[Field] = []
        self.waiting: list[Arrival] = []
        self.refused: list[str] = []
        """What could not be taken, in words, until `next_refused`."""
        self.thresholds = dict.fromkeys(self.class_names, FIRST_THRESHOLD)
        self.um_per_pixel: float | None = None
        self._working = threading.Lock()

    def bring(self, path: str | Path, name: str | None = None) -> None:
        """Read an image file, to be looked at later; the file itself is not needed any more, nor changed.

        `name` is what the visitor calls the file, else its own. Raises DataError, in words for the visitor,
        for what is missing, empty or beyond the limits.
        """
        name = safe_name(name if name is not None else Path(path).name)
        new = [arrival for arrival in self.waiting if arrival.replaces is None]
        if len(self.fields) + len(new) >= self.limits.fields:
            raise DataError(f"{name}: {self.limits.fields} images are on the page already. Clear it first.")
        content = _read(Path(path), name, self.limits)
        if sum(len(one.content) for one in (*self.fields, *new)) + len(content) > self.limits.total_bytes:
            most = self.limits.total_bytes / 1e6
            raise DataError(f"{name}: all images together would be above {most:g} MB. Clear the page first.")
        self.waiting.append(Arrival(name, content))

    def bring_again(self) -> None:
        """What was looked at with another scale than the present one waits to be looked at again."""
        asked = {arrival.replaces for arrival in self.waiting}
        for field in self.fields:
            if field.um_per_pixel != self.um_per_pixel and field not in asked:
                self.waiting.append(Arrival(field.name, field.content, field))

    @property
    def outdated(self) -> bool:
        """Whether there is something for `bring_again`."""
        return any(field.um_per_pixel != self.um_per_pixel for field in self.fields)

    @property
    def working(self) -> bool:
        """Whether `work` is under way."""
        return self._working.locked()

    def work(self, detect: Look, heard: Callable[[str, int, int, int], None] = lambda *_: None) -> None:
        """Look at all that waits, in order; what goes wrong goes to `refused`.

        `heard` is told an image's name, how many were done before it, its tiles done and all its tiles. Where
        work is under way already, that call does all, and this one returns.
        """
        done = 0
        while self.waiting and self._working.acquire(blocking=False):
            try:
                # Another thread may stop all meanwhile.
                while arrival := next(iter(self.waiting), None):
                    self._look_at(arrival, detect, partial(heard, arrival.name, done))
                    done += 1
            finally:
                self._working.release()

    def _look_at(self, arrival: Arrival, detect: Look, heard: Callable[[int, int], None]) -> None:
        def say(tiles_done: int, tiles: int) -> None:
            if arrival not in self.waiting:
                raise Stopped
            heard(tiles_done, tiles)

        try:
            image = decode_upload(arrival.content, arrival.name, self.limits)
            scale = self.um_per_pixel
            found = replace(detect(image, scale, say), image=arrival.name).above(LEAST_SCORE)
            field = Field(arrival.name, arrival.content, _reduced(image), found, scale)
            if arrival.replaces is None:
                self.fields.append(field)
            elif arrival.replaces in self.fields:
                self.fields[self.fields.index(arrival.replaces)] = field
        except SsdError as error:
            self.refused.append(str(error))
        except Stopped:
            pass
        finally:
            with suppress(ValueError):
                self.waiting.remove(arrival)

    def stop(self) -> None:
        """Let nothing wait any more; `work` under way ends after a few tiles."""
        if names := [arrival.name for arrival in self.waiting]:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self.refused.append(f"{names[0]}{more}: stopped, not looked at.")
        self.waiting.clear()

    def next_refused(self) -> list[str]:
        """What was refused since the last call."""
        refused, self.refused = self.refused, []
        return refused

    def clear(self) -> None:
        """Forget all images; thresholds and scale stay."""
        self.waiting.clear()
        self.fields.clear()

    def set_thresholds(self, thresholds: Mapping[str, float]) -> None:
        """One for each class. Raises ConfigError for others, or outside `LEAST_SCORE` to 1."""
        if set(thresholds) != set(self.class_names):
            raise ConfigError(f"give one threshold for each of {', '.join(self.class_names)}")
        for name, value in thresholds.items():
            if not LEAST_SCORE <= value <= 1:
                raise ConfigError(f"the threshold of {name} must be in {LEAST_SCORE} to 1, not {value}")
        self.thresholds = {name: float(thresholds[name]) for name in self.class_names}

    def set_scale(self, um_per_pixel: float | None) -> None:
        """Micrometers per pixel; None or 0 if unknown. Raises ConfigError for what is no scale of a smear."""
        self.um_per_pixel = Tiling(um_per_pixel=float(um_per_pixel) if um_per_pixel else None).um_per_pixel

    def shown(self, number: int) -> Detections:
        """The detections of a field at or above the thresholds."""
        return self.fields[number].detections.above(self.thresholds)

    def all_shown(self) -> list[Detections]:
        return [self.shown(number) for number in range(len(self.fields))]

    def preview(self, number: int) -> np.ndarray:
        """The field on screen, its cells outlined: (H, W, 3) uint8 RGB."""
        field, found = self.fields[number], self.shown(number)
        shrink = field.preview.shape[1] / found.image_size[0]
        size = (field.preview.shape[1], field.preview.shape[0])
        return annotate(field.preview, replace(found, boxes=found.boxes * shrink, image_size=size))

    def picture(self, number: int) -> bytes:
        """The field in full size, its cells outlined, as a JPEG file."""
        image = decode_upload(self.fields[number].content, self.fields[number].name, self.limits)
        return encode_image(annotate(image, self.shown(number)), ".jpg", quality=92)

    @property
    def unit(self) -> str:
        """Of `sizes`."""
        return "µm" if self.um_per_pixel else "px"

    def sizes(self, number: int | None = None) -> dict[str, np.ndarray]:
        """Sizes of the cells of each class, in one field or in all, in `unit`."""
        shown = self.all_shown() if number is None else [self.shown(number)]
        scale = self.um_per_pixel or 1.0
        return {
            name: np.concatenate([box_sizes(d)[d.labels.numpy() == label] for d in shown] or [np.empty(0)])
            * scale
            for label, name in enumerate(self.class_names, start=1)
        }

    def to_csv(self) -> str:
        """One row a cell: image, label, score, xmin, ymin, xmax, ymax, size_px and, if known, size_um."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        scale = self.um_per_pixel
        header = ["image", "label", "score", "xmin", "ymin", "xmax", "ymax", "size_px"]
        writer.writerow([*header, "size_um"] if scale else header)
        for found in self.all_shown():
            rows = zip(
                found.names, found.scores.tolist(), found.boxes.tolist(), box_sizes(found), strict=True
            )
            for name, score, box, size in rows:
                row = [_no_formula(found.image), _no_formula(name), f"{score:.4f}"]
                row += [f"{side:.2f}" for side in box] + [f"{size:.2f}"]
                writer.writerow([*row, f"{size * scale:.3f}"] if scale else row)
        return text.getvalue()

    def to_json(self) -> str:
        """The list that `detect --json` writes, each image with the thresholds and the scale, too."""
        extra = {"thresholds": self.thresholds, "um_per_pixel": self.um_per_pixel}
        records = [{**found.to_dict(), **extra} for found in self.all_shown()]
        return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


class Sessions:
    """A session for each visitor; the longest unused is forgotten when there are too many."""

    def __init__(self, new: Callable[[], Session], capacity: int = 16) -> None:
        self._new, self._capacity = new, capacity
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, visitor: str) -> Session:
        with self._lock:
            session = self._open.pop(visitor, None) or self._new()
            self._open[visitor] = session
            while len(self._open) > self._capacity:
                self._open.popitem(last=False)[1].stop()
            return session

    def __len__(self) -> int:
        return len(self._open)

    def forget(self, visitor: str) -> None:
        """Nobody waits for what the session of a closed page is doing."""
        with self._lock:
            if session := self._open.pop(visitor, None):
                session.stop()


class Turns:
    """A lock given in the order of asking: between two batches of a large image everybody else has a turn."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = self._served = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._changed:
            mine, self._asked = self._asked, self._asked + 1
            self._changed.wait_for(lambda: self._served == mine)
        try:
            yield
        finally:
            with self._changed:
                self._served += 1
                self._changed.notify_all()


class Detector(Protocol):
    """What finds the cells: `ssdlib.inference.predictor.Predictor`, or another engine."""

    class_names: tuple[str, ...]
    batch_size: int

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Detections]: ...


def look(
    detector: Detector,
    image: np.ndarray,
    um_per_pixel: float | None,
    say: Callable[[int, int], None],
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Detections:
    """Find the cells of (H, W, 3) uint8 RGB, tile by tile in a large field.

    `say` hears the tiles done and all there are, and ends the work if it raises; `turn` is held while the
    network looks at a batch.
    """
    height, width = image.shape[:2]
    views = Tiling(um_per_pixel=um_per_pixel).tiles(width, height)
    found: list[Detections] = []
    say(0, len(views))
    while len(found) < len(views):
        batch = views[len(found) : len(found) + detector.batch_size]
        with turn():
            found += detector.stream(crop(image, view) for view in batch)
        say(len(found), len(views))
    return found[0] if views == [(0, 0, width, height)] else merge(found, views, (width, height))


def box_sizes(detections: Detections) -> np.ndarray:
    """(D,) mean of each box's width and height, in pixels: the diameter, for what is round."""
    boxes = detections.boxes.numpy()
    return (boxes[:, 2:] - boxes[:, :2]).mean(axis=1)


def safe_name(name: str) -> str:
    """The last part of a path of any system, without characters that do not print; never empty."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    # Categories C*: control, formatting (which may turn text around), surrogates.
    printable = "".join(c for c in last if not unicodedata.category(c).startswith("C")).strip()
    if len(printable) > 80:
        printable = f"{printable[:60]}…{printable[-19:]}"
    return printable if printable.strip(". ") else "image"


def decode_upload(content: bytes, name: str, limits: Limits) -> np.ndarray:
    """A stranger's file as (H, W, 3) uint8 RGB. Raises DataError whatever is wrong with it."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
        if width * height > limits.pixels:
            raise DataError(
                f"{name} is {width} x {height} pixels: more than {limits.pixels / 1e6:g} megapixels. "
                "Cut it into fields first."
            )
        return decode_image(content, Path(name))
    except SsdError:
        raise
    except Image.DecompressionBombError:
        raise DataError(
            f"{name} claims more than {limits.pixels / 1e6:g} megapixels. Cut it into fields first."
        ) from None
    except Exception as error:  # a decoder that is fed garbage may raise anything, and the page must go on
        raise DataError(
            f"{name} is not an image that can be read. Save it as JPEG, PNG or TIFF, and try again."
        ) from error


def _read(path: Path, name: str, limits: Limits) -> bytes:
    try:
        if not path.is_file():
            raise DataError(f"{name} has not arrived. Try again.")
        with path.open("rb") as stream:
            content = stream.read(limits.file_bytes + 1)
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror or error}). Try again.") from error
    if len(content) > limits.file_bytes:
        raise DataError(f"{name} is larger than {limits.file_bytes / 1e6:g} MB. Save it smaller, as JPEG.")
    if not content:
        raise DataError(f"{name} is empty. Copy it again from its source.")
    return content


def _reduced(image: np.ndarray) -> np.ndarray:
    shrink = PREVIEW_SIDE / max(image.shape[:2])
    if shrink >= 1:
        return image
    size = (max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _no_formula(text: str) -> str:
    """Spreadsheets run a cell that begins with one of these as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
