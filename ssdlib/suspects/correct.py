"""Labels put right, always in a copy: an overlay of proposals, and a dataset with the accepted ones in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import uuid4

from lxml import etree

from ssdlib.data.bccd import DataSource
from ssdlib.data.voc import add_object, read_tree, set_box
from ssdlib.errors import DataError, SsdError
from ssdlib.files import write_bytes, write_json
from ssdlib.suspects.rank import Suspect
from ssdlib.suspects.review import read_decisions

PROPOSED = "proposed"
"""<pose> of a box that nobody has accepted yet; VOC's own values are Left, Frontal, Unspecified and such."""


def write_overlay(suspects: Iterable[Suspect], folder: str | Path) -> int:
    """Copies of the annotations with every proposed box added, marked <pose>proposed</pose>; how many files.

    The labels in them are as they were: a moved or renamed one appears beside the old. What is in
    `folder/Annotations` from an earlier ranking is replaced.
    """
    annotations = Path(folder) / "Annotations"
    for old in annotations.glob("*.xml"):
        old.unlink()
    by_file: dict[str, list[Suspect]] = {}
    for suspect in suspects:
        if suspect.proposed_box is not None:
            by_file.setdefault(suspect.annotation_path, []).append(suspect)
    for path, proposals in by_file.items():
        root = read_tree(Path(path))
        for suspect in proposals:
            add_object(root, suspect.proposed_class or suspect.class_name, suspect.proposed_box, PROPOSED)
        write_bytes(annotations / Path(path).name, _bytes(root))
    return len(by_file)


def apply_decisions(source: DataSource, decisions: str | Path, out: str | Path) -> dict[str, int]:
    """Write a copy of the dataset with all accepted suspects put right, and how many of each action were.

    The copy has the annotations, images and splits; `ssdlib.data.bccd.open_folder` opens it. It is built
    beside `out` and renamed when whole, and `corrections.json` in it says what was changed. Of two accepted
    suspects about one label, removing wins over moving, the first in the file over others. Raises DataError
    if `out` is not empty, if nothing was accepted, or if the decisions are about other data.
    """
    out = Path(out)
    accepted = [s for s, decision in read_decisions(decisions, source) if decision == "accept"]
    if not accepted:
        raise DataError(f"nothing is accepted in {decisions}: the copy would be the same as the original.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} already holds something: name a new folder for the corrected copy.")
    temporary = out.parent / f".{out.name}.{uuid4().hex[:8]}.partial"
    try:
        temporary.mkdir(parents=True)
        _copy(source.root, temporary)
        counts = _correct_all(temporary / "Annotations", accepted)
        listed = [suspect.to_dict() for suspect in accepted]
        for item in listed:  # paths mean nothing elsewhere
            del item["image_path"], item["annotation_path"]
        about = {"of": source.describe(root=False), "changes": counts, "accepted": listed}
        write_json(temporary / "corrections.json", about)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise SsdError(
            f"cannot write {out}: {error.strerror or error}. Free some space or choose another folder; the "
            "original is untouched."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def _copy(root: Path, target: Path) -> None:
    """What makes the folder a dataset. Real copies: a link edited in place would change the original."""
    for name in ("Annotations", "JPEGImages", "ImageSets"):
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name)
    if (root / "smears.json").is_file():  # the notice that the data are drawn must travel
        shutil.copy2(root / "smears.json", target)


def _correct_all(annotations: Path, accepted: Sequence[Suspect]) -> dict[str, int]:
    counts = dict.fromkeys(("add", "remove", "move", "rename"), 0)
    by_image: dict[str, list[Suspect]] = {}
    for suspect in accepted:
        by_image.setdefault(suspect.image, []).append(suspect)
    for image, suspects in by_image.items():
        path = annotations / f"{image}.xml"
        root = read_tree(path)
        for action in _correct(root, suspects, path):
            counts[action] += 1
        write_bytes(path, _bytes(root))
    return counts


def _correct(root: etree._Element, suspects: Sequence[Suspect], path: Path) -> Iterable[str]:
    """Change one annotation's tree; the actions that were done."""
    nodes = root.findall("object")
    changed: set[int] = set()
    for suspect in sorted(suspects, key=lambda suspect: suspect.action != "remove"):
        if suspect.action == "add":
            add_object(
                root, suspect.proposed_class or suspect.class_name, suspect.proposed_box or suspect.box
            )
        else:
            number = suspect.object or 0
            if not 1 <= number <= len(nodes):
                raise DataError(f"{path} has no object {number}: it changed. Look for suspects again.")
            if number in changed:
                continue
            changed.add(number)
            node = nodes[number - 1]
            if suspect.action == "remove":
                root.remove(node)
            elif suspect.action == "rename":
                node.find("name").text = suspect.proposed_class
            else:
                set_box(node.find("bndbox"), suspect.proposed_box or suspect.box)
        yield suspect.action


def _bytes(root: etree._Element) -> bytes:
    etree.indent(root, "\t")
    return etree.tostring(root, encoding="utf-8") + b"\n"
