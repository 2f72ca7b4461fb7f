"""Where the data comes from: the one place that chooses BCCD, a folder of yours or synthetic smears."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssdlib.common import paths
from ssdlib.common.errors import DataError
from ssdlib.common.files import sha256_of
from ssdlib.config import BCCD_CLASSES
from ssdlib.data import download
from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.data.formats import coco, voc, yolo
from ssdlib.data.formats.layouts import read_folder
from ssdlib.data.formats.records import Finding, LabeledFolder, LabeledImage
from ssdlib.data.splits import SPLITS

OTHER_LAYOUTS = f"YOLO ({yolo.LAYOUT}), COCO ({coco.LAYOUT}) or XML files beside their images"

EXTRA_SMEARS_SEED = 1
_SMEAR_PREFIX = "SmearImage_"
_SMEAR_NOTICE = (
    "SYNTHETIC DATA: these are drawn blood smears, not BCCD. Results say nothing about real cells."
)


@dataclass(frozen=True)
class DataSource:
    """A folder of labeled images, read once when it was opened, and what is known about it."""

    kind: str
    """bccd, smears, voc, coco or yolo."""
    labels: LabeledFolder = field(repr=False)
    """Images with their objects and findings, and the splits, whatever layout the folder has."""
    class_names: tuple[str, ...]
    """In label order, from label 1."""
    synthetic: bool = False
    notice: str = ""
    """What everyone who reads a result must know; empty for real data with splits of its own."""

    @property
    def folder(self) -> Path:
        """The folder as its owner knows it."""
        return self.labels.root

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of all images, labels and lists of splits, as they are now.

        It is the sum of the list that `sha256sum` prints of them in sorted order, so two copies with the
        same content agree wherever they lie. Computed once in a process while sizes and times stay the same.
        """
        files = sorted(set(self.labels.files), key=lambda file: file.relative_to(self.folder).as_posix())
        try:
            stamp = tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} is gone since {self.folder} was read. Run again.") from error
        return _fingerprint(self.folder, tuple(files), stamp)

    def split_ids(self, split: str) -> list[str]:
        """Image ids of train, val, test or trainval, in the file's order. Raises DataError if empty.

        "all" is every image that has its labels, in a split or not, by name.
        """
        if split == "all":
            ids = [image.image_id for image in self.labels.images if image.complete]
            if not ids:
                raise DataError(f"no image in {self.folder} has an annotation: label some images first.")
            return ids
        if split not in SPLITS:
            raise DataError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)} or all.")
        if errors := [finding for finding in self.labels.findings if finding.severity == "error"]:
            raise DataError(str(errors[0]))
        if not self.labels.splits[split]:
            lists = self.folder / "ImageSets" / "Main"
            remedy = (
                f"List image names, one a line, in {lists / f'{split}.txt'}, or remove ImageSets to have the "
                "images divided for you."
                if lists.is_dir()
                else "Add images to it, or more images to be divided."
            )
            raise DataError(f"split {split} of {self.folder} is empty. {remedy}")
        return list(self.labels.splits[split])

    def dataset(
        self,
        split: str,
        limit: int | None = None,
        transform: Callable[[Any, dict], tuple[Any, dict]] | None = None,
    ) -> DetectionDataset:
        """The images of a split (the first `limit` of them) with their ground truth; pixels are read later.

        Raises DataError for a missing or damaged file or an unknown class.
        """
        images = [self.labels.by_id[image_id] for image_id in self.split_ids(split)[:limit]]
        samples = [self._sample(image) for image in images]
        return DetectionDataset(samples, self.class_names, transform).subset(limit)

    def _sample(self, image: LabeledImage) -> Sample:
        for finding in (image.error, *self.unknown_classes(image)):
            if finding is not None:
                raise DataError(str(finding))
        return Sample(
            image_id=image.image_id,
            image_path=image.path,
            width=image.width,
            height=image.height,
            boxes=image.boxes,
            labels=image.labels(self.class_names),
            objects=tuple(image.objects),
            label_file=image.label_file,
        )

    def unknown_classes(self, image: LabeledImage) -> Iterator[Finding]:
        """An error for each class name among the image's objects that the source does not have."""
        for name in sorted({o.name for o in image.objects} - set(self.class_names)):
            message = (
                f"{image.label_file} has unknown class {name!r}; known are {', '.join(self.class_names)}."
            )
            remedy = "Correct the name, or give the folder as DATA to train on its own classes."
            yield Finding("unknown_class", "error", image.image_id, message, remedy)

    def describe(self, *, root: bool = True) -> dict[str, Any]:
        """Plain values for a run's files: source, root, synthetic, notice, fingerprint.

        Without `root`, which only means something on this machine, for files that leave it.
        """
        return {
            "source": self.kind,
            **({"root": str(self.folder)} if root else {}),
            "synthetic": self.synthetic,
            "notice": self.notice,
            "fingerprint": self.fingerprint,
        }


