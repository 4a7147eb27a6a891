"""PNG from pixels in memory, streamed in half-megabyte bands: row filter "up", ISA-L deflate.

One filter for all rows costs one subtraction instead of five tries; at level 2 the files are a tenth larger than those
of Pillow's level 6 at a twentieth of the time. Does not open files, and writes no chunk that was not asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rmbgd.imaging.deflate import compressor, crc32

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BAND_BYTES = 1 << 19  # filtered at once; 256 KiB to 2 MiB make no difference
SIDE_MAXIMUM = (1 << 31) - 1

Write = Callable[[bytes | memoryview], object]

_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # channels -> grey, truecolour, truecolour with alpha
_UP = 2


def write_png(
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    write: Write,
    *,
    level: int,
    icc_profile: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    text: Sequence[tuple[str, str]] = (),
) -> None:
    """Encode uint8 [H, W], [H, W, 3] or [H, W, 4], or uint16 [H, W]; contiguous.

    level  0 to 3 (deflate.compressor)
    text   (keyword, value); keywords are ASCII, values any text
    """
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, _COLOUR_TYPES[channels], 0, 0, 0)
    write(SIGNATURE)
    _chunk(write, b"IHDR", header)
    if icc_profile:
        packer = compressor(level)
        _chunk(write, b"iCCP", b"ICC profile\x00\x00" + packer.compress(icc_profile) + packer.flush())
    if dpi is not None:
        x, y = (max(1, min(round(value / 0.0254), 0x7FFFFFFF)) for value in dpi)
        _chunk(write, b"pHYs", struct.pack(">IIB", x, y, 1))
    for keyword, value in text:
        _text(write, keyword, value)
    packer = compressor(level)
    for band in _filtered(pixels, width * channels * pixels.itemsize):
        packed = packer.compress(band)
        if packed:
            _chunk(write, b"IDAT", packed)
    _chunk(write, b"IDAT", packer.flush())
    _chunk(write, b"IEND", b"")


def _filtered(pixels: NDArray[np.uint8] | NDArray[np.uint16], row_bytes: int) -> Iterator[NDArray[np.uint8]]:
    """Bands of filtered rows, in one buffer: each must be consumed before the next is asked for."""
    rows = max(1, min(len(pixels), BAND_BYTES // (row_bytes + 1)))
    filtered = np.full((rows, row_bytes + 1), _UP, np.uint8)
    above = np.zeros((1, row_bytes), np.uint8)
    for first in range(0, len(pixels), rows):
        band = pixels[first : first + rows]
        flat = (band if band.itemsize == 1 else band.astype(">u2")).reshape(len(band), -1).view(np.uint8)
        np.subtract(flat[:1], above, out=filtered[:1, 1:])
        np.subtract(flat[1:], flat[:-1], out=filtered[1 : len(band), 1:])
        above = flat[-1:]
        yield filtered[: len(band)]


def _chunk(write: Write, kind: bytes, body: bytes) -> None:
    write(struct.pack(">I", len(body)) + kind)
    if body:
        write(body)
    write(struct.pack(">I", crc32(body, crc32(kind))))


def _text(write: Write, keyword: str, value: str) -> None:
    """A tEXt chunk where Latin-1 suffices, iTXt otherwise."""
    try:
        _chunk(write, b"tEXt", keyword.encode("ascii") + b"\x00" + value.encode("latin-1"))
    except UnicodeEncodeError:
        _chunk(write, b"iTXt", keyword.encode("ascii") + b"\x00\x00\x00\x00\x00" + value.encode())
