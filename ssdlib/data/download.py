"""BCCD from its repository, at one commit, every file checked against a recorded sum."""

from __future__ import annotations

import functools
import hashlib
import io
import urllib.request
import zipfile
from importlib import resources
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from ssdlib.common.errors import DataError
from ssdlib.common.files import new_folder, sha256_of

COMMIT = "d272fb14cdff6e473fafeeeba32aba5f560e9e43"
URL = f"https://github.com/Shenggan/BCCD_Dataset/archive/{COMMIT}.zip"
TIMEOUT_SECONDS = 6.0
"""Patience for a connection and for each piece of the answer, so that being offline costs seconds."""

MAX_ARCHIVE_BYTES = 200_000_000
"""The real one has about 15 MB."""

_MAX_MEMBER_BYTES = 5_000_000  # the largest image has 50 KB
_MANIFEST = "bccd.sha256"


@functools.cache
def manifest() -> dict[str, str]:
    """SHA-256 of each of BCCD's 732 files by its path below the data folder, sorted by path."""
    text = (resources.files("ssdlib.data") / _MANIFEST).read_text(encoding="ascii")
    return {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}


def differences(root: str | Path) -> list[str]:
    """What in the folder `root` is not as published, one line a file; empty if everything is."""
    found = []
    for name, digest in manifest().items():
        file = Path(root) / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif sha256_of(file) != digest:
            found.append(f"{name} differs from the published file")
    return found


def download_bccd(target: str | Path, *, progress: bool = True) -> Path:
    """Fetch BCCD into the new folder `target` and return it.

    The folder appears only when it is complete. Raises DataError if there is no network, if the archive is
    cut short or its files are not the published ones, or if `target` holds something, which then stays.
    """
    with new_folder(target, already=lambda: not differences(target)) as folder:
        _unpack(_fetch(target, progress), folder)
    return Path(target)


def _fetch(target: str | Path, progress: bool) -> BinaryIO:
    request = urllib.request.Request(URL, headers={"User-Agent": "ssdlib"})
    archive = io.BytesIO()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            total = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm(None, "download BCCD", total, unit="B", unit_scale=True, disable=not progress) as bar:
                while piece := answer.read(1 << 16):
                    bar.update(archive.write(piece))
                    if archive.tell() > MAX_ARCHIVE_BYTES:
                        raise DataError(f"{URL} sends more than {MAX_ARCHIVE_BYTES // 10**6} MB: not BCCD.")
    except OSError as error:  # URLError and time-outs are OSErrors, too
        reason = getattr(error, "reason", None) or error
        raise DataError(f"cannot download {URL} into {target}: {reason}") from error
    return archive


def _unpack(archive: BinaryIO, folder: Path) -> None:
    """Write exactly the files of the manifest; a path in the archive is looked up, never followed."""
    try:
        packed = zipfile.ZipFile(archive)
        members = {name.partition("/BCCD/")[2]: name for name in packed.namelist() if "/BCCD/" in name}
        for name, digest in manifest().items():
            if name not in members:
                raise DataError(f"the archive from {URL} lacks {name}. Try again.")
            info = packed.getinfo(members[name])
            content = packed.read(info) if info.file_size <= _MAX_MEMBER_BYTES else b""
            if hashlib.sha256(content).hexdigest() != digest:
                raise DataError(
                    f"{name} from {URL} is not the published file (its SHA-256 differs). Try again."
                )
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    except zipfile.BadZipFile as error:
        raise DataError(f"the archive from {URL} is damaged ({error}). Try again.") from error
