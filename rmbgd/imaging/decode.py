"""Decode an image file's bytes to upright 8-bit RGB, and alpha where it has some, in the caller's planes.

Everything that can be refused from the header is refused before memory is taken for pixels.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.formats import TRANSPOSED, Header, Reader, SourceFacts, cut_short, has_blank_pages, sniff
from rmbgd.imaging.jpeg import decode_jpeg, read_jpeg
from rmbgd.imaging.metadata import ColourPlan, applied, colour_plan, read_exif, xmp_orientation
from rmbgd.imaging.pillow import opened, read_pillow
from rmbgd.imaging.png import read_png
from rmbgd.imaging.webp import decode_webp, read_webp

Bytes = NDArray[np.uint8]
Band = tuple[Bytes, Bytes | None]
"""uint8 [k, W, 3], and uint8 [k, W] or None where everything is opaque."""

BAND_ROWS = 128  # rows turned at once: small enough for the cache, large enough that columns become long runs

_READERS: dict[str, Reader] = {"JPEG": read_jpeg, "PNG": read_png, "WEBP": read_webp}  # the others are Pillow's
_TURNED_BY_THE_DECODER = ("TIFF", "HEIF")
_BAND_PIXELS = 1 << 20  # converted at once: 3 MiB of RGB
_READ_BYTES = 1 << 16  # at least, per call
_VIA_RGBA = {"RGBA", "RGBa", "PA"}
_VIA_RGB = {"RGB", "RGBX", "CMYK", "YCbCr", "HSV"}

# EXIF 2.32, orientation: how cv2.flip flips, after a transposition if any, and which ones begin at the far side.
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
_FROM_THE_END = {3, 4, 6, 7}


def read_limited(fd: int, limits: LimitSettings) -> bytes:
    """All bytes of an open regular file, from its beginning. The file may grow or shrink meanwhile.

    Raises ImageError (NOT_REGULAR, EMPTY, TOO_MANY_BYTES) and OSError as the storage gives it.
    """
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise ImageError(Reason.NOT_REGULAR, "not a regular file")
    pieces: list[bytes] = []
    length, expected = 0, state.st_size
    while expected <= limits.file_bytes:
        piece = os.pread(fd, max(expected - length + 1, _READ_BYTES), length)  # asks for more, so the end shows at once
        pieces.append(piece)
        length += len(piece)
        if not piece or length == expected:
            break
        expected = max(expected, length)
    if expected > limits.file_bytes:
        raise ImageError(Reason.TOO_MANY_BYTES, f"{expected} bytes; limits.file_bytes allows {limits.file_bytes}")
    if not length:
        raise ImageError(Reason.EMPTY, "0 bytes", maybe_incomplete=True)
    return b"".join(pieces)


def probe(
    data: bytes, limits: LimitSettings, *, animated: Literal["refuse", "first_frame"], metadata: Sequence[str]
) -> Header:
    """The header of an image, by content alone, checked against `limits`; no memory is taken for pixels.

    animated  what to do with more than one frame or page; the first image of an MPO or HEIC is always taken
    metadata  words of the text fields to carry over, from metadata.TEXT_TAGS
    Raises ImageError.
    """
    form = sniff(data)
    header = _READERS[form](data, limits) if form in _READERS else read_pillow(data, form, limits)
    if header.animated and animated == "refuse":
        if form == "GIF" and has_blank_pages(data):
            raise cut_short("the first frame ends in zeros, like a part that was never written")
        count = f"{header.frames} frames" if form not in ("TIFF", "GIF") else "more than one frame or page"
        raise ImageError(Reason.ANIMATED, f'{form} with {count}; recipe.animated = "first_frame" takes the first')
    orientation = None
    if header.exif:
        exif = read_exif(header.exif)
        if not exif.sound:
            header.note("EXIF damaged, read as far as possible")
        orientation, header.dpi = exif.orientation, header.dpi or exif.dpi
        header.metadata = exif.text | header.metadata
    if orientation is None and header.xmp:
        orientation = xmp_orientation(header.xmp)
    if orientation is None:
        orientation = header.orientation  # a TIFF's own field, which is no EXIF block
    if header.animated:
        header.note("first of several frames taken")
    if not 1 <= orientation <= 8:
        header.note(f"orientation {orientation} means nothing, not turned")
    elif header.format not in _TURNED_BY_THE_DECODER:
        header.turn = orientation
    header.orientation = orientation or 1
    header.metadata = {word: header.metadata[word] for word in metadata if word in header.metadata}
    return header


def decode_into(
    data: bytes, header: Header, rgb: Bytes, source_alpha: Bytes | None, *, sha256: str = ""
) -> SourceFacts:
    """Decode into `rgb` (uint8 [H, W, 3], contiguous) and `source_alpha` (uint8 [H, W]), upright.

    Both are written completely. `source_alpha` may be None only when header.has_alpha is False; it is filled with 255
    when it is given and the image has none. Raises ImageError; the planes are then undefined.
    """
    width, height = header.size
    if rgb.shape != (height, width, 3) or (source_alpha is not None and source_alpha.shape != (height, width)):
        raise ValueError(f"planes of {rgb.shape} for an image of {width} x {height}")
    if header.has_alpha and source_alpha is None:
        raise ValueError("an image with alpha needs a source_alpha plane")
    if source_alpha is not None and not header.has_alpha:
        source_alpha.fill(255)
    notes = list(header.notes)
    plan = _decode_without_pillow(data, header, rgb, source_alpha, notes)
    if plan is None:
        with opened(data, "JPEG" if header.format == "MPO" else header.format, header.stream) as image:
            image.load()
            plan = colour_plan(image.mode, header.icc_profile)
            _fill(header, rgb, source_alpha, _bands_of_pillow(image, header, plan))
    notes += [plan.note] if plan.note else []
    return replace(header.facts(sha256), icc_profile=plan.kept, notes=tuple(notes))


def _decode_without_pillow(
    data: bytes, header: Header, rgb: Bytes, alpha: Bytes | None, notes: list[str]
) -> ColourPlan | None:
    """Fill the planes by a quicker or more exact decoder. None where there is none, or it asks for Pillow's opinion."""
    plan = colour_plan(header.mode.partition(";")[0], header.icc_profile)
    if header.format in ("JPEG", "MPO"):
        if header.mode not in ("L", "RGB") or plan.transform is not None:
            decode_jpeg(data, None)
            return None
        target = rgb if header.turn == 1 else np.empty((*header.stored_size[::-1], 3), np.uint8)
        if (warning := decode_jpeg(data, target)) is not None:
            notes.append(f"JPEG: {warning}")
            return None
        if header.turn != 1:
            for first in range(0, len(target), BAND_ROWS):
                place(rgb, first, target[first : first + BAND_ROWS], header.turn)
    elif header.format == "WEBP" and header.frames == 1:
        _fill(header, rgb, alpha, _bands_of_opencv(decode_webp(data), header))
    elif header.colour_key is not None and header.mode == "RGB;16":
        _fill(header, rgb, alpha, _bands_of_opencv(_decode_keyed_16(data), header))
    else:
        return None
    return plan


