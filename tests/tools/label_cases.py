"""Fields and detections that the tests of label errors share."""

import numpy as np
import torch

from ssdlib.config import BCCD_CLASSES
from ssdlib.data import source as bccd
from ssdlib.data.formats.voc import write_voc
from ssdlib.data.images import write_image
from ssdlib.inference.detections import Detections

WIDTH, HEIGHT = 200, 160
A, B, C = (10, 10, 50, 50), (100, 20, 140, 60), (60, 100, 100, 140)


def found(*items, image="field"):
    """Detections from (class, score, box)."""
    names, scores, boxes = zip(*items, strict=True) if items else ((), (), ())
    labels = [BCCD_CLASSES.index(name) + 1 for name in names]
    return Detections(
        torch.tensor(boxes).reshape(-1, 4), scores, labels, (WIDTH, HEIGHT), BCCD_CLASSES, image
    )


def folder_of(root, images):
    """A dataset of small gray fields: image id -> (class, box) labels."""
    for image_id, labels in images.items():
        write_image(root / "JPEGImages" / f"{image_id}.png", np.full((HEIGHT, WIDTH, 3), 200, np.uint8))
        write_voc(
            root / "Annotations" / f"{image_id}.xml",
            width=WIDTH,
            height=HEIGHT,
            boxes=np.array([box for _, box in labels], float).reshape(-1, 4),
            names=[name for name, _ in labels],
            filename=f"{image_id}.png",
        )
    return bccd.open_folder(root)
