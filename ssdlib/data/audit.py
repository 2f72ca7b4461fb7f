"""What is in a dataset and what is wrong with it: damaged files, odd boxes, leaks between splits."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from ssdlib.boxes import iou
from ssdlib.data import download, layouts
from ssdlib.data.bccd import SPLITS, DataSource, annotation_files, find_image, images_by_id, read_splits
from ssdlib.data.images import image_size, read_image
from ssdlib.data.voc import VocAnnotation, read_voc
from ssdlib.errors import DataError
from ssdlib.runtime import available_cores

NEAR_DUPLICATE_BITS = 48
"""Two images whose 256-bit difference hashes differ in no more bits are the same picture. On BCCD one pair
differs in 27 bits and no other in fewer than 82."""

DUPLICATE_BOX_IOU = 0.9
"""Two boxes of one image that overlap this much mark one cell twice."""

# Overlapping fields: see `_overlapping_fields`.
_COARSE, _FINE = (40, 30), (160, 120)
_MIN_OVERLAP = 0.25
_COARSE_CORRELATION = 0.8
_FINE_CORRELATION = (
    0.75  # on BCCD every candidate has at least 0.85; drawn smears, all different, at most 0.67
)
_MAX_IMAGES = 1500

_REPAIRS = ("point_box", "box_outside", "swapped_corners", "size_mismatch")
_SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing. Errors stop training, warnings distort results, infos are neither."""

    kind: str
    severity: str
    image_id: str
    """Empty where it concerns the whole dataset."""
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Audit:
    """What `audit` found."""

    source: dict[str, Any]
    """`DataSource.describe()`."""
    images: dict[str, int]
    """Images by split."""
    classes: dict[str, dict[str, int]]
    """Objects as the annotations list them, point boxes included, by split ("all" too) and class."""
    image_sizes: tuple[tuple[int, int, int], ...]
    """(width, height, how many), most frequent first."""
    box_sizes: dict[str, dict[str, float]]
    """Per class: boxes, and the median, least and greatest width and height in pixels."""
    findings: tuple[Finding, ...]
    """Errors first."""

    def of_kind(self, *kinds: str) -> list[Finding]:
        """Findings of some kinds."""
        return [finding for finding in self.findings if finding.kind in kinds]

    def kinds(self) -> dict[str, int]:
        """How many findings of each kind there are."""
        return dict(Counter(finding.kind for finding in self.findings))

    @property
    def errors(self) -> list[Finding]:
        """Findings that stop a dataset from loading."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "kinds": self.kinds()}

    def to_text(self) -> str:
        """The whole account as lines to print."""
        names = list(self.box_sizes)
        lines = [f"{'split':<10}{'images':>8}" + "".join(f"{name:>12}" for name in names)]
        for split, counts in self.classes.items():
            row = "".join(f"{counts[name]:>12}" for name in names)
            lines.append(f"{split:<10}{self.images[split]:>8}{row}")
        lines += ["image sizes: " + ", ".join(f"{w} x {h} ({n})" for w, h, n in self.image_sizes), ""]
        for finding in self.findings:
            where = f" {finding.image_id}:" if finding.image_id else ""
            lines.append(
                f"{finding.severity:<8}{finding.kind}:{where} {finding.message} {finding.remedy}".rstrip()
            )
        return "\n".join(lines)


def audit(source: DataSource, *, progress: bool = False) -> Audit:
    """Read every file of a dataset and report. Damage is listed, never raised, and nothing is changed."""
    findings: list[Finding] = []
    splits = _splits(source, findings)
    images = images_by_id(source.root)
    annotations = _read_annotations(source, images, findings)
    pictures = _read_pictures(images, findings, progress)
    found = list(_file_findings(source, splits, images, annotations))
    for annotation in annotations.values():
        found += _annotation_findings(annotation, source.class_names)
    if converted := layouts.read_marker(source.root):
        # What is wrong with labels was noted of the file that their owner can mend.
        noted = converted.notes
        findings += [Finding(n.kind, n.severity, where, n.message, n.remedy) for where, n in noted]
        found = [f for f in found if f.kind not in _REPAIRS and f.image_id not in converted.errors]
    findings += found
    split_of = {image_id: split for split in ("train", "val", "test") for image_id in splits[split]}
    findings += _split_findings(splits, split_of, annotations)
    findings += _copies(pictures, split_of, progress)
    if source.kind == "bccd":
        findings += [
            Finding(
                "differs_from_published", "info", "", line + ".", "Download BCCD anew to compare results."
            )
            for line in download.differences(source.root)
        ]
    groups = {**{split: splits[split] for split in SPLITS}, "all": list(annotations)}
    classes = {split: _count(ids, annotations, source.class_names) for split, ids in groups.items()}
    findings += _class_findings(classes)
    order = {severity: rank for rank, severity in enumerate(_SEVERITIES)}
    sizes = Counter(picture.size for picture in pictures.values())
    return Audit(
        source=source.describe(),
        images={split: len(ids) for split, ids in groups.items()},
        classes=classes,
        image_sizes=tuple((*size, count) for size, count in sizes.most_common()),
        box_sizes=_box_sizes(annotations, source.class_names),
        findings=tuple(sorted(findings, key=lambda finding: order[finding.severity])),
    )


@dataclass(frozen=True, eq=False)
class _Picture:
    """What is kept of a decoded image."""

    digest: str
    size: tuple[int, int]
    bits: np.ndarray
    coarse: np.ndarray
    fine: np.ndarray


def _picture(path: Path) -> _Picture | DataError:
    try:
        rgb = read_image(path)
    except DataError as error:
        return error
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    tiny = cv2.resize(grey, (17, 16), interpolation=cv2.INTER_AREA).astype(np.int16)
    return _Picture(
        digest=hashlib.sha256(str(rgb.shape).encode() + rgb.tobytes()).hexdigest(),
        size=(rgb.shape[1], rgb.shape[0]),
        bits=(tiny[:, 1:] > tiny[:, :-1]).ravel(),
        coarse=_flatten(grey, _COARSE),
        fine=_outlines(grey, _FINE),
    )


def _flatten(grey: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink and take off the slow changes in brightness, which are the lamp's and not the cells'."""
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return small - cv2.GaussianBlur(small, (0, 0), 0.15 * size[0])


