"""The output plane: alpha rounded once, multiplied by the image's own, on straight colours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rmbgd.imaging.compose import compose_rgba, quantise_alpha

SIDES = st.integers(1, 60)
SEEDS = st.integers(0, 2**32 - 1)


def planes(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    alpha = np.clip(rng.normal(0.5, 0.8, (height, width)), 0, 1).astype(np.float32)  # many exact zeros and ones
    rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
    return rgb, alpha, rng.integers(0, 256, (height, width), np.uint8)


@settings(deadline=None, max_examples=60)
@example(700, 901, 3, True)  # many bands
@given(SIDES, SIDES, SEEDS, st.booleans())
def test_the_images_own_alpha_is_multiplied_and_rounded_once(height: int, width: int, seed: int, own: bool) -> None:
    """The photo's colours, and in all three planes the exact product within half a step; without its own alpha too."""
    rgb, alpha, source = planes(height, width, seed)
    source = source if own else None
    exact = alpha.astype(np.float64) * (source / 255 if own else 1)
    rgba = np.empty((height, width, 4), np.uint8)
    alpha8, alpha16 = np.empty((height, width), np.uint8), np.empty((height, width), np.uint16)
    compose_rgba(rgb, alpha, source, rgba, clean=False)
    quantise_alpha(alpha, source, alpha8)
    quantise_alpha(alpha, source, alpha16)
    assert np.array_equal(rgba[:, :, :3], rgb)
    assert np.abs(rgba[:, :, 3] - exact * 255).max() <= 0.5 + 1e-4
    assert np.array_equal(alpha8, rgba[:, :, 3])
    assert np.abs(alpha16 - exact * 65535).max() <= 0.5 + 1e-2


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
