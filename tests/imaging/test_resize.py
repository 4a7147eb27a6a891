"""To the network's size and back: the filter is what its definition says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.imaging.resize import image_to_network, matte_to_image
from tests.imaging.builders import photo


def weights(size: int, new_size: int) -> np.ndarray:
    """float64 [new_size, size]: the triangle filter on half-pixel centres, as wide as the reduction, normalised."""
    scale = size / new_size
    centres = (np.arange(new_size) + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1.0)
    triangle = np.maximum(1.0 - distance, 0.0)
    return triangle / triangle.sum(axis=1, keepdims=True)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The definition, in float64."""
    rows = np.tensordot(weights(image.shape[0], height), image.astype(np.float64), axes=1)
    return np.moveaxis(np.tensordot(weights(image.shape[1], width), np.moveaxis(rows, 1, 0), axes=1), 0, 1)


SIDES = st.integers(1, 70)


@settings(deadline=None, max_examples=150)
@given(SIDES, SIDES, SIDES, SIDES)
def test_alpha_is_resized_as_defined(height: int, width: int, new_height: int, new_width: int) -> None:
    """Larger, smaller, one axis each way, down to one pixel: within float32's rounding."""
    alpha = np.random.default_rng(height * 71 + width).random((height, width), np.float32)

    result = matte_to_image(alpha, new_height, new_width)

    assert (result.dtype, result.shape) == (np.float32, (new_height, new_width))
    assert np.abs(result - resized(alpha, new_height, new_width)).max() < 2e-6


def test_alpha_keeps_its_absolute_values() -> None:
    """No stretching: a faint matte stays faint, a flat one flat."""
    faint = np.full((32, 32), 7e-5, np.float32)

    for side in (7, 32, 111):
        assert np.allclose(matte_to_image(faint, side, side), 7e-5, rtol=1e-6)


def test_down_and_up_again_is_the_inverse_for_what_the_network_sees() -> None:
    """A ramp that is linear in position comes back linear, without a shift of half a pixel."""
    ramp = np.broadcast_to(np.linspace(0, 1, 256, dtype=np.float32), (256, 256))

    back = matte_to_image(resized(ramp, 64, 64).astype(np.float32), 256, 256)

    assert np.abs(back - ramp)[8:-8, 8:-8].max() < 1e-5


@settings(deadline=None, max_examples=50)
@given(SIDES, SIDES, SIDES, SIDES)
def test_images_are_resized_as_defined(height: int, width: int, new_height: int, new_width: int) -> None:
    """Within one level of the exact value."""
    image = photo(height, width)

    result = image_to_network(image, new_height, new_width)

    assert (result.dtype, result.shape) == (np.uint8, (new_height, new_width, 3))
    assert np.abs(result - resized(image, new_height, new_width)).max() <= 1.0 + 1e-9  # the yardstick rounds too
