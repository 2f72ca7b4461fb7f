"""TXL-PBC (Gan and Li, arXiv:2407.13214, MIT license): the part of it that may be trained on.

It joined images of several sources and labeled them anew, far more completely than BCCD. `txl_pbc.tsv` lists
what is used: 350 images from Raabin-WBC, 350 from PBC (Acevedo et al. 2020), and the labels of 124 images of
BCCD's train split, whose pictures are taken from BCCD. Nothing else is ever read: among the rest are BCCD's
val and test images, and squeezed, turned and recolored copies of all of BCCD.
"""

from __future__ import annotations

import csv
import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssdlib.config import BCCD_CLASSES
from ssdlib.data.download import Published
from ssdlib.data.formats.records import LabeledFolder, LabeledImage, iou_matrix
from ssdlib.data.formats.yolo import read_labels
from ssdlib.data.splits import PARTS

DUPLICATE_IOU = 0.85
"""Of two boxes of one class that overlap more, the second is dropped: one cell, labeled twice."""


class Row(NamedTuple):
    """One line of the table: an image that is used."""

    image_id: str
    """raabin_UUID, pbc_UUID, or the name of an image of BCCD."""
    published: str
    """The published file, below images/ and labels/, without ending."""
    same_field: str
    """The image that shows the same cells (`ssdlib.data.duplicates.same_fields`), or "-"."""
    labels_sha256: str
    image_sha256: str
    """ "-" for an image of BCCD, of which the labels alone are taken."""

    @property
    def of_bccd(self) -> bool:
        """Whether the picture is BCCD's."""
        return self.image_sha256 == "-"

    @property
    def split(self) -> str:
        """train, val or test, 8:1:1 by a hash; images of the same field together."""
        field = self.image_id if self.same_field == "-" else self.same_field
        tenth = int(hashlib.sha256(field.encode()).hexdigest(), 16) % 10
        return {8: "val", 9: "test"}.get(tenth, "train")


@functools.cache
def rows() -> tuple[Row, ...]:
    """The table, in the order of the image ids."""
    text = (resources.files("ssdlib.data") / "txl_pbc.tsv").read_text(encoding="ascii")
    return tuple(Row(*row) for row in list(csv.reader(text.splitlines(), delimiter="\t"))[1:])


@functools.cache
def _manifest() -> dict[str, str]:
    """SHA-256 of each listed file by its published path; BCCD's pictures are not among them."""
    files = {f"labels/{row.published}.txt": row.labels_sha256 for row in rows()}
    return files | {f"images/{row.published}.jpg": row.image_sha256 for row in rows() if not row.of_bccd}


TXL_PBC = Published(
    "TXL-PBC",
    "https://github.com/lugan113/TXL-PBC_Dataset/archive/056d09e45403f4d1321b99cdb2cfcc3eb605edcf.zip",
    folder="TXL_PBC",
    variable="TXL_PBC_ROOT",
    layout="images/train/*.jpg and labels/{train,val,test}/*.txt, or images/raabin_*.jpg and labels/*.txt",
    manifest=_manifest,
)


def find_root(path: Path) -> tuple[Path, bool] | None:
    """The folder with images and labels, `path` itself or `path`/TXL_PBC, and whether its files have their
    published names (else those of the image ids). None if no listed image is there."""
    for root in (path, path / TXL_PBC.folder):
        for published in (True, False):
            names = (row.published if published else row.image_id for row in rows() if not row.of_bccd)
            if (root / "images").is_dir() and any((root / f"images/{n}.jpg").is_file() for n in names):
                return root.resolve(), published
    return None


def read_txl_pbc(path: Path, bccd: Mapping[str, Path]) -> LabeledFolder | None:
    """The listed images of a folder with their labels and splits; None if it is not TXL-PBC.

    bccd: BCCD's images by name. Those that are not there are left out, and the notice says so. A box that
    repeats another one is dropped, with a finding.
    """
    if (found := find_root(path)) is None:
        return None
    root, published = found
    folder = LabeledFolder("txl-pbc", root, BCCD_CLASSES, [], [], splits={split: [] for split in PARTS})
    lacking = 0
    for row in rows():
        name = row.published if published else row.image_id
        picture = bccd.get(row.image_id) if row.of_bccd else root / f"images/{name}.jpg"
        if picture is None:
            lacking += 1
            continue
        image = LabeledImage(picture, root / f"labels/{name}.txt", row.image_id, row.split)
        folder.images.append(image)
        folder.splits[row.split].append(row.image_id)
        folder.names |= {
            picture: f"images/{row.image_id}.jpg",
            image.label_file: f"labels/{row.image_id}.txt",
        }
        if not image.label_file.is_file():
            image.complete = False
            remedy = f"Restore it, or fetch {TXL_PBC.name} anew."
            image.report("missing_file", "error", f"there is no {image.label_file}.", remedy)
        elif image.measure():
            read_labels(image, BCCD_CLASSES, root)
            _drop_repeated(image)
    folder.files = [file for file in folder.names if file.is_file()]
    folder.splits["trainval"] = sorted(folder.splits["train"] + folder.splits["val"])
    if lacking:
        folder.notice = (
            f"{TXL_PBC.name} in {root} is used without {lacking} images of BCCD's train split for which it "
            "has labels alone: BCCD is not at hand (python -m ssdlib data fetch bccd)."
        )
    return folder


def differences(root: Path) -> list[str]:
    """What in a folder is not as published, one line a file, whichever names its files have."""
    ids = {row.published: row.image_id for row in rows()}
    found = find_root(root)

    def here(name: str) -> str:
        place, _, rest = name.partition("/")
        stem, dot, ending = rest.rpartition(".")
        return name if found is None or found[1] else f"{place}/{ids[stem]}{dot}{ending}"

    return TXL_PBC.differences(found[0] if found else root, here)


def _drop_repeated(image: LabeledImage) -> None:
    """Leave out every box that lies on an earlier one of the same class."""
    kept = [k for k, one in enumerate(image.objects) if one.box is not None]
    same = np.triu(iou_matrix(image.boxes, image.boxes), 1) > DUPLICATE_IOU
    for a, b in np.argwhere(same).tolist():
        first, second = image.objects[kept[a]], image.objects[kept[b]]
        if first.name == second.name and first.box is not None and second.box is not None:
            repairs = (*second.repairs, "duplicate_box")
            image.objects[kept[b]] = second._replace(box=None, repairs=repairs)
            corners = ", ".join(f"{value:g}" for value in second.box)
            message = f"object {kept[b] + 1} ({second.name}) [{corners}] marks the same place as "
            message += f"object {kept[a] + 1}: dropped."
            image.report("duplicate_box", "info", message)
