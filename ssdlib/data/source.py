"""Where the data comes from: the one place that chooses published data, folders of yours or drawn smears."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssdlib.common import paths
from ssdlib.common.errors import DataError
from ssdlib.common.files import sha256_of
from ssdlib.common.terminal import say
from ssdlib.config import BCCD_CLASSES
from ssdlib.data import download, txl_pbc
from ssdlib.data.formats import coco, tables, voc, yolo
from ssdlib.data.formats.joined import join_folders
from ssdlib.data.formats.layouts import folder_of, read_folder, what_to_give
from ssdlib.data.formats.records import Finding, LabeledFolder, LabeledImage, relative
from ssdlib.data.splits import SPLITS

if TYPE_CHECKING:
    from ssdlib.data.dataset import DetectionDataset, Sample

OTHER_LAYOUTS = (
    f"YOLO ({yolo.LAYOUT}), COCO ({coco.LAYOUT}), XML files beside their images or {tables.LAYOUT}"
)

NAMED = ("bccd", "txl-pbc", "smears")
"""The sources that go by a name."""
_REMEDY = f"Give the folder that holds one, or one of auto, {', '.join(NAMED)}."

EXTRA_SMEARS_SEED = 1
_SMEAR_PREFIX = "SmearImage_"
_SMEAR_NOTICE = (
    "SYNTHETIC DATA: these are drawn blood smears, not BCCD. Results say nothing about real cells."
)


@dataclass(frozen=True)
class DataSource:
    """A folder of labeled images, or several joined, read once when opened, and what is known about it."""

    kind: str
    """bccd, txl-pbc, smears, voc, coco, yolo or csv; of several, theirs with commas between."""
    labels: LabeledFolder = field(repr=False)
    """Images with their objects and findings, and the splits, whatever layout the folder has."""
    class_names: tuple[str, ...]
    """In label order, from label 1."""
    synthetic: bool = False
    notice: str = ""
    """What everyone who reads a result must know; empty for real data with splits of its own."""
    parts: Mapping[str, DataSource] = field(default_factory=dict, repr=False, hash=False)
    """The sources that are joined here, by name; empty for a single one."""

    @property
    def folder(self) -> Path:
        """The folder as its owner knows it; of several, theirs with commas between, for messages."""
        return self.labels.root

    @property
    def name(self) -> str:
        """bccd, txl-pbc or smears, else the folder's name; of several, theirs with commas between."""
        return ",".join(self.parts) or (self.kind if self.kind in NAMED else self.folder.name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of all images, labels and lists of splits, as they are now.

        It is the sum of the list that `sha256sum` prints of them in sorted order, so two copies with the
        same content agree wherever they lie. Computed once in a process while sizes and times stay the same.
        Of several sources it is the sum of theirs, in their order.
        """
        if self.parts:
            lines = "".join(f"{part.fingerprint}\n" for part in self.parts.values())
            return hashlib.sha256(lines.encode(errors="backslashreplace")).hexdigest()
        names = {
            file: self.labels.names.get(file) or relative(file, self.folder) for file in self.labels.files
        }
        files = sorted(names, key=names.__getitem__)
        try:
            stamp = tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} is gone since {self.folder} was read. Run again.") from error
        return _fingerprint(tuple((file, names[file]) for file in files), stamp)

    def split_ids(self, split: str) -> list[str]:
        """Image ids of train, val, test or trainval, in the file's order. Raises DataError if empty.

        "all" is every image that has its labels, in a split or not, by name.
        """
        if split == "all":
            ids = [image.image_id for image in self.labels.images if image.complete]
            if not ids:
                raise DataError(f"no image in {self.folder} can be used: {_why_none(self.labels)}")
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

        Of several sources, `limit` takes the first of each in turn. Raises DataError for a missing or damaged
        file or an unknown class.
        """
        from ssdlib.data.dataset import DetectionDataset

        images = [self.labels.by_id[image_id] for image_id in self.split_ids(split)]
        if limit is not None and self.parts:
            by_source = [[image for image in images if image.source == name] for name in self.parts]
            in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_source))
            images = [image for image in in_turn if image is not None]
        samples = [self._sample(image) for image in images[:limit]]
        return DetectionDataset(samples, self.class_names, transform).subset(limit)

    def _sample(self, image: LabeledImage) -> Sample:
        from ssdlib.data.dataset import Sample

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
            source=image.source,
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

        Several sources add `sources`, the list of theirs. Without `root`, which only means something on this
        machine, for files that leave it.
        """
        several = {"sources": [part.describe(root=root) for part in self.parts.values()]}
        return {
            "source": self.kind,
            **({"root": str(self.folder)} if root else {}),
            "synthetic": self.synthetic,
            "notice": self.notice,
            "fingerprint": self.fingerprint,
            **(several if self.parts else {}),
        }


def resolve(data: str | Path = "auto", *, progress: bool = True, download: bool = True) -> DataSource:
    """Find the data that `data` asks for.

    - "bccd": the folder in $BCCD_ROOT; else data/BCCD; else the published commit is downloaded there.
    - "txl-pbc": the same with $TXL_PBC_ROOT and data/TXL-PBC: the part of it that may be trained on.
    - "smears": synthetic smears, drawn once into data/cache.
    - "auto": BCCD, or, where it cannot be had, the smears, with a notice on stderr.
    - several of these but "auto", with commas between: joined, see `join`.
    - anything else: a folder with any classes, as for `open_folder`.

    SSDLIB_OFFLINE=1 or `download=False` keeps off the internet. Raises DataError saying what to do.
    """
    requests = split_request(data)
    if len(requests) > 1:
        opened: dict[str, DataSource] = {}
        for request in sorted(requests, key=_is_txl_pbc):  # after BCCD, whose pictures it needs
            bccd = next((source for source in opened.values() if source.kind == "bccd"), None)
            opened[request] = _open(request, progress, download, bccd)
        return join([opened[request] for request in requests])
    if str(data) != "auto":
        return _open(str(data), progress, download)
    try:
        return _bccd(progress, download)
    except DataError as error:
        if os.environ.get("BCCD_ROOT"):
            raise
        return _smears(progress, f"BCCD cannot be had: {error}")


def split_request(data: str | Path) -> list[str]:
    """The sources that `data` asks for, one or more. Raises DataError for a list that cannot be joined.

    A folder whose name has a comma is one source.
    """
    if "," not in str(data) or any(place.exists() for place in paths.candidates(data)):
        return [str(data)]
    requests = [part.strip() for part in str(data).split(",")]
    if "auto" in requests or "" in requests or len(set(requests)) < len(requests):
        raise DataError(
            f"{data} is not a list of data sources: give each once, by its name ({', '.join(NAMED)}) or as a "
            "folder, with commas between. auto may stand alone only."
        )
    return requests


@contextmanager
def _os_errors() -> Iterator[None]:
    """Turn what the operating system refuses into a DataError that says what cannot be read."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror or error}. Make it readable."
        ) from error


