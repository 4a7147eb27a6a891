"""WebP: its end by the length in its header, its header from RIFF chunks, and decoding of still images.

Animations are left to Pillow, for a first frame; a still image is decoded without a second canvas.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.config.load import LimitSettings
from rmbgd.imaging.formats import (
    ABSURD,
    STEPS_MAXIMUM,
    Coded,
    Header,
    Size,
    Tail,
    check_parts,
    check_size,
    cut_short,
    damaged,
)

_PROFILE, _ALPHA, _ANIMATION = 0x20, 0x10, 0x02  # bits of VP8X, in the order of the container specification
_PIXELS = (b"VP8 ", b"VP8L")
_SLACK = 64  # bytes; that an encoder may write behind what its decoder needs


def webp_tail(descriptor: int, size: int) -> Tail:
    """Whether the file is as long as it says, and was filled. See completeness.tail_of.

    Image data that end in too many zeros were never written. How many are too many: a white area ends in up to 0.71
    zero bytes for each block of 16 x 16 pixels (measured at quality 100). Lossless data may end in any number of them,
    86 a block were seen, so there zeros say nothing.
    """
    end = 8 + int.from_bytes(os.pread(descriptor, 4, 4), "little")
    if end > size:
        return Tail.MISSING if end < ABSURD else Tail.UNKNOWN
    for step, (at, kind, length) in enumerate(_chunks(lambda at, count: os.pread(descriptor, count, at), end), 1):
        if kind == bytes(4) and not length:
            return Tail.MISSING
        last = at + 8 + length
        if last > end:
            return Tail.DOUBTFUL
        if kind == b"VP8 ":
            zeros = _lossy_zeros(os.pread(descriptor, 10, at + 8))
            if last >= zeros and os.pread(descriptor, zeros, last - zeros) == bytes(zeros):
                return Tail.MISSING
        if step == STEPS_MAXIMUM:
            return Tail.UNKNOWN
    return Tail.COMPLETE


def _chunks(read: Callable[[int, int], bytes], end: int, at: int = 12) -> Iterator[tuple[int, bytes, int]]:
    """Where each RIFF chunk from `at` to before `end` begins, its kind and length. `read` takes place and count."""
    while at + 8 <= end and len(header := read(at, 8)) == 8:
        length = int.from_bytes(header[4:], "little")
        yield at, header[:4], length
        at += 8 + length + (length & 1)


def read_webp(data: bytes, limits: LimitSettings) -> Header:
    """Header of a WebP. See formats.Reader."""
    claimed = 8 + int.from_bytes(data[4:8], "little")
    header: Header | None = None
    pixels, frames, after = False, 0, 12
    for count, (at, kind, length) in enumerate(_chunks(lambda at, count: data[at : at + count], claimed), 1):
        check_parts(count)
        body = slice(at + 8, at + 8 + length)
        if header is None:
            header = _first(data, kind, data[at + 8 : at + 18])
            check_size(header.stored_size, limits)
        if kind == b"ANMF":
            frames += 1
            if frames == 1:  # no other frame is ever taken
                header.coded += _coded(data, at + 24, min(at + 8 + length, len(data)))
        elif kind in _PIXELS and not pixels:
            pixels = True
            header.coded += _coded(data, at, min(at + 8 + length, len(data)))
        elif kind == b"ALPH" and not pixels:
            header.coded += _coded(data, at, min(at + 8 + length, len(data)), width=header.stored_size[0])
        elif kind == b"ICCP" and header.icc_profile is None:
            header.take_profile(data[body], limits)
        elif kind == b"EXIF":
            header.exif = data[body]
        elif kind == b"XMP ":
            header.xmp = data[body]
        after = at + 8 + length + (length & 1)
    if claimed > limits.file_bytes:
        raise damaged(data, f"the header claims {claimed} bytes, more than any file may have")
    if claimed > len(data) or header is None:
        raise cut_short(f"the file has {len(data)} of {claimed} bytes")
    if after > claimed + 1:
        raise damaged(data, "a chunk reaches beyond the end")
    if not (pixels or frames):
        raise damaged(data, "no image data")
    header.frames, header.animated = max(1, frames), header.animated and frames > 1
    if len(data) > claimed + 1:
        header.note(f"{len(data) - claimed} bytes after the end left out")
    return header


def _lossy_zeros(head: bytes) -> int:
    """The longest run of zero bytes that an encoder writes, from the first ten bytes of a frame: see webp_tail."""
    width, height = _lossy_size(head)
    return 64 + (width + 15) // 16 * ((height + 15) // 16)


def _coded(data: bytes, at: int, end: int, *, width: int = 0) -> Iterator[Coded]:
    """The chunks of pixels and alpha between these bytes. `width`: of the rows of alpha, where it is known."""
    for place, kind, length in itertools.islice(_chunks(lambda at, count: data[at : at + count], end, at), 8):
        start, behind = place + 8, min(place + 8 + length, end)
        if kind == b"VP8 ":
            yield Coded(start, behind, _lossy_zeros(data[start : start + 10]))
        elif kind == b"VP8L" or (kind == b"ALPH" and data[start : start + 1] and data[start] & 3):
            yield Coded(start, behind, behind - start)
        elif kind == b"ALPH":  # as it is, but for a filter (bits 2 and 3)
            yield Coded(start + 1, behind, None, 0 if data[start : start + 1] and data[start] & 12 else width)


def _first(data: bytes, kind: bytes, head: bytes) -> Header:
    """Size and alpha, from whichever of the three kinds of chunk comes first."""
    if len(head) < 10:
        raise cut_short("the file ends inside the header")
    if kind == b"VP8X":
        size: Size = (1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little"))
        alpha = bool(head[0] & _ALPHA)
        return Header("WEBP", "RGBA" if alpha else "RGB", size, alpha, animated=bool(head[0] & _ANIMATION))
    if kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        return Header("WEBP", "RGB", _lossy_size(head))
    if kind == b"VP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        alpha = bool(bits >> 28 & 1)
        return Header("WEBP", "RGBA" if alpha else "RGB", (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)), alpha)
    raise damaged(data, f"the first chunk is {kind!r}")


def _lossy_size(head: bytes) -> Size:
    """From the first ten bytes of a VP8 frame (RFC 6386, 9.1): 14 bits each, the upper two scale the display."""
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


def decode_webp(data: bytes) -> NDArray[np.uint8]:
    """A still WebP as uint8 [H, W, 3 or 4], blue first. Raises ImageError(CORRUPT)."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise damaged(data, "libwebp cannot decode the image data")
    return np.asarray(pixels, dtype=np.uint8)


