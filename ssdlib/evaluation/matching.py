"""What the metrics share: arrays from tensors, IoU in float64, quotients and means of what is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ssdlib.common.errors import ConfigError, DataError
from ssdlib.inference.detections import Detections


def as_array(values: Any) -> np.ndarray:
    """A tensor on any device, or a list, in NumPy; what is no whole number as float64."""
    values = torch.as_tensor(values).detach().cpu().as_subclass(torch.Tensor)
    return values.double().numpy() if values.is_floating_point() else values.numpy()


def check_pairs(detections: Sequence[Detections], targets: Sequence[Mapping[str, Any]]) -> None:
    """Raise DataError unless every image has detections and ground truth."""
    if len(detections) != len(targets):
        raise DataError(
            f"{len(detections)} images have detections and {len(targets)} have ground truth: "
            "pass one of each for every image, in the same order."
        )


def iou_matrix(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """(A, 4), (B, 4) -> (A, B) float64. In NumPy, and 0 (never NaN) between two boxes without area."""
    corner = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    sides = np.clip(np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:]) - corner, 0.0, None)
    shared = sides.prod(axis=-1)
    area_a, area_b = ((box[:, 2:] - box[:, :2]).prod(axis=-1) for box in (a_xyxy, b_xyxy))
    union = area_a[:, None] + area_b[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def threshold_of(name: str, threshold: float | Mapping[str, float]) -> float:
    """That of one class, where each may have its own. Raises ConfigError for a class without one."""
    if not isinstance(threshold, Mapping):
        return threshold
    if name not in threshold:
        raise ConfigError(f"no score threshold for class {name}; given: {', '.join(threshold) or 'none'}")
    return threshold[name]


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """None where nothing is known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def quotient(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """(S,) float64; NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def coco_boxes(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Boxes as COCO's code sees them: sides taken off in float32, the rest in float64."""
    corner = boxes_xyxy.astype(np.float32)
    sides = (corner[:, 2:] - corner[:, :2]).astype(np.float64)
    start = corner[:, :2].astype(np.float64)
    return np.concatenate([start, start + sides], axis=1)
