"""VGG16 as SSD cuts it: the sizes of its maps, and what goes wrong with VGG16 as it comes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssdlib.config import ModelConfig
from ssdlib.detector.backbone import VGG16, ExtraLayers, L2Norm, scaled
from ssdlib.detector.model import SSD300
from tests.core_cases import seeded

NARROW = 0.125


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_map_sizes(images, batch_norm):
    backbone = VGG16(batch_norm, NARROW).eval()
    extras = ExtraLayers(backbone.channels[1], batch_norm, NARROW).eval()
    with torch.inference_mode():
        conv4_3, conv7 = backbone(torch.zeros(images, 3, 300, 300))
        maps = [conv4_3, conv7, *extras(conv7)]
    channels = [scaled(c, NARROW) for c in (512, 1024, 512, 256, 256, 256)]
    expected = [(images, c, f, f) for c, f in zip(channels, (38, 19, 10, 5, 3, 1), strict=True)]
    assert [tuple(m.shape) for m in maps] == expected


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(8, 0.001, 8), (64, 1.0, 64), (64, 0.125, 8), (1024, 0.3, 304)]
)
def test_scaled(channels, width, expected):
    assert scaled(channels, width) == expected


def faulty(*, floor: bool, original_pool5: bool) -> SSD300:
    model = SSD300(ModelConfig(width=NARROW)).eval()
    if floor:
        model.backbone.to_conv4_3.pool3.ceil_mode = False
    if original_pool5:
        model.backbone.to_conv7.pool5 = nn.MaxPool2d(2)
    return model


def test_the_original_notebooks_failure():
    """torchvision's VGG16 as it comes: 37 and 9 cells, and nothing left for conv11_2."""
    model = faulty(floor=True, original_pool5=True)
    with torch.inference_mode():
        conv4_3, conv7 = model.backbone(torch.zeros(1, 3, 300, 300))
        assert (conv4_3.shape[-1], conv7.shape[-1]) == (37, 9)
        with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
            model(torch.zeros(1, 3, 300, 300))


def test_each_pool_alone_is_wrong_too():
    image = torch.zeros(1, 3, 300, 300)
    with torch.inference_mode():
        floored = faulty(floor=True, original_pool5=False)
        assert [m.shape[-1] for m in floored.feature_maps(image)] == [37, 18, 9, 5, 3, 1]
        # It runs, but its outputs belong to other places than the 8732 priors.
        assert floored(image)[0].shape[1] == 8096 != len(floored.priors)
        with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
            faulty(floor=False, original_pool5=True)(image)


def test_conv6_sees_as_far_as_fc6_did():
    """A 3x3 kernel dilated by 6 spans 13 cells, and keeps the map's size."""
    conv6 = VGG16(width=NARROW).to_conv7.conv6
    assert conv6.kernel_size == (3, 3) and conv6.dilation == (6, 6) and conv6.padding == (6, 6)


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
