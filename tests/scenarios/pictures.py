"""Pictures for scenarios: small, made on the spot, and different from one another."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def picture(number: int = 0, *, size: tuple[int, int] = (64, 48), kind: str = "PNG", **options: object) -> bytes:
    """A picture of its own for each `number`: noise, and green from 0 to 255 so that alpha has all values."""
    width, height = size
    random = np.random.default_rng(number)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[..., 1] = np.linspace(0, 255, width, dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind, **options)
    return target.getvalue()


def alpha_of(output: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(output)) as opened:
        return np.asarray(opened.convert("RGBA"))[..., 3]
