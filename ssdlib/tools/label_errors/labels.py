"""The labels of one image as its owner wrote them: the only place here that knows Pascal VOC's XML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lxml import etree

from ssdlib.data.dataset import Sample
from ssdlib.data.formats.voc import Repair, read_objects, read_tree, repair_box
from ssdlib.data.source import DataSource

Box = tuple[float, float, float, float]
"""xyxy pixels."""


@dataclass(frozen=True)
class Label:
    """One object of an annotation."""

    number: int
    """Position in the annotation, counted from 1."""
    name: str
    written: Box
    box: Box | None
    """Inside the image and with an area; None if nothing is left of it."""
    repairs: tuple[str, ...]
    """Kinds of `ssdlib.data.formats.voc.Repair` that made `box` of `written`."""


def annotation_tree(source: DataSource, image_id: str) -> etree._Element:
    """The annotation of an image as an XML tree, yours to edit. Raises DataError if it is damaged."""
    return read_tree(source.root / "Annotations" / f"{image_id}.xml")


def read_labels(source: DataSource, sample: Sample) -> list[Label]:
    """Every label of an image in the annotation's order, those without an area included."""
    labels = []
    for number, (name, written) in enumerate(_objects(source, sample), 1):
        repairs: list[Repair] = []
        box = repair_box(written, sample.width, sample.height, name, repairs)
        labels.append(Label(number, name, written, box, tuple(repair.kind for repair in repairs)))
    return labels


def _objects(source: DataSource, sample: Sample) -> Sequence[tuple[str, Box]]:
    return read_objects(source.root / "Annotations" / f"{sample.image_id}.xml")


def tree_bytes(tree: etree._Element) -> bytes:
    """The content of an annotation file, indented as BCCD's are."""
    etree.indent(tree, "\t")
    return etree.tostring(tree, encoding="utf-8") + b"\n"
