"""Where the data comes from: the one place that chooses BCCD, a folder of yours or synthetic smears."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssdlib.common import paths
from ssdlib.common.errors import DataError
from ssdlib.common.files import sha256_of
from ssdlib.config import BCCD_CLASSES
from ssdlib.data import download
from ssdlib.data.dataset import DetectionDataset, Sample, label_array
from ssdlib.data.formats import coco, layouts, yolo
from ssdlib.data.formats.voc import VocAnnotation, read_voc
from ssdlib.data.images import IMAGE_SUFFIXES, image_size, list_images
from ssdlib.data.splits import SHARES_TEXT, SPLITS, divide

LAYOUT = "Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/{train,val,test}.txt"

OTHER_LAYOUTS = f"YOLO ({yolo.LAYOUT}), COCO ({coco.LAYOUT}) or XML files beside their images"

EXTRA_SMEARS_SEED = 1
_SMEAR_PREFIX = "SmearImage_"
_SMEAR_NOTICE = (
    "SYNTHETIC DATA: these are drawn blood smears, not BCCD. Results say nothing about real cells."
)


@dataclass(frozen=True)
class DataSource:
    """A folder in the Pascal VOC layout, and what is known about it."""

    kind: str
    """bccd, smears, voc, coco or yolo."""
    root: Path
    """Holds Annotations, JPEGImages and, usually, ImageSets/Main."""
    class_names: tuple[str, ...]
    """In label order, from label 1."""
    synthetic: bool = False
    notice: str = ""
    """What everyone who reads a result must know; empty for real data with splits of its own."""
    origin: Path | None = None
    """The folder that was given, where it has another layout and `root` is its likeness in data/cache."""

    @property
    def folder(self) -> Path:
        """The folder as its owner knows it."""
        return self.origin or self.root

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of all annotations, images and splits.

        It is the sum of the list that `sha256sum` prints of them in sorted order, so two copies with the
        same content agree wherever they lie. Computed once in a process while sizes and times stay the same.
        """
        files = _data_files(self.root)
        stamp = tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        return _fingerprint(self.root, tuple(files), stamp)

    def split_ids(self, split: str) -> list[str]:
        """Image ids of train, val, test or trainval, in the file's order. Raises DataError if empty.

        "all" is every annotation that has an image, in a split or not, by name.
        """
        if split == "all":
            return self._labeled_ids()
        if split not in SPLITS:
            raise DataError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)} or all.")
        ids = list(read_splits(self.root).get(split, ()))
        if not ids:
            raise DataError(
                f"split {split} of {self.root} is empty. List image names, one a line, in "
                f"{_split_file(self.root, split)}, or remove ImageSets to have the images divided for you."
            )
        return ids

    def _labeled_ids(self) -> list[str]:
        images = images_by_id(self.root)
        ids = [file.stem for file in annotation_files(self.root) if file.stem in images]
        if not ids:
            raise DataError(f"no image in {self.root} has an annotation: label some images first.")
        return ids

    def dataset(
        self,
        split: str,
        limit: int | None = None,
        transform: Callable[[Any, dict], tuple[Any, dict]] | None = None,
    ) -> DetectionDataset:
        """The images of a split (the first `limit` of them) with their ground truth.

        Annotations and image headers are read now, pixels when asked for. Raises DataError, naming the file
        and the remedy, for a missing or damaged file or an unknown class.
        """
        ids = self.split_ids(split)
        if converted := layouts.read_marker(self.root):
            errors = converted.errors
            for image_id in ids[:limit]:
                if image_id in errors:
                    raise DataError(errors[image_id])
        images = images_by_id(self.root)
        samples = [_sample(self.root, image_id, images, self.class_names) for image_id in ids[:limit]]
        return DetectionDataset(samples, self.class_names, transform).subset(limit)

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


def resolve(
    data: str | Path = "auto",
    *,
    cache_dir: str | Path | None = None,
    progress: bool = True,
    download: bool = True,
) -> DataSource:
    """Find the data that `data` asks for.

    - "bccd": the folder in $BCCD_ROOT; else data/BCCD; else the published commit is downloaded there.
    - "smears": synthetic smears, drawn once into data/cache.
    - "auto": BCCD, or, where it cannot be had, the smears, with a notice on stderr.
    - anything else: a folder with any classes, in the Pascal VOC layout (or its parent, if it is named
      BCCD), or in another that `ssdlib.data.formats.layouts` reads: COCO, YOLO, XML beside the images.

    `cache_dir` stands in for the data folder (of the checkout, else of the working directory).
    SSDLIB_OFFLINE=1 or `download=False` keeps off the network. Raises DataError saying what to do.
    """
    if str(data) not in ("auto", "bccd", "smears"):
        return open_folder(data, cache_dir=cache_dir)
    homes = [Path(cache_dir)] if cache_dir is not None else paths.data_folders()
    if str(data) == "smears":
        return _smears(homes[0], progress, "You asked for them with DATA=smears.")
    try:
        return _bccd(homes, progress, download)
    except DataError as error:
        if str(data) == "bccd" or os.environ.get("BCCD_ROOT"):
            raise
        return _smears(homes[0], progress, f"BCCD cannot be had: {error}")


