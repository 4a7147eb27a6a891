"""Is the end of an image there? Looks at its format's structure, with a few short reads, and decodes nothing.

Wrong answers cost little: a complete file that looks cut off is only waited for, and a cut one that looks complete is
found out by its decoder. Only where no legal file can look so is the answer MISSING.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from enum import Enum


class Tail(Enum):
    COMPLETE = "complete"
    MISSING = "missing"  # beyond doubt
    DOUBTFUL = "doubtful"  # looks cut off, but only a decoder can tell damage from truncation
    UNKNOWN = "unknown"  # a format without a mark at its end, or none that we know


TAIL_BYTES = 1 << 16
SCAN_BYTES = 1 << 20
STEPS_MAXIMUM = 100_000  # chunks or boxes walked before giving up
ABSURD = 1 << 32  # a header that claims more than this lies: its decoder says so at once


def tail_of(descriptor: int, size: int) -> Tail:
    """Raises OSError where the file cannot be read."""
    head = os.pread(descriptor, 32, 0)
    for starts_with, check in _CHECKS:
        if starts_with(head):
            return check(descriptor, size)
    return Tail.UNKNOWN


def _jpeg(descriptor: int, size: int) -> Tail:
    """ITU-T T.81: after the first scan begins, FF D9 can only be the end; before it, segments hide their content."""
    at = 2
    for _ in range(1000):
        marker = os.pread(descriptor, 4, at)
        if len(marker) < 4:
            return Tail.DOUBTFUL
        if marker[0] != 0xFF or marker[1] == 0xD9:
            return Tail.UNKNOWN
        if marker[1] == 0xFF:  # a fill byte
            at += 1
        elif marker[1] == 0x01 or 0xD0 <= marker[1] <= 0xD8:  # markers without content
            at += 2
        else:
            at += 2 + int.from_bytes(marker[2:4], "big")
            if marker[1] == 0xDA:
                found = b"\xff\xd9" in os.pread(descriptor, TAIL_BYTES, max(at, size - TAIL_BYTES))
                # Some cameras put whole films behind the image: then its end is anywhere.
                return Tail.COMPLETE if found or _contains(descriptor, b"\xff\xd9", at) else Tail.MISSING
    return Tail.UNKNOWN


def _contains(descriptor: int, what: bytes, at: int) -> bool:
    before = b""
    while chunk := os.pread(descriptor, SCAN_BYTES, at):
        if what in before + chunk:
            return True
        before = chunk[1 - len(what) :]
        at += len(chunk)
    return False


def _png(descriptor: int, size: int) -> Tail:
    """PNG: the last chunk is IEND, whose checksum never changes."""
    if b"IEND\xae\x42\x60\x82" in os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)):
        return Tail.COMPLETE
    if os.pread(descriptor, 8, 8) != b"\0\0\0\rIHDR":
        return Tail.DOUBTFUL
    at = 8
    for _ in range(STEPS_MAXIMUM):
        header = os.pread(descriptor, 8, at)
        if header[4:] == b"IEND":
            return Tail.COMPLETE if at + 12 <= size else Tail.MISSING
        if len(header) < 8 or header == bytes(8):
            return Tail.MISSING
        if not header[4:].isalpha():
            return Tail.UNKNOWN
        at += 12 + int.from_bytes(header[:4], "big")
    return Tail.UNKNOWN


def _webp(descriptor: int, size: int) -> Tail:
    """RIFF tells its length; image data that end in too many zeros were never written.

    How many are too many: a white area ends in up to 0.71 zero bytes for each block of 16 x 16 pixels (measured at
    quality 100). Lossless data may end in any number of them, 86 a block were seen, so there zeros say nothing.
    """
    end = 8 + int.from_bytes(os.pread(descriptor, 4, 4), "little")
    if end > size:
        return Tail.MISSING if end < ABSURD else Tail.UNKNOWN
    at = 12
    for _ in range(STEPS_MAXIMUM):
        header = os.pread(descriptor, 8, at)
        if at + 8 > end or len(header) < 8:
            return Tail.COMPLETE
        if header == bytes(8):
            return Tail.MISSING
        length = int.from_bytes(header[4:], "little")
        if at + 8 + length > end:
            return Tail.DOUBTFUL
        if header[:4] == b"VP8 ":
            frame = os.pread(descriptor, 10, at + 8)
            width, height = (int.from_bytes(frame[k : k + 2], "little") & 0x3FFF for k in (6, 8))
            blocks = (width + 15) // 16 * ((height + 15) // 16)
            if _zeros_before(descriptor, at + 8 + length, 64 + blocks):
                return Tail.MISSING
        at += 8 + length + (length & 1)
    return Tail.UNKNOWN


def _zeros_before(descriptor: int, end: int, count: int) -> bool:
    """Are the last `count` bytes before `end` all zero?"""
    return end >= count and os.pread(descriptor, count, end - count) == bytes(count)


def _gif(descriptor: int, size: int) -> Tail:
    """GIF89a: the trailer is a semicolon; some writers pad it."""
    last = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)).rstrip(b"\0")
    return Tail.COMPLETE if last.endswith(b";") else Tail.DOUBTFUL


def _bmp(descriptor: int, size: int) -> Tail:
    """Uncompressed bitmaps say how many rows of what length follow where."""
    header = os.pread(descriptor, 34, 0)
    if len(header) < 34:
        return Tail.DOUBTFUL
    offset, _, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", header, 10)
    if compression not in (0, 3) or bits not in (1, 4, 8, 16, 24, 32):
        return Tail.UNKNOWN
    return _extends_to(offset + abs(height) * ((abs(width) * bits + 31) // 32 * 4), size)


def _tiff(descriptor: int, size: int) -> Tail:
    """TIFF 6.0: the first directory, and the strips or tiles that it points at."""
    order = "<" if os.pread(descriptor, 2, 0) == b"II" else ">"
    start = os.pread(descriptor, 4, 4)
    at = struct.unpack(order + "I", start)[0] if len(start) == 4 else size
    if at + 2 > size:
        return Tail.DOUBTFUL
    count = struct.unpack(order + "H", os.pread(descriptor, 2, at))[0]
    entries = os.pread(descriptor, 12 * count, at + 2)
    if len(entries) < 12 * count:
        return Tail.DOUBTFUL
    values: dict[int, tuple[int, ...]] = {}
    for index in range(count):
        tag, kind, many = struct.unpack_from(order + "HHI", entries, 12 * index)
        if tag in _TIFF_PLACES and kind in (3, 4) and many <= STEPS_MAXIMUM:
            letter, width = ("H", 2) if kind == 3 else ("I", 4)
            data = entries[12 * index + 8 : 12 * index + 12]
            if many * width > 4:
                data = os.pread(descriptor, many * width, struct.unpack(order + "I", data)[0])
            if len(data) < many * width:
                return Tail.DOUBTFUL
            values[tag] = struct.unpack_from(f"{order}{many}{letter}", data)
    ends = [
        offset + length
        for where, lengths in ((273, 279), (324, 325))
        for offset, length in zip(values.get(where, ()), values.get(lengths, ()), strict=False)
    ]
    return _extends_to(max(ends), size) if ends else Tail.UNKNOWN


_TIFF_PLACES = (273, 279, 324, 325)  # StripOffsets, StripByteCounts, TileOffsets, TileByteCounts


def _boxes(descriptor: int, size: int) -> Tail:
    """ISO/IEC 14496-12 (HEIC, AVIF): a row of boxes, each with its length."""
    at = 0
    for _ in range(STEPS_MAXIMUM):
        if at == size:
            return Tail.COMPLETE
        header = os.pread(descriptor, 16, at)
        if len(header) < 8 or header[:8] == bytes(8):
            return Tail.DOUBTFUL
        length = int.from_bytes(header[:4], "big")
        if length == 0:  # to the end of the file
            return Tail.COMPLETE
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:
            return Tail.UNKNOWN
        at += length
        if at > size:
            return _extends_to(at, size)
    return Tail.UNKNOWN


def _extends_to(end: int, size: int) -> Tail:
    if end <= size:
        return Tail.COMPLETE
    return Tail.DOUBTFUL if end < ABSURD else Tail.UNKNOWN


def _prefix(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(signatures)


def _checks() -> Iterator[tuple[Callable[[bytes], bool], Callable[[int, int], Tail]]]:
    yield _prefix(b"\xff\xd8\xff"), _jpeg
    yield _prefix(b"\x89PNG\r\n\x1a\n"), _png
    yield lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", _webp
    yield _prefix(b"GIF87a", b"GIF89a"), _gif
    yield _prefix(b"BM"), _bmp
    yield _prefix(b"II*\0", b"MM\0*"), _tiff
    yield lambda head: head[4:8] == b"ftyp", _boxes


_CHECKS = tuple(_checks())
