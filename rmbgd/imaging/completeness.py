"""Check whether an arriving image file has its end, by its structure and with a few short reads.

Wrong answers cost little: a complete file that looks cut off is only waited for, and a cut one that looks complete is
found out by its decoder. Only where no legal file can look so is the answer MISSING.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from rmbgd.imaging.formats import (
    ABSURD,
    HEAD_BYTES,
    STEPS_MAXIMUM,
    TAIL_BYTES,
    Beginning,
    Tail,
    claimed_format,
    judge_head,
)
from rmbgd.imaging.jpeg import jpeg_tail
from rmbgd.imaging.png import png_tail
from rmbgd.imaging.webp import webp_tail

__all__ = ["TIFF_PIXELS", "Beginning", "Tail", "bmp_end", "box_length", "head_of", "tail_of"]

TIFF_PIXELS = ((273, 279), (324, 325))  # tags: StripOffsets and StripByteCounts, TileOffsets and TileByteCounts
INDICES = {b"meta", b"moov"}  # boxes without one of which a file of boxes has nothing to show
_TIFF_TAGS = {tag for pair in TIFF_PIXELS for tag in pair}


def head_of(descriptor: int) -> Beginning:
    """Whether a file begins like an image. Raises OSError where it cannot be read."""
    return judge_head(os.pread(descriptor, HEAD_BYTES, 0))


def tail_of(descriptor: int, size: int) -> Tail:
    """Whether a file of `size` bytes has its end. Raises OSError where the file cannot be read."""
    check = _CHECKS.get(claimed_format(os.pread(descriptor, 32, 0)))
    return check(descriptor, size) if check else Tail.UNKNOWN


def _gif(descriptor: int, size: int) -> Tail:
    """GIF89a: the trailer is a semicolon; some writers pad it."""
    last = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)).rstrip(b"\0")
    return Tail.COMPLETE if last.endswith(b";") else Tail.DOUBTFUL


def _bmp(descriptor: int, size: int) -> Tail:
    header = os.pread(descriptor, 34, 0)
    if len(header) < 34:
        return Tail.DOUBTFUL
    end = bmp_end(header)
    return Tail.UNKNOWN if end is None else _extends_to(end, size)


def bmp_end(header: bytes) -> int | None:
    """Where the rows of a bitmap end, from its first 34 bytes or more; None where they are compressed."""
    offset, _, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", header, 10)
    if compression not in (0, 3) or bits not in (1, 4, 8, 16, 24, 32):
        return None
    return int(offset + abs(height) * ((abs(width) * bits + 31) // 32 * 4))


def _tiff(descriptor: int, size: int) -> Tail:
    """TIFF 6.0: the first directory, and the strips or tiles that it points at."""
    order = "<" if os.pread(descriptor, 2, 0) == b"II" else ">"
    start = os.pread(descriptor, 4, 4)
    at = struct.unpack(order + "I", start)[0] if len(start) == 4 else size
    if at + 2 > size:
        return Tail.DOUBTFUL
    stored = os.pread(descriptor, 2, at)
    if len(stored) < 2:  # the file has shrunk since its size was taken
        return Tail.DOUBTFUL
    count = struct.unpack(order + "H", stored)[0]
    entries = os.pread(descriptor, 12 * count, at + 2)
    if len(entries) < 12 * count:
        return Tail.DOUBTFUL
    values: dict[int, tuple[int, ...]] = {}
    for index in range(count):
        tag, kind, many = struct.unpack_from(order + "HHI", entries, 12 * index)
        if tag in _TIFF_TAGS and kind in (3, 4) and many <= STEPS_MAXIMUM:
            letter, width = ("H", 2) if kind == 3 else ("I", 4)
            data = entries[12 * index + 8 : 12 * index + 12]
            if many * width > 4:
                data = os.pread(descriptor, many * width, struct.unpack(order + "I", data)[0])
            if len(data) < many * width:
                return Tail.DOUBTFUL
            values[tag] = struct.unpack_from(f"{order}{many}{letter}", data)
    ends = [
        offset + length
        for where, lengths in TIFF_PIXELS
        for offset, length in zip(values.get(where, ()), values.get(lengths, ()), strict=False)
    ]
    return _extends_to(max(ends), size) if ends else Tail.UNKNOWN


def _boxes(descriptor: int, size: int) -> Tail:
    """ISO/IEC 14496-12 (HEIC, AVIF): a row of boxes, each with its length."""
    at, kinds = 0, set[bytes]()
    for _ in range(STEPS_MAXIMUM):
        if at == size:
            return Tail.COMPLETE if kinds & INDICES else Tail.DOUBTFUL
        header = os.pread(descriptor, 16, at)
        if len(header) < 8 or header[:8] == bytes(8):
            return Tail.DOUBTFUL
        kinds.add(header[4:8])
        if header[:4] == bytes(4):  # to the end of the file
            return Tail.COMPLETE if kinds & INDICES else Tail.DOUBTFUL
        length = box_length(header)
        if length < 8:
            return Tail.UNKNOWN
        at += length
        if at > size:
            return _extends_to(at, size)
    return Tail.UNKNOWN


def _matroska(descriptor: int, size: int) -> Tail:
    """Matroska (RFC 9559): an EBML header, then a segment with its length, unless it was written to a pipe."""
    at = 0
    for identity in (0x1A45DFA3, 0x18538067):
        head = os.pread(descriptor, 12, at)
        if len(head) < 12 or int.from_bytes(head[:4], "big") != identity:
            return Tail.DOUBTFUL if len(head) < 12 or not any(head[:4]) else Tail.UNKNOWN
        width = 9 - head[4].bit_length()  # of the length, in bytes: its first bit that is set says it
        if width > 8:
            return Tail.UNKNOWN
        length = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
        if length == (1 << 7 * width) - 1:  # unknown
            return Tail.UNKNOWN
        at += 4 + width + length
    return _extends_to(at, size)


def box_length(header: bytes) -> int:
    """Of a box, from its first 16 bytes; below 8 it is no length, and 0 means: to the end of the file."""
    length = int.from_bytes(header[:4], "big")
    return int.from_bytes(header[8:16], "big") if length == 1 else length


def _extends_to(end: int, size: int) -> Tail:
    if end <= size:
        return Tail.COMPLETE
    return Tail.DOUBTFUL if end < ABSURD else Tail.UNKNOWN


_CHECKS: dict[str | None, Callable[[int, int], Tail]] = {
    "JPEG": jpeg_tail,
    "PNG": png_tail,
    "WEBP": webp_tail,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
    "ISO": _boxes,
    "MATROSKA": _matroska,
}
