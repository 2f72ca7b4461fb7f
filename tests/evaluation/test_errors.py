"""Which detections of an image are true positives, and which objects were missed."""

import pytest
import torch

from ssdlib.evaluation.errors import judge
from ssdlib.evaluation.metrics import precision_recall
from ssdlib.inference.detections import Detections

NAMES = ("WBC", "RBC", "Platelets")
A, B = (0, 0, 30, 30), (50, 50, 90, 90)


@pytest.mark.parametrize(
    ("found", "truth", "object_of", "missed"),
    [
        ([], [], [], []),
        ([], [(*A, 1)], [], [True]),
        ([(*A, 1, 0.9)], [], [-1], []),
        ([(*A, 1, 0.9)], [(*A, 1)], [0], [False]),
        ([(*A, 2, 0.9)], [(*A, 1)], [-1], [True]),  # another class
        ([(*A, 1, 0.5), (*A, 1, 0.9)], [(*A, 1)], [0, -1], [False]),  # twice
        ([(0, 0, 30, 15, 1, 0.9)], [(*A, 1)], [0], [False]),  # IoU exactly 0.5
        ([(0, 0, 30, 14, 1, 0.9)], [(*A, 1)], [-1], [True]),
        ([(*A, 1, 0.9), (*B, 2, 0.8)], [(*B, 2), (*A, 1)], [1, 0], [False, False]),
    ],
)
def test_matches_of_one_image(found, truth, object_of, missed):
    f = torch.tensor([list(map(float, row)) for row in found]).reshape(-1, 6)
    t = torch.tensor([list(map(float, row)) for row in truth]).reshape(-1, 5)
    detections = Detections(f[:, :4], f[:, 5], f[:, 4].long(), (120, 100), NAMES)
    matches = judge(detections, {"boxes": t[:, :4], "labels": t[:, 4].long()})
    assert matches.found_object.tolist() == object_of
    assert matches.missed.tolist() == missed
    assert matches.errors == object_of.count(-1) + sum(missed)


@pytest.mark.parametrize("seed", range(8))
def test_matches_agree_with_the_curves(seed):
    """On crowded random boxes, class by class."""
    make = torch.Generator().manual_seed(seed)
    corner = torch.rand(40, 2, generator=make) * 40
    boxes = torch.cat([corner, corner + 10 + torch.rand(40, 2, generator=make) * 30], dim=1)
    labels = torch.randint(1, 4, (40,), generator=make)
    detections = Detections(boxes[:28], torch.rand(28, generator=make), labels[:28], (120, 100), NAMES)
    target = {"boxes": boxes[20:], "labels": labels[20:]}
    matches = judge(detections, target, 0.4)
    for label in (1, 2, 3):
        expected = precision_recall([detections], [target], label, 0.4).true_positive
        assert matches.right[detections.labels.numpy() == label].tolist() == expected.tolist()
    assert matches.right.sum() + matches.missed.sum() == 20
