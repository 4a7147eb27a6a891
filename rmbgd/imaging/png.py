"""PNG: its end chunk, its header from checked chunks, a view of the pixels alone, and the writer.

Every chunk is walked, checked and weighed before any pixel. The decoder is Pillow's, but through PixelReader it never
sees text, profiles or animation, so none of them can hurt it.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import itertools
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging import formats
from rmbgd.imaging.formats import Header, PixelStream, Tail, check_parts, check_size, cut_short, damaged
from rmbgd.imaging.metadata import PNG_KEYWORDS, clean_text, sensible_dpi

# ISA-L has no 32-bit ARM kernels.
_backend: Any = importlib.import_module("isal.isal_zlib") if importlib.util.find_spec("isal") else zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BAND_BYTES = 1 << 19  # filtered at once by the writer; 256 KiB to 2 MiB make no difference

# (colour type, bits) -> (mode as stored, largest stored value). PNG specification, table 11.1.
_MODES = {
    (0, 1): ("1", 255), (0, 2): ("L;2", 255), (0, 4): ("L;4", 255), (0, 8): ("L", 255), (0, 16): ("I;16", 65535),
    (2, 8): ("RGB", 255), (2, 16): ("RGB;16", 65535),
    (3, 1): ("P", 255), (3, 2): ("P", 255), (3, 4): ("P", 255), (3, 8): ("P", 255),
    (4, 8): ("LA", 255), (4, 16): ("LA;16", 65535),
    (6, 8): ("RGBA", 255), (6, 16): ("RGBA;16", 65535),
}  # fmt: skip
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # channels -> grey, truecolour, truecolour with alpha
_WORDS = {keyword.lower(): word for word, keyword in PNG_KEYWORDS.items()}
_END = b"IEND\xae\x42\x60\x82"  # with its checksum, which never changes
_UP = 2  # the row filter of the writer
_WINDOW_BITS = 15  # of deflate; the largest that PNG allows
_LOOK_AHEAD = 288  # bytes that ISA-L holds back, ISAL_LOOK_AHEAD

Write = Callable[[bytes | memoryview], object]


def png_tail(descriptor: int, size: int) -> Tail:
    """Whether the last chunk, IEND, is there. See completeness.tail_of."""
    if _END in os.pread(descriptor, formats.TAIL_BYTES, max(0, size - formats.TAIL_BYTES)):
        return Tail.COMPLETE
    if os.pread(descriptor, 8, 8) != b"\0\0\0\rIHDR":
        return Tail.DOUBTFUL
    at = 8
    for _ in range(formats.STEPS_MAXIMUM):
        header = os.pread(descriptor, 8, at)
        if header[4:] == b"IEND":
            return Tail.COMPLETE if at + 12 <= size else Tail.MISSING
        if len(header) < 8 or header == bytes(8):
            return Tail.MISSING
        if not header[4:].isalpha():
            return Tail.UNKNOWN
        at += 12 + int.from_bytes(header[:4], "big")
    return Tail.UNKNOWN


def deflate(parts: Iterable[bytes | memoryview], level: int) -> Iterator[bytes]:
    """A zlib stream of the parts, in pieces. Equal parts give equal bytes, in every process.

    level  0 to 3, ISA-L's scale. Without ISA-L, zlib's own level 1 serves for all of them: 27 ms against 8 ms for
           1024 x 1024 RGBA were measured, and its higher levels cost several times that for a few per cent.

    Where ISA-L (2.31, levels 1 and 2) finds more than _LOOK_AHEAD + 1 bytes at its first step, it hashes the address
    of the compressor for the third byte, so that the stream depends on where in memory the compressor lies. A first
    step of exactly that many bytes takes one byte alone and hashes the next ones anew. Fewer bytes go to zlib.
    """
    parts = iter(parts)
    first = next(parts, b"")
    if _backend is zlib or len(first) <= _LOOK_AHEAD:
        packer: Any = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS, 9)
    else:
        packer = _backend.compressobj(level, zlib.DEFLATED, _WINDOW_BITS, 9)
    for part in itertools.chain((first[: _LOOK_AHEAD + 1], first[_LOOK_AHEAD + 1 :]), parts):
        yield packer.compress(part)
    yield packer.flush()


@dataclass(slots=True)
class _Walk:
    """What the chunks said so far. `allowance` is what text and profile may still unpack to, in bytes."""

    allowance: int
    header: Header
    colour_type: int
    bits: int
    prefix: bytes
    start: int = 0
    end: int = 0
    palette: int = 0
    seen: set[bytes] = field(default_factory=set)


def read_png(data: bytes, limits: LimitSettings) -> Header:
    """Header, metadata and structure of a PNG. See formats.Reader.

    Checksums of chunks that pixels need must be right; other chunks with a wrong one are left out. Compressed text and
    profiles are unpacked against limits.metadata_bytes in all, wanted or not; beyond it the file is a METADATA_BOMB.
    """
    walk = _begin(data, limits)
    header, view, at = walk.header, memoryview(data), 33
    for count in itertools.count():
        check_parts(count)
        if at + 12 > len(data):
            raise _ended(data, at, limits)
        length, kind = struct.unpack_from(">I4s", data, at)
        after = at + 12 + length
        if not kind.isalpha():
            raise damaged(data, f"chunk type {kind!r} at byte {at}")
        if after > len(data):
            raise _ended(data, after, limits)
        sound = _backend.crc32(view[at + 4 : after - 4]) == int.from_bytes(view[after - 4 : after], "big")
        if kind == b"IEND":
            break
        if not sound:
            if kind[:1].isupper() or kind == b"tRNS":
                raise damaged(data, f"checksum of chunk {kind.decode()} at byte {at}")
            header.note(f"chunk {kind.decode()} damaged, left out")
        elif kind == b"IDAT":
            if walk.end not in (0, at):
                raise damaged(data, "image data is not in one run of chunks")
            walk.start, walk.end = walk.start or at, after
        else:
            _take(walk, data, kind, at, after)
        at = after
    if not walk.start:
        raise damaged(data, "no image data")
    if walk.colour_type == 3 and not walk.palette:
        raise damaged(data, "no palette")
    if after < len(data):
        header.note(f"{len(data) - after} bytes after the end left out")
    header.stream = PixelStream(walk.prefix, walk.start, walk.end, data[at:after])
    return header


def _begin(data: bytes, limits: LimitSettings) -> _Walk:
    if len(data) < 33:
        raise cut_short("the file ends inside the header")
    length, kind, width, height, bits, colour_type, *methods = struct.unpack_from(">I4sIIBBBBB", data, 8)
    method, filtering, interlace = methods
    if kind != b"IHDR" or length != 13:
        raise damaged(data, "the first chunk is not IHDR")
    if _backend.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise damaged(data, "checksum of chunk IHDR")
    check_size((width, height), limits)
    if method or filtering or interlace > 1 or (colour_type, bits) not in _MODES:
        raise damaged(data, f"colour type {colour_type}, {bits} bits, methods {method}, {filtering}, {interlace}")
    mode, maximum = _MODES[colour_type, bits]
    header = Header("PNG", mode, (width, height), has_alpha=colour_type >= 4, maximum=maximum)
    return _Walk(limits.metadata_bytes, header, colour_type, bits, data[:33])


def _ended(data: bytes, wanted: int, limits: LimitSettings) -> ImageError:
    if wanted > limits.file_bytes + 12:
        return damaged(data, f"a chunk claims {wanted} bytes, more than any file may have")
    return cut_short(f"the file ends at byte {len(data)}, before the image does")


def _take(walk: _Walk, data: bytes, kind: bytes, at: int, after: int) -> None:
    """One chunk other than IHDR, IDAT and IEND, at data[at:after]."""
    header, body, first = walk.header, data[at + 8 : after - 4], kind not in walk.seen
    walk.seen.add(kind)
    match kind:
        case b"PLTE" if first and not walk.start:
            if len(body) % 3 or not 3 <= len(body) <= 768:
                raise damaged(data, f"palette of {len(body)} bytes")
            walk.palette = len(body) // 3
            if walk.colour_type == 3:
                walk.prefix += data[at:after]
        case b"tRNS" if first and not walk.start:
            _take_transparency(walk, body, data[at:after])
        case b"iCCP" if first:
            rest = body.partition(b"\x00")[2]
            if rest[:1] == b"\x00" and (profile := _unpacked(walk, rest[1:], "colour profile")):
                header.icc_profile = profile
            else:
                header.note("colour profile damaged, left out")
        case b"pHYs" if first and len(body) == 9:
            x, y, unit = struct.unpack(">IIB", body)
            if unit == 1:  # pixels per metre
                header.dpi = sensible_dpi(x * 0.0254, y * 0.0254)
        case b"eXIf" if first:
            header.exif = body
        case b"tEXt" | b"zTXt" | b"iTXt":
            _take_text(walk, kind, body)
        case b"acTL" if first and not walk.start and len(body) == 8:
            header.frames = max(1, int.from_bytes(body[:4], "big") & 0x7FFFFFFF)
            header.animated = header.frames > 1
        case _ if kind[:1].isupper() and kind != b"PLTE":
            raise damaged(data, f"unknown critical chunk {kind.decode()}")


def _take_transparency(walk: _Walk, body: bytes, chunk: bytes) -> None:
    """PNG specification 11.3.2.1: alphas of palette entries, or the one colour that is transparent."""
    if walk.colour_type == 3 and 0 < len(body) <= walk.palette:
        walk.prefix += chunk
        walk.header.has_alpha = True
    elif (walk.colour_type, len(body)) in ((0, 2), (2, 6)):
        white = (1 << walk.bits) - 1  # only these bits count, says the standard (11.3.1.1)
        scale = 255 // white if walk.bits < 8 else 1  # the decoder spreads small greys over 0..255
        key = struct.unpack(f">{len(body) // 2}H", body)
        walk.header.colour_key = tuple((value & white) * scale for value in key)
        walk.header.has_alpha = True
    else:
        walk.header.note("transparency chunk does not fit the image, left out")


def _take_text(walk: _Walk, kind: bytes, body: bytes) -> None:
    keyword, _, rest = body.partition(b"\x00")
    value: bytes | None = rest
    if kind == b"zTXt":
        value = _unpacked(walk, rest[1:], "text") if rest[:1] == b"\x00" else None
    elif kind == b"iTXt":
        packed, method, parts = rest[:1], rest[1:2], rest[2:].split(b"\x00", 2)
        value = parts[2] if len(parts) == 3 else None
        if value is not None and packed == b"\x01":
            value = _unpacked(walk, value, "text") if method == b"\x00" else None
    if value is None:
        walk.header.note("text chunk damaged, left out")
    elif keyword == b"XML:com.adobe.xmp":
        walk.header.xmp = value
    elif word := _WORDS.get(keyword.decode("latin-1").lower()):
        encoding = "utf-8" if kind == b"iTXt" else "latin-1"  # as the specification has it
        walk.header.metadata.setdefault(word, clean_text(value.decode(encoding, "replace")))


def _unpacked(walk: _Walk, packed: bytes, what: str) -> bytes | None:
    """Inflated bytes, or None when they are damaged. Never takes more memory than the allowance."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(packed, walk.allowance + 1)
    except zlib.error:
        return None
    walk.allowance -= len(plain)
    if walk.allowance < 0:
        raise ImageError(Reason.METADATA_BOMB, f"{what} unpacks beyond limits.metadata_bytes")
    return plain if inflater.eof else None


