"""Several labeled folders as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ssdlib.common.files import sha256_of
from ssdlib.data.formats.records import LabeledFolder, LabeledImage
from ssdlib.data.splits import SPLITS


def join_folders(folders: Mapping[str, LabeledFolder]) -> LabeledFolder:
    """The images and splits of all the folders, which go by the names of their sources.

    An image that two of them have, the same file under the same id, counts once: with the labels of the later
    one, in the split of the first, unless only the later one holds it out (val or test). TXL-PBC counts as
    last, because its labels are complete. Where different images have the same id, the name of the later
    one's source is put before it.
    """
    images: dict[str, LabeledImage] = {}
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, folder in sorted(folders.items(), key=lambda item: item[1].kind == "txl-pbc"):
        before, new_ids = dict(images), {}
        held_out = {*splits["val"], *splits["test"]}
        now_held_out = {*folder.splits.get("val", ()), *folder.splits.get("test", ())}
        for image in folder.images:
            image_id = image.image_id
            shared = image_id in before and _same_file(image.path, before[image_id].path)
            while not shared and image_id in images:
                image_id = f"{name}_{image_id}"
            findings = [replace(finding, image_id=image_id) for finding in image.findings]
            images[image_id] = replace(image, image_id=image_id, source=name, findings=findings)
            if not shared or (image_id not in held_out and image.image_id in now_held_out):
                new_ids[image.image_id] = image_id
        moved = before.keys() & set(new_ids.values())
        splits = {split: [name for name in ids if name not in moved] for split, ids in splits.items()}
        for split, image_ids in folder.splits.items():
            splits[split] += [new_ids[image_id] for image_id in image_ids if image_id in new_ids]
    return LabeledFolder(
        "joined",
        Path(",".join(str(folder.root) for folder in folders.values())),  # for messages: there is no such one
        (),
        list(images.values()),
        [file for folder in folders.values() for file in folder.files],
        [finding for folder in folders.values() for finding in folder.findings],
        splits,
    )


def _same_file(a: Path, b: Path) -> bool:
    return a == b or (a.is_file() and b.is_file() and sha256_of(a) == sha256_of(b))
