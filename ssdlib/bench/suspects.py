"""How many removed labels are found again: the measured test of `ssdlib data suspects`.

    python -m ssdlib.bench.suspects --out runs/suspects-bench --json data/measurements/suspects.json

Draws smears, whose labels are complete, removes a share of the labels at random, and looks for them as one
would in a set of one's own: networks trained from nothing, each on folds without the images it judges, on
the labels that are left.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from pathlib import Path

from ssdlib.data.bccd import DataSource
from ssdlib.data.voc import read_objects, read_tree
from ssdlib.files import write_bytes

Removed = dict[str, list[tuple[str, tuple[float, ...]]]]
"""(class name, xyxy pixels) of the labels removed from each image."""


def hide_labels(source: DataSource, out: str | Path, share: float = 0.15, seed: int = 0) -> Removed:
    """Copy a dataset to `out` without a random `share` of its labels, and return those."""
    from lxml import etree

    out = Path(out)
    shutil.copytree(source.root, out)
    draw, removed = random.Random(seed), {}
    for file in sorted((out / "Annotations").glob("*.xml")):
        objects, tree = read_objects(file), read_tree(file)
        hidden = [k for k in range(len(objects)) if draw.random() < share]
        nodes = tree.findall("object")
        for k in hidden:
            tree.remove(nodes[k])
        removed[file.stem] = [objects[k] for k in hidden]
        write_bytes(file, etree.tostring(tree, encoding="utf-8") + b"\n")
    return removed


def count_removed(removed: Mapping[str, list]) -> int:
    """How many labels were removed in all."""
    return sum(map(len, removed.values()))
