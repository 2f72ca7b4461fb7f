"""Files of strangers: read within limits, decoded whatever is in them, called by harmless names."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssdlib.common.errors import DataError
from ssdlib.common.files import is_hidden
from ssdlib.data.images import decode_image


@dataclass(frozen=True)
class Limits:
    """What a visitor may upload. The limits of one file are checked before a pixel is decoded."""

    file_bytes: int = 20_000_000
    pixels: int = 60_000_000
    fields: int = 24
    total_bytes: int = 120_000_000
    """All files of a session together: they stay in memory, for the picture in full size."""
    memory_bytes: int = 500_000_000
    """All sessions together; 50 visitors have 10 MB each. The process has 1.4 GB beside them, and shall stay
    below 2 GB."""
    arriving_bytes: int = 1_000_000_000
    """All uploads together that lie on the disk until they are read."""


@dataclass(frozen=True, eq=False)
class Upload:
    """An image file in memory, by the name that the page shows."""

    name: str
    content: bytes


def safe_name(name: str) -> str:
    """The last part of a path of any system, without characters that do not print; never empty."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    # Categories C*: control, formatting (which may turn text around), surrogates.
    printable = "".join(c for c in last if not unicodedata.category(c).startswith("C")).strip()
    if len(printable) > 80:
        printable = f"{printable[:60]}…{printable[-19:]}"
    return printable if printable.strip(". ") else "image"


def read_upload(path: Path, name: str, limits: Limits) -> Upload:
    """The file at `path`, called `name`. Raises DataError if it is missing, empty, hidden or too large."""
    if is_hidden(name):
        raise DataError(f"{name} is a hidden file, as systems leave beside the images. It is passed over.")
    try:
        with path.open("rb") as stream:
            content = stream.read(limits.file_bytes + 1)
    except OSError as error:
        raise DataError(f"{name} has not arrived ({error.strerror or error}). Try again.") from error
    if len(content) > limits.file_bytes:
        raise DataError(f"{name} is larger than {limits.file_bytes / 1e6:g} MB. Save it smaller, as JPEG.")
    if not content:
        raise DataError(f"{name} is empty. Copy it again from its source.")
    return Upload(name, content)


def decode_upload(upload: Upload, limits: Limits) -> np.ndarray:
    """The upload as (H, W, 3) uint8 RGB. Raises DataError, whatever is wrong with it."""
    return decode_image(upload.content, Path(upload.name), limits.pixels)
