"""8732 priors: counted, placed, and equal to torchvision's under torchvision's settings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from ssdlib.config import SMALL_PRIORS, TORCHVISION_PRIORS, PriorConfig
from ssdlib.detector.priors import make_priors, sizes_of_map
from tests.core_cases import fast


def torchvision_priors(config: PriorConfig) -> torch.Tensor:
    generator = DefaultBoxGenerator(
        [list(ratios) for ratios in config.aspect_ratios],
        scales=[*config.scales, config.final_scale],
        steps=None if config.strides is None else list(config.strides),
        clip=config.clip,
    )
    return generator._grid_default_boxes([[f, f] for f in config.feature_maps], [300, 300])


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (PriorConfig(feature_maps=(1,), scales=(0.5,), aspect_ratios=((),)), 2),
        (PriorConfig(feature_maps=(2,), scales=(0.5,), aspect_ratios=((2.0, 3.0),)), 4 * 6),
        (PriorConfig(), 8732),
        (TORCHVISION_PRIORS, 8732),
        (SMALL_PRIORS, 8732),
    ],
)
def test_counts_and_ranges(config, count):
    priors = make_priors(config)
    assert priors.shape == (count, 4) and priors.dtype == torch.float32
    assert config.count == count
    assert priors.isfinite().all() and (priors > 0).all() and (priors[:, 2:] <= 1).all()


def test_8732_by_arithmetic():
    each = [f * f * n for f, n in zip((38, 19, 10, 5, 3, 1), (4, 6, 6, 6, 4, 4), strict=True)]
    assert each == [5776, 2166, 600, 150, 36, 4]
    assert sum(each) == len(make_priors(PriorConfig())) == 8732


@pytest.mark.parametrize("config", [PriorConfig(), TORCHVISION_PRIORS, SMALL_PRIORS])
def test_equal_torchvision(config):
    torch.testing.assert_close(make_priors(config), torchvision_priors(config), rtol=0, atol=1e-6)


@fast
@given(st.data(), st.integers(1, 4), st.booleans(), st.booleans())
def test_any_configuration_equals_torchvision(data, maps, clip, in_pixels):
    def list_of(values):
        return tuple(data.draw(st.lists(values, min_size=maps, max_size=maps)))

    sizes = st.floats(0.01, 1.5)
    config = PriorConfig(
        feature_maps=list_of(st.integers(1, 12)),
        scales=list_of(sizes),
        final_scale=data.draw(sizes),
        aspect_ratios=list_of(st.lists(st.floats(1.1, 5), max_size=3).map(tuple)),
        strides=list_of(st.integers(1, 300)) if in_pixels else None,
        clip=clip,
    )
    assert len(make_priors(config)) == config.count
    torch.testing.assert_close(make_priors(config), torchvision_priors(config), rtol=1e-6, atol=1e-6)


def test_order_is_map_row_column_size():
    """The order in which the heads' outputs are laid out."""
    priors = make_priors(PriorConfig())
    first = priors[:4]
    assert torch.allclose(first[:, :2], torch.tensor(0.5 / 38))
    assert torch.allclose(priors[4, :2], torch.tensor([1.5 / 38, 0.5 / 38]))  # next column
    assert torch.allclose(priors[4 * 38, :2], torch.tensor([0.5 / 38, 1.5 / 38]))  # next row
    root = math.sqrt(2)
    between = math.sqrt(0.1 * 0.2)
    expected = [[0.1, 0.1], [between, between], [0.1 * root, 0.1 / root], [0.1 / root, 0.1 * root]]
    torch.testing.assert_close(first[:, 2:], torch.tensor(expected))
    torch.testing.assert_close(priors[-4:, :2], torch.full((4, 2), 0.5))


def test_clipping_limits_sizes_only():
    wide = PriorConfig(feature_maps=(1,), scales=(0.9,), aspect_ratios=((3.0,),))
    assert max(max(size) for size in sizes_of_map(wide, 0)) == 1.0
    assert max(max(size) for size in sizes_of_map(wide.replace(clip=False), 0)) == 0.9 * math.sqrt(3)


def test_paper_against_torchvision():
    """On purpose unlike torchvision's ssd300_vgg16: its centers lie 8 pixels apart, 304 in all, so that its
    last one is on the border. The paper spreads them evenly: the last is half a cell inside."""
    paper, theirs = make_priors(PriorConfig()), make_priors(TORCHVISION_PRIORS)
    last = 4 * 37
    assert (paper[last, 0].item(), theirs[last, 0].item()) == (pytest.approx(37.5 / 38), pytest.approx(1.0))
    assert paper[:, :2].mean().item() == pytest.approx(0.5, abs=1e-5)
    assert theirs[:, :2].mean().item() > 0.503
