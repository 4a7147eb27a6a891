"""The finished image as a file's bytes: PNG by our own writer, WebP and TIFF by Pillow.

Profile, resolution and allow-listed text are kept. Never writes a GPS position, because none is ever read. Does not
open, name or sync files: the caller's `write` does.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from rmbgd.config.load import Recipe
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.compose import EncodeInput
from rmbgd.imaging.formats import SourceFacts
from rmbgd.imaging.metadata import PNG_KEYWORDS, RESOLUTION_UNIT, TEXT_TAGS, X_RESOLUTION, Y_RESOLUTION
from rmbgd.imaging.png import write_png

Write = Callable[[bytes | memoryview], object]

WEBP_SIDE_MAXIMUM = 16_383  # pixels; 14 bits in the bitstream
TIFF_BYTES_MAXIMUM = (1 << 32) - (1 << 20)  # offsets of 32 bits; what leaves room for the directory
SUFFIXES = {"png": ".png", "webp": ".webp", "tiff": ".tif"}

_WEBP_LOSSLESS = {"method": 0, "quality": 20}  # a quarter smaller than PNG; higher efforts take ten times as long
_WEBP_LOSSY_METHOD = 2  # a quarter smaller than method 0 at twice the time; 4 gains 3 % for half as much again
_DEFLATE_PREDICTOR = {317: 2}  # horizontal differencing: a quarter smaller


def encode(image: EncodeInput, recipe: Recipe, facts: SourceFacts, write: Write) -> int:
    """Encode as the recipe says and hand the bytes to `write`, in order. The number of bytes.

    A mask carries resolution and text but no colour profile: it is not a colour. Raises ImageError(OUTPUT_TOO_LARGE)
    before anything is written, and whatever `write` raises.

    Memory beside the image: about a megabyte for PNG, the file's size for TIFF; libwebp takes 12 bytes a pixel for
    lossless images and 24 for lossy ones with alpha (0.6 and 1.2 GB were measured for 50 megapixels).
    """
    _check_room(image, recipe)
    counted = _Counter(write)
    profile = facts.icc_profile if image.pixels.ndim == 3 else None
    if recipe.format == "png":
        text = [(PNG_KEYWORDS[word], value) for word, value in facts.metadata.items()]
        write_png(image.pixels, counted.write, level=recipe.png_level, icc_profile=profile, dpi=facts.dpi, text=text)
    elif recipe.format == "webp":
        _write_webp(image, recipe, facts, profile, counted.write)
    else:
        _write_tiff(image, facts, profile, counted.write)
    return counted.count


def _check_room(image: EncodeInput, recipe: Recipe) -> None:
    height, width = image.pixels.shape[:2]
    if recipe.format == "webp" and max(height, width) > WEBP_SIDE_MAXIMUM:
        detail = f"{width} x {height} pixels; WebP holds {WEBP_SIDE_MAXIMUM} a side"
        raise ImageError(Reason.OUTPUT_TOO_LARGE, f'{detail}; use format = "png" or "tiff", or a canvas')
    if recipe.format == "tiff" and image.pixels.nbytes > TIFF_BYTES_MAXIMUM:
        raise ImageError(Reason.OUTPUT_TOO_LARGE, f"{image.pixels.nbytes} bytes of pixels; TIFF holds 4 GiB")


class _Counter:
    def __init__(self, write: Write) -> None:
        self._write = write
        self.count = 0

    def write(self, data: bytes | memoryview) -> None:
        self._write(data)
        self.count += len(data)


def _write_webp(image: EncodeInput, recipe: Recipe, facts: SourceFacts, profile: bytes | None, write: Write) -> None:
    options: dict[str, Any] = {"quality": recipe.webp_quality, "method": _WEBP_LOSSY_METHOD}
    if recipe.webp_lossless:
        options = dict(_WEBP_LOSSLESS, lossless=True, exact=recipe.hidden_colours == "keep")
    exif = _exif(facts)
    if exif is not None:
        options["exif"] = exif
    if profile:
        options["icc_profile"] = profile
    _save(image, "WEBP", options, write)


def _write_tiff(image: EncodeInput, facts: SourceFacts, profile: bytes | None, write: Write) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for word, value in facts.metadata.items():
        tags[TEXT_TAGS[word]] = value.encode()  # UTF-8, as most readers expect of what the standard calls ASCII
    options: dict[str, Any] = {"compression": "tiff_adobe_deflate", "tiffinfo": tags}
    tags[317] = _DEFLATE_PREDICTOR[317]
    if facts.dpi is not None:
        options["dpi"] = facts.dpi
    if profile:
        options["icc_profile"] = profile
    _save(image, "TIFF", options, write)


def _save(image: EncodeInput, form: str, options: dict[str, Any], write: Write) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.pixels)).save(buffer, form, **options)
    write(buffer.getbuffer())


def _exif(facts: SourceFacts) -> bytes | None:
    """Resolution and text as EXIF, the only place WebP has for them."""
    exif = Image.Exif()
    if facts.dpi is not None:
        exif[X_RESOLUTION], exif[Y_RESOLUTION] = (TiffImagePlugin.IFDRational(round(v * 100), 100) for v in facts.dpi)
        exif[RESOLUTION_UNIT] = 2
    for word, value in facts.metadata.items():
        exif[TEXT_TAGS[word]] = value.encode()
    return exif.tobytes() if len(exif) else None
