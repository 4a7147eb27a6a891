"""JPEG: its end marker, its header from marker segments, and decoding through libjpeg-turbo.

Decoding goes straight into the caller's plane, as stored and in RGB. Nothing is repaired: a decoder's warning is either
known to be harmless or the image is refused.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.formats import TAIL_BYTES, Header, Tail, check_parts, check_size, cut_short, damaged
from rmbgd.imaging.jpeg_scans import PROGRESSIVE, Scans
from rmbgd.imaging.metadata import sensible_dpi

SCAN_PIXELS_MAXIMUM = 5_000_000_000  # of one file, times scans: 3 ns each were measured, 15 s at most; ten are usual

_SCAN_BYTES = 1 << 20  # read at once where the end marker is searched for
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_SEQUENTIAL = {0xC0, 0xC1}
_SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_LOSSLESS_OR_HIERARCHICAL = {0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF}
_ALONE = {0x01, *range(0xD0, 0xD9)}  # TEM, RSTn, SOI: markers without a length
# Zeros before a marker; in FF 00 the zero is none. Possessive, as a run may be long and stand before no marker.
_PADDING = re.compile(rb"(?:(?<=\xff\x00)|(?<![\xff\x00]))\x00++(?=\xff[\xc0-\xfe])")
_SOI, _EOI, _SOS = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"

# libjpeg's warnings (jerror.h) after which pixels are wrong; "extraneous bytes" are looked at more closely.
_DAMAGE = ("premature end of data segment", "bad Huffman code", "bad arithmetic code", "instead of RST")


def jpeg_tail(descriptor: int, size: int) -> Tail:
    """Whether the end marker is there. See completeness.tail_of.

    ITU-T T.81: after the first scan begins, FF D9 can only be the end; before it, segments hide their content.
    """
    at = 2
    for _ in range(1000):
        marker = os.pread(descriptor, 4, at)
        if len(marker) < 4:
            return Tail.DOUBTFUL
        if marker[0] != 0xFF or marker[1] == 0xD9:
            return Tail.UNKNOWN
        if marker[1] == 0xFF:  # a fill byte
            at += 1
        elif marker[1] in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(marker[2:4], "big")
            if marker[1] == 0xDA:
                found = _EOI in os.pread(descriptor, TAIL_BYTES, max(at, size - TAIL_BYTES))
                # Some cameras put whole films behind the image: then its end is anywhere.
                return Tail.COMPLETE if found or _has_end_marker(descriptor, at) else Tail.MISSING
    return Tail.UNKNOWN


def _has_end_marker(descriptor: int, at: int) -> bool:
    last = b""
    while chunk := os.pread(descriptor, _SCAN_BYTES, at):
        if _EOI in last + chunk:
            return True
        last = chunk[-1:]
        at += len(chunk)
    return False


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Every segment, the first scan's being the last: marker, first byte of its content, and the byte behind it."""
    at = 2
    for count in itertools.count():
        check_parts(count)
        at = data.find(b"\xff", at)
        while at >= 0 and data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if at < 0 or at + 2 > len(data):
            raise _no_pixels(data, "the file ends inside the header")
        marker, at = data[at + 1], at + 2
        if marker == 0 or marker in _ALONE:
            continue
        if marker == 0xD9:
            raise damaged(data, "the end marker comes before any image data")
        length = int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or at + length > len(data):
            raise _no_pixels(data, "the file ends inside the header")
        if length < 2:
            raise damaged(data, f"segment 0x{marker:02x} with impossible length {length}")
        yield marker, at + 2, at + length
        if marker == 0xDA:
            return
        at += length


