"""Detections that tests of their conversions share."""

import numpy as np
import pytest
import torch

from ssdlib.inference.detections import Detections

NAMES = ("WBC", "RBC", "Platelets")
SIZE = (640, 480)


def random_detections(count: int, seed: int = 0) -> Detections:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([500.0, 400.0])
    boxes = torch.cat([corner, corner + 1 + 70 * torch.rand(count, 2, generator=generator)], dim=1)
    labels = torch.randint(1, 4, (count,), generator=generator)
    return Detections(boxes, torch.rand(count, generator=generator), labels, SIZE, NAMES, "field.jpg")


def assert_same(a: Detections, b: Detections, atol: float = 0.0) -> None:
    np.testing.assert_allclose(a.boxes, b.boxes, atol=atol, rtol=0)
    np.testing.assert_allclose(a.scores, b.scores, atol=min(atol, 1e-6), rtol=0)
    assert a.labels.tolist() == b.labels.tolist()
    assert (a.image_size, a.class_names, a.image) == (b.image_size, b.class_names, b.image)


EXAMPLES = [
    pytest.param(Detections.empty(SIZE, NAMES, "field.jpg"), id="none"),
    pytest.param(random_detections(1), id="one"),
    pytest.param(random_detections(200), id="many"),
]
