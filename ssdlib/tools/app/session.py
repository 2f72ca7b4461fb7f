"""One visitor of the page: uploads wait, the detector runs, thresholds move, results go out. No Gradio."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ssdlib.common.errors import ConfigError, DataError, SsdError
from ssdlib.config import ModelConfig
from ssdlib.data.images import decode_image, encode_image, fields_in, read_um_per_pixel
from ssdlib.inference.detections import Detections, class_thresholds
from ssdlib.inference.draw import annotate
from ssdlib.inference.fields import Seen
from ssdlib.inference.quality import quality_notes
from ssdlib.inference.results import cells_csv
from ssdlib.inference.slides import Slide, Tally
from ssdlib.inference.tiling import Tiling
from ssdlib.tools.app.uploads import Limits, Upload, decode_upload, read_upload, safe_name

LEAST_SCORE = 0.05
"""Detections below are not kept, so a threshold cannot go lower."""

PREVIEW_SIDE = 1600
"""Pixels of the longer side on screen; the download has all of them."""


@dataclass(frozen=True, eq=False)
class Field:
    """An image with what was found in it."""

    preview: bytes
    """A JPEG file of the image, at most `PREVIEW_SIDE` long: a tenth of the memory of its pixels."""
    detections: Detections
    """With score >= `LEAST_SCORE`, in pixels of the upload."""
    um_per_pixel: float | None
    """The scale that the visitor had given."""
    seen: Seen
    """How the detector looked at it."""
    quality: tuple[str, ...]
    """Notes of `ssdlib.inference.quality`, at the thresholds that held when the detector ran."""


class Stopped(Exception):
    """Nobody waits for this image any more."""


class Session:
    """The fields of one visitor, in the order of their uploads."""

    def __init__(self, config: ModelConfig, limits: Limits | None = None) -> None:
        self.class_names = config.class_names
        self.use = config.use
        self.limits = limits or Limits()
        self.waiting: list[Upload] = []
        """Uploads that the detector has still to see; what it has seen before keeps its field meanwhile."""
        self.refused: list[str] = []
        """What could not be taken, in words, until `next_refused`."""
        self.thresholds = {name: max(value, LEAST_SCORE) for name, value in config.thresholds.items()}
        self.um_per_pixel: float | None = None
        self._fields: dict[Upload, Field] = {}
        self._taken: set[str] = set()
        self._taking, self._running = threading.Lock(), threading.Lock()

    @property
    def fields(self) -> list[Field]:
        """All images with what was found in them."""
        return list(self._fields.values())

    def take(self, paths: Iterable[str]) -> set[str]:
        """Those of the paths that were not taken before: the browser may name an upload again."""
        with self._taking:
            new = {*paths} - self._taken
            self._taken |= new
        return new

    def add(self, path: str | Path, name: str | None = None) -> None:
        """Read an image file for `run`; `name` is what the visitor calls it, else the file's own.

        What is missing, empty or beyond the limits goes to `refused`.
        """
        name = safe_name(Path(path).name if name is None else name)
        held = {*self._fields, *self.waiting}
        try:
            if len(held) >= self.limits.fields:
                raise DataError(f"{name}: {len(held)} images are on the page already. Clear it first.")
            upload = read_upload(Path(path), name, self.limits)
            if sum(len(one.content) for one in (*held, upload)) > self.limits.total_bytes:
                most = f"{self.limits.total_bytes / 1e6:g} MB"
                raise DataError(f"{name}: all images together would be above {most}. Clear the page first.")
            self.waiting += [
                Upload(str(one), upload.content) for one in fields_in(Path(name), upload.content)
            ]
        except DataError as error:
            self.refused.append(str(error))

    @property
    def size(self) -> int:
        """Bytes of all image files and previews."""
        held, fields = [*list(self._fields), *self.waiting], self.fields
        files = {id(one.content): len(one.content) for one in held}  # the fields of a TIFF share theirs
        return sum(files.values()) + sum(len(field.preview) for field in fields)

    @property
    def outdated(self) -> list[Upload]:
        """Uploads that the detector has seen at another scale than the present one, and that do not wait."""
        seen = list(self._fields.items())  # another thread may add to them
        other = [upload for upload, field in seen if field.um_per_pixel != self.um_per_pixel]
        return [upload for upload in other if upload not in self.waiting]

    def run(
        self,
        detect: Callable[..., Seen],
        on_progress: Callable[[str, int, int, int], None] = lambda *_: None,
    ) -> None:
        """Detect the cells in all that waits, in order; what goes wrong goes to `refused`.

        `detect` is `ssdlib.inference.fields.detect_image` with its predictor. `on_progress` is called with an
        image's name, how many were done before it, its tiles done and all its tiles. Where a run is under way
        already, that one does all, and this one returns.
        """
        done = 0
        while self.waiting and self._running.acquire(blocking=False):
            try:
                # Another thread may stop all meanwhile.
                while upload := next(iter(self.waiting), None):
                    self._detect(upload, detect, partial(on_progress, upload.name, done))
                    done += 1
            finally:
                self._running.release()

    def _detect(
        self, upload: Upload, detect: Callable[..., Seen], on_progress: Callable[[int, int], None]
    ) -> None:
        def on_tiles(tiles_done: int, tiles: int) -> None:
            if upload not in self.waiting:
                raise Stopped
            on_progress(tiles_done, tiles)

        try:
            image = decode_upload(upload, self.limits)
            tiling = Tiling(um_per_pixel=self.um_per_pixel, use=self.use)
            um = read_um_per_pixel(io.BytesIO(upload.content))
            seen = detect(image, tiling, um_in_file=um, on_tiles=on_tiles)
            found = replace(seen.found.above(LEAST_SCORE), image=upload.name)
            quality = quality_notes(image, found, seen.view, self.use.appearance, thresholds=self.thresholds)
            preview = encode_image(_reduced(image), ".jpg", quality=95)
            field = Field(preview, found, tiling.um_per_pixel, seen, quality)
            if upload in self.waiting:
                self._fields[upload] = field
        except SsdError as error:
            self.refused.append(str(error))
        except Stopped:
            pass
        finally:
            with suppress(ValueError):
                self.waiting.remove(upload)

    def stop(self) -> None:
        """Let nothing wait any more; a `run` under way ends after a few tiles."""
        if names := [upload.name for upload in self.waiting]:
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
        self._fields.clear()

    def set_thresholds(self, thresholds: Mapping[str, float]) -> None:
        """Count from these scores on. Raises ConfigError unless each class has one in `LEAST_SCORE` to 1."""
        thresholds = class_thresholds(thresholds, self.class_names)
        if min(thresholds.values()) < LEAST_SCORE:
            raise ConfigError(f"score thresholds must be at least {LEAST_SCORE}: less is not kept")
        self.thresholds = thresholds

    def set_scale(self, um_per_pixel: float | None) -> None:
        """Take the micrometers per pixel; None or 0: unknown. Raises ConfigError for no scale of a smear."""
        scale = float(um_per_pixel) if um_per_pixel else None
        self.um_per_pixel = Tiling(um_per_pixel=scale, use=self.use).um_per_pixel

    @property
    def shown(self) -> list[Detections]:
        """The detections of each field at or above the thresholds."""
        return [field.detections.above(self.thresholds) for field in self.fields]

    def preview(self, number: int) -> np.ndarray:
        """The field on screen, its cells outlined: (H, W, 3) uint8 RGB."""
        field, found = self.fields[number], self.shown[number]
        preview = decode_image(field.preview, Path("preview.jpg"))
        height, width = preview.shape[:2]
        boxes = found.boxes * (width / found.image_size[0])
        return annotate(preview, replace(found, boxes=boxes, image_size=(width, height)))

    def picture(self, number: int) -> bytes:
        """The field in full size, its cells outlined, as a JPEG file."""
        image = decode_upload(list(self._fields)[number], self.limits)
        return encode_image(annotate(image, self.shown[number]), ".jpg", quality=92)

    def scale_of(self, field: Field) -> float | None:
        """The measured micrometers per pixel of a field: those given, though it was looked at before, or its
        file's."""
        return self.um_per_pixel or field.seen.measured_um

    def unit(self, number: int) -> str:
        """The unit of `sizes`: µm where the scale of a field was given or stands in its file, else px."""
        return "µm" if self.scale_of(self.fields[number]) else "px"

    def sizes(self, number: int) -> dict[str, np.ndarray]:
        """The sizes of the cells of each class in a field, in `unit`: the mean of a box's width and height,
        which for what is round is the diameter."""
        found, um = self.shown[number], self.scale_of(self.fields[number])
        sizes = (found.boxes[:, 2:] - found.boxes[:, :2]).mean(axis=1) * (um or 1.0)
        labels = found.labels
        return {name: sizes[labels == label] for label, name in enumerate(self.class_names, start=1)}

    def slide(self) -> Slide:
        """All fields as one slide, at the present thresholds and scale."""
        tally = Tally(self.class_names)
        for field, found in zip(self.fields, self.shown, strict=True):
            more = {"view": field.seen.view, "quality": field.quality, "measured_um": self.scale_of(field)}
            tally.add({**found.to_dict(), **more})
        return tally.slide("all images")

    def to_csv(self) -> str:
        """The cells.csv of `ssdlib detect`: a row for each cell of all fields."""
        scales = map(self.scale_of, self.fields)
        return cells_csv(zip(self.shown, scales, strict=True))

    def to_json(self) -> str:
        """The list that `ssdlib detect --json` writes, each image with the thresholds and the scale, too."""
        records = [
            {
                **found.to_dict(),
                "thresholds": self.thresholds,
                "um_per_pixel": self.um_per_pixel or field.seen.um_per_pixel,
                "scale": "given" if self.um_per_pixel else field.seen.scale,
            }
            for found, field in zip(self.shown, self.fields, strict=True)
        ]
        return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _reduced(image: np.ndarray) -> np.ndarray:
    shrink = PREVIEW_SIDE / max(image.shape[:2])
    if shrink >= 1:
        return image
    size = (max(1, round(image.shape[1] * shrink)), max(1, round(image.shape[0] * shrink)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
