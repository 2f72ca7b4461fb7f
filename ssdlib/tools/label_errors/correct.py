"""Labels put right, always in a copy: an overlay of proposals, and a dataset with the accepted ones in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import uuid4

from lxml import etree

from ssdlib.common.errors import DataError, SsdError
from ssdlib.common.files import write_bytes, write_json
from ssdlib.data.formats.voc import add_object, read_tree, set_box, voc_bytes
from ssdlib.data.images import image_size
from ssdlib.data.source import DataSource
from ssdlib.data.writers import copy_as_voc
from ssdlib.tools.label_errors.rank import LabelIssue
from ssdlib.tools.label_errors.review import read_decisions

PROPOSED = "proposed"
"""<pose> of a box that nobody has accepted yet; VOC's own values are Left, Frontal, Unspecified and such."""


def write_overlay(issues: Iterable[LabelIssue], folder: str | Path) -> int:
    """Write VOC annotations with every proposed box added, marked <pose>proposed</pose>; returns how many.

    The labels in them are as they were: a moved or renamed one appears beside the old. What is in
    `folder/Annotations` from an earlier ranking is replaced.
    """
    annotations = Path(folder) / "Annotations"
    for old in annotations.glob("*.xml"):
        old.unlink()
    by_image: dict[str, list[LabelIssue]] = {}
    for issue in issues:
        if issue.proposed_box is not None:
            by_image.setdefault(issue.image, []).append(issue)
    for image, proposals in by_image.items():
        root = _tree(proposals[0])
        for issue in proposals:
            add_object(root, issue.proposed_class or issue.class_name, issue.proposed_box, PROPOSED)
        write_bytes(annotations / f"{image}.xml", _bytes(root))
    return len(by_image)


def _tree(issue: LabelIssue) -> etree._Element:
    """The annotation of the issue's image; made of its labels where the data are COCO or YOLO."""
    if (path := Path(issue.annotation_path)).suffix == ".xml":
        return read_tree(path)
    boxes, names = [box for _, box in issue.labels], [name for name, _ in issue.labels]
    return etree.fromstring(
        voc_bytes(Path(issue.image_path).name, *image_size(issue.image_path), boxes, names)
    )


def apply_decisions(source: DataSource, decisions: str | Path, out: str | Path) -> dict[str, int]:
    """Write a copy of the dataset with all accepted issues put right, and how many of each action were.

    The copy has the annotations, images and splits in the layout of Pascal VOC, also where the data are COCO
    or YOLO; `ssdlib.data.source.open_folder` opens it. It is built beside `out` and renamed when whole, and
    `corrections.json` in it says what was changed. Of two accepted
    issues about one label, removing wins over moving, the first in the file over others. Raises DataError
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
        copy_as_voc(source, temporary)
        counts = _correct_all(temporary / "Annotations", accepted)
        listed = [issue.to_dict() for issue in accepted]
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


def _correct_all(annotations: Path, accepted: Sequence[LabelIssue]) -> dict[str, int]:
    counts = dict.fromkeys(("add", "remove", "move", "rename"), 0)
    by_image: dict[str, list[LabelIssue]] = {}
    for issue in accepted:
        by_image.setdefault(issue.image, []).append(issue)
    for image, issues in by_image.items():
        path = annotations / f"{image}.xml"
        root = read_tree(path)
        for action in _correct(root, issues, path):
            counts[action] += 1
        write_bytes(path, _bytes(root))
    return counts


def _correct(root: etree._Element, issues: Sequence[LabelIssue], path: Path) -> Iterable[str]:
    """Change one annotation's tree; the actions that were done."""
    nodes = root.findall("object")
    changed: set[int] = set()
    for issue in sorted(issues, key=lambda issue: issue.action != "remove"):
        if issue.action == "add":
            add_object(root, issue.proposed_class or issue.class_name, issue.proposed_box or issue.box)
        else:
            number = issue.object or 0
            if not 1 <= number <= len(nodes):
                raise DataError(f"{path} has no object {number}: it changed. Look for issues again.")
            if number in changed:
                continue
            changed.add(number)
            node = nodes[number - 1]
            if issue.action == "remove":
                root.remove(node)
            elif issue.action == "rename":
                node.find("name").text = issue.proposed_class
            else:
                set_box(node.find("bndbox"), issue.proposed_box or issue.box)
        yield issue.action


def _bytes(root: etree._Element) -> bytes:
    etree.indent(root, "\t")
    return etree.tostring(root, encoding="utf-8") + b"\n"
