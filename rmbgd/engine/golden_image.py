"""The golden image: a red ball on a plain ground, drawn by a formula, with the matte that any remover should find.

Knows no engine. An engine proves itself on it at start; after a fault that tells a bad image from a bad engine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 240, 320

OVERLAP_EXPECTED = {"u2netp": 0.98}
"""Least overlap with the true matte by the registry's model name, where it was measured (u2netp: 0.994). Other weights
may be made for people or text alone: their overlap is told, not judged."""


def golden_image() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(rgb uint8 [240, 320, 3], true alpha float32 [240, 320]); the same bytes on every machine."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    ground = np.stack([90 + 60 * x / WIDTH, 110 + 50 * y / HEIGHT, 150 - 40 * x / WIDTH], axis=-1)
    across, down = (x - 160) / 72, (y - 125) / 72
    distance = np.hypot(across, down)  # from the centre, in radii
    light = np.clip(1.15 - 0.45 * distance - 0.15 * across, 0, 1.2)[..., None]
    ball = light * np.array([225.0, 70.0, 45.0])
    alpha = np.clip((1 - distance) * 72 + 0.5, 0, 1)
    image = ground + alpha[..., None] * (ball - ground)
    return np.floor(image.clip(0, 255) + 0.5).astype(np.uint8), alpha.astype(np.float32)


def overlap(alpha: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """Intersection over union of what is solid (alpha >= 0.5) in both, float32 [H, W]; 1 when nothing is solid."""
    found, true = alpha >= 0.5, truth >= 0.5
    union = np.count_nonzero(found | true)
    return np.count_nonzero(found & true) / union if union else 1.0