def is_longer_than_its_image(data: bytes, part: Coded, least: int = 0) -> bool:
    """Whether a chunk of pixels or alpha decodes as well without its last bytes (`least`, or a share of them).

    libwebp stops when it has every pixel. Zeros take fewer bits than the pixels that belong there, so the decoder is
    done long before the end; of a whole file it needs all but the last few bytes. Takes as long as decoding.
    """
    kind, length = data[part.start - 8 : part.start - 4], part.end - part.start
    kept = (length - (least or max(_SLACK, length // 100))) & ~1
    if kept <= 0:
        return False
    chunks = _chunk(kind, data[part.start : part.start + kept])
    if kind == b"ALPH":
        found = _chunks(lambda at, count: data[at : at + count], len(data), part.end + (length & 1))
        at, _, size = next((each for each in found if each[1] == b"VP8 "), (0, b"", 0))
        width, height = _lossy_size(data[at + 8 : at + 18])
        canvas = bytes((_ALPHA, 0, 0, 0)) + b"".join(
            (max(1, side) - 1).to_bytes(3, "little") for side in (width, height)
        )
        chunks = _chunk(b"VP8X", canvas) + chunks + _chunk(b"VP8 ", data[at + 8 : at + 8 + size])
    riff = b"RIFF" + (len(chunks) + 4).to_bytes(4, "little") + b"WEBP" + chunks
    return cv2.imdecode(np.frombuffer(riff, np.uint8), cv2.IMREAD_UNCHANGED) is not None


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + len(body).to_bytes(4, "little") + body + bytes(len(body) & 1)
