"""Encode the finished image: PNG by our own writer, WebP, TIFF and JPEG by Pillow.

Profile, resolution and allow-listed text are kept. A GPS position is never written, because none is ever read.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin, TiffTags

from rmbgd.config.load import Look
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.clipping_path import TIFF_TAG, jpeg_segment
from rmbgd.imaging.colour_space import srgb_profile
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
_EXTRA_SAMPLES, _ASSOCIATED = 338, 1  # tag and value: colours are multiplied by this alpha


def encode(
    pixels: Pixels, look: Look, facts: SourceFacts, write: Write, *, quality: int | None = None, resources: bytes = b""
) -> None:
    """Encode as `look` says and hand the bytes to `write`, in order.

    quality    of JPEG and lossy WebP, instead of that of `look`
    resources  Photoshop's image resources, as clipping_path makes them; TIFF and JPEG take them
    With colour_space "srgb" the pixels are taken for sRGB, as arrange hands them over, and get its profile. A mask
    carries resolution and text but no colour profile: it is not a colour. RGBA with content "foreground" is associated
    (premultiplied); all other RGBA is not. Raises ImageError(OUTPUT_TOO_LARGE) before anything is written, and
    whatever `write` raises.

    Memory beside the image: about a megabyte for PNG, the file's size for TIFF; libwebp takes 12 bytes a pixel for
    lossless images and 24 for lossy ones with alpha (0.6 and 1.2 GB were measured for 50 megapixels).
    """
    height, width = pixels.shape[:2]
    name, most = SIDE_MAXIMA.get(look.format, ("", max(height, width)))
    if max(height, width) > most:
        detail = f"{width} x {height} pixels; {name} holds {most} a side"
        raise ImageError(Reason.OUTPUT_TOO_LARGE, f'{detail}; use format = "png" or "tiff", or a canvas')
    if look.format == "tiff" and pixels.nbytes > TIFF_BYTES_MAXIMUM:
        raise ImageError(Reason.OUTPUT_TOO_LARGE, f"{pixels.nbytes} bytes of pixels; TIFF holds 4 GiB")
    profile = None if pixels.ndim == 2 else srgb_profile() if look.colour_space == "srgb" else facts.icc_profile
    if look.format == "jpeg" and len(profile or b"") > _JPEG_PROFILE_MAXIMUM:
        raise ImageError(Reason.OUTPUT_TOO_LARGE, "JPEG holds no colour profile of more than 16 MB; use another format")
    if look.dpi:
        facts = replace(facts, dpi=(float(look.dpi), float(look.dpi)))
    if look.format == "png":
        text = [(PNG_KEYWORDS[word], value) for word, value in facts.metadata.items()]
        write_png(pixels, write, level=look.png_level, icc_profile=profile, dpi=facts.dpi, text=text)
    else:
        options = _OPTIONS[look.format](look, facts, quality, resources)
        options |= {"icc_profile": profile} if profile else {}
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, look.format.upper(), **options)
        if look.format == "tiff" and look.content == "foreground":
            _say_associated(buffer.getbuffer())
        write(buffer.getbuffer())


def _webp_options(look: Look, facts: SourceFacts, quality: int | None, _resources: bytes) -> dict[str, Any]:
    lossy = look.webp_quality if quality is None else quality
    options: dict[str, Any] = {"quality": lossy, "method": _WEBP_LOSSY_METHOD}
    if look.webp_lossless:
        options = dict(_WEBP_LOSSLESS, lossless=True, exact=look.hidden_colours == "keep")
    return options | _exif(facts)


def _jpeg_options(look: Look, facts: SourceFacts, quality: int | None, resources: bytes) -> dict[str, Any]:
    """Standard Huffman tables: tables of its own make a file 5 % smaller at twice the time."""
    options: dict[str, Any] = {"quality": look.jpeg_quality if quality is None else quality, "subsampling": "4:4:4"}
    if facts.dpi is not None:
        options["dpi"] = tuple(min(value, _JPEG_DENSITY_MAXIMUM) for value in facts.dpi)
    if resources:
        options["extra"] = jpeg_segment(resources)
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


def _tiff_options(_look: Look, facts: SourceFacts, _quality: int | None, resources: bytes) -> dict[str, Any]:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for word, value in facts.metadata.items():
        tags[TEXT_TAGS[word]] = value.encode()  # UTF-8, as most readers expect of what the standard calls ASCII
    tags[_PREDICTOR] = _DIFFERENCES
    if resources:
        tags[TIFF_TAG], tags.tagtype[TIFF_TAG] = resources, TiffTags.BYTE
    options: dict[str, Any] = {"compression": "tiff_adobe_deflate", "tiffinfo": tags}
    return options | ({"dpi": facts.dpi} if facts.dpi else {})


def _say_associated(tiff: memoryview) -> None:
    """Mark the fourth sample as associated alpha, in place (TIFF 6.0, section 18): Pillow calls all alpha straight."""
    order = "<" if bytes(tiff[:2]) == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from(f"{order}HH", tiff, entry) == (_EXTRA_SAMPLES, TiffTags.SHORT):
            struct.pack_into(f"{order}H", tiff, entry + 8, _ASSOCIATED)


_OPTIONS: dict[str, Callable[[Look, SourceFacts, int | None, bytes], dict[str, Any]]] = {
    "webp": _webp_options,
    "tiff": _tiff_options,
    "jpeg": _jpeg_options,
}
