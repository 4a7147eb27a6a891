"""Encode the finished image: PNG by our own writer, WebP, TIFF and JPEG by Pillow.

Profile, resolution and allow-listed text are kept. A GPS position is never written, because none is ever read.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from rmbgd.config.load import Recipe
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.compose import Pixels
from rmbgd.imaging.formats import SourceFacts
from rmbgd.imaging.metadata import PNG_KEYWORDS, RESOLUTION_UNIT, TEXT_TAGS, X_RESOLUTION, Y_RESOLUTION
from rmbgd.imaging.png import Write, write_png

TIFF_BYTES_MAXIMUM = (1 << 32) - (1 << 20)  # offsets of 32 bits, less a megabyte for the directory
SIDE_MAXIMA = {  # pixels
    "webp": ("WebP", 16_383),  # 14 bits in the bitstream
    "jpeg": ("JPEG", 65_500),  # libjpeg's own limit, a little below that of the format
}

_WEBP_LOSSLESS = {"method": 0, "quality": 20}  # a quarter smaller than PNG; higher efforts take ten times as long
_WEBP_LOSSY_METHOD = 2  # a quarter smaller than method 0 at twice the time; 4 gains 3 % for half as much again
_JPEG_PROFILE_MAXIMUM = 255 * 65_519  # bytes; in numbered pieces
_JPEG_TEXT_MAXIMUM = 12_000  # bytes of a field; five of them fit into the one segment that JPEG has for them
_JPEG_DENSITY_MAXIMUM = 65_535  # dots per inch; 16 bits
_PREDICTOR, _DIFFERENCES = 317, 2  # tag and value: horizontal differencing, a quarter smaller


def encode(pixels: Pixels, recipe: Recipe, facts: SourceFacts, write: Write) -> None:
    """Encode as the recipe says and hand the bytes to `write`, in order.

    A mask carries resolution and text but no colour profile: it is not a colour. Raises ImageError(OUTPUT_TOO_LARGE)
    before anything is written, and whatever `write` raises.

    Memory beside the image: about a megabyte for PNG, the file's size for TIFF; libwebp takes 12 bytes a pixel for
    lossless images and 24 for lossy ones with alpha (0.6 and 1.2 GB were measured for 50 megapixels).
    """
    height, width = pixels.shape[:2]
    name, most = SIDE_MAXIMA.get(recipe.format, ("", max(height, width)))
    if max(height, width) > most:
        detail = f"{width} x {height} pixels; {name} holds {most} a side"
        raise ImageError(Reason.OUTPUT_TOO_LARGE, f'{detail}; use format = "png" or "tiff", or a canvas')
    if recipe.format == "tiff" and pixels.nbytes > TIFF_BYTES_MAXIMUM:
        raise ImageError(Reason.OUTPUT_TOO_LARGE, f"{pixels.nbytes} bytes of pixels; TIFF holds 4 GiB")
    profile = facts.icc_profile if pixels.ndim == 3 else None
    if recipe.format == "jpeg" and len(profile or b"") > _JPEG_PROFILE_MAXIMUM:
        raise ImageError(Reason.OUTPUT_TOO_LARGE, "JPEG holds no colour profile of more than 16 MB; use another format")
    if recipe.format == "png":
        text = [(PNG_KEYWORDS[word], value) for word, value in facts.metadata.items()]
        write_png(pixels, write, level=recipe.png_level, icc_profile=profile, dpi=facts.dpi, text=text)
    else:
        options = _OPTIONS[recipe.format](recipe, facts)
        options |= {"icc_profile": profile} if profile else {}
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, recipe.format.upper(), **options)
        write(buffer.getbuffer())


def _webp_options(recipe: Recipe, facts: SourceFacts) -> dict[str, Any]:
    options: dict[str, Any] = {"quality": recipe.webp_quality, "method": _WEBP_LOSSY_METHOD}
    if recipe.webp_lossless:
        options = dict(_WEBP_LOSSLESS, lossless=True, exact=recipe.hidden_colours == "keep")
    return options | _exif(facts)


def _jpeg_options(recipe: Recipe, facts: SourceFacts) -> dict[str, Any]:
    """Standard Huffman tables: tables of its own make a file 5 % smaller at twice the time."""
    options: dict[str, Any] = {"quality": recipe.jpeg_quality, "subsampling": "4:4:4"}
    if facts.dpi is not None:
        options["dpi"] = tuple(min(value, _JPEG_DENSITY_MAXIMUM) for value in facts.dpi)
    return options | _exif(facts, text_maximum=_JPEG_TEXT_MAXIMUM)


def _exif(facts: SourceFacts, text_maximum: int | None = None) -> dict[str, bytes]:
    """Resolution and text, for formats that have no other place for them. `text_maximum`: bytes of a field."""
    exif = Image.Exif()
    if facts.dpi is not None:
        exif[X_RESOLUTION], exif[Y_RESOLUTION] = (TiffImagePlugin.IFDRational(round(v * 100), 100) for v in facts.dpi)
        exif[RESOLUTION_UNIT] = 2
    for word, value in facts.metadata.items():
        exif[TEXT_TAGS[word]] = value.encode()[:text_maximum].decode(errors="ignore").encode()
    return {"exif": exif.tobytes()} if len(exif) else {}


def _tiff_options(_recipe: Recipe, facts: SourceFacts) -> dict[str, Any]:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for word, value in facts.metadata.items():
        tags[TEXT_TAGS[word]] = value.encode()  # UTF-8, as most readers expect of what the standard calls ASCII
    tags[_PREDICTOR] = _DIFFERENCES
    options: dict[str, Any] = {"compression": "tiff_adobe_deflate", "tiffinfo": tags}
    return options | ({"dpi": facts.dpi} if facts.dpi else {})


_OPTIONS: dict[str, Callable[[Recipe, SourceFacts], dict[str, Any]]] = {
    "webp": _webp_options,
    "tiff": _tiff_options,
    "jpeg": _jpeg_options,
}