def read_jpeg(data: bytes, limits: LimitSettings) -> Header:
    """Header of a JPEG or of the first image of an MPO. See formats.Reader."""
    header: Header | None = None
    exif, xmp, dpi = b"", None, None
    pieces: dict[int, bytes] = {}  # of an ICC profile, by number
    total, several, progressive, scans, at = 0, False, False, Scans(), 2
    for marker, first, at in _segments(data):
        segment = data[first:at]
        if marker == 0xDA:
            break
        scans.take(marker, segment)
        if marker in _SOF:
            header = _frame(data, marker, segment, limits)
            progressive = marker in PROGRESSIVE
        elif marker == 0xE0 and segment.startswith(b"JFIF\x00") and len(segment) >= 12:
            unit = {1: 1.0, 2: 2.54}.get(segment[7], 0.0)  # inches, centimetres
            dpi = sensible_dpi(*(int.from_bytes(segment[k : k + 2], "big") * unit for k in (8, 10)))
        elif marker == 0xE1 and segment.startswith(b"Exif\x00\x00"):
            exif += segment[6:]
        elif marker == 0xE1 and segment.startswith(b"http://ns.adobe.com/xap/1.0/\x00"):
            xmp = segment
        elif marker == 0xE2 and segment.startswith(b"ICC_PROFILE\x00") and len(segment) > 14:
            pieces[segment[12]], total = segment[14:], segment[13]
        elif marker == 0xE2 and segment.startswith(b"MPF\x00"):
            several = True
    if header is None:
        raise damaged(data, "image data without a frame header")
    header.exif, header.xmp, header.dpi = exif or None, xmp, dpi
    if pieces and sorted(pieces) == list(range(1, total + 1)):  # in any order in the file (ICC.1:2010, annex B.4)
        header.take_profile(b"".join(pieces[number] for number in sorted(pieces)), limits)
    elif pieces:
        header.note("colour profile incomplete, left out")
    if several:
        header.format, header.frames = "MPO", 2
    if progressive or segment[:1] != bytes((len(header.mode),)):  # the first scan does not hold every component
        count, (width, height) = data.count(_SOS), header.stored_size
        if count * width * height > SCAN_PIXELS_MAXIMUM:
            raise ImageError(Reason.TOO_LARGE, f"{count} scans over {width} x {height} pixels to decode")
    header.coded = list(scans.walk(data, segment, at))
    return header


def _frame(data: bytes, marker: int, segment: bytes, limits: LimitSettings) -> Header:
    if len(segment) < 6:
        raise damaged(data, "the frame header is too short")
    bits, components = segment[0], segment[5]
    size = (int.from_bytes(segment[3:5], "big"), int.from_bytes(segment[1:3], "big"))
    check_size(size, limits)
    if marker in _LOSSLESS_OR_HIERARCHICAL:
        raise ImageError(Reason.UNSUPPORTED_MODE, "lossless or hierarchical JPEG")
    if bits != 8:
        raise ImageError(Reason.UNSUPPORTED_MODE, f"JPEG with {bits} bits a sample")
    if components not in _MODES:
        raise ImageError(Reason.UNSUPPORTED_MODE, f"JPEG with {components} components")
    return Header("JPEG", _MODES[components], size)


def _no_pixels(data: bytes, detail: str) -> ImageError:
    return damaged(data, detail) if data.endswith(_EOI) else cut_short(detail)


def decode_jpeg(data: bytes, out: NDArray[np.uint8] | None) -> str | None:
    """Decode a grey or colour JPEG, as stored, into `out` (uint8 [H, W, 3], contiguous).

    None when `out` is filled. Otherwise the warning of libjpeg-turbo that asks for a second opinion: Pillow's decoder
    is patient with harmless oddities and exact about truncation. Raises ImageError when pixels are certainly wrong.
    Without `out` only for that: all entropy coding is read, to an eighth of the size, so that little memory is taken.
    """
    options: dict[str, Any] = {"min_factor": 8} if out is None else {"buffer": out}
    try:
        simplejpeg.decode_jpeg(data, "RGB", **options)
    except ValueError as error:
        warning = str(error)
        if any(sign in warning for sign in _DAMAGE) or ("extraneous" in warning and not _is_padding(data)):
            raise damaged(data, warning) from error
        if out is not None and "Premature end" in warning and _only_the_end_marker_is_missing(data, out):
            return None
        return warning
    return None


def _is_padding(data: bytes) -> bool:
    """Are stray bytes between the segments of the header, and zeros before later markers, all that is wrong?

    Other stray bytes are what a decoder has left that lost its place: the pixels before them are wrong.
    """
    clean, at = [_SOI], 2
    for marker, first, at in _segments(data):
        clean += b"\xff", bytes((marker,)), data[first - 2 : at]
    clean.append(_PADDING.sub(b"", data[at:]))
    try:
        simplejpeg.decode_jpeg(b"".join(clean), "RGB", min_factor=8)
    except ValueError:
        return False
    return True


def _only_the_end_marker_is_missing(data: bytes, out: NDArray[np.uint8]) -> bool:
    """Whether every block of a one-scan file is there. Fills `out` if so.

    A progressive file may lack whole scans without a warning, so it is never taken for complete.
    """
    if data.count(_SOS) != 1 or not any(bytes((0xFF, marker)) in data for marker in _SEQUENTIAL):
        return False
    try:
        simplejpeg.decode_jpeg(data + _EOI, "RGB", buffer=out)
    except ValueError:
        return False
    return True
