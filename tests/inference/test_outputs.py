"""From raw outputs to boxes in NumPy: what the detector's own functions and torchvision find."""

import numpy as np
import pytest
import torch
from torchvision import ops

from ssdlib.config import SMALL_PRIORS
from ssdlib.detector.nms import detect_objects as of_tensors
from ssdlib.detector.priors import make_priors, prior_array
from ssdlib.inference.outputs import detect_objects, nms


@pytest.mark.parametrize("count", [0, 1, 2, 30, 400, 3000])
@pytest.mark.parametrize("crowd", [0.2, 1.0])
def test_nms_keeps_what_torchvision_keeps(count, crowd):
    rng = np.random.default_rng(count)
    center = rng.random((count, 2)) * 10 * max(1, count) ** 0.5 * crowd
    side = rng.random((count, 2)) * 20
    boxes = np.concatenate([center - side / 2, center + side / 2], axis=1).astype(np.float32)
    scores = (rng.integers(0, 200, count) / 200).astype(np.float32)  # many the same
    labels = rng.integers(1, 4, count)
    expected = ops.batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), 0.45)
    kept = nms(boxes, scores, labels, 0.45)
    assert sorted(kept) == sorted(expected.tolist()) and (np.diff(scores[kept]) <= 0).all()


def test_boxes_without_area_suppress_nothing():
    boxes = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 2, 2], [5, 0, 4, 1]], np.float32)
    assert nms(boxes, np.array([0.9, 0.8, 0.7, 0.6]), np.ones(4, int), 0.5).tolist() == [0, 1, 2, 3]


def test_each_group_has_its_threshold():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 6]] * 2, np.float32)  # IoU 0.6
    groups, limits = np.array([1, 1, 2, 2]), np.array([0.5, 0.5, 0.7, 0.7])
    assert nms(boxes, np.array([0.9, 0.8, 0.7, 0.6]), groups, limits).tolist() == [0, 2, 3]


@pytest.mark.parametrize("settings", [{}, {"score_threshold": 0.2}, {"top_k": 5}, {"score_threshold": 1.0}])
def test_the_same_objects_as_the_detectors(settings):
    generator = torch.Generator().manual_seed(3)
    priors = make_priors(SMALL_PRIORS)
    locs = torch.randn(3, len(priors), 4, generator=generator)
    logits = torch.randn(3, len(priors), 4, generator=generator) * 2
    logits[1, :, 0] += 30  # an image of background
    settings = {
        "variances": (0.1, 0.2),
        "score_threshold": 0.05,
        "iou_threshold": (0.4, 0.45, 0.6),
    } | settings
    expected = of_tensors(locs, logits, priors, **settings)
    found = detect_objects(locs.numpy(), logits.numpy(), prior_array(SMALL_PRIORS), **settings)
    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine[1]) == len(theirs[1])
        assert mine[2].tolist() == theirs[2].tolist()
        np.testing.assert_allclose(mine[1], theirs[1], atol=1e-6)
        np.testing.assert_allclose(mine[0], theirs[0], atol=1e-6)
    assert len(found[1][1]) == 0 and (len(found[0][1]) > 0 or settings["score_threshold"] == 1.0)
