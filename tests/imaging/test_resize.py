"""To the network's size and back: the filter is what its definition says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.imaging.resize import image_to_network, matte_to_image
from rmbgd.resampling import Filter
from tests.imaging.builders import photo

SIDES = st.integers(1, 70)


def weights(size: int, new_size: int) -> np.ndarray:
    """float64 [new_size, size]: the triangle filter on half-pixel centres, as wide as the reduction, normalised."""
    scale = size / new_size
    centres = (np.arange(new_size) + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1.0)
    triangle = np.maximum(1.0 - distance, 0.0)
    return triangle / triangle.sum(axis=1, keepdims=True)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = np.tensordot(weights(image.shape[0], height), image.astype(np.float64), axes=1)
    return np.moveaxis(np.tensordot(weights(image.shape[1], width), np.moveaxis(rows, 1, 0), axes=1), 0, 1)


@settings(deadline=None, max_examples=150)
@given(SIDES, SIDES, SIDES, SIDES)
def test_alpha_is_resized_as_defined(height: int, width: int, new_height: int, new_width: int) -> None:
    """Larger, smaller, one axis each way, down to one pixel: within float32's rounding, so nothing is stretched."""
    alpha = np.random.default_rng(height * 71 + width).random((height, width), np.float32)
    result = matte_to_image(alpha, new_height, new_width)
    assert (result.dtype, result.shape) == (np.float32, (new_height, new_width))
    assert np.abs(result - resized(alpha, new_height, new_width)).max() < 2e-6


@settings(deadline=None, max_examples=50)
@given(SIDES, SIDES, SIDES, SIDES)
def test_images_are_resized_as_defined(height: int, width: int, new_height: int, new_width: int) -> None:
    image = photo(height, width)
    result = image_to_network(image, (new_height, new_width), Filter.BILINEAR)
    assert (result.dtype, result.shape) == (np.uint8, (new_height, new_width, 3))
    assert np.abs(result - resized(image, new_height, new_width)).max() <= 1.0 + 1e-9  # the yardstick rounds too
