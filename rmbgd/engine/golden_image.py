"""Golden images: drawn scenes, the first a ball with its true matte; what a model makes of it, whether it is that."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmbgd.engine.types import Golden
from rmbgd.errors import EngineNonsense
from rmbgd.imaging.resize import matte_to_image

HEIGHT, WIDTH = 240, 320
PERIOD = 1 << 31  # of the generator that draws the texture

OVERLAP_EXPECTED = {"u2netp": 0.98}
"""Least overlap with the true matte by the registry's model name, where it was measured (u2netp: 0.994). Other weights
may be made for people or text alone: their overlap is reported, not judged."""


def golden_image() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(rgb uint8 [240, 320, 3], true alpha float32 [240, 320]); the same bytes on every machine."""
    ball = (160.0, 125.0, 72.0, (225.0, 70.0, 45.0))
    return _drawn([ball])


def golden_scenes() -> list[NDArray[np.uint8]]:
    """Images by which two ways to compute a network are compared, rgb uint8 [240, 320, 3]; the golden image is first.

    Then what it cannot show: a thin structure (a ring on a post); several subjects, one at the border; a subject that
    hardly differs from a busy ground, where rounding shows as in photographs; no subject.
    """
    x, y = _grid()
    ring = np.abs(np.hypot(x - 160, y - 90) - 60) - 2.5  # signed distances from the edge, in pixels
    post = np.maximum(np.abs(x - 160) - 2.5, np.abs(y - 190) - 42)
    thin = _painted(_ground(), np.clip(0.5 - np.minimum(ring, post), 0, 1), np.array([35.0, 30.0, 60.0]))
    balls = [(70.0, 90.0, 42.0, (60.0, 160.0, 70.0)), (190.0, 150.0, 55.0, (240.0, 200.0, 60.0))]
    several, _ = _drawn([*balls, (318.0, 60.0, 40.0, (200.0, 60.0, 160.0))])
    hidden, _ = _drawn([(130.0, 120.0, 60.0, (190.0, 150.0, 100.0))])
    return [golden_image()[0], _bytes(thin), several, _bytes(hidden + _texture()), _bytes(_ground())]


def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    return x, y


def _ground() -> NDArray[np.float64]:
    x, y = _grid()
    return np.stack([90 + 60 * x / WIDTH, 110 + 50 * y / HEIGHT, 150 - 40 * x / WIDTH], axis=-1)


def _texture() -> NDArray[np.float64]:
    """Waves in all directions, of a height and period that nearly hides a subject: [240, 320, 3], about 11 levels."""
    x, y = _grid()
    waves, state = np.zeros((HEIGHT, WIDTH, 3)), 7
    for channel in np.repeat(range(3), 24):
        draws = []
        for _ in range(3):
            state = (1103515245 * state + 12345) % PERIOD  # a generator that no library changes
            draws.append(state / PERIOD)
        waves[..., channel] += np.sin(0.6 * (draws[0] - 0.5) * x + 0.6 * (draws[1] - 0.5) * y + 6.28 * draws[2])
    return 10.8 * waves


def _drawn(
    balls: Sequence[tuple[float, float, float, tuple[float, float, float]]],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Balls (centre x, y, radius in pixels, colour) on the ground, and their true alpha."""
    x, y = _grid()
    image, everything = _ground(), np.zeros((HEIGHT, WIDTH))
    for centre_x, centre_y, radius, colour in balls:
        across, down = (x - centre_x) / radius, (y - centre_y) / radius
        distance = np.hypot(across, down)  # from the centre, in radii
        light = np.clip(1.15 - 0.45 * distance - 0.15 * across, 0, 1.2)[..., None]
        alpha = np.clip((1 - distance) * radius + 0.5, 0, 1)
        image = _painted(image, alpha, light * np.array(colour))
        everything = np.maximum(everything, alpha)
    return _bytes(image), everything.astype(np.float32)


def _painted(
    image: NDArray[np.float64], alpha: NDArray[np.float64], colour: NDArray[np.float64]
) -> NDArray[np.float64]:
    return image + alpha[..., None] * (colour - image)


def _bytes(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.floor(image.clip(0, 255) + 0.5).astype(np.uint8)


def overlap(alpha: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """Intersection over union of what is solid (alpha >= 0.5) in both, float32 [H, W]; 1 when nothing is solid."""
    found, true = alpha >= 0.5, truth >= 0.5
    union = np.count_nonzero(found | true)
    return np.count_nonzero(found & true) / union if union else 1.0


def check_golden(matte: NDArray[np.float32], model: str, name: str) -> float:
    """Overlap of an answer to the golden image, float32 [h, w], with the truth. Raises EngineNonsense if too small.

    model  as the registry calls it; name  as the recipe does
    """
    _, truth = golden_image()
    agreement = overlap(matte_to_image(matte, *truth.shape), truth)
    if agreement < (expected := OVERLAP_EXPECTED.get(model, 0.0)):
        raise EngineNonsense(f"the golden image came out wrong: overlap {agreement:.3f}, expected {expected} ({name})")
    return agreement


LEVELS = 65535  # in 16 bits a pixel: on disk, and as JSON between parent and child


def to_levels(alpha: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.floor(alpha.clip(0, 1) * LEVELS + 0.5).astype("<u2")


def from_levels(levels: NDArray[np.uint16]) -> NDArray[np.float32]:
    return np.divide(levels, LEVELS, dtype=np.float32)


def from_golden(golden: Golden) -> dict[str, Any]:
    """As JSON, compressed; some ten kilobytes."""
    data = zlib.compress(to_levels(golden.alpha).tobytes(), 1)
    return {"alpha": base64.b64encode(data).decode(), "seconds": golden.seconds}


def to_golden(message: dict[str, Any]) -> Golden:
    """Raises ValueError, KeyError or TypeError for what cannot be a golden image."""
    unpacked = zlib.decompressobj()
    try:
        data = unpacked.decompress(base64.b64decode(message["alpha"], validate=True), 2 * HEIGHT * WIDTH + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    levels = np.frombuffer(data, "<u2").reshape(HEIGHT, WIDTH)  # ValueError for any other size
    return Golden(from_levels(levels), float(message["seconds"]))
