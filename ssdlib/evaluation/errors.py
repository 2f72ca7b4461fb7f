"""Which detections of one image are right, which are false alarms, and which objects were missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdlib.detector.boxes import iou
from ssdlib.inference.detections import Detections


@dataclass(frozen=True, eq=False)
class Verdict:
    """The judgment of D detections against the G objects of their image."""

    found_object: np.ndarray
    """(D,) int64: the object that each detection found first, or -1 for a false alarm."""
    missed: np.ndarray
    """(G,) bool: objects that no detection found."""

    @property
    def right(self) -> np.ndarray:
        """(D,) bool: true positives."""
        return self.found_object >= 0

    @property
    def errors(self) -> int:
        """False alarms and misses together."""
        return int((~self.right).sum() + self.missed.sum())


def judge(detections: Detections, target: Mapping[str, Any], iou_threshold: float = 0.5) -> Verdict:
    """Judge one image by the rule of `ssdlib.evaluation.metrics.precision_recall`.

    Highest score first, each detection claims the object of its class that it overlaps most. It is right if
    their IoU reaches the threshold and nobody has claimed that object before. `target` holds "boxes" (G, 4)
    xyxy pixels and "labels" (G,).
    """
    boxes = torch.as_tensor(target["boxes"]).as_subclass(Tensor).double().reshape(-1, 4)
    labels = torch.as_tensor(target["labels"]).reshape(-1)
    overlap = iou(detections.boxes.double(), boxes)  # (D, G)
    overlap = overlap.where(detections.labels[:, None] == labels[None, :], -1.0)
    found = np.full(len(detections), -1, dtype=np.int64)
    missed = np.ones(len(labels), dtype=bool)
    for d in range(len(detections) if len(labels) else 0):  # sorted by score
        best = int(overlap[d].argmax())
        if overlap[d, best] >= iou_threshold and missed[best]:
            found[d], missed[best] = best, False
    return Verdict(found, missed)
