"""Image files to RGB arrays and back, strict about damage and generous about formats.

Pillow decodes because it is strict: a truncated file is an error there, where OpenCV may hand back a picture
with a gray lower half. Both decode JPEG with libjpeg-turbo, bit for bit alike. TIFF has a reader of its own,
`ssdlib.data.tiff`. Large pictures are converted in strips: whole copies of them would fill the memory.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import cv2
import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from ssdlib.common.errors import DataError
from ssdlib.common.files import is_hidden, require_file, write_bytes
from ssdlib.data import tiff

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
"""Pillow's names of what it may open, whatever a file is called. Others are large risks for files that nobody
has: EPS starts another program, ICNS and DDS unpack without a limit."""

WRITTEN_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Endings that `write_image` knows."""

IMAGE_SUFFIXES = (
    *WRITTEN_SUFFIXES,
    *(".jpe", ".jfif", ".gif", ".jp2", ".j2k", ".pgm", ".ppm", ".pnm", ".svs"),
)
"""Files with these endings (in any case) are taken for images."""

MAX_PIXELS = 100_000_000
"""An image that unpacks to more is refused: a small file can claim any size (a decompression bomb). 100
megapixels, a 10,000 x 10,000 field, are more than most cameras have, and a job with such images needs less
than 2 GB. It is half of it where a pixel needs more memory while it is decoded: with 16 bits or
transparency, in WebP, JPEG 2000 and progressive JPEG."""

MAX_SIDE = 65_535
"""Longer sides are refused, too: a line of 170 million pixels is no field, and its tiles have no end."""

warnings.filterwarnings("ignore", module=r"PIL\.")  # of what is refused here, or read nevertheless

_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
_Value = TypeVar("_Value")


def read_image(path: str | Path) -> np.ndarray:
    """The image as (H, W, 3) uint8 RGB, upright.

    Gray becomes RGB, transparency is laid on white (none is where it hides all), and the EXIF
    orientation is applied. 16-bit values are brought to 8 bits by `to_eight_bits`. Of a TIFF with several
    pictures, `name.tif[2]` is the second and `name.tif` the first, see `fields_in`; of other files with
    several frames the first counts. Raises DataError, naming the file, if it is missing, no regular file,
    truncated, not an image or above `MAX_PIXELS`.
    """
    return _read(Path(path), _decode)


def decode_image(content: bytes, path: Path, max_pixels: int | None = None) -> np.ndarray:
    """`read_image` for a file that is in memory already; `path` is what errors call it.

    `max_pixels` is a limit below `MAX_PIXELS`.
    """
    with _file_named_in_errors(path):
        return _decode(io.BytesIO(content), path, max_pixels)


def image_header(path: str | Path) -> tuple[tuple[int, int], int]:
    """Width and height in pixels, upright, and how EXIF turns the stored raster: 1 (upright) to 8.

    Only the file's header is read. Raises DataError like `read_image`.
    """
    (width, height), orientation = _read(Path(path), _header)
    return ((height, width) if orientation in (5, 6, 7, 8) else (width, height)), orientation


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels, upright, from the file's header. Raises DataError like `read_image`."""
    return image_header(path)[0]


def is_turned(path: str | Path) -> bool:
    """Whether EXIF says that the picture is to be turned or mirrored. Raises DataError like `read_image`."""
    return image_header(path)[1] != 1


def fields_in(path: Path, content: bytes | None = None) -> list[Path]:
    """The paths to read a file's pictures by: of a TIFF with several `name.tif[1]`, `name.tif[2]`, ...

    A picture much smaller than the largest one is passed over, as a thumbnail. For other files, and where the
    file cannot be read, the path alone. `content` is that of a file that is in memory already.
    """
    count = 1
    try:
        if _is_tiff_name(path) and _page(path) is None:
            with _file_named_in_errors(path):
                count = _count_fields(io.BytesIO(content), path) if content else _read(path, _count_fields)
    except DataError:
        count = 1  # `read_image` says what is wrong
    return [path.with_name(f"{path.name}[{k}]") for k in range(1, count + 1)] if count > 1 else [path]


def file_of(path: Path) -> Path:
    """The file that `path` names, or of whose pictures it names one."""
    return path if _page(path) is None else path.with_name(path.name[: path.name.rindex("[")])


