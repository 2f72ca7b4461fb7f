"""Image files to RGB arrays and back, strict about damage and generous about formats.

Pillow decodes because it is strict: a truncated file is an error there, where OpenCV may hand back a picture
with a gray lower half. Both decode JPEG with libjpeg-turbo, bit for bit alike.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ssdlib.common.errors import DataError
from ssdlib.common.files import write_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Files with these endings (in any case) are taken for images."""

MAX_PIXELS = 178_000_000
"""An image that unpacks to more is refused: a small file can claim any size (a decompression bomb). 178
megapixels is a 13,000 x 13,000 field, far above any camera, and just below Pillow's own limit."""

_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held


def read_image(path: str | Path) -> np.ndarray:
    """The image as (H, W, 3) uint8 RGB, upright.

    Gray becomes RGB, transparency is laid on white, the EXIF orientation is applied, and 16-bit values are
    scaled down from the bit depth in use (a 12-bit camera fills 0..4095). The first of several frames counts.
    Raises DataError, naming the file, if it is missing, truncated, not an image or above `MAX_PIXELS`.
    """
    path = Path(path)
    with _file_named_in_errors(path):
        return decode_image(path.read_bytes(), path)


def decode_image(content: bytes, path: Path) -> np.ndarray:
    """`read_image` for a file that is in memory already; `path` is what errors call it."""
    with _file_named_in_errors(path), _open(content, path) as image:
        image.load()
        deep = _is_deep(image, content)
        if image.getexif().get(_ORIENTATION, 1) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        return _read_deep(content, path) if deep else _to_rgb(image, path)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels, upright, from the file's header. Raises DataError like `read_image`."""
    (width, height), orientation = _header(Path(path))
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def is_turned(path: str | Path) -> bool:
    """Whether EXIF says that the picture is to be turned or mirrored. Raises DataError like `read_image`."""
    return _header(Path(path))[1] in range(2, 9)


_MICRONS = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0,
            "nm": 1e-3, "\\u00b5m": 1.0}  # fmt: skip
"""Micrometers of the units that ImageJ and OME name; ImageJ writes the sign in two ways."""


def read_um_per_pixel(file: str | Path | io.BytesIO) -> float | None:
    """Micrometers per pixel by a TIFF's tags: OME's, ImageJ's or its resolution; None without plausible ones.

    OME: PhysicalSizeX and its unit, um by default. ImageJ: XResolution with the unit of its description. Else
    XResolution by inch or cm. Programs that know nothing write 72 or 300 dots an inch, 0 or 1, which are no
    scale of a smear under a microscope (0.01 to 0.5) and are passed over.
    """
    if not isinstance(file, io.BytesIO) and Path(file).suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        with Image.open(file, formats=["TIFF"]) as image:
            tags = getattr(image, "tag_v2", {})
            about, across, unit = str(tags.get(270, "")), tags.get(282), tags.get(296, 2)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return None  # `read_image` says what is wrong with it
    um = None
    if match := re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', about):
        named = re.search(r'PhysicalSizeXUnit="([^"]+)"', about)
        um = _number(match[1]) * _MICRONS.get(named[1] if named else "um", math.nan)
    elif across and _number(across) > 0:
        named = re.search(r"^unit=(\S+)", about, re.MULTILINE)
        units = {2: 25_400.0, 3: 10_000.0}
        length = _MICRONS.get(named[1].lower(), math.nan) if named else units.get(unit, math.nan)
        um = length / _number(across)
    return um if um is not None and 0.01 <= um <= 0.5 else None


def _number(value: Any) -> float:
    """The value as a float; NaN where it is none."""
    try:
        return float(value)
    except (ValueError, ZeroDivisionError):
        return math.nan


def _header(path: Path) -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation."""
    with _file_named_in_errors(path), path.open("rb") as stream, _open(stream, path) as image:
        return image.size, image.getexif().get(_ORIENTATION, 1)


@contextmanager
def _file_named_in_errors(path: Path) -> Iterator[None]:
    """Turn the errors of reading and decoding into a DataError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"there is no image {path}. Check the path, or restore the file.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if getattr(error, "strerror", None):  # the operating system's, not the decoder's
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        raise DataError(
            f"{path} is truncated or damaged ({error}). Copy it again from its source, or remove it."
        ) from error


def encode_image(rgb: np.ndarray, suffix: str = ".jpg", *, quality: int = 95) -> bytes:
    """A (H, W, 3) uint8 RGB array as the bytes of an image file. `quality` is JPEG's, 0 to 100."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix.lower() in (".jpg", ".jpeg") else []
    _, encoded = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    return encoded.tobytes()


def write_image(path: str | Path, rgb: np.ndarray, *, quality: int = 95) -> None:
    """Atomically write a (H, W, 3) uint8 RGB array; the ending of `path` names the format."""
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"cannot write {path}: end the name with one of {', '.join(IMAGE_SUFFIXES)}")
    write_bytes(path, encode_image(rgb, path.suffix.lower(), quality=quality))


def copy_image(path: Path, folder: Path, stem: str, pixels: np.ndarray | None = None) -> str:
    """The name of a new copy in `folder`, `stem` and an ending: byte for byte, or an upright PNG of a picture
    that EXIF, which few tools heed, turns.

    `pixels` are the image as `read_image` gives it, where that is known. Raises DataError like `read_image`.
    """
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES or is_turned(path):
        write_image(folder / f"{stem}.png", read_image(path) if pixels is None else pixels)
        return f"{stem}.png"
    with _file_named_in_errors(path):
        content = path.read_bytes()
    write_bytes(folder / f"{stem}{suffix}", content)
    return f"{stem}{suffix}"


def list_images(folder: str | Path) -> list[Path]:
    """Image files directly in `folder`, sorted by name."""
    return sorted(file for file in Path(folder).iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def crop(image: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """The pixels of a window, xyxy, (H, W, 3) uint8; beyond the image, the median color of its border."""
    left, top, right, bottom = window
    inside = image[top:bottom, left:right]
    if inside.shape[:2] == (bottom - top, right - left):
        return inside
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    canvas = np.empty((bottom - top, right - left, 3), np.uint8)
    canvas[:] = np.median(border, axis=0)
    canvas[: inside.shape[0], : inside.shape[1]] = inside
    return canvas


def _open(source: bytes | io.BufferedReader, path: Path) -> Image.Image:
    """Read the header only, and refuse what is no image or too large before a pixel is decoded."""
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} is not an image that can be read. Save it as JPEG, PNG or TIFF, or remove it."
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large: {error}. Cut it into fields first.") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path} is {width} x {height}: above {MAX_PIXELS // 10**6} megapixels. Cut it into fields first."
        )
    return image


def _is_deep(image: Image.Image, content: bytes) -> bool:
    """Whether a channel holds more than 8 bits. Pillow drops the lower ones of 16-bit RGB without a word."""
    if image.format == "PNG":
        return content[24] == 16
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,))) > 8
    return image.mode.startswith("I;16")


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise DataError(f"{path} has 32 bits a channel. Save it with 8 or 16 bits.")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _read_deep(content: bytes, path: Path) -> np.ndarray:
    # Not IMREAD_COLOR_RGB: OpenCV 5.0 garbles 16-bit TIFF under it.
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if pixels is None or pixels.dtype != np.uint16:
        raise DataError(
            f"{path} has a pixel format that cannot be read. Save it with 8 or 16 bits a channel."
        )
    used = max(8, (int(pixels.max()).bit_length() + 1) // 2 * 2)  # cameras have 8, 10, 12, 14 or 16 bits
    return (pixels[..., ::-1] >> (used - 8)).astype(np.uint8)
