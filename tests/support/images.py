"""Images for scenarios: small, made on the spot, different from one another, and what must come out of them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rmbgd.testing.engine import POISON_COLOUR


def sample_image(number: int = 0, *, size: tuple[int, int] = (64, 48), kind: str = "PNG", **options: object) -> bytes:
    """An image of its own for each `number`: noise, and green from 0 to 255 so that alpha has all values."""
    width, height = size
    random = np.random.default_rng(number)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[..., 1] = np.linspace(0, 255, width, dtype=np.uint8)
    return encoded(pixels, kind, **options)


def samples(numbers: Iterable[int], **options: Any) -> dict[str, bytes]:
    """`sample_image` of each number, by a name that says which."""
    return {f"{number}.png": sample_image(number, **options) for number in numbers}


def poisoned(number: int) -> bytes:
    """An image that the fake engine dies of when it is told to."""
    pixels = rgba_of(sample_image(number))[..., :3].copy()
    pixels[0, 0] = POISON_COLOUR
    return encoded(pixels)


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG", **options: object) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind, **options)
    return target.getvalue()


def rgba_of(encoded: bytes | Path) -> NDArray[np.uint8]:
    """uint8 [H, W, 4]. Raises OSError for a file that is cut off."""
    with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as opened:
        return np.asarray(opened.convert("RGBA"))


def expected_cutout(source: bytes) -> NDArray[np.uint8]:
    """What the fake engine makes of an opaque image with default recipe: alpha is green, hidden colours are zero."""
    cutout = rgba_of(source).copy()
    cutout[..., 3] = cutout[..., 1]
    cutout[cutout[..., 3] == 0] = 0
    return cutout


def assert_cutout_of(source: bytes, output: bytes | Path, *, within: int = 0) -> None:
    """`within`: levels by which two decoders of a lossy format may differ."""
    found, expected = rgba_of(output), expected_cutout(source)
    assert found.shape == expected.shape, f"{output!r}: {found.shape}, not {expected.shape}"
    seen = (found[..., 3] > within) & (expected[..., 3] > within)
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference[..., 3].max() <= within, f"{output!r}: alpha differs by {difference[..., 3].max()}"
    colours = difference[seen].max(initial=0)
    assert colours <= within, f"{output!r}: colours differ by {colours}"
