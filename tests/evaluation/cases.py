"""Detections and ground truth that several tests share."""

from __future__ import annotations

import numpy as np
import torch

from ssdlib.inference.detections import Detections

NAMES = ("WBC", "RBC", "Platelets")
SIZE = (640, 480)


def found(*rows) -> Detections:
    """Rows of (x, label, score): boxes of 100 x 10 pixels from (x, 0), so that an IoU is easily said."""
    boxes = [[x, 0, x + 100, 10] for x, _, _ in rows]
    return Detections(boxes, [row[2] for row in rows], [row[1] for row in rows], SIZE, NAMES, "field")


def truth(*rows) -> dict:
    """Rows of (x, label): boxes of the same size."""
    boxes = torch.tensor([[x, 0, x + 100, 10] for x, _ in rows], dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor([label for _, label in rows], dtype=torch.int64)}


def random_boxes(rng, count, spread=200):
    """(count, 4) boxes with whole corners."""
    corner = rng.integers(0, spread, (count, 2))
    return np.concatenate([corner, corner + rng.integers(20, 90, (count, 2))], axis=1).astype(np.float32)


def random_case(seed, images=12, objects=12, extra=8, classes=3, empty=0.2):
    """Crowded fields: most objects are found a little moved, some twice, some as another class.

    The share `empty` of the images has no objects; the same share has no boxes that were made up.
    """
    rng = np.random.default_rng(seed)
    detections, targets = [], []
    for _ in range(images):
        boxes = random_boxes(rng, 0 if rng.random() < empty else objects)
        labels = rng.integers(1, classes + 1, len(boxes))
        first, again = (rng.permutation(len(boxes))[: len(boxes) * k // 12] for k in (9, 5))
        seen = np.concatenate([first, again])
        said = np.where(rng.random(len(seen)) < 0.2, rng.integers(1, classes + 1, len(seen)), labels[seen])
        made_up = random_boxes(rng, 0 if rng.random() < empty else extra)
        moved = np.concatenate([boxes[seen] + rng.normal(0, 8, (len(seen), 4)), made_up])
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        said = np.concatenate([said, rng.integers(1, classes + 1, len(made_up))])
        detections.append(Detections(moved, rng.random(len(moved)), said, SIZE, NAMES))
        targets.append({"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)})
    return detections, targets
