"""Corrected annotations, always in a copy: with proposed boxes added, or accepted issues corrected."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lxml import etree

from ssdlib.common.errors import DataError
from ssdlib.common.files import new_folder, write_bytes, write_json
from ssdlib.data.formats.voc import add_object, set_box
from ssdlib.data.source import DataSource
from ssdlib.tools.label_errors.labels import annotation_tree, tree_bytes
from ssdlib.tools.label_errors.rank import ACTIONS, LabelIssue, grouped
from ssdlib.tools.label_errors.review import read_decisions

PROPOSED = "proposed"
"""<pose> of a box that nobody has accepted yet; VOC's own values are Left, Frontal, Unspecified and such."""


def write_overlay(source: DataSource, issues: Iterable[LabelIssue], folder: str | Path) -> int:
    """The number of annotations written to `folder/Annotations`: copies with the proposed boxes added.

    A proposed box is marked <pose>proposed</pose>. The labels stay as they are: a moved or renamed one
    appears beside the old. What an earlier ranking left in the folder is replaced.
    """
    annotations = Path(folder) / "Annotations"
    for old in annotations.glob("*.xml"):
        old.unlink()
    proposals = grouped((issue for issue in issues if issue.proposed_box), "image")
    for image_id, members in proposals.items():
        tree = annotation_tree(source, image_id)
        for issue in members:
            add_object(tree, issue.proposed_class, issue.proposed_box, PROPOSED)
        write_bytes(annotations / f"{image_id}.xml", tree_bytes(tree))
    return len(proposals)


def apply_decisions(source: DataSource, decisions: str | Path, out: str | Path) -> dict[str, int]:
    """How often each action was done in a corrected copy of the data set, which is written to `out`.

    The copy has the annotations, images and splits; `ssdlib.data.source.open_folder` opens it, and
    `corrections.json` in it lists the changes. Of two accepted issues about one label, removing wins over the
    others, then the first in the file. Raises DataError if `out` is not empty, if nothing was accepted, or if
    the decisions are about other data.
    """
    accepted = [issue for issue, decision in read_decisions(decisions, source) if decision == "accept"]
    if not accepted:
        raise DataError(f"nothing is accepted in {decisions}: the copy would be the same as the original.")
    done: Counter[str] = Counter()
    with new_folder(out) as folder:
        _copy(source.root, folder)
        for image_id, issues in grouped(accepted, "image").items():
            tree = annotation_tree(source, image_id)
            done.update(_correct(tree, issues))
            write_bytes(folder / "Annotations" / f"{image_id}.xml", tree_bytes(tree))
        changes = {action: done[action] for action in ACTIONS}
        listed = [issue.to_dict() for issue in accepted]
        about = {"of": source.describe(root=False), "changes": changes, "accepted": listed}
        write_json(folder / "corrections.json", about)
    return changes


def _copy(root: Path, target: Path) -> None:
    """What makes the folder a data set. Real copies: a link edited in place would change the original."""
    for name in ("Annotations", "JPEGImages", "ImageSets"):
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name)
    if (root / "smears.json").is_file():  # it says that the data are drawn
        shutil.copy2(root / "smears.json", target)


def _correct(tree: etree._Element, issues: Sequence[LabelIssue]) -> Iterator[str]:
    """Change one annotation, each label once at most, and give the actions that were done."""
    nodes = tree.findall("object")
    changed: set[int] = set()
    for issue in sorted(issues, key=lambda issue: issue.action != "remove"):
        if issue.object in changed:
            continue
        if issue.action == "add":
            add_object(tree, issue.proposed_class, issue.proposed_box)
        else:
            if not 1 <= issue.object <= len(nodes):
                raise DataError(f"{issue.image} has no label {issue.object}: find the label errors again.")
            changed.add(issue.object)
            node = nodes[issue.object - 1]
            if issue.action == "remove":
                tree.remove(node)
            elif issue.action == "rename":
                node.find("name").text = issue.proposed_class
            else:
                set_box(node.find("bndbox"), issue.proposed_box)
        yield issue.action
