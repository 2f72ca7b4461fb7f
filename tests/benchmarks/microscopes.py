"""How well weights count on each microscope, as `ssdlib detect` finds cells there without options.

    python -m tests.benchmarks.microscopes --weights shipped --another FOLDER --json microscopes.json

Completely labeled fields of TXL-PBC's test, which chose nothing, by the microscope they come from: BCCD's,
Raabin-WBC's and PBC's. `--another` adds the fields of a microscope that was never trained on, a folder with
images/ and annotations.csv (image, xmin, ymin, xmax, ymax as fractions, label). `--scales` looks at each
field enlarged and reduced, too.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from ssdlib.common.files import write_json
from ssdlib.common.tables import Table, number
from ssdlib.config import BCCD_CLASSES
from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.data.images import image_size, read_image
from ssdlib.data.source import resolve
from ssdlib.evaluation.counting import count_report
from ssdlib.evaluation.metrics import evaluate_detections
from ssdlib.inference.detections import Detections
from ssdlib.inference.fields import detect_fields
from ssdlib.inference.predictor import Predictor
from ssdlib.inference.tiling import Tiling
from ssdlib.runs.lookup import find_weights

MICROSCOPES = {"BloodImage": "BCCD", "raabin": "Raabin-WBC", "pbc": "PBC"}


def by_microscope(samples: list[Sample]) -> dict[str, DetectionDataset]:
    """The images of TXL-PBC by the microscope that they come from."""
    groups = defaultdict(list)
    for sample in samples:
        groups[MICROSCOPES[sample.image_id.split("_")[0]]].append(sample)
    return {name: DetectionDataset(groups[name], BCCD_CLASSES) for name in MICROSCOPES.values()}


def read_another(folder: Path) -> DetectionDataset:
    """The fields of a folder with images/ and annotations.csv; classes are BCCD's in lower case."""
    rows = defaultdict(list)
    with (folder / "annotations.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            rows[row["image"]].append(row)
    labels = {name.lower(): number for number, name in enumerate(BCCD_CLASSES, start=1)}
    samples = []
    for name, objects in rows.items():
        path = folder / "images" / name
        size = image_size(path)
        corners = np.array([[float(o[side]) for side in ("xmin", "ymin", "xmax", "ymax")] for o in objects])
        boxes = (corners.clip(0, 1) * np.tile(size, 2)).astype(np.float32)
        known = np.array([labels[o["label"]] for o in objects])
        samples.append(Sample(name, path, *size, boxes, known))
    return DetectionDataset(samples, BCCD_CLASSES)


def judge(predictor: Predictor, data: DetectionDataset, scale: float = 1.0) -> dict:
    """Counts and mAP@0.5 of what `detect` finds in these fields, resized by `scale`."""

    def fields():
        for sample in data.samples:
            image = read_image(sample.image_path)
            if scale != 1:
                way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
                image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=way)
            yield image, None

    found: list[Detections] = []
    for seen, sample in zip(
        detect_fields(predictor, fields(), Tiling(use=predictor.config.use)), data.samples, strict=True
    ):
        width, height = seen.found.image_size
        size = (sample.width, sample.height)
        back = seen.found.boxes * torch.tensor([size[0] / width, size[1] / height] * 2)
        found.append(replace(seen.found, boxes=back, image_size=size, image=sample.image_id))
    thresholds = predictor.config.thresholds
    metrics = evaluate_detections(found, data.targets(), data.class_names)
    counts = count_report(found, data.targets(), data.class_names, thresholds)
    classes = {
        name: {
            "true": one.true,
            "counted": one.counted,
            "off_by": one.mae.value,
            "ap_50": metrics.per_class[name].ap_50,
        }
        for name, one in counts.per_class.items()
    }
    return {"images": len(data), "map_50": metrics.map_50, "classes": classes}


def main() -> None:
    """Print the table, and write its figures to --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="shipped")
    parser.add_argument("--another", type=Path, help="folder of a microscope that was not trained on")
    parser.add_argument("--splits", nargs="*", default=["test"], help="of TXL-PBC; val chose the thresholds")
    parser.add_argument("--scales", type=float, nargs="*", default=[1.0])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    source = resolve("txl-pbc")
    groups = by_microscope([one for split in asked.splits for one in source.dataset(split).samples])
    if asked.another:
        groups["another"] = read_another(asked.another)
    path = find_weights(asked.weights)
    predictor = Predictor.from_checkpoint(path, precision="fp32")
    results, rows = {}, []
    for name, data in groups.items():
        for scale in asked.scales:
            one = results[f"{name} x {scale:g}"] = judge(predictor, data, scale)
            cells = [
                f"{c['true']} / {c['counted']} ({number(c['off_by'], '.2f')}; {number(c['ap_50'])})"
                for c in one["classes"].values()
            ]
            rows.append([name, f"{scale:g}", str(one["images"]), number(one["map_50"]), *cells])
    header = ["microscope", "scale", "images", "mAP@0.5", *BCCD_CLASSES]
    print("true / counted (off by, in a field; AP@0.5)\n" + Table(header, rows).to_text())
    if asked.json:
        write_json(
            asked.json,
            {
                "weights": path.name,
                "splits": asked.splits,
                "thresholds": predictor.config.thresholds,
                "results": results,
            },
        )


if __name__ == "__main__":
    main()
