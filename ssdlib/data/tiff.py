"""TIFF files as microscopes write them: several fields, colors as pages, small copies, pixel sizes.

tifffile reads the structure and the samples; what a sample means (tag PhotometricInterpretation) is applied
here. https://www.loc.gov/preservation/digital/formats/content/tiff_tags.shtml lists the tags by number.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPage

from ssdlib.common.errors import DataError

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it logs of damage is raised here

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first four bytes of TIFF and BigTIFF files, in both byte orders."""

_SMALL = 3
"""A page is a thumbnail or another smaller copy if the largest one has this many times its area."""

_MAX_SAMPLES, _MAX_PAGES = 8, 10_000


@dataclass(frozen=True)
class Field:
    """One picture in a TIFF: a page, or a gray page for each of red, green and blue."""

    pages: tuple[TiffPage, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as stored."""
        return self.pages[0].imagewidth, self.pages[0].imagelength

    @property
    def orientation(self) -> int:
        """How the stored raster is turned: EXIF's 1 to 8."""
        value = self.pages[0].tags.valueof(274, default=1)
        return int(value) if value in range(1, 9) else 1

    @property
    def is_plain(self) -> bool:
        """Whether it has 8 bits a channel and neither transparency nor colors that are to be converted."""
        page = self.pages[0]
        return page.dtype in (bool, np.uint8) and not page.extrasamples and page.photometric in _PLAIN


_PLAIN = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE)


@dataclass(frozen=True, eq=False)
class Raster:
    """Samples of a picture as stored, not turned."""

    rgb: np.ndarray
    """(H, W, 3) uint8 or uint16."""
    alpha: np.ndarray | None = None
    """(H, W) of the same type; None without transparency."""
    premultiplied: bool = False
    """Whether the colors are multiplied by alpha already."""


def open_tiff(stream: BinaryIO) -> TiffFile:
    """The structure of an open TIFF, to be used in a `with` statement; no sample is decoded.

    An OME-TIFF that names other files is read by itself. Raises whatever tifffile raises for damage.
    """
    return TiffFile(stream, _multifile=False)


def fields_of(tiff: TiffFile) -> list[Field]:
    """The pictures of a file in its order, those much smaller than the largest left out; at least one.

    Gray pages that OME or ImageJ calls channels of one picture are joined. Raises DataError without a page,
    and where pages lead back to one another.
    """
    pages: dict[int, TiffPage] = {}
    for page in (page for top in tiff.pages for page in chain((top,), top.pages or ())):
        if page.offset in pages or len(pages) == _MAX_PAGES:
            raise DataError("its pages lead back to one another, or are too many")
        pages[page.offset] = page
    # Bit 0 of NewSubfileType marks a smaller copy of another page, bit 2 a mask.
    fields = _joined(tiff) or [Field((page,)) for page in pages.values() if not page.subfiletype & 5]
    fields = fields or [Field((page,)) for page in pages.values()]
    if not fields:
        raise DataError("it has no picture")
    largest = max(math.prod(field.size) for field in fields)
    return [field for field in fields if math.prod(field.size) * _SMALL >= largest]


def _joined(tiff: TiffFile) -> list[Field]:
    """The pictures of a file whose metadata say that gray pages are channels; none in another file."""
    fields = []
    for series in tiff.series if tiff.is_ome or tiff.is_imagej else ():
        pages = [page.aspage() for page in series.pages if page is not None]
        names = [axis for axis in series.axes if axis not in "YXS"]
        lengths = [series.shape[series.axes.index(axis)] for axis in names]
        if "C" not in names or len(pages) != math.prod(lengths):
            fields += [Field((page,)) for page in pages]
            continue
        order = np.moveaxis(np.arange(len(pages)).reshape(lengths), names.index("C"), -1)
        channels = _channel_order(tiff, order.shape[-1])
        fields += [
            Field(tuple(pages[group[k]] for k in channels)) for group in order.reshape(-1, len(channels))
        ]
    return fields


