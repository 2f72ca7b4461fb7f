"""VGG16 as SSD cuts it: the sizes of its maps, L2 normalization and batch normalization."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssdlib.config import ModelConfig
from ssdlib.detector.backbone import VGG16, ExtraLayers, L2Norm, scaled
from ssdlib.detector.model import SSD300
from tests.core_cases import seeded

NARROW = 0.125


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(8, 0.001, 8), (64, 1.0, 64), (64, 0.125, 8), (1024, 0.3, 304)]
)
def test_scaled(channels, width, expected):
    assert scaled(channels, width) == expected


@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (1, 8, 1, 1), (2, 8, 5, 4)])
def test_l2norm(shape):
    norm = L2Norm(8)
    assert norm.scale.shape == (8,) and (norm.scale == 20).all()
    features = torch.randn(shape, generator=seeded(0)) * 1000
    out = norm(features)
    assert out.shape == shape
    torch.testing.assert_close(out.norm(dim=1), torch.full((shape[0], *shape[2:]), 20.0))
    torch.testing.assert_close(out, 20 * F.normalize(features))
    assert norm(features * 0).abs().sum() == 0
    norm(features).sum().backward()
    assert norm.scale.grad.isfinite().all()


def test_l2norm_starts_at_20_in_the_network():
    assert (SSD300(ModelConfig(width=NARROW)).norm4_3.scale == 20).all()
    assert (SSD300(ModelConfig(width=NARROW, l2norm_scale=10.0)).norm4_3.scale == 10).all()


def test_batch_norm_is_after_every_convolution_but_the_last_map():
    plain, normed = VGG16(False, NARROW), VGG16(True, NARROW)
    convolutions = [m for m in normed.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in normed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 15
    assert all(conv.bias is None for conv in convolutions)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    # One cell an image: in training, BatchNorm over a batch of one image would have a single value.
    extras = ExtraLayers(normed.channels[1], True, NARROW).train()
    last = list(extras.blocks[-1].named_children())
    assert [name for name, _ in last] == ["conv11_1", "norm11_1", "relu11_1", "conv11_2", "relu11_2"]
    extras(torch.zeros(1, normed.channels[1], 19, 19))