def read_um_per_pixel(file: str | Path | io.BytesIO) -> float | None:
    """Micrometers per pixel by a TIFF's tags, see `ssdlib.data.tiff.um_per_pixel`; None for other files."""
    if isinstance(file, io.BytesIO):
        return _um_per_pixel(file, Path())
    try:
        return _read(Path(file), _um_per_pixel) if _is_tiff_name(Path(file)) else None
    except DataError:
        return None  # `read_image` says what is wrong with it


def upright(raster: np.ndarray, orientation: int) -> np.ndarray:
    """A raster (H, W, ...) as it is to be seen, by EXIF's orientation; a view."""
    if orientation in (5, 6, 7, 8):
        raster = raster.swapaxes(0, 1)
    flip_x, flip_y = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    return raster[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def turned_corners(
    corners: tuple[float, float, float, float], size: tuple[int, int], orientation: int
) -> tuple[float, float, float, float]:
    """The corners xyxy of a box on a stored raster of (width, height) as they lie on the upright picture."""
    (x1, y1, x2, y2), (width, height) = corners, size
    if orientation in (5, 6, 7, 8):
        x1, y1, x2, y2, width, height = y1, x1, y2, x2, height, width
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return x1, y1, x2, y2


def to_eight_bits(samples: np.ndarray, visible: np.ndarray | None = None) -> np.ndarray:
    """Samples (H, W, ...) uint16 as uint8, by the depth in use or, where that is dark, by their own light.

    The light of a field is taken for its 95th percentile, of the `visible` pixels (H, W): neither hot pixels
    nor a scale bar that is burnt in change it. Cameras fill 8, 10, 12, 14 or 16 bits: the least depth that
    holds the light is taken for that of the camera, and a light field fills most of it (BCCD's percentile is
    208 of 255, the least of 700 others 187). One that does not is a camera that does not use its range: its
    light becomes 212.
    """
    counts = np.zeros(2**16, np.int64)
    for strip in _strips(len(samples)):
        seen = samples[strip] if visible is None else samples[strip][visible[strip]]
        counts += np.bincount(seen.reshape(-1), minlength=2**16)
    at = 0.95 * (counts.sum() - 1)
    low, high = np.searchsorted(np.cumsum(counts), [math.floor(at), math.ceil(at)], side="right")
    light = float(low + (high - low) * (at % 1)) or float(counts.nonzero()[0].max(initial=0)) or 1.0
    depth, eight = tiff.depth_of(light), np.empty(samples.shape, np.uint8)
    for strip in _strips(len(samples)):
        if light >= _LIGHT * 2**depth:
            eight[strip] = np.minimum(samples[strip] >> (depth - 8), 255)
        else:
            eight[strip] = np.minimum(samples[strip] * (212 / light) + 0.5, 255)
    return eight


_LIGHT = 0.7
"""The share of a depth that a light field fills at least; what is darker is scaled."""


def _read(path: Path, read: Callable[[BinaryIO, Path], _Value]) -> _Value:
    """What `read` makes of the open file, errors naming it."""
    with _file_named_in_errors(path):
        require_file(file_of(path))
        with file_of(path).open("rb") as stream:
            return read(stream, path)


def _is_tiff_name(path: Path) -> bool:
    return file_of(path).suffix.lower() in (".tif", ".tiff", ".svs")


def _page(path: Path) -> int | None:
    """The number in `name.tif[2]`, from 1; None for the path of a file."""
    numbered = re.fullmatch(r"(.+\.(?:tiff?|svs))\[(\d{1,6})\]", path.name, re.IGNORECASE)
    return int(numbered[2]) if numbered and not os.path.exists(path) else None  # noqa: PTH110 (raises for long names)


def _decode(stream: BinaryIO, path: Path, max_pixels: int | None = None) -> np.ndarray:
    if _head(stream)[:4] in tiff.MAGIC:
        with tiff.open_tiff(stream) as opened:
            field = _field(opened, path, max_pixels)
            orientation, raster = field.orientation, tiff.decode(opened, field, MAX_PIXELS)
    else:
        head = _head(stream)
        with _open(stream, path, max_pixels) as image:
            image.load()
            orientation, raster = _orientation(image), _raster(image, head, stream, path)
        del image  # its pixels need as much memory again
        if head.startswith(b"\xff\xd8") and _ends_early(stream, raster.rgb):
            raise DataError(
                f"{path} is truncated: its data end before the picture does. Copy it again from its source, "
                "or remove it."
            )
    return np.ascontiguousarray(upright(_flattened(raster), orientation))


def _raster(image: Image.Image, head: bytes, stream: BinaryIO, path: Path) -> tiff.Raster:
    """The samples of an image that is not TIFF."""
    if head.startswith(b"\x89PNG") and head[24] == 16:
        # Pillow drops the lower bits of colors.
        stream.seek(0)
        samples = imagecodecs.png_decode(stream.read())
        samples = samples if samples.ndim == 3 else samples[..., None]
        colors = 1 if samples.shape[2] < 3 else 3
        rgb = np.broadcast_to(samples[..., :colors], (*samples.shape[:2], 3))
        return tiff.Raster(rgb, samples[..., colors] if samples.shape[2] > colors else None)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return tiff.Raster(np.stack([np.array(image).astype(np.uint16)] * 3, -1))
    if image.mode in ("I", "F"):
        raise DataError(f"{path} has 32 bits a channel. Save it with 8 or 16 bits.")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    pixels = np.empty((image.height, image.width, len(mode)), np.uint8)
    for strip in _strips(image.height):
        pixels[strip] = _converted(image, strip, mode)
    return tiff.Raster(pixels[..., :3], pixels[..., 3] if mode == "RGBA" else None)


def _strips(height: int) -> Iterator[slice]:
    """The rows of a picture, a few at a time."""
    return (slice(start, min(start + 256, height)) for start in range(0, height, 256))


def _converted(image: Image.Image, strip: slice, mode: str) -> np.ndarray:
    """Some rows of an image in another mode of Pillow's."""
    return np.asarray(image.crop((0, strip.start, image.width, strip.stop)).convert(mode))


def _ends_early(stream: BinaryIO, rgb: np.ndarray) -> bool:
    """Whether the data of a JPEG, decoded to (H, W, 3) as stored, do not reach to the end of its picture.

    libjpeg fills what is missing and says nothing where a program can hear it. But data that are put in
    front of each marker change such a picture alone: behind a picture that is whole they are passed over.
    """
    stream.seek(0)
    header = JpegImageFile(stream)
    begin = stream.tell()
    stream.seek(0)
    head = stream.read(begin)
    size = struct.pack(">HHB", *header.size[::-1], header.layers)
    if re.search(rb"\xff[\xc9\xca]..\x08" + re.escape(size), head, re.DOTALL):
        return False  # arithmetic coding, which may leave out zeros at the end
    one_scan = head[-4 - 2 * header.layers] == header.layers and not header.info.get("progressive")
    light = rgb[-1, -1] @ (0.299, 0.587, 0.114)
    if one_scan and header.layers < 4 and abs(light - 128) > 2:  # not the gray that is filled in
        return False
    data = stream.read(rgb.size + 2**20)  # no scan is longer
    more = re.sub(rb"\xff(?=[\x01-\xcf\xd8-\xfe])", lambda _: _MORE + b"\xff", data, count=100)
    try:
        with JpegImageFile(io.BytesIO(head + more)) as other:
            other.load()
            return any(
                not np.array_equal(_converted(other, strip, "RGB"), rgb[strip])
                for strip in _strips(other.height)
            )
    except OSError:  # no one's fault but that of `more`
        return False


_MORE = b"".join(bytes((*range(200), 0xFF, marker)) for marker in range(0xD0, 0xD8)) + bytes(range(200))
"""Data for a JPEG's scan, with a restart marker of each number, of which one fits."""


def _flattened(raster: tiff.Raster) -> np.ndarray:
    """(H, W, 3) uint8: in 8 bits, and what is transparent laid on white."""
    rgb, alpha = raster.rgb, raster.alpha
    alpha = None if alpha is None or not alpha.any() else alpha
    if rgb.dtype == np.uint16:
        rgb = to_eight_bits(rgb, None if alpha is None else alpha > 0)
    if alpha is None:
        return rgb
    most, flat = np.iinfo(alpha.dtype).max, np.empty(rgb.shape, np.uint8)
    for strip in _strips(len(rgb)):
        share = (alpha[strip] / most)[..., None]
        colors = rgb[strip] if raster.premultiplied else rgb[strip] * share
        flat[strip] = np.minimum(colors + 255 * (1 - share) + 0.5, 255)
    return flat


def _header(stream: BinaryIO, path: Path) -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation."""
    if _head(stream)[:4] in tiff.MAGIC:
        with tiff.open_tiff(stream) as opened:
            field = _field(opened, path)
            return field.size, field.orientation
    with _open(stream, path) as image:
        return image.size, _orientation(image)


def _count_fields(stream: BinaryIO, _: Path) -> int:
    if _head(stream)[:4] not in tiff.MAGIC:
        return 1
    with tiff.open_tiff(stream) as opened:
        return len(tiff.fields_of(opened))


def _um_per_pixel(stream: BinaryIO, _: Path) -> float | None:
    if _head(stream)[:4] not in tiff.MAGIC:
        return None
    with tiff.open_tiff(stream) as opened:
        return tiff.um_per_pixel(opened)


def _field(opened: tiff.TiffFile, path: Path, max_pixels: int | None = None) -> tiff.Field:
    """The picture that `path` names. Raises DataError if there is none, or if it is too large."""
    fields, number = tiff.fields_of(opened), _page(path) or 1
    if not 1 <= number <= len(fields):
        raise DataError(f"{path} is not there: {file_of(path)} has {len(fields)} pictures.")
    field = fields[number - 1]
    _check_size(path, *field.size, max_pixels, field.is_plain)
    return field


def _check_size(path: Path, width: int, height: int, max_pixels: int | None, plain: bool) -> None:
    most = min(max_pixels or MAX_PIXELS, MAX_PIXELS if plain else MAX_PIXELS // 2)
    if width * height > most or max(width, height) > MAX_SIDE:
        limit = f"{most / 1e6:g} megapixels" if width * height > most else f"{MAX_SIDE:,} pixels on a side"
        raise DataError(f"{path} is {width} x {height}: more than {limit}. Cut it into fields first.")


@contextmanager
def _file_named_in_errors(path: Path) -> Iterator[None]:
    """Turn the errors of reading and decoding into a DataError that names the file."""
    try:
        yield
    except (FileNotFoundError, DataError) as error:
        if isinstance(error.__cause__ or error, FileNotFoundError):
            raise DataError(f"there is no image {path}. Check the path, or restore the file.") from error
        raise error if str(path) in str(error) else DataError(f"{path} cannot be read: {error}.") from error
    except Exception as error:  # decoders that are fed garbage raise whatever they come across
        if isinstance(error, OSError) and error.strerror:  # the operating system's, not the decoder's
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        why = str(error) or type(error).__name__
        raise DataError(
            f"{path} is truncated or damaged ({why}). Copy it again from its source, or remove it."
        ) from error


def encode_image(rgb: np.ndarray, suffix: str = ".jpg", *, quality: int = 95, scratch: bool = False) -> bytes:
    """A (H, W, 3) uint8 RGB array as the bytes of an image file. `quality` is JPEG's, 0 to 100.

    With `scratch` the array is of no use afterwards, which saves the memory of a copy.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix.lower() in (".jpg", ".jpeg") else []
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR, dst=rgb if scratch else None)
    _, encoded = cv2.imencode(suffix, bgr, options)
    return encoded.tobytes()