def _channel_order(tiff: TiffFile, count: int) -> list[int]:
    """The numbers of the channels, red, green and blue first where OME's names or colors tell them."""
    said = []
    for entry in re.findall(r"<Channel\b[^>]*>", tiff.ome_metadata or "")[:count]:
        name, color = re.search(r'\bName="([rgb])', entry, re.I), re.search(r'\bColor="(-?\d+)"', entry)
        value = int(color[1]) if color else 0
        parts = [value >> shift & 255 for shift in (24, 16, 8)]  # RGBA, signed
        pure = sorted(parts)[1] < 128 <= max(parts)
        said.append(name[1].lower() if name else "rgb"[int(np.argmax(parts))] if pure else "")
    known = [said.index(letter) for letter in "rgb" if letter in said]
    return [*known, *(k for k in range(count) if k not in known)] if len(known) == 3 else list(range(count))


def decode(tiff: TiffFile, field: Field, max_pixels: int) -> Raster:
    """The samples of a picture. Raises DataError where they are of a kind that is not read, or cut off.

    Nothing larger than `max_pixels`, be it a tile, is decoded. Raises whatever a decoder does for damage.
    """
    for page in field.pages:
        _check(tiff, page, max_pixels)
    if len(field.pages) not in (1, 3, 4):
        raise DataError(f"it has {len(field.pages)} channels: save it as RGB, or one channel alone in gray")
    rasters = [_decode_page(tiff, page) for page in field.pages[:3]]
    if any(raster.rgb.shape != (*field.size[::-1], 3) for raster in rasters):
        raise DataError("its tags contradict one another about its size")
    if len(rasters) == 1:
        return rasters[0]
    return Raster(np.stack([raster.rgb[..., 0] for raster in rasters], -1))


def _check(tiff: TiffFile, page: TiffPage, max_pixels: int) -> None:
    tile = page.tilewidth * page.tilelength * page.tiledepth
    if max(tile, page.imagewidth * page.imagelength) > max_pixels or page.imagedepth != 1:
        raise DataError(f"it has pages or tiles above {max_pixels // 10**6} megapixels: cut it into fields")
    if page.samplesperpixel > _MAX_SAMPLES:
        raise DataError(f"it has {page.samplesperpixel} samples a pixel: save it as RGB or gray")
    # Signed 16 bits are of cameras' software that never writes a negative.
    if page.dtype is None or page.dtype.str[1:] not in ("b1", "u1", "u2", "i2"):
        raise DataError("it has more than 16 bits a channel, or fractions: save it with 8 or 16 bits")
    ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    # tifffile fills what is missing with zeros, which would be counted as an image without cells.
    if not ends or max(ends) > tiff.filehandle.size or not all(page.databytecounts):
        raise DataError("its end is missing")


def _decode_page(tiff: TiffFile, page: TiffPage) -> Raster:
    """The samples of one page, what they mean applied."""
    photometric = page.photometric
    converted = photometric == PHOTOMETRIC.YCBCR and page.compression in _JPEG  # to RGB, by the decoder
    if not converted and photometric not in _PLAIN:
        return _decode_color(tiff, page)
    samples = page.asarray(maxworkers=1)
    samples = samples.astype(np.uint8) if samples.dtype == bool else samples
    if samples.dtype.kind == "i":
        samples = np.maximum(samples, 0).astype(np.uint16)
    if samples.ndim == 2:
        samples = samples[..., None]
    elif page.planarconfig == 2:
        samples = np.moveaxis(samples, 0, -1)
    bits = int(np.max(page.bitspersample))
    if photometric == PHOTOMETRIC.PALETTE:
        colors = page.colormap  # (3, 2 ** bits), to 65535, of some programs to 255
        colors = colors >> 8 if colors.max() > 255 else colors
        return Raster(np.ascontiguousarray(colors.astype(np.uint8).T[samples[..., 0]]))
    if bits < 8:
        samples = samples * (255 // (2**bits - 1))
    colors = 1 if photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE) else 3
    rgb, extra = samples[..., :colors], samples[..., colors:]
    if photometric == PHOTOMETRIC.MINISWHITE:
        # The depth in use, not that of the type: a 12-bit camera's black is 4095.
        depth = depth_of(np.percentile(rgb, 99.9)) if rgb.dtype == np.uint16 else 8
        rgb = (2**depth - 1) - np.minimum(rgb, 2**depth - 1)
    rgb = np.ascontiguousarray(np.broadcast_to(rgb, (*rgb.shape[:2], 3)))
    kind = next((int(kind) for kind in page.extrasamples[:1]), 0)  # 1: alpha, multiplied; 2: alpha
    return Raster(rgb, extra[..., 0] if kind in (1, 2) and extra.size else None, kind == 1)