def _fill(header: Header, rgb: Bytes, alpha: Bytes | None, bands: Iterable[Band]) -> None:
    """Turn bands in stored order into the planes, so that no second full-size copy is made."""
    first = 0
    for colours, transparency in bands:
        place(rgb, first, colours, header.turn)
        if alpha is not None and header.has_alpha:
            opaque = np.full(colours.shape[:2], 255, np.uint8) if transparency is None else transparency
            place(alpha, first, opaque, header.turn)
        first += len(colours)


def _bands_of_pillow(image: ImageFile.ImageFile, header: Header, plan: ColourPlan) -> Iterator[Band]:
    if image.size != header.stored_size:
        raise ImageError(Reason.CORRUPT, f"the header says {header.stored_size}, the decoder gives {image.size}")
    scale = float_scale_of(image)
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    for first in range(0, height, rows):
        band = image.crop((0, first, width, min(first + rows, height)))
        yield convert_band(band, plan, header, scale)


def _bands_of_opencv(pixels: Bytes, header: Header) -> Iterator[Band]:
    """Of uint8 [H, W, 3 or 4], blue first."""
    if pixels.shape[1::-1] != header.stored_size:
        raise ImageError(Reason.CORRUPT, f"the header says {header.stored_size}, the decoder gives {pixels.shape}")
    rows = max(1, _BAND_PIXELS // pixels.shape[1])
    transparent = pixels.shape[2] == 4
    code = cv2.COLOR_BGRA2RGB if transparent else cv2.COLOR_BGR2RGB
    for first in range(0, len(pixels), rows):
        band = pixels[first : first + rows]
        alpha = _bytes(cv2.extractChannel(band, 3)) if transparent and header.has_alpha else None
        yield _bytes(cv2.cvtColor(band, code)), alpha


def _decode_keyed_16(data: bytes) -> Bytes:
    """A 16-bit RGB PNG with one transparent colour: only libpng, in OpenCV, compares all 16 bits. uint8 [H, W, 4]."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] != 4:
        raise ImageError(Reason.CORRUPT, "libpng cannot decode the image data")
    return _bytes(cv2.convertScaleAbs(pixels, alpha=1 / 257))


def convert_band(band: Image.Image, plan: ColourPlan, header: Header, float_scale: float) -> Band:
    """One band of rows, of any pixel layout that Pillow decodes to. Raises ImageError(UNSUPPORTED_MODE).

    float_scale  what makes 255 of white in mode F (see float_scale_of)
    """
    key, maximum = header.colour_key, header.maximum
    mode = band.mode
    if mode == "P" and header.has_alpha:
        band, mode = band.convert("RGBA"), "RGBA"
    if mode in _VIA_RGBA:
        both = np.asarray(band if mode == "RGBA" else band.convert("RGBA"))
        return _bytes(cv2.cvtColor(both, cv2.COLOR_RGBA2RGB)), _bytes(cv2.extractChannel(both, 3))
    if mode in ("LA", "La"):
        both = np.asarray(band if mode == "LA" else band.convert("LA"))
        return _grey(both[:, :, 0], plan), np.ascontiguousarray(both[:, :, 1])
    if mode in ("1", "L"):
        grey = np.asarray(band.convert("L"))
        return _grey(grey, plan), _keyed(grey, key)
    if mode.startswith("I;16"):
        wide = np.asarray(band).astype(np.uint32)
        scaled = np.minimum((wide * 255 + maximum // 2) // maximum, 255).astype(np.uint8)
        return _grey(scaled, plan), _keyed(wide, key)
    if mode == "I":
        numbers = np.asarray(band)  # int32
        numbers = numbers.view(np.uint32) if maximum == (1 << 32) - 1 else numbers
        shares = numbers.astype(np.float64) * (255.0 / maximum)
        return _grey(_bytes(np.rint(shares.clip(0.0, 255.0))), plan), None
    if mode == "F":
        values = np.nan_to_num(np.asarray(band), nan=0.0, posinf=np.inf, neginf=0.0) * float_scale
        return _grey(_bytes(np.rint(values.clip(0.0, 255.0))), plan), None
    if plan.transform is not None:
        return np.asarray(applied(plan, band)), None
    if mode in _VIA_RGB or mode == "P":
        colours = np.asarray(band if mode == "RGB" else band.convert("RGB"))
        return colours, _keyed(colours, key)
    raise ImageError(Reason.UNSUPPORTED_MODE, f"pixels of mode {mode}")


def float_scale_of(image: Image.Image) -> float:
    """What a floating point image is multiplied by. Raises ImageError(UNSUPPORTED_MODE) when it cannot be known."""
    if image.mode != "F":
        return 1.0
    values = np.asarray(image)
    finite = values[np.isfinite(values)]
    highest = float(finite.max()) if finite.size else 0.0
    if highest <= 2.0:  # white at 1, with highlights above it
        return 255.0
    if highest <= 255.0:
        return 1.0
    raise ImageError(Reason.UNSUPPORTED_MODE, f"floating point pixels up to {highest:g}, without saying what white is")


def _grey(values: Bytes, plan: ColourPlan) -> Bytes:
    values = np.ascontiguousarray(values)
    if plan.transform is not None:
        return np.asarray(applied(plan, Image.fromarray(values)))
    return _bytes(cv2.cvtColor(values, cv2.COLOR_GRAY2RGB))


def _bytes(values: object) -> Bytes:
    return np.asarray(values, dtype=np.uint8)


def _keyed(values: NDArray[np.uint8] | NDArray[np.uint32], key: tuple[int, ...] | None) -> Bytes | None:
    if key is None:
        return None
    same = (values == np.asarray(key, values.dtype)).all(axis=2) if values.ndim == 3 else values == key[0]
    return np.where(same, np.uint8(0), np.uint8(255))


def place(plane: Bytes, first: int, band: Bytes, orientation: int) -> None:
    """Write rows first .. first + k of the stored image into the upright `plane`.

    plane  uint8 [H, W] or [H, W, C], upright
    band   uint8 [k, w] or [k, w, C], w being the stored width
    """
    swaps = orientation in TRANSPOSED
    turned = np.asarray(cv2.transpose(band)).reshape(band.shape[1], band.shape[0], *band.shape[2:]) if swaps else band
    if orientation in _FLIPS:
        turned = np.asarray(cv2.flip(turned, _FLIPS[orientation])).reshape(turned.shape)
    if orientation in _FROM_THE_END:
        first = plane.shape[1 if swaps else 0] - first - len(band)
    here = slice(first, first + len(band))
    plane[(slice(None), here) if swaps else here] = turned
