"""Convert colours from an embedded profile to sRGB, and the sRGB profile that then goes into the file."""

from __future__ import annotations

import io
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageCms

from rmbgd.imaging.compose import Bytes

_CREATED, _CREATED_AT = bytes.fromhex("07ea 0001 0001 0000 0000 0000"), slice(24, 36)  # 2026-01-01 (ICC.1:2022, 7.2.8)


@cache
def srgb_profile() -> bytes:
    """The same bytes on every run: LittleCMS writes the time into the header, which is set to a fixed one here."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[_CREATED_AT] = _CREATED
    return bytes(profile)


def as_srgb(pixels: Bytes, profile: bytes | None) -> Bytes:
    """The colours in sRGB, by the perceptual intent; alpha as it is. Unchanged where the profile is or must be sRGB.

    pixels   uint8 [H, W, 3] or [H, W, 4] straight RGBA; only read
    profile  None, or one that cannot be applied: the colours are taken for sRGB, as browsers do
    """
    transform = None if profile in (None, srgb_profile()) else _transform(profile, f"RGB{'A' * (pixels.shape[2] - 3)}")
    if transform is None:
        return pixels
    return np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), transform), np.uint8)


@lru_cache(maxsize=16)  # an upload has one or two; building a transform takes some ten milliseconds
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, mode, ImageCms.Intent.PERCEPTUAL)
    except (OSError, ImageCms.PyCMSError):
        return None
