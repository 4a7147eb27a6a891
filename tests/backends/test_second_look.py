"""The second look: a wider frame around the same image, and the agreement of two mattes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rmbgd.backends.second_look import disagreement, needs_second_look, wider
from rmbgd.engine.types import MatteReport

SIZES = [(320, 320), (1024, 1024), (320, 480), (64, 33), (7, 12)]


def drawn(size: tuple[int, int]) -> NDArray[np.uint8]:
    y, x = np.mgrid[: size[0], : size[1]]
    disc = np.hypot((y - size[0] * 0.4) / size[0], (x - size[1] * 0.6) / size[1]) < 0.25
    return np.where(disc[..., None], (250, 240, 230), (10, 20, 30)).astype(np.uint8)


def matte(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of a network that sees each pixel by itself."""
    return image[:, :, 0].astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("size", SIZES)
def test_a_network_that_does_not_mind_the_frame_agrees_with_itself(size: tuple[int, int]) -> None:
    image = drawn(size)
    kept = image.copy()
    wide = wider(image)
    assert (wide.shape, wide.dtype) == (image.shape, np.uint8)
    assert disagreement(matte(image), matte(wide)) < (0.1 if min(size) > 100 else 0.5)
    assert np.array_equal(image, kept)


def test_levels_and_normalised_values_are_made_wider_alike() -> None:
    image = drawn((320, 320))
    levels, values = wider(image).astype(np.float32), wider(image.astype(np.float32))
    assert np.abs(levels - values).max() <= 0.5 + 1e-3


def test_mattes_that_share_nothing_disagree_wholly() -> None:
    left, wide = np.zeros((64, 64), np.float32), np.zeros((64, 64), np.float32)
    left[:, :20] = wide[:, 44:] = 1
    assert disagreement(left, wide) == 1
    assert disagreement(left, np.zeros_like(wide)) == 1
    assert disagreement(np.zeros_like(left), np.zeros_like(wide)) == 0


@pytest.mark.parametrize(
    ("peak", "solid", "soft", "needed"),
    [(1.0, 0.3, 0.01, False), (1.0, 0.3, 0.1, True), (0.4, 0.0, 0.3, False), (0.6, 0.0, 0.1, True)],
)
def test_only_a_matte_in_doubt_needs_one(peak: float, solid: float, soft: float, needed: bool) -> None:
    assert needs_second_look(MatteReport(1, solid, peak, solid, soft)) is needed