def extra_smears(
    count: int, *, cache_dir: str | Path | None = None, progress: bool = True
) -> DetectionDataset:
    """`count` synthetic smears to train on beside other data, drawn once into data/cache.

    Another seed than that of "smears" draws them: none is in a split that anything is judged by.
    """
    from ssdlib.data import smears

    home = Path(cache_dir) if cache_dir is not None else paths.data_folders()[0]
    root = home / "cache" / f"extra-smears-{smears.SMEARS_VERSION}-{count}"
    smears.write_dataset(root, train=count, val=0, test=0, seed=EXTRA_SMEARS_SEED, progress=progress)
    return DataSource("smears", root, BCCD_CLASSES, synthetic=True).dataset("train")


def open_folder(path: str | Path, *, cache_dir: str | Path | None = None) -> DataSource:
    """A folder of yours as a data source; its classes are BCCD's if it has no others, else its own.

    Own classes come in the folder's order where the layout has one (COCO, YOLO), else by name. What is made
    of other layouts than VOC's goes to `cache_dir` as for `resolve`; the folder is never written to.
    """
    path = Path(path).expanduser()
    root = _voc_root(path)
    if root is None:
        home = Path(cache_dir) if cache_dir is not None else paths.data_folders()[0]
        root = layouts.convert(path, home / "cache" / "layouts")
    if root is None:
        raise DataError(
            f"{path} is not a dataset: there must be {LAYOUT}. Give the folder that holds them, one that is "
            f"{OTHER_LAYOUTS}, or one of auto, bccd, smears."
        )
    converted = layouts.read_marker(root)
    names, ids = _discover(root)
    if not names:
        raise DataError(_why_empty(root, converted))
    own_names = converted.class_names if converted else tuple(sorted(names))
    class_names = BCCD_CLASSES if names <= set(BCCD_CLASSES) else own_names
    kind, origin = (converted.kind, converted.folder) if converted else ("voc", None)
    if (root / "smears.json").is_file() or all(image_id.startswith(_SMEAR_PREFIX) for image_id in ids):
        return DataSource("smears", root, class_names, synthetic=True, notice=_SMEAR_NOTICE, origin=origin)
    notice = converted.notice if converted else _split_notice(root)
    if notice:
        _say_once(notice)
    if not origin and set(ids) == {Path(name).stem for name in download.manifest() if name.endswith(".xml")}:
        return DataSource("bccd", root, BCCD_CLASSES, notice=notice)
    return DataSource(kind, root, class_names, notice=notice, origin=origin)


def _why_empty(root: Path, converted: layouts.Converted | None) -> str:
    if converted is None:
        return f"no annotation in {root / 'Annotations'} has an object. Label some images first."
    why = "".join(f" {message}" for message in list(converted.errors.values())[:1])
    return f"no label in {converted.folder} is of use.{why or ' Label some images first.'}"


def _bccd(homes: Sequence[Path], progress: bool, may_download: bool) -> DataSource:
    if variable := os.environ.get("BCCD_ROOT"):
        root = _voc_root(Path(variable).expanduser())
        if root is None:
            raise DataError(
                f"BCCD_ROOT is {variable}, which is not BCCD: there must be {LAYOUT}. "
                "Correct the variable, or unset it."
            )
        return DataSource("bccd", root, BCCD_CLASSES, notice=_split_notice(root))
    for home in homes:
        if root := _voc_root(home / "BCCD"):
            return DataSource("bccd", root, BCCD_CLASSES, notice=_split_notice(root))
    remedy = f"Put Annotations, JPEGImages and ImageSets into {homes[0] / 'BCCD'}, or set BCCD_ROOT to them."
    if not may_download or os.environ.get("SSDLIB_OFFLINE", "") not in ("", "0"):
        raise DataError(f"it is not on this machine, and downloading is switched off. {remedy}")
    try:
        return DataSource("bccd", _download_once(homes[0] / "BCCD", progress), BCCD_CLASSES)
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


def _smears(home: Path, progress: bool, reason: str) -> DataSource:
    from ssdlib.data import smears

    root = home / "cache" / f"smears-{smears.SMEARS_VERSION}"
    smears.write_dataset(root, progress=progress)
    _say_once(f"{_SMEAR_NOTICE}\n{reason}")
    return DataSource("smears", root, BCCD_CLASSES, synthetic=True, notice=_SMEAR_NOTICE)


