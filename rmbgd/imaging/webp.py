"""WebP: the header from its RIFF chunks, and decoding of still images without a second canvas.

Does not decode animations (Pillow does, for a first frame).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.config.load import LimitSettings
from rmbgd.imaging.formats import Found, Size, check_parts, check_size, cut_short, damaged

_PROFILE, _ALPHA, _ANIMATION = 0x20, 0x10, 0x02  # bits of VP8X, in the order of the container specification


def read_webp(data: bytes, limits: LimitSettings) -> Found:
    """Header of a WebP. See header.Reader."""
    claimed = 8 + int.from_bytes(data[4:8], "little")
    found: Found | None = None
    pixels, frames, count, at = False, 0, 0, 12
    while at + 8 <= min(claimed, len(data)):
        check_parts(count := count + 1)
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        head = data[at + 8 : at + 18]
        if found is None:
            found = _first(data, kind, head)
            check_size(found.size, limits)
        if kind == b"ANMF":
            frames += 1
        elif kind in (b"VP8 ", b"VP8L"):
            pixels = True
        elif kind == b"ICCP" and found.icc_profile is None:
            _take_profile(found, data[at + 8 : at + 8 + length], limits)
        elif kind == b"EXIF":
            found.exif = data[at + 8 : at + 8 + length]
        elif kind == b"XMP ":
            found.xmp = data[at + 8 : at + 8 + length]
        at += 8 + length + (length & 1)
    if claimed > limits.file_bytes:
        raise damaged(data, f"the header claims {claimed} bytes, more than any file may have")
    if claimed > len(data) or found is None:
        raise cut_short(f"the file has {len(data)} of {claimed} bytes")
    if at > claimed + 1:
        raise damaged(data, "a chunk reaches beyond the end")
    if not (pixels or frames):
        raise damaged(data, "no image data")
    found.frames, found.animated = max(1, frames), found.animated and frames > 1
    if len(data) > claimed + 1:
        found.notes.append(f"{len(data) - claimed} bytes after the end left out")
    return found


def _first(data: bytes, kind: bytes, head: bytes) -> Found:
    """Size and alpha, from whichever of the three kinds of chunk comes first."""
    if len(head) < 10:
        raise cut_short("the file ends inside the header")
    if kind == b"VP8X":
        size: Size = (1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little"))
        alpha = bool(head[0] & _ALPHA)
        return Found("WEBP", "RGBA" if alpha else "RGB", size, alpha, animated=bool(head[0] & _ANIMATION))
    if kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        size = (int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF)
        return Found("WEBP", "RGB", size)
    if kind == b"VP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        alpha = bool(bits >> 28 & 1)
        return Found("WEBP", "RGBA" if alpha else "RGB", (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)), alpha)
    raise damaged(data, f"the first chunk is {kind!r}")


def _take_profile(found: Found, profile: bytes, limits: LimitSettings) -> None:
    if len(profile) > limits.metadata_bytes:
        found.notes.append(f"colour profile of {len(profile)} bytes left out")
    else:
        found.icc_profile = profile


def decode_webp(data: bytes) -> NDArray[np.uint8]:
    """A still WebP as uint8 [H, W, 3 or 4], blue first. Raises ImageError(CORRUPT)."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise damaged(data, "libwebp cannot decode the image data")
    return np.asarray(pixels, dtype=np.uint8)