def resolve(data: str | Path = "auto", *, progress: bool = True, download: bool = True) -> DataSource:
    """Find the data that `data` asks for.

    - "bccd": the folder in $BCCD_ROOT; else data/BCCD; else the published commit is downloaded there.
    - "smears": synthetic smears, drawn once into data/cache.
    - "auto": BCCD, or, where it cannot be had, the smears, with a notice on stderr.
    - anything else: a folder with any classes, as for `open_folder`.

    SSDLIB_OFFLINE=1 or `download=False` keeps off the network. Raises DataError saying what to do.
    """
    if str(data) not in ("auto", "bccd", "smears"):
        return open_folder(data)
    if str(data) == "smears":
        return _smears(progress, "You asked for them with DATA=smears.")
    try:
        return _bccd(progress, download)
    except DataError as error:
        if str(data) == "bccd" or os.environ.get("BCCD_ROOT"):
            raise
        return _smears(progress, f"BCCD cannot be had: {error}")


def open_folder(path: str | Path) -> DataSource:
    """A folder of yours as a data source, in any layout that `read_folder` knows; it is never written to.

    Its classes are BCCD's if it has no others, else its own: in the folder's order where the layout has one
    (COCO, YOLO), else by name. A folder in the layout of VOC may also be given by its parent, if it is named
    BCCD. Raises DataError for a folder without labels of use.
    """
    labels = read_folder(Path(path).expanduser())
    if labels is None:
        raise DataError(
            f"{path} is not a dataset: there must be {voc.LAYOUT}. Give the folder that holds them, one that "
            f"is {OTHER_LAYOUTS}, or one of auto, bccd, smears."
        )
    if not labels.class_names:
        why = next((image.error for image in labels.images if image.error), "Label some images first.")
        raise DataError(f"no label in {labels.root} is of use. {why}")
    names = BCCD_CLASSES if set(labels.class_names) <= set(BCCD_CLASSES) else labels.class_names
    if (labels.root / "smears.json").is_file() or all(
        image.image_id.startswith(_SMEAR_PREFIX) for image in labels.images
    ):
        return DataSource("smears", labels, names, synthetic=True, notice=_SMEAR_NOTICE)
    if labels.notice:
        _say_once(labels.notice)
    annotations = {file.stem for file in labels.files if file.suffix == ".xml"}
    published = {Path(name).stem for name in download.manifest() if name.endswith(".xml")}
    if annotations == published and voc.find_root(labels.root):
        return DataSource("bccd", labels, BCCD_CLASSES, notice=labels.notice)
    return DataSource(labels.kind, labels, names, notice=labels.notice)


def extra_smears(count: int, *, progress: bool = True) -> DetectionDataset:
    """`count` synthetic smears to train on beside other data, drawn once into data/cache.

    Another seed than that of "smears" draws them: none is in a split that anything is judged by.
    """
    from ssdlib.data import smears

    root = paths.data_folder() / "cache" / f"extra-smears-{smears.SMEARS_VERSION}-{count}"
    smears.write_dataset(root, train=count, val=0, test=0, seed=EXTRA_SMEARS_SEED, progress=progress)
    return open_folder(root).dataset("train")


def _bccd(progress: bool, may_download: bool) -> DataSource:
    variable = os.environ.get("BCCD_ROOT")
    places = [Path(variable).expanduser()] if variable else [f / "BCCD" for f in paths.data_folders()]
    for place in places:
        if labels := voc.read_voc_folder(place):
            return DataSource("bccd", labels, BCCD_CLASSES, notice=labels.notice)
    if variable:
        raise DataError(
            f"BCCD_ROOT is {variable}, which is not BCCD: there must be {voc.LAYOUT}. "
            "Correct the variable, or unset it."
        )
    remedy = f"Put Annotations, JPEGImages and ImageSets into {places[0]}, or set BCCD_ROOT to them."
    if not may_download or os.environ.get("SSDLIB_OFFLINE", "") not in ("", "0"):
        raise DataError(f"it is not on this machine, and downloading is switched off. {remedy}")
    try:
        return DataSource("bccd", voc.read_voc_folder(_download_once(places[0], progress)), BCCD_CLASSES)
    except DataError as error:
        raise DataError(f"{error}. {remedy}") from error


def _download_once(target: Path, progress: bool) -> Path:
    """Download; a failure is remembered, so that being offline costs its seconds once in a process."""
    if message := _failures.get(target):
        raise DataError(message)
    try:
        return download.download_bccd(target, progress=progress)
    except DataError as error:
        _failures[target] = str(error).rstrip(".")
        raise DataError(_failures[target]) from error


_failures: dict[Path, str] = {}


def _smears(progress: bool, reason: str) -> DataSource:
    from ssdlib.data import smears

    root = paths.data_folder() / "cache" / f"smears-{smears.SMEARS_VERSION}"
    smears.write_dataset(root, progress=progress)
    _say_once(f"{_SMEAR_NOTICE}\n{reason}")
    return open_folder(root)


@functools.lru_cache(maxsize=32)
def _fingerprint(root: Path, files: tuple[Path, ...], stamp: tuple[tuple[int, int], ...]) -> str:
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256_of, files))
    lines = (
        f"{digest}  {file.relative_to(root).as_posix()}\n"
        for digest, file in zip(digests, files, strict=True)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@functools.cache
def _say_once(message: str) -> None:
    """Print a boxed notice on stderr, once in a process."""
    lines = [piece for line in message.splitlines() for piece in textwrap.wrap(line, 92) or [""]]
    width = max(map(len, lines))
    bar = "!" * (width + 6)
    body = "\n".join(f"!! {line:<{width}} !!" for line in lines)
    print(f"\n{bar}\n{body}\n{bar}\n", file=sys.stderr, flush=True)
