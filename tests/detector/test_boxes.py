"""Box arithmetic against torchvision's, on random, degenerate and hostile boxes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torchvision import ops
from torchvision.models.detection._utils import BoxCoder

from ssdlib.detector.boxes import (
    MAX_LOG_RATIO,
    area,
    clip,
    cxcywh_to_xyxy,
    decode,
    encode,
    iou,
    xyxy_to_cxcywh,
)
from tests.core_cases import boxes_strategy, fast, grid_boxes, random_boxes, seeded

CODER = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))


@pytest.mark.parametrize(
    ("xyxy", "cxcywh", "expected_area"),
    [
        ([], [], []),
        ([[0, 0, 0, 0]], [[0, 0, 0, 0]], [0]),
        ([[1, 2, 5, 10]], [[3, 6, 4, 8]], [32]),
        ([[3, 3, 3, 9]], [[3, 6, 0, 6]], [0]),
        # Corners the wrong way round: no area, not a negative one.
        ([[5, 2, 1, 10]], [[3, 6, -4, 8]], [0]),
        # Both ways wrong: a bare product would be positive.
        ([[5, 10, 1, 2]], [[3, 6, -4, -8]], [0]),
        ([[-2, -2, 2, 2], [0, 0, 1, 1]], [[0, 0, 4, 4], [0.5, 0.5, 1, 1]], [16, 1]),
    ],
)
def test_conversions_and_area(xyxy, cxcywh, expected_area):
    xyxy = torch.tensor(xyxy, dtype=torch.float32).reshape(-1, 4)
    cxcywh = torch.tensor(cxcywh, dtype=torch.float32).reshape(-1, 4)
    assert torch.equal(xyxy_to_cxcywh(xyxy), cxcywh)
    assert torch.equal(cxcywh_to_xyxy(cxcywh), xyxy)
    assert torch.equal(area(xyxy), torch.tensor(expected_area, dtype=torch.float32))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([], [], []),
        ([], [[0, 0, 1, 1]], []),
        ([[0, 0, 1, 1]], [], [[]]),
        ([[0, 0, 2, 2]], [[0, 0, 2, 2]], [[1]]),
        ([[0, 0, 2, 2]], [[1, 1, 3, 3]], [[1 / 7]]),
        ([[0, 0, 2, 2]], [[2, 0, 4, 2]], [[0]]),
        ([[0, 0, 4, 4]], [[1, 1, 3, 3]], [[4 / 16]]),
        # Two points in the same place: 0 / 0, and yet 0.
        ([[1, 1, 1, 1]], [[1, 1, 1, 1]], [[0]]),
        ([[0, 1, 4, 1]], [[0, 1, 4, 1], [0, 0, 4, 4]], [[0, 0]]),
        ([[2, 2, 0, 0]], [[0, 0, 2, 2]], [[0]]),
        ([[0, 0, math.inf, math.inf]], [[0, 0, 1, 1], [0, 0, math.inf, math.inf]], [[0, 0]]),
        ([[math.nan, 0, 1, 1]], [[0, 0, 1, 1]], [[0]]),
    ],
)
def test_iou_by_hand(a, b, expected):
    a = torch.tensor(a, dtype=torch.float32).reshape(-1, 4)
    b = torch.tensor(b, dtype=torch.float32).reshape(-1, 4)
    expected = torch.tensor(expected, dtype=torch.float32).reshape(len(a), len(b))
    torch.testing.assert_close(iou(a, b), expected)
    torch.testing.assert_close(iou(b, a), expected.T)


@pytest.mark.parametrize("make", [random_boxes, grid_boxes], ids=["random", "grid"])
def test_a_million_pairs_equal_torchvision(make):
    a, b = make(1000, seeded(1)), make(1000, seeded(2))
    theirs = ops.box_iou(a, b)
    undefined = theirs.isnan()  # torchvision divides 0 by 0 where neither box has an area
    ours = iou(a, b)
    assert torch.equal(ours[~undefined], theirs[~undefined])
    assert (ours[undefined] == 0).all()
    assert ours.min() >= 0 and ours.max() <= 1
    assert undefined.any() == (make is grid_boxes)

    assert torch.equal(area(a), ops.box_area(a))
    torch.testing.assert_close(xyxy_to_cxcywh(a), ops.box_convert(a, "xyxy", "cxcywh"))
    torch.testing.assert_close(cxcywh_to_xyxy(a), ops.box_convert(a, "cxcywh", "xyxy"))
    wild = (a - 0.5) * 900
    assert torch.equal(clip(wild, 320, 240), ops.clip_boxes_to_image(wild, (240, 320)))
    assert torch.equal(clip(wild), ops.clip_boxes_to_image(wild, (1, 1)))


def test_iou_takes_a_batch():
    a, b = grid_boxes(6 * 7, seeded(3)).view(6, 7, 4), grid_boxes(6 * 5, seeded(4)).view(6, 5, 4)
    together = iou(a, b)
    assert together.shape == (6, 7, 5)
    for i in range(6):
        assert torch.equal(together[i], iou(a[i], b[i]))
    assert torch.equal(iou(a, b[0]), torch.stack([iou(x, b[0]) for x in a]))


def test_thousands_of_codes_equal_torchvision():
    boxes, priors_xyxy = random_boxes(5000, seeded(5)), random_boxes(5000, seeded(6))
    priors = xyxy_to_cxcywh(priors_xyxy)
    codes = encode(boxes, priors)
    torch.testing.assert_close(codes, CODER.encode_single(boxes, priors_xyxy), rtol=1e-4, atol=1e-4)

    outputs = torch.randn(5000, 4, generator=seeded(7)) * 10  # some beyond the limit of growth
    theirs = CODER.decode_single(outputs, priors_xyxy)
    torch.testing.assert_close(decode(outputs, priors), theirs, rtol=1e-4, atol=1e-5)
    assert ((outputs[:, 2:] / 5) > MAX_LOG_RATIO).any()

    torch.testing.assert_close(decode(codes, priors), boxes, rtol=1e-4, atol=1e-5)
    assert torch.equal(encode(boxes[None].expand(3, -1, -1), priors)[2], codes)
    assert encode(boxes[:0], priors[:0]).shape == decode(codes[:0], priors[:0]).shape == (0, 4)


@pytest.mark.parametrize("variances", [(0.1, 0.2), (1.0, 1.0), (0.05, 0.3)])
def test_other_variances_equal_torchvision(variances):
    boxes, priors_xyxy = random_boxes(500, seeded(8)), random_boxes(500, seeded(9))
    center, size = (1 / v for v in variances)
    coder = BoxCoder(weights=(center, center, size, size))
    codes = encode(boxes, xyxy_to_cxcywh(priors_xyxy), variances)
    torch.testing.assert_close(codes, coder.encode_single(boxes, priors_xyxy), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        decode(codes, xyxy_to_cxcywh(priors_xyxy), variances), boxes, atol=1e-5, rtol=0
    )


def test_a_box_without_size_has_a_finite_code():
    """On purpose unlike torchvision, and unlike the original notebook: log 0 is -inf."""
    points = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.3, 0.2, 0.7], [0.6, 0.6, 0.4, 0.4]])
    prior = torch.tensor([[0.5, 0.5, 0.2, 0.2]]).expand(3, 4)
    assert encode(points, prior).isfinite().all()
    assert CODER.encode_single(points, cxcywh_to_xyxy(prior))[0, 2:].isinf().all()


@pytest.mark.parametrize("wild", [0.0, 1e4, -1e4, 1e30, -1e30])
def test_decoding_a_wild_output_stays_finite(wild):
    prior = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    assert decode(torch.full((1, 4), wild), prior).isfinite().all()
    grown = xyxy_to_cxcywh(decode(torch.tensor([[0.0, 0.0, wild, wild]]), prior))
    assert grown[0, 2:].max() <= 0.2 * 1000 / 16 + 1e-4


@fast
@given(boxes_strategy(), boxes_strategy(smallest=1, largest=1, area=True))
def test_encoding_round_trip(boxes, prior_xyxy):
    priors = xyxy_to_cxcywh(prior_xyxy).expand(len(boxes), 4)
    codes = encode(boxes, priors)
    assert codes.isfinite().all()
    # A side of 0 comes back as a millionth of the prior's.
    torch.testing.assert_close(decode(codes, priors), boxes, atol=2e-6, rtol=1e-5)


def test_clip_needs_no_box():
    assert clip(torch.empty(0, 4)).shape == (0, 4)
    boxes = torch.tensor([[-1.0, -2.0, 700.0, 481.0]])
    assert clip(boxes, 640, 480).tolist() == [[0, 0, 640, 480]]
