"""Planes of the answer: rounded once, multiplied by the image's own alpha, straight, and flattened exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.imaging.compose import compose_rgba, extract_mask, flatten, quantise_alpha, zero_hidden

SIDES = st.integers(1, 60)
SEEDS = st.integers(0, 2**32 - 1)


def planes(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rgb, network alpha with many exact zeros and ones, source alpha."""
    rng = np.random.default_rng(seed)
    alpha = np.clip(rng.normal(0.5, 0.8, (height, width)), 0, 1).astype(np.float32)
    rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
    return rgb, alpha, rng.integers(0, 256, (height, width), np.uint8)


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SEEDS)
def test_rgba_is_the_photo_with_rounded_alpha(height: int, width: int, seed: int) -> None:
    """alpha 255 keeps the pixel, alpha 0 is transparent, size is the source's."""
    rgb, alpha, _ = planes(height, width, seed)
    out = np.empty((height, width, 4), np.uint8)

    compose_rgba(rgb, alpha, None, out, clean=False)

    assert np.array_equal(out[:, :, :3], rgb)
    assert np.abs(out[:, :, 3] - alpha.astype(np.float64) * 255).max() <= 0.5 + 1e-4


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SEEDS)
def test_the_images_own_alpha_is_multiplied_and_rounded_once(height: int, width: int, seed: int) -> None:
    """In all three planes, within half a step of the exact product."""
    rgb, alpha, source = planes(height, width, seed)
    exact = alpha.astype(np.float64) * source / 255
    rgba = np.empty((height, width, 4), np.uint8)
    alpha8, alpha16 = np.empty((height, width), np.uint8), np.empty((height, width), np.uint16)

    compose_rgba(rgb, alpha, source, rgba, clean=False)
    quantise_alpha(alpha, source, alpha8)
    quantise_alpha(alpha, source, alpha16)

    assert np.abs(rgba[:, :, 3] - exact * 255).max() <= 0.5 + 1e-4
    assert np.array_equal(alpha8, rgba[:, :, 3])
    assert np.abs(alpha16 - exact * 65535).max() <= 0.5 + 1e-2


def test_an_image_that_spans_many_bands_is_composed_whole() -> None:
    """No seam, no band left out."""
    rgb, alpha, source = planes(700, 901, 3)
    out = np.empty((700, 901, 4), np.uint8)

    compose_rgba(rgb, alpha, source, out, clean=False)

    assert np.array_equal(out[:, :, :3], rgb)
    assert np.abs(out[:, :, 3] - alpha.astype(np.float64) * source).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("value", [-0.25, -1e-7, 1.0 + 1e-6, 3.0])
def test_alpha_beyond_its_range_is_taken_for_its_end(value: float) -> None:
    """Rounding of a filter may leave 0..1 by a hair; it must not wrap around."""
    alpha = np.full((3, 3), value, np.float32)
    rgb = np.zeros((3, 3, 3), np.uint8)
    out, wide = np.empty((3, 3, 4), np.uint8), np.empty((3, 3), np.uint16)

    compose_rgba(rgb, alpha, None, out, clean=False)
    quantise_alpha(alpha, None, wide)

    assert (out[:, :, 3] == (255 if value > 0 else 0)).all()
    assert (wide == (65535 if value > 0 else 0)).all()


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SEEDS)
def test_hidden_colours_become_zero_and_nothing_else_changes(height: int, width: int, seed: int) -> None:
    """Every pixel with alpha of 1 and more keeps its colours; alpha is untouched."""
    rgba = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    rgba[:, :, 3] *= np.random.default_rng(seed + 1).integers(0, 2, (height, width), np.uint8)
    expected = np.where(rgba[:, :, 3:] == 0, 0, rgba)

    zero_hidden(rgba)

    assert np.array_equal(rgba, expected)


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SEEDS, st.tuples(*[st.integers(0, 255)] * 3))
def test_flattening_is_exact(height: int, width: int, seed: int, colour: tuple[int, int, int]) -> None:
    """The rounded mixture everywhere; exactly the colour under alpha 0, exactly the photo under 255."""
    rgba = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    rgba[0, 0, 3], rgba[-1, -1, 3] = 0, 255
    out = np.empty((height, width, 3), np.uint8)

    flatten(rgba, colour, out)

    share = rgba[:, :, 3:].astype(np.int64)
    exact = share * rgba[:, :, :3] + (255 - share) * np.asarray(colour)
    assert np.array_equal(out, (2 * exact + 255) // 510)
    assert (out[rgba[:, :, 3] == 0] == colour).all()


def test_the_mask_is_the_alpha() -> None:
    """Unchanged values."""
    rgba = np.random.default_rng(0).integers(0, 256, (5, 1, 4), np.uint8)

    assert np.array_equal(extract_mask(rgba), rgba[:, :, 3])
