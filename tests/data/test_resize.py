"""The resize in NumPy: to the bit torchvision's, at every size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from ssdlib.data.resize import resize_to

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="there torchvision resizes in floating point",
)


def theirs(image: np.ndarray, size: int) -> np.ndarray:
    return F.resize(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), [size, size]).numpy()


def make(height: int, width: int, seed: int) -> np.ndarray:
    """Noise, with a white part and a black one, where sums are at their limits."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 3] = 255
    image[:, : width // 4] = 0
    return image


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (480, 640),
        (300, 640),
        (480, 300),
        (300, 300),
        (299, 301),
        (1, 1),
        (2, 3),
        (1200, 1600),
        (37, 2500),
        (5000, 3),
    ],
)
def test_fields_of_all_shapes(height, width):
    image = make(height, width, 0)
    np.testing.assert_array_equal(resize_to(image), theirs(image, 300))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 1500), st.integers(1, 1500), st.integers(0, 99), st.sampled_from((7, 64, 224, 300, 512))
)
def test_drawn_sizes(height, width, seed, size):
    image = make(height, width, seed)
    np.testing.assert_array_equal(resize_to(image, size), theirs(image, size))


def test_views_with_odd_strides():
    image = make(900, 1300, 1)[::-2, ::3]
    np.testing.assert_array_equal(resize_to(image), theirs(image, 300))


def test_white_stays_white_and_nothing_is_written_into_the_image():
    image = np.full((4000, 6000, 3), 255, np.uint8)
    image.setflags(write=False)
    assert (resize_to(image) == 255).all()