@_os_errors()
def _is_txl_pbc(request: str) -> bool:
    return request == "txl-pbc" or (
        request not in NAMED and bool(txl_pbc.find_root(paths.find(request, _REMEDY)))
    )


def _open(request: str, progress: bool, may_download: bool, bccd: DataSource | None = None) -> DataSource:
    """One source; `bccd` is BCCD, where it was opened before, for the pictures that TXL-PBC takes from it."""
    if request == "bccd":
        return _bccd(progress, may_download)
    if request == "txl-pbc":
        return _txl_pbc(progress, may_download, bccd)
    if request == "smears":
        return _smears(progress, "You asked for them with DATA=smears.")
    return open_folder(request, bccd)


def join(sources: Sequence[DataSource]) -> DataSource:
    """Several sources as one: the images of all, each split that of all, see `join_folders`.

    The classes are those of the source that has most of them; the others may lack some, which is a finding,
    but have no further ones. Raises DataError where they have.
    """
    named: dict[str, DataSource] = {}
    for source in sources:
        if any(source.folder == other.folder for other in named.values()):
            raise DataError(f"{source.folder} is given twice. Give each source once.")
        numbers = (f"{source.name}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([source.name], numbers) if name not in named)
        named[name] = source
    class_names = max((source.class_names for source in sources), key=len)
    for name, source in named.items():
        if more := sorted(set(source.class_names) - set(class_names)):
            raise DataError(
                f"{name} has the classes {', '.join(more)}, which {', '.join(class_names)} do not include: "
                "one of the sources must have the classes of all. Rename them there, or leave the source out."
            )
    parts = {name: replace(source, class_names=class_names) for name, source in named.items()}
    labels = join_folders({name: part.labels for name, part in parts.items()})
    labels.class_names = class_names
    for name, part in parts.items():
        if lacking := sorted(
            set(class_names) - {o.name for image in part.labels.images for o in image.objects}
        ):
            message = f"{name} labels no {', '.join(lacking)}: those in its images are taught as background."
            labels.report("class_not_in_source", "warning", message, "Label them there, or leave it out.")
    return DataSource(
        ",".join(source.kind for source in sources),
        labels,
        class_names,
        synthetic=any(source.synthetic for source in sources),
        notice="\n".join(dict.fromkeys(source.notice for source in sources if source.notice)),
        parts=parts,
    )


@_os_errors()
def open_folder(path: str | Path, bccd: DataSource | None = None) -> DataSource:
    """A folder of yours as a data source, in any layout that `read_folder` knows; it is never written to.

    A file that alone decides what is read (data.yaml, a COCO or CSV file) stands for its folder.
    Its classes are BCCD's if it has no others, else its own: in the folder's order where the layout has one
    (COCO, YOLO), else by name. A folder in the layout of VOC may also be given by its parent, if it is named
    BCCD. TXL-PBC is known by its files; `bccd` is where its pictures from BCCD are taken, if not from the
    source of that name. Raises DataError for a folder without labels of use.
    """
    path = paths.find(path, _REMEDY)
    path = folder_of(path) if path.is_file() else path
    if txl_pbc.find_root(path):
        labels = txl_pbc.read_txl_pbc(path, _pictures_of_bccd(bccd))
        return _with_notice(DataSource("txl-pbc", labels, BCCD_CLASSES, notice=labels.notice))
    labels = read_folder(path)
    if labels is None:
        why = what_to_give(path)
        layouts = f"Pascal VOC ({voc.LAYOUT}), {OTHER_LAYOUTS}"
        if "Give " not in why:
            why += f". Give a folder with images and labels as {layouts}; or one of auto, {', '.join(NAMED)}"
        raise DataError(f"{path.absolute()} is not a dataset: {why}.")
    if not labels.class_names:
        raise DataError(f"no label in {labels.root} is of use. {_why_none(labels)}")
    names = BCCD_CLASSES if set(labels.class_names) <= set(BCCD_CLASSES) else labels.class_names
    if (labels.root / "smears.json").is_file() or all(
        image.image_id.startswith(_SMEAR_PREFIX) for image in labels.images
    ):
        notice = f"{_SMEAR_NOTICE}\n{labels.notice}".strip()
        return DataSource("smears", labels, names, synthetic=True, notice=notice)
    annotations = {file.stem for file in labels.files if file.suffix == ".xml"}
    published = {Path(name).stem for name in download.BCCD.manifest() if name.endswith(".xml")}
    if annotations == published and voc.find_root(labels.root):
        return _with_notice(DataSource("bccd", labels, BCCD_CLASSES, notice=labels.notice))
    return _with_notice(DataSource(labels.kind, labels, names, notice=labels.notice))


def _why_none(labels: LabeledFolder) -> str:
    """Why nothing in a folder can be used: what was found wrong most often, else that nothing is labeled."""
    findings = [*labels.findings, *(finding for image in labels.images for finding in image.findings)]
    findings = [
        f for f in findings if f.severity != "info" and f.kind not in ("no_label_file", "size_mismatch")
    ]
    unlabeled = [finding for finding in findings if finding.kind == "image_without_annotation"]
    others = [finding for finding in findings if finding.kind != "image_without_annotation"]
    if not others:
        return f"Label some images first: there are {len(unlabeled) or len(labels.images)} without an object."
    first = next((finding for finding in others if finding.severity == "error"), others[0])
    more = sum(finding.kind == first.kind for finding in others) - 1
    return f"{first}" + (f" So it is with {more} more." if more else "")


def _with_notice(source: DataSource) -> DataSource:
    """The source, once its notice has been said."""
    if source.notice:
        _say_once(source.notice)
    return source


def extra_smears(count: int, *, progress: bool = True) -> DetectionDataset:
    """`count` synthetic smears to train on beside other data, drawn once into data/cache.

    Another seed than that of "smears" draws them: none is in a split that anything is judged by.
    """
    from ssdlib.data import smears

    root = paths.data_folder() / "cache" / f"extra-smears-{smears.SMEARS_VERSION}-{count}"
    smears.write_dataset(root, train=count, val=0, test=0, seed=EXTRA_SMEARS_SEED, progress=progress)
    return open_folder(root).dataset("all")  # of train, val and test would be set aside


def _bccd(progress: bool, may_download: bool) -> DataSource:
    labels = _published(download.BCCD, voc.read_voc_folder, progress, may_download)
    return DataSource("bccd", labels, BCCD_CLASSES, notice=labels.notice)


def _txl_pbc(progress: bool, may_download: bool, bccd: DataSource | None) -> DataSource:
    labels = _published(
        txl_pbc.TXL_PBC,
        lambda path: txl_pbc.read_txl_pbc(path, _pictures_of_bccd(bccd)),
        progress,
        may_download,
    )
    return _with_notice(DataSource("txl-pbc", labels, BCCD_CLASSES, notice=labels.notice))


def _pictures_of_bccd(bccd: DataSource | None) -> dict[str, Path]:
    """BCCD's images by name, of the source that is given, else of BCCD where it is at hand."""
    try:
        bccd = bccd or _bccd(progress=False, may_download=False)
    except DataError:
        return {}
    return {image.image_id: image.path for image in bccd.labels.images if image.complete}


def _published(
    data: download.Published,
    read: Callable[[Path], LabeledFolder | None],
    progress: bool,
    may_download: bool,
) -> LabeledFolder:
    """A published data set: from the folder that its variable names, else from data/, else downloaded."""
    variable = os.environ.get(data.variable)
    places = [paths.expanded(variable)] if variable else [f / data.name for f in paths.data_folders()]
    for place in places:
        if labels := read(place):
            return labels
    if variable:
        raise DataError(
            f"{data.variable} is {variable}, which is not {data.name}: there must be {data.layout}. "
            "Correct the variable, or unset it."
        )
    remedy = f"Put {data.layout} into {places[0]}, or set {data.variable} to a folder that has them."
    if not may_download or os.environ.get("SSDLIB_OFFLINE", "") not in ("", "0"):
        raise DataError(f"{data.name} is not on this machine, and downloading is switched off. {remedy}")
    try:
        return read(_download_once(data, places[0], progress))
    except DataError as error:
        raise DataError(f"{error}. {remedy}") from error


def _download_once(data: download.Published, target: Path, progress: bool) -> Path:
    """Download; a failure is remembered, so that being offline costs its seconds once in a process."""
    if message := _failures.get(target):
        raise DataError(message)
    try:
        return data.download(target, progress=progress)
    except DataError as error:
        _failures[target] = str(error).rstrip(".")
        raise DataError(_failures[target]) from error


_failures: dict[Path, str] = {}


def _smears(progress: bool, reason: str) -> DataSource:
    from ssdlib.data import smears

    root = paths.data_folder() / "cache" / f"smears-hard-{smears.HARD_VERSION}"
    smears.write_dataset(root, hard=True, progress=progress)
    _say_once(f"{_SMEAR_NOTICE}\n{reason}")
    return open_folder(root)


@functools.lru_cache(maxsize=32)
def _fingerprint(files: tuple[tuple[Path, str], ...], stamp: tuple[tuple[int, int], ...]) -> str:
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, (file for file, _ in files), (size for size, _ in stamp)))
    lines = (f"{digest}  {name}\n" for digest, (_, name) in zip(digests, files, strict=True))
    return hashlib.sha256("".join(lines).encode(errors="backslashreplace")).hexdigest()


_MOST_HASHED = 2_000_000_000
"""Bytes of a file that is read as a whole; larger ones are refused wherever they are used."""


def _digest(file: Path, size: int) -> str:
    try:
        return sha256_of(file) if size <= _MOST_HASHED else f"{size} bytes"
    except OSError:  # what is wrong with it is a finding
        return "unreadable"


@functools.cache
def _say_once(message: str) -> None:
    """Print a boxed notice on stderr, once in a process."""
    lines = [piece for line in message.splitlines() for piece in textwrap.wrap(line, 92) or [""]]
    width = max(map(len, lines))
    bar = "!" * (width + 6)
    body = "\n".join(f"!! {line:<{width}} !!" for line in lines)
    say(f"\n{bar}\n{body}\n{bar}\n", file=sys.stderr, flush=True)
