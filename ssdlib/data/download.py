"""Published data sets from their repositories, at one commit, every file checked against a recorded sum."""

from __future__ import annotations

import functools
import hashlib
import io
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from ssdlib.common.errors import DataError
from ssdlib.common.files import new_folder, sha256_of
from ssdlib.data.formats import voc

TIMEOUT_SECONDS = 6.0
"""Patience for a connection and for each piece of the answer, so that being offline costs seconds."""

MAX_ARCHIVE_BYTES = 200_000_000
"""BCCD's has about 15 MB, TXL-PBC's about 50."""

_MAX_MEMBER_BYTES = 5_000_000  # the largest image has 50 KB


@dataclass(frozen=True)
class Published:
    """A data set in a public repository at one commit."""

    name: str
    """What it is called, and its folder in data/, too."""
    url: str
    """The archive of the repository at the commit."""
    folder: str
    """The folder in the repository that holds it."""
    variable: str
    """The environment variable that names a copy which is here already."""
    layout: str
    """What a copy must hold, in words."""
    manifest: Callable[[], Mapping[str, str]]
    """Gives the SHA-256 of each file of use by its path below the folder."""

    def differences(self, root: str | Path, here: Callable[[str], str] = str) -> list[str]:
        """What in the folder `root` is not as published, one line a file; empty if everything is.

        here: what a published file is called there.
        """
        found = []
        for name, digest in self.manifest().items():
            file = Path(root) / here(name)
            if not file.is_file():
                found.append(f"{here(name)} is missing")
            elif sha256_of(file) != digest:
                found.append(f"{here(name)} differs from the published file")
        return found

    def download(self, target: str | Path, *, progress: bool = True) -> Path:
        """Fetch the files of the manifest, and no others, into the new folder `target` and return it.

        The folder appears only when it is complete. Raises DataError if there is no internet connection, if
        the archive is cut short or its files are not the published ones, or if `target` holds something,
        which then stays.
        """
        with new_folder(target, already=lambda: not self.differences(target)) as folder:
            self._unpack(self._fetch(target, progress), folder)
        return Path(target)

    def _fetch(self, target: str | Path, progress: bool) -> BinaryIO:
        request = urllib.request.Request(self.url, headers={"User-Agent": "ssdlib"})
        archive, title = io.BytesIO(), f"download {self.name}"
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                total = int(answer.headers.get("Content-Length") or 0) or None
                with tqdm(None, title, total, unit="B", unit_scale=True, disable=not progress) as bar:
                    while piece := answer.read(1 << 16):
                        bar.update(archive.write(piece))
                        if archive.tell() > MAX_ARCHIVE_BYTES:
                            most = f"{MAX_ARCHIVE_BYTES // 10**6} MB"
                            raise DataError(f"{self.url} sends more than {most}: not {self.name}.")
        except OSError as error:  # URLError and time-outs are OSErrors, too
            reason = getattr(error, "reason", None) or error
            raise DataError(f"cannot download {self.url} into {target}: {reason}") from error
        return archive

    def _unpack(self, archive: BinaryIO, folder: Path) -> None:
        """Write exactly the files of the manifest; a path in the archive is looked up, never followed."""
        inside = f"/{self.folder}/"
        try:
            packed = zipfile.ZipFile(archive)
            members = {name.partition(inside)[2]: name for name in packed.namelist() if inside in name}
            for name, digest in self.manifest().items():
                if name not in members:
                    raise DataError(f"the archive from {self.url} lacks {name}. Try again.")
                info = packed.getinfo(members[name])
                content = packed.read(info) if info.file_size <= _MAX_MEMBER_BYTES else b""
                if hashlib.sha256(content).hexdigest() != digest:
                    raise DataError(
                        f"{name} from {self.url} is not the published file (its SHA-256 differs). Try again."
                    )
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        except zipfile.BadZipFile as error:
            raise DataError(f"the archive from {self.url} is damaged ({error}). Try again.") from error


@functools.cache
def _bccd_manifest() -> dict[str, str]:
    """SHA-256 of each of BCCD's 732 files by its path below the data folder, sorted by path."""
    text = (resources.files("ssdlib.data") / "bccd.sha256").read_text(encoding="ascii")
    return {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}


BCCD = Published(
    "BCCD",
    "https://github.com/Shenggan/BCCD_Dataset/archive/d272fb14cdff6e473fafeeeba32aba5f560e9e43.zip",
    folder="BCCD",
    variable="BCCD_ROOT",
    layout=voc.LAYOUT,
    manifest=_bccd_manifest,
)