def _outlines(grey: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink and keep the outlines, all about equally strong: else one dark nucleus on another would do."""
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    small -= cv2.GaussianBlur(small, (0, 0), 4)
    return np.clip(small, -small.std(), small.std())


def same_fields(images: Mapping[str, Path], *, progress: bool = False) -> list[tuple[str, str]]:
    """Pairs of ids whose images show the same cells: copies, near copies and overlapping fields.

    What must not be parted when images are divided into folds. Damaged images are passed over.
    """
    pictures = _read_pictures(dict(images), [], progress)
    ids = sorted(pictures)
    pairs = {(a, b) for a, b, _ in _near_duplicates(ids, pictures)}
    if len(ids) <= _MAX_IMAGES:
        pairs |= {(a, b) for a, b, *_ in _overlapping_fields(ids, pictures, progress)}
    return sorted(pairs)


def _splits(source: DataSource, findings: list[Finding]) -> dict[str, list[str]]:
    try:
        return read_splits(source.root)
    except DataError as error:
        findings.append(Finding("bad_split", "error", "", str(error)))
        return {split: [] for split in SPLITS}


def _read_annotations(
    source: DataSource, images: dict[str, Path], findings: list[Finding]
) -> dict[str, VocAnnotation]:
    annotations = {}
    for file in annotation_files(source.root):
        size = None
        if file.stem in images:
            with suppress(DataError):  # a damaged image is a finding of its own
                size = image_size(images[file.stem])
        try:
            annotations[file.stem] = read_voc(file, size)
        except DataError as error:
            findings.append(Finding("damaged_annotation", "error", file.stem, str(error)))
    return annotations


def _read_pictures(images: dict[str, Path], findings: list[Finding], progress: bool) -> dict[str, _Picture]:
    with ThreadPoolExecutor(max_workers=available_cores()) as pool:
        results = pool.map(_picture, images.values())
        results = list(tqdm(results, "read images", len(images), unit="image", disable=not progress))
    pictures = {}
    for image_id, result in zip(images, results, strict=True):
        if isinstance(result, DataError):
            findings.append(Finding("damaged_image", "error", image_id, str(result)))
        else:
            pictures[image_id] = result
    return pictures


def _file_findings(
    source: DataSource,
    splits: dict[str, list[str]],
    images: dict[str, Path],
    annotations: dict[str, VocAnnotation],
) -> Iterator[Finding]:
    labelled = {file.stem for file in annotation_files(source.root)}
    listed = set(itertools.chain.from_iterable(splits.values()))
    used = set()
    for annotation in annotations.values():
        try:
            used.add(find_image(source.root, annotation, images).stem)
        except DataError as error:
            severity = "error" if annotation.image_id in listed else "warning"
            yield Finding("annotation_without_image", severity, annotation.image_id, str(error))
    for image_id in sorted(set(images) - labelled - used):
        severity = "error" if image_id in listed else "warning"
        yield Finding(
            "image_without_annotation",
            severity,
            image_id,
            f"{images[image_id]} has no annotation.",
            "Label it (an annotation without objects will do), or remove it.",
        )
    for image_id in sorted(listed - labelled - set(images)):
        message = "a split lists it, but there is neither image nor annotation."
        yield Finding(
            "missing_file", "error", image_id, message, "Restore them, or take it out of the split."
        )
    for image_id in sorted(labelled & set(images) - listed):
        yield Finding(
            "in_no_split", "info", image_id, "no split lists it.", "Add it to one to make use of it."
        )


def _annotation_findings(annotation: VocAnnotation, class_names: Sequence[str]) -> Iterator[Finding]:
    image_id = annotation.image_id
    for name in sorted(set(annotation.written_names) - set(class_names)):
        message = f"class {name!r} is unknown; known are {', '.join(class_names)}."
        yield Finding("unknown_class", "error", image_id, message, f"Correct {annotation.path}.")
    for repair in annotation.repairs:
        yield Finding(
            repair.kind, "warning", image_id, f"{repair}.", f"To mend it for good, edit {annotation.path}."
        )
    if not annotation.written_names:
        yield Finding("no_objects", "info", image_id, "no object is labelled: it teaches background only.")
    boxes = torch.from_numpy(annotation.boxes)
    for a, b in (iou(boxes, boxes).triu(1) >= DUPLICATE_BOX_IOU).nonzero().tolist():
        kind = "duplicate_box" if annotation.names[a] == annotation.names[b] else "contradicting_boxes"
        corners = ", ".join(f"{value:g}" for value in annotation.boxes[b])
        message = f"{annotation.names[a]} and {annotation.names[b]} mark the same place, [{corners}]."
        yield Finding(kind, "warning", image_id, message, "Delete one of the two.")


def _split_findings(
    splits: dict[str, list[str]], split_of: dict[str, str], annotations: dict[str, VocAnnotation]
) -> Iterator[Finding]:
    for split in ("train", "val", "test"):
        if not splits[split]:
            yield Finding("empty_split", "error", "", f"split {split} is empty.", "List some images in it.")
    for a, b in itertools.combinations(("train", "val", "test"), 2):
        for image_id in sorted(set(splits[a]) & set(splits[b])):
            message = f"it is in {a} and in {b}: what is trained on must not be judged on."
            yield Finding("split_overlap", "warning", image_id, message, f"Take it out of {a}.")
    expected = set(splits["train"]) | set(splits["val"])
    for image_id in sorted(set(splits["trainval"]) ^ expected):
        message = "trainval is not the union of train and val here."
        yield Finding("trainval_mismatch", "info", image_id, message, "Write trainval.txt anew.")


def _class_findings(classes: dict[str, dict[str, int]]) -> Iterator[Finding]:
    for name, count in classes["all"].items():
        if count and any(classes["train"].values()) and not classes["train"][name]:
            message = f"none of the {count} objects of class {name!r} is in train: it cannot be learned."
            remedy = "If it is a misspelt name, correct it; else move some of its images to train."
            yield Finding("class_not_in_train", "warning", "", message, remedy)


def _copies(pictures: dict[str, _Picture], split_of: dict[str, str], progress: bool) -> Iterator[Finding]:
    """Pairs of images that show the same: bit for bit, nearly, or in part."""
    ids = sorted(pictures)
    exact = defaultdict(list)
    for image_id in ids:
        exact[pictures[image_id].digest].append(image_id)
    seen = set()
    for group in exact.values():
        for pair in itertools.combinations(group, 2):
            seen.add(pair)
            yield _pair("duplicate_image", pair, split_of, "the same picture, pixel for pixel")
    for a, b, distance in _near_duplicates(ids, pictures):
        if (a, b) not in seen:
            seen.add((a, b))
            yield _pair(
                "near_duplicate", (a, b), split_of, f"nearly the same picture ({distance} of 256 bits)"
            )
    if len(ids) > _MAX_IMAGES:
        message = f"overlapping fields were not looked for: more than {_MAX_IMAGES} images."
        yield Finding("not_checked", "info", "", message)
        return
    for a, b, correlation, dx, dy in _overlapping_fields(ids, pictures, progress):
        if (a, b) not in seen:
            what = f"the same cells, moved by about {dx}, {dy} pixels (correlation {correlation:.2f})"
            yield _pair("overlapping_fields", (a, b), split_of, what)


def _pair(kind: str, pair: tuple[str, str], split_of: dict[str, str], what: str) -> Finding:
    a, b = pair
    first, second = split_of.get(a, "no split"), split_of.get(b, "no split")
    leak = first != second and "no split" not in (first, second)
    return Finding(
        kind,
        "warning" if leak else "info",
        a,
        f"{a} ({first}) and {b} ({second}) show {what}" + (": a leak between splits." if leak else "."),
        "Put both into one split for an honest score." if leak else "",
    )


def _near_duplicates(ids: Sequence[str], pictures: dict[str, _Picture]) -> Iterator[tuple[str, str, int]]:
    """Pairs whose difference hashes (Krawetz 2013: is each pixel brighter than its left neighbour?) agree."""
    if not ids:
        return
    bits = np.stack([pictures[image_id].bits for image_id in ids]).astype(np.float32)
    for k, row in enumerate(bits[:-1]):
        rest = bits[k + 1 :]
        distances = row.sum() + rest.sum(1) - 2 * rest @ row
        for j in np.flatnonzero(distances <= NEAR_DUPLICATE_BITS):
            yield ids[k], ids[k + 1 + j], int(distances[j])


def _overlapping_fields(
    ids: Sequence[str], pictures: dict[str, _Picture], progress: bool
) -> Iterator[tuple[str, str, float, int, int]]:
    """Pairs of fields that share at least a quarter of their area, the stage having moved in between.

    The normalised cross-correlation of every pair at every shift, by FFT on 40 x 30 pixels; candidates are
    judged again on the outlines at 160 x 120, where only the same cells still agree.
    """
    if len(ids) < 2:
        return
    width, height = _COARSE
    shape = (2 * height, 2 * width)
    small = np.stack([pictures[image_id].coarse for image_id in ids])
    spectra, ones = np.fft.rfft2(small, s=shape), np.fft.rfft2(np.ones((height, width), np.float32), s=shape)
    squares = np.fft.rfft2(small**2, s=shape)
    enough = np.fft.irfft2(ones * ones.conj(), s=shape) > _MIN_OVERLAP * width * height
    # At each shift, the energy of the part of an image that lies under the other one.
    left = enough / np.sqrt(np.maximum(np.fft.irfft2(squares * ones.conj(), s=shape), 1e-3))
    right = 1 / np.sqrt(np.maximum(np.fft.irfft2(ones * squares.conj(), s=shape), 1e-3))
    conjugates = spectra.conj()

    def candidates(k: int) -> list[tuple[int, int, tuple[int, int]]]:
        scores = np.fft.irfft2(spectra[k] * conjugates[k + 1 :], s=shape)
        scores *= left[k]
        scores *= right[k + 1 :]
        scores = scores.reshape(len(scores), -1)
        likely = np.flatnonzero(scores.max(1) > _COARSE_CORRELATION)
        return [(k, k + 1 + int(j), _signed_shift(int(scores[j].argmax()), shape)) for j in likely]

    rows = range(len(ids) - 1)
    with ThreadPoolExecutor(max_workers=available_cores()) as pool:
        found = list(
            tqdm(pool.map(candidates, rows), "compare images", len(rows), unit="image", disable=not progress)
        )
    for i, j, shift in itertools.chain.from_iterable(found):
        a, b = pictures[ids[i]], pictures[ids[j]]
        correlation, dx, dy = _fine_correlation(a.fine, b.fine, shift)
        if correlation >= _FINE_CORRELATION:
            scale = a.size[0] / _FINE[0], a.size[1] / _FINE[1]
            yield ids[i], ids[j], correlation, round(dx * scale[0]), round(dy * scale[1])


def _signed_shift(index: int, shape: tuple[int, int]) -> tuple[int, int]:
    """(x, y) of a flat index into a circular correlation, whose second half holds the negative shifts."""
    dy, dx = divmod(index, shape[1])
    return dx - shape[1] * (dx >= shape[1] // 2), dy - shape[0] * (dy >= shape[0] // 2)


def _fine_correlation(a: np.ndarray, b: np.ndarray, coarse_shift: tuple[int, int]) -> tuple[float, int, int]:
    """Correlation of the common part, and the shift (x, y) that is best within one coarse pixel or so."""
    (height, width), reach = a.shape, 5
    dx, dy = (step * fine // coarse for step, fine, coarse in zip(coarse_shift, _FINE, _COARSE, strict=True))
    top, bottom = max(dy, 0), min(dy + height, height)
    start, end = max(dx, 0), min(dx + width, width)
    # The common part without a margin of `reach`, looked for in the other image's common part with it.
    inner = a[top + reach : bottom - reach, start + reach : end - reach]
    outer = b[top - dy : bottom - dy, start - dx : end - dx]
    if min(inner.shape) < 8:
        return 0.0, 0, 0
    scores = cv2.matchTemplate(outer, inner, cv2.TM_CCOEFF_NORMED)
    _, best, _, (x, y) = cv2.minMaxLoc(scores)
    return float(best), dx + reach - x, dy + reach - y


def _count(
    ids: Sequence[str], annotations: dict[str, VocAnnotation], class_names: Sequence[str]
) -> dict[str, int]:
    names = (annotations[image_id].written_names for image_id in ids if image_id in annotations)
    counts = Counter(itertools.chain.from_iterable(names))
    return {name: counts[name] for name in class_names}


def _box_sizes(
    annotations: dict[str, VocAnnotation], class_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    sides = defaultdict(list)
    for annotation in annotations.values():
        for name, box in zip(annotation.names, annotation.boxes, strict=True):
            sides[name].append(box[2:] - box[:2])
    sizes = {}
    for name in class_names:
        values = np.array(sides[name], np.float64).reshape(-1, 2)
        sizes[name] = {"boxes": len(values)}
        if len(values):
            for label, function in (("median", np.median), ("min", np.min), ("max", np.max)):
                width, height = function(values, axis=0)
                sizes[name] |= {f"{label}_width": float(width), f"{label}_height": float(height)}
    return sizes
