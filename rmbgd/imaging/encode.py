"""Encode the finished image: PNG by our own writer, WebP and TIFF by Pillow.

Profile, resolution and allow-listed text are kept. A GPS position is never written, because none is ever read.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from rmbgd.config.load import Recipe
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.compose import Pixels
from rmbgd.imaging.formats import SourceFacts
from rmbgd.imaging.metadata import PNG_KEYWORDS, RESOLUTION_UNIT, TEXT_TAGS, X_RESOLUTION, Y_RESOLUTION
from rmbgd.imaging.png import Write, write_png

WEBP_SIDE_MAXIMUM = 16_383  # pixels; 14 bits in the bitstream
TIFF_BYTES_MAXIMUM = (1 << 32) - (1 << 20)  # offsets of 32 bits, less a megabyte for the directory
SUFFIXES = {"png": ".png", "webp": ".webp", "tiff": ".tif"}

_WEBP_LOSSLESS = {"method": 0, "quality": 20}  # a quarter smaller than PNG; higher efforts take ten times as long
_WEBP_LOSSY_METHOD = 2  # a quarter smaller than method 0 at twice the time; 4 gains 3 % for half as much again
_PREDICTOR, _DIFFERENCES = 317, 2  # tag and value: horizontal differencing, a quarter smaller


def encode(pixels: Pixels, recipe: Recipe, facts: SourceFacts, write: Write) -> None:
    """Encode as the recipe says and hand the bytes to `write`, in order.

    A mask carries resolution and text but no colour profile: it is not a colour. Raises ImageError(OUTPUT_TOO_LARGE)
    before anything is written, and whatever `write` raises.

    Memory beside the image: about a megabyte for PNG, the file's size for TIFF; libwebp takes 12 bytes a pixel for
    lossless images and 24 for lossy ones with alpha (0.6 and 1.2 GB were measured for 50 megapixels).
    """
    height, width = pixels.shape[:2]
    if recipe.format == "webp" and max(height, width) > WEBP_SIDE_MAXIMUM:
        detail = f"{width} x {height} pixels; WebP holds {WEBP_SIDE_MAXIMUM} a side"
        raise ImageError(Reason.OUTPUT_TOO_LARGE, f'{detail}; use format = "png" or "tiff", or a canvas')
    if recipe.format == "tiff" and pixels.nbytes > TIFF_BYTES_MAXIMUM:
        raise ImageError(Reason.OUTPUT_TOO_LARGE, f"{pixels.nbytes} bytes of pixels; TIFF holds 4 GiB")
    profile = facts.icc_profile if pixels.ndim == 3 else None
    if recipe.format == "png":
        text = [(PNG_KEYWORDS[word], value) for word, value in facts.metadata.items()]
        write_png(pixels, write, level=recipe.png_level, icc_profile=profile, dpi=facts.dpi, text=text)
    else:
        options = _webp_options(recipe, facts) if recipe.format == "webp" else _tiff_options(facts)
        options |= {"icc_profile": profile} if profile else {}
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, recipe.format.upper(), **options)
        write(buffer.getbuffer())


def _webp_options(recipe: Recipe, facts: SourceFacts) -> dict[str, Any]:
    """Resolution and text as EXIF, the only place WebP has for them."""
    options: dict[str, Any] = {"quality": recipe.webp_quality, "method": _WEBP_LOSSY_METHOD}
    if recipe.webp_lossless:
        options = dict(_WEBP_LOSSLESS, lossless=True, exact=recipe.hidden_colours == "keep")
    exif = Image.Exif()
    if facts.dpi is not None:
        exif[X_RESOLUTION], exif[Y_RESOLUTION] = (TiffImagePlugin.IFDRational(round(v * 100), 100) for v in facts.dpi)
        exif[RESOLUTION_UNIT] = 2
    for word, value in facts.metadata.items():
        exif[TEXT_TAGS[word]] = value.encode()
    return options | ({"exif": exif.tobytes()} if len(exif) else {})


def _tiff_options(facts: SourceFacts) -> dict[str, Any]:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for word, value in facts.metadata.items():
        tags[TEXT_TAGS[word]] = value.encode()  # UTF-8, as most readers expect of what the standard calls ASCII
    tags[_PREDICTOR] = _DIFFERENCES
    options: dict[str, Any] = {"compression": "tiff_adobe_deflate", "tiffinfo": tags}
    return options | ({"dpi": facts.dpi} if facts.dpi else {})
