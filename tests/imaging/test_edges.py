"""Edge colours: the old background goes, nothing else changes, and the estimate is better than the one widely used."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.imaging.compose import compose_rgba
from rmbgd.imaging.edges import HARDEST, SOFTEST, clean_edges


def soft_disc(height: int, width: int, radius: float, softness: float) -> np.ndarray:
    """Alpha of a disc in the middle, float32 [H, W], falling from 1 to 0 over `softness` pixels."""
    y, x = np.mgrid[0:height, 0:width]
    distance = np.hypot(y - height / 2, x - width / 2)
    return np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32)


def mixed(fore: np.ndarray, back: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None]
    return np.rint(share * fore + (1 - share) * back).astype(np.uint8)


def blur_fusion_twice(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Forte, "Approximate fast foreground colour estimation", 2021, with its published radii 90 and 6."""
    image, share = image.astype(np.float32), alpha[:, :, None]
    fore = back = image
    for radius in (90, 6):
        soft = cv2.blur(alpha, (radius, radius))[:, :, None]
        front = cv2.blur(fore * share, (radius, radius)) / (soft + 1e-5)
        back = cv2.blur(back * (1 - share), (radius, radius)) / (1 - soft + 1e-5)
        fore = np.clip(front + share * (image - share * front - (1 - share) * back), 0, 255)
    return fore


def edge_error(colours: np.ndarray, truth: np.ndarray, alpha: np.ndarray) -> float:
    """Mean of alpha |F - F true| over soft pixels, grey levels: what is seen on any new background."""
    soft = (alpha > SOFTEST) & (alpha < HARDEST)
    return float(np.abs(alpha[:, :, None] * (colours.astype(np.float32) - truth))[soft].mean())


@pytest.mark.parametrize("back", [(20, 90, 30), (255, 255, 255), (0, 0, 0), (200, 30, 160)])
def test_a_half_transparent_edge_shows_no_old_background(back: tuple[int, int, int]) -> None:
    """(200, 180, 160) at half alpha, laid on white, gives (227, 217, 207) within 2, whatever was behind it."""
    fore = np.full((400, 400, 3), (200, 180, 160), np.uint8)
    alpha = soft_disc(400, 400, 130, 12)
    image = mixed(fore, np.full_like(fore, back), alpha)
    rgba = np.empty((400, 400, 4), np.uint8)
    compose_rgba(image, alpha, None, rgba, clean=True)
    half = np.abs(rgba[:, :, 3].astype(int) - 128) <= 1
    share = rgba[half][:, 3:] / 255
    on_white = share * rgba[half][:, :3] + (1 - share) * 255
    assert half.sum() > 20
    assert np.abs(on_white - (227, 217, 207)).max() <= 2


def cleaned(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    out = np.dstack([image, np.zeros(alpha.shape, np.uint8)])
    clean_edges(image, alpha, out)
    return out[:, :, :3]


@pytest.mark.parametrize(
    ("front", "behind", "side"),
    [("astronaut", "coffee", 180), ("chelsea", "rocket", 500), ("coffee", "chelsea", 500), ("coffee", "chelsea", 1100)],
)
def test_the_estimate_beats_blur_fusion_on_photographs(front: str, behind: str, side: int) -> None:
    fore, back = (cv2.resize(getattr(skimage.data, name)(), (side, side)) for name in (front, behind))
    alpha = soft_disc(side, side, side * 0.3, side * 0.03)
    image = mixed(fore, back, alpha)
    error = edge_error(cleaned(image, alpha), fore, alpha)
    assert error < 0.8 * edge_error(blur_fusion_twice(image, alpha), fore, alpha)
    assert error < 0.5 * edge_error(image, fore, alpha)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_only_soft_pixels_change_and_only_their_colours(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    alpha = np.clip(rng.normal(0.5, 0.7, (height, width)), 0, 1).astype(np.float32)
    before = rng.integers(0, 256, (height, width, 4), np.uint8)
    out, original = before.copy(), image.copy()
    clean_edges(image, alpha, out)
    hard = (alpha < SOFTEST) | (alpha > HARDEST)
    assert np.array_equal(out[hard], before[hard])
    assert np.array_equal(out[:, :, 3:], before[:, :, 3:])
    assert np.array_equal(image, original)


def test_an_image_of_one_colour_stays_of_one_colour() -> None:
    image = np.full((150, 200, 3), (200, 180, 160), np.uint8)
    out = cleaned(image, np.linspace(0, 1, 200, dtype=np.float32)[None].repeat(150, axis=0))
    assert np.abs(out.astype(int) - image).max() <= 1