_JPEG = (COMPRESSION.JPEG, COMPRESSION.OJPEG, COMPRESSION.JPEG_LOSSY, COMPRESSION.APERIO_JP2000_YCBC)


def _decode_color(tiff: TiffFile, page: TiffPage) -> Raster:
    """The samples of a page in CMYK, Lab or YCbCr, which Pillow turns into RGB and tifffile leaves alone."""
    deep = int(np.max(page.bitspersample)) > 8
    if deep and page.photometric == PHOTOMETRIC.SEPARATED and page.samplesperpixel == 4:
        samples = page.asarray(maxworkers=1)
        samples = np.moveaxis(samples, 0, -1) if page.planarconfig == 2 else samples
        inks = np.ascontiguousarray(samples >> 8).astype(np.uint8)
        return Raster(np.array(Image.fromarray(inks, "CMYK").convert("RGB")))
    if deep or page.treeindex[1:]:
        raise DataError(f"it is in {page.photometric.name} colors: save it as RGB")
    tiff.filehandle.seek(0)
    with Image.open(tiff.filehandle, formats=["TIFF"]) as image:
        image.seek(page.index)
        return Raster(np.array(image.convert("RGB")))


def depth_of(value: float) -> int:
    """The bits of a camera that gives such a value: 8, 10, 12, 14 or 16."""
    return next(bits for bits in (8, 10, 12, 14, 16) if value < 2**bits or bits == 16)


# --- size of a pixel -------------------------------------------------------------------------------------

_MICRONS = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0,
            "nm": 1e-3, "\\u00b5m": 1.0}  # fmt: skip
"""Micrometers of the units that ImageJ and OME name; ImageJ writes the sign in two ways."""


def um_per_pixel(tiff: TiffFile) -> float | None:
    """Micrometers per pixel by OME's, ImageJ's or the resolution's tags; None without plausible ones.

    OME: PhysicalSizeX and its unit, um by default. ImageJ: XResolution with the unit of its description. Else
    XResolution by inch or cm. Programs that know nothing write 72 or 300 dots an inch, 0 or 1, which are no
    scale of a smear under a microscope (0.01 to 0.5) and are passed over.
    """
    about = str(tiff.pages.first.tags.valueof(270, default=""))
    tags = fields_of(tiff)[0].pages[0].tags
    across, unit = tags.valueof(282, default=None), tags.valueof(296, default=2)
    um = None
    if match := re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', about):
        named = re.search(r'PhysicalSizeXUnit="([^"]+)"', about)
        um = _number(match[1]) * _MICRONS.get(named[1] if named else "um", math.nan)
    elif across and _number(across) > 0:
        named = re.search(r"^unit=(\S+)", about, re.MULTILINE)
        length = _MICRONS.get(named[1].lower(), math.nan) if named else {2: 25_400.0, 3: 10_000.0}.get(unit)
        um = length / _number(across) if length else None
    return um if um is not None and 0.01 <= um <= 0.5 else None


def _number(value: Any) -> float:
    """The value, or (numerator, denominator), as a float; NaN where it is none."""
    try:
        return value[0] / value[1] if isinstance(value, tuple) else float(value)
    except (ValueError, TypeError, IndexError, ZeroDivisionError):
        return math.nan