class PixelReader(io.RawIOBase):
    """The bytes of a PixelStream as a file: three pieces, of which only the middle one is large and none is copied."""

    def __init__(self, data: bytes, stream: PixelStream) -> None:
        pixels = memoryview(data)[stream.start : stream.end]
        self._pieces = memoryview(stream.prefix), pixels, memoryview(stream.suffix)
        self._length = sum(map(len, self._pieces))
        self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._length - self._at if size is None or size < 0 else size
        parts, at = [], self._at
        for piece in self._pieces:
            parts.append(piece[max(at, 0) : max(at + wanted, 0)])
            at -= len(piece)
        joined = b"".join(parts)
        self._at += len(joined)
        return joined


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

    Streamed in bands of about half a megabyte; the row filter is "up" throughout.

    level  0 to 3 (see deflate)
    text   (keyword, value); keywords are ASCII, values any text
    """
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, _COLOUR_TYPES[channels], 0, 0, 0)
    write(SIGNATURE)
    _chunk(write, b"IHDR", header)
    if icc_profile:
        _chunk(write, b"iCCP", b"ICC profile\x00\x00" + b"".join(deflate([icc_profile], level)))
    if dpi is not None:
        x, y = (max(1, min(round(value / 0.0254), 0x7FFFFFFF)) for value in dpi)
        _chunk(write, b"pHYs", struct.pack(">IIB", x, y, 1))
    for keyword, value in text:
        try:
            kind, body = b"tEXt", value.encode("latin-1")
        except UnicodeEncodeError:
            kind, body = b"iTXt", bytes(4) + value.encode()
        _chunk(write, kind, keyword.encode("ascii") + b"\x00" + body)
    for packed in deflate(_filtered(pixels, width * channels * pixels.itemsize), level):
        if packed:
            _chunk(write, b"IDAT", packed)
    _chunk(write, b"IEND", b"")


def _filtered(pixels: NDArray[np.uint8] | NDArray[np.uint16], row_bytes: int) -> Iterator[memoryview]:
    """Bands of filtered rows, as bytes of one buffer: each must be consumed before the next is asked for."""
    rows = max(1, min(len(pixels), BAND_BYTES // (row_bytes + 1)))
    filtered = np.full((rows, row_bytes + 1), _UP, np.uint8)
    above = np.zeros((1, row_bytes), np.uint8)
    for first in range(0, len(pixels), rows):
        band = pixels[first : first + rows]
        flat = (band if band.itemsize == 1 else band.astype(">u2")).reshape(len(band), -1).view(np.uint8)
        np.subtract(flat[:1], above, out=filtered[:1, 1:])
        np.subtract(flat[1:], flat[:-1], out=filtered[1 : len(band), 1:])
        above = flat[-1:]
        yield memoryview(filtered.data).cast("B")[: len(band) * (row_bytes + 1)]


def _chunk(write: Write, kind: bytes, body: bytes) -> None:
    write(struct.pack(">I", len(body)) + kind)
    if body:
        write(body)
    write(struct.pack(">I", _backend.crc32(body, _backend.crc32(kind))))
