"""Corrected annotations, always in a copy: with proposed boxes added, or accepted issues corrected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lxml import etree

from ssdlib.common.errors import DataError
from ssdlib.common.files import new_folder, write_json
from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.data.formats.voc import add_object, read_tree, set_box, voc_tree, write_tree
from ssdlib.data.source import DataSource
from ssdlib.data.writers import copy_as_voc
from ssdlib.tools.label_errors.rank import ACTIONS, LabelIssue, grouped
from ssdlib.tools.label_errors.review import read_decisions

PROPOSED = "proposed"
"""<pose> of a box that nobody has accepted yet; VOC's own values are Left, Frontal, Unspecified and such."""


def write_overlay(issues: Iterable[LabelIssue], dataset: DetectionDataset, folder: str | Path) -> int:
    """The number of annotations written to `folder/Annotations`: the labels with the proposed boxes added.

    They are in Pascal VOC's format, also where the data are not. A proposed box is marked
    <pose>proposed</pose>. The labels stay as they are: a moved or renamed one appears beside the old. What an
    earlier ranking left in the folder is replaced.
    """
    annotations = Path(folder) / "Annotations"
    for old in annotations.glob("*.xml"):
        old.unlink()
    samples = {sample.image_id: sample for sample in dataset.samples}
    proposals = grouped((issue for issue in issues if issue.proposed_box), "image")
    for image_id, members in proposals.items():
        tree = _annotation_tree(samples[image_id])
        for issue in members:
            add_object(tree, issue.proposed_class, issue.proposed_box, PROPOSED)
        write_tree(annotations / f"{image_id}.xml", tree)
    return len(proposals)


def _annotation_tree(sample: Sample) -> etree._Element:
    """The VOC annotation of an image, as its owner wrote it or else made of its labels."""
    if sample.label_file.suffix == ".xml":
        return read_tree(sample.label_file)
    boxes, names = [label.written for label in sample.objects], [label.name for label in sample.objects]
    size = {"width": sample.width, "height": sample.height}
    return voc_tree(sample.image_path.name, **size, boxes=boxes, names=names, fractions=True)


def apply_decisions(source: DataSource, decisions: str | Path, out: str | Path) -> dict[str, int]:
    """How often each action was done in a corrected copy of the data set, which is written to `out`.

    The copy has the annotations, images and splits in the layout of Pascal VOC, also where the data have
    another; `ssdlib.data.source.open_folder` opens it, and `corrections.json` in it lists the changes. Of two
    accepted issues about one label, removing wins over the others, then the first in the file. Raises
    DataError if `out` is not empty, if nothing was accepted, or if the decisions are about other data.
    """
    accepted = [issue for issue, decision in read_decisions(decisions, source) if decision == "accept"]
    if not accepted:
        raise DataError(f"nothing is accepted in {decisions}: the copy would be the same as the original.")
    done: Counter[str] = Counter()
    with new_folder(out) as folder:
        copy_as_voc(source, folder)
        for image_id, issues in grouped(accepted, "image").items():
            file = folder / "Annotations" / f"{image_id}.xml"
            tree = read_tree(file)
            done.update(_correct(tree, issues))
            write_tree(file, tree)
        changes = {action: done[action] for action in ACTIONS}
        listed = [issue.to_dict() for issue in accepted]
        about = {"of": source.describe(root=False), "changes": changes, "accepted": listed}
        write_json(folder / "corrections.json", about)
    return changes


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