def write_image(path: str | Path, rgb: np.ndarray, *, quality: int = 95, scratch: bool = False) -> None:
    """Atomically write a (H, W, 3) uint8 RGB array as `encode_image` does; the ending of `path` names the
    format."""
    path = Path(path)
    if path.suffix.lower() not in WRITTEN_SUFFIXES:
        raise DataError(f"cannot write {path}: end the name with one of {', '.join(WRITTEN_SUFFIXES)}")
    write_bytes(path, encode_image(rgb, path.suffix.lower(), quality=quality, scratch=scratch))


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
    """Image files directly in `folder`, sorted by name; hidden ones are left out."""
    return sorted(
        file
        for file in Path(folder).iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(file)
    )


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


def _head(stream: BinaryIO) -> bytes:
    """The first bytes of a file, by which its format is known."""
    head = stream.read(32)
    stream.seek(0)
    return head


def _open(stream: BinaryIO, path: Path, max_pixels: int | None = None) -> Image.Image:
    """Read the header only, and refuse what is no image or too large before a pixel is decoded."""
    head = _head(stream)
    try:
        image = Image.open(stream, formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} is not an image that can be read. Save it as JPEG, PNG or TIFF, or remove it."
        ) from error
    except Image.DecompressionBombError as error:
        most = min(max_pixels or MAX_PIXELS, MAX_PIXELS)
        raise DataError(
            f"{path} is too large: more than {most / 1e6:g} megapixels. Cut it into fields first."
        ) from error
    plain = image.format in ("JPEG", "PNG", "BMP", "PPM") and image.mode in ("1", "L", "P", "RGB", "CMYK")
    plain = plain and not image.info.keys() & {"transparency", "progressive"}
    plain = plain and not (image.format == "PNG" and head[24] == 16)
    _check_size(path, *image.size, max_pixels, plain)
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF that is damaged says nothing, and the picture may be whole
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