def _voc_root(path: Path) -> Path | None:
    for root in (path, path / "BCCD"):
        if (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir():
            return root.resolve()
    return None


def _split_file(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _split_notice(root: Path) -> str:
    if any(_split_file(root, split).is_file() for split in SPLITS):
        return ""
    return f"{root} has no ImageSets/Main: its images are divided by a fixed seed ({SHARES_TEXT})."


def read_splits(root: Path) -> dict[str, list[str]]:
    """Ids by split, from ImageSets/Main or, without it, divided by a fixed seed."""
    if _split_notice(root):
        return divide([file.stem for file in annotation_files(root)])
    splits = {split: _read_ids(_split_file(root, split)) for split in SPLITS}
    if not splits["trainval"]:
        splits["trainval"] = splits["train"] + splits["val"]
    return splits


def _read_ids(file: Path) -> list[str]:
    if not file.is_file():
        return []
    ids = list(
        dict.fromkeys(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    )
    for image_id in ids:
        if "/" in image_id or "\\" in image_id or image_id in (".", ".."):
            raise DataError(f"{file} lists {image_id!r}: a plain image name without a folder is expected.")
    return ids


def annotation_files(root: Path) -> list[Path]:
    """Annotations of a folder, sorted by name."""
    return sorted((root / "Annotations").glob("*.xml"))


def images_by_id(root: Path) -> dict[str, Path]:
    """Images of a folder by name without ending; links are followed, so that messages name the real file."""
    files = list_images(root / "JPEGImages")
    return {file.stem: file.resolve() if file.is_symlink() else file for file in files}


def _discover(root: Path) -> tuple[set[str], list[str]]:
    """All class names and image ids of a folder. Damaged annotations are for the audit to list, and for
    `DataSource.dataset` to refuse."""
    files, names, damage = annotation_files(root), set(), None
    for file in files:
        try:
            names.update(read_voc(file).written_names)
        except DataError as error:
            damage = damage or error
    if damage and not names:
        raise damage
    return names, [file.stem for file in files]


def find_image(root: Path, annotation: VocAnnotation, images: dict[str, Path]) -> Path:
    """The image of an annotation: of the same name, else the one it states; DataError if there is none."""
    stated = root / "JPEGImages" / annotation.filename
    if image := images.get(annotation.image_id):
        return image
    if annotation.filename and stated.suffix.lower() in IMAGE_SUFFIXES and stated.is_file():
        return stated
    raise DataError(
        f"{annotation.path} has no image: there is no {root / 'JPEGImages' / annotation.image_id}.jpg "
        f"(or .png, .tif, ...). Restore the image, or take {annotation.image_id} out of ImageSets/Main."
    )


def _sample(root: Path, image_id: str, images: dict[str, Path], class_names: Sequence[str]) -> Sample:
    path = root / "Annotations" / f"{image_id}.xml"
    if not path.is_file() and image_id in images:
        raise DataError(
            f"{images[image_id]} has no annotation: {path} is missing. Label the image (an annotation "
            f"without objects will do), or take {image_id} out of ImageSets/Main."
        )
    image = images.get(image_id) or find_image(root, read_voc(path), images)
    annotation = read_voc(path, image_size(image))
    remedy = "Correct the name, or give the folder as DATA to train on its own classes."
    label_array(annotation.written_names, class_names, path, remedy)
    return Sample(
        image_id=image_id,
        image_path=image,
        width=annotation.width,
        height=annotation.height,
        boxes=annotation.boxes,
        labels=label_array(annotation.names, class_names, path, remedy),
        written_names=annotation.written_names,
        repairs=annotation.repairs,
    )


def _data_files(root: Path) -> list[Path]:
    patterns = ("Annotations/*.xml", "ImageSets/Main/*.txt")
    files = [file for pattern in patterns for file in root.glob(pattern)] + list_images(root / "JPEGImages")
    return sorted(files, key=lambda file: file.relative_to(root).as_posix())


@functools.lru_cache(maxsize=32)
def _fingerprint(root: Path, files: tuple[Path, ...], stamp: tuple[tuple[int, int], ...]) -> str:
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(sha256_of, files))
    lines = (
        f"{digest}  {file.relative_to(root).as_posix()}\n"
        for digest, file in zip(digests, files, strict=True)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


_said: set[str] = set()


def _say_once(message: str) -> None:
    """Print a boxed notice on stderr, once in a process."""
    if message in _said:
        return
    _said.add(message)
    lines = [piece for line in message.splitlines() for piece in textwrap.wrap(line, 92) or [""]]
    width = max(map(len, lines))
    bar = "!" * (width + 6)
    body = "\n".join(f"!! {line:<{width}} !!" for line in lines)
    print(f"\n{bar}\n{body}\n{bar}\n", file=sys.stderr, flush=True)
