"""To the network's size and back: the filter is what its definition says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from rmbgd.imaging.resize import image_to_network, matte_to_image
from rmbgd.resampling import Filter
from tests.imaging.builders import photo

SIDES = st.integers(1, 70)


def weights(size: int, new_size: int, kind: Filter = Filter.BILINEAR) -> np.ndarray:
    """float64 [new_size, size]: the triangle filter on half-pixel centres, as wide as the reduction, normalised; or, of
    a reduction by BOX, ones where a pixel's centre lies in the output pixel, its upper bound included."""
    scale = size / new_size
    if kind is Filter.BOX and scale > 1:
        outer = np.arange(new_size)[:, None]
        centres = (2 * np.arange(size) + 1) * new_size  # in halves of an input pixel, times the outputs: exact
        box = ((2 * outer * size < centres) & (centres <= 2 * (outer + 1) * size)).astype(np.float64)
        return box / box.sum(axis=1, keepdims=True)
    centres = (np.arange(new_size) + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1.0)
    triangle = np.maximum(1.0 - distance, 0.0)
    return triangle / triangle.sum(axis=1, keepdims=True)


def resized(image: np.ndarray, height: int, width: int, kind: Filter = Filter.BILINEAR) -> np.ndarray:
    rows = np.tensordot(weights(image.shape[0], height, kind), image.astype(np.float64), axes=1)
    return np.moveaxis(np.tensordot(weights(image.shape[1], width, kind), np.moveaxis(rows, 1, 0), axes=1), 0, 1)


@settings(deadline=None, max_examples=150)
@given(SIDES, SIDES, SIDES, SIDES)
def test_alpha_is_resized_as_defined(height: int, width: int, new_height: int, new_width: int) -> None:
    """Larger, smaller, one axis each way, down to one pixel: within float32's rounding, so nothing is stretched."""
    alpha = np.random.default_rng(height * 71 + width).random((height, width), np.float32)
    result = matte_to_image(alpha, new_height, new_width)
    assert (result.dtype, result.shape) == (np.float32, (new_height, new_width))
    assert np.abs(result - resized(alpha, new_height, new_width)).max() < 2e-6


@settings(deadline=None, max_examples=100)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(Filter))
def test_images_are_resized_as_defined(height: int, width: int, new_height: int, new_width: int, kind: Filter) -> None:
    image = photo(height, width)
    result = image_to_network(image, (new_height, new_width), kind)
    assert (result.dtype, result.shape) == (np.uint8, (new_height, new_width, 3))
    off = np.abs(result - resized(image, new_height, new_width, kind)).max()
    assert off <= (0.501 if kind is Filter.BOX else 1.0 + 1e-9)  # bilinear is rounded in between, too


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 120), st.integers(1, 119))
def test_boxes_are_pillows_where_no_centre_lies_on_a_bound(size: int, new_size: int) -> None:
    """On a bound Pillow falls to either side, by the rounding of a float."""
    assume(new_size < size and all((2 * index * size + new_size) % (2 * new_size) for index in range(1, new_size)))
    image = photo(size, size)
    expected = np.asarray(Image.fromarray(image).resize((new_size, new_size), Image.Resampling.BOX), np.int16)
    assert np.abs(expected - image_to_network(image, (new_size, new_size), Filter.BOX)).max() <= 1


@pytest.mark.parametrize("kind", Filter)
def test_an_image_of_the_networks_size_passes_unchanged(kind: Filter) -> None:
    image = photo(32, 48)
    assert image_to_network(image, (32, 48), kind) is image


def test_rows_may_lie_apart() -> None:
    image = photo(90, 110)
    part = image[3:80, 5:101]
    for kind in Filter:
        assert np.array_equal(image_to_network(part, (20, 30), kind), image_to_network(part.copy(), (20, 30), kind))
