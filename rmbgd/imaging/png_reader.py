"""PNG: every chunk walked, checked and weighed before any pixel, and a view of the file that holds nothing but pixels.

The decoder is Pillow's, but it never sees text, profiles or animation, so none of them can hurt it. Does not decode.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from dataclasses import dataclass, field

from rmbgd.config import Limits
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.deflate import crc32
from rmbgd.imaging.header import Found, PixelStream, check_parts, check_size, cut_short, damaged
from rmbgd.imaging.metadata import PNG_KEYWORDS, clean_text, sensible_dpi

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# (colour type, bits) -> (mode as stored, largest stored value). PNG specification, table 11.1.
_MODES = {
    (0, 1): ("1", 255), (0, 2): ("L;2", 255), (0, 4): ("L;4", 255), (0, 8): ("L", 255), (0, 16): ("I;16", 65535),
    (2, 8): ("RGB", 255), (2, 16): ("RGB;16", 65535),
    (3, 1): ("P", 255), (3, 2): ("P", 255), (3, 4): ("P", 255), (3, 8): ("P", 255),
    (4, 8): ("LA", 255), (4, 16): ("LA;16", 65535),
    (6, 8): ("RGBA", 255), (6, 16): ("RGBA;16", 65535),
}  # fmt: skip
_WORDS = {keyword.lower(): word for word, keyword in PNG_KEYWORDS.items()}
_XMP = b"XML:com.adobe.xmp"


@dataclass(slots=True)
class _Walk:
    """What the chunks have told so far. `allowance` is what text and profile may still unpack to, in bytes."""

    allowance: int
    found: Found
    colour_type: int
    bits: int
    prefix: bytes
    start: int = 0
    end: int = 0
    palette: int = 0
    seen: set[bytes] = field(default_factory=set)


def read_png(data: bytes, limits: Limits) -> Found:
    """Header, metadata and structure of a PNG. See header.Reader.

    Checksums of chunks that pixels need must be right; other chunks with a wrong one are left out. Compressed text and
    profiles are unpacked against limits.metadata_bytes in all, wanted or not; beyond it the file is a METADATA_BOMB.
    """
    walk = _begin(data, limits)
    view, at = memoryview(data), 33
    for count in itertools.count():
        check_parts(count)
        if at + 12 > len(data):
            raise _ended(data, at, limits)
        length, kind = struct.unpack_from(">I4s", data, at)
        after = at + 12 + length
        if not (kind.isalpha() and kind.isascii()):
            raise damaged(data, f"chunk type {kind!r} at byte {at}")
        if after > len(data):
            raise _ended(data, after, limits)
        sound = crc32(view[at + 4 : after - 4]) == int.from_bytes(view[after - 4 : after], "big")
        if kind == b"IEND":
            break
        if not sound:
            if kind[:1].isupper() or kind == b"tRNS":
                raise damaged(data, f"checksum of chunk {kind.decode()} at byte {at}")
            walk.found.notes.append(f"chunk {kind.decode()} damaged, left out")
        elif kind == b"IDAT":
            if walk.end not in (0, at):
                raise damaged(data, "picture data is not in one run of chunks")
            walk.start, walk.end = walk.start or at, after
        else:
            _take(walk, data, kind, at, after)
        at = after
    if not walk.start:
        raise damaged(data, "no picture data")
    if walk.colour_type == 3 and not walk.palette:
        raise damaged(data, "no palette")
    if after < len(data):
        walk.found.notes.append(f"{len(data) - after} bytes after the end left out")
    walk.found.stream = PixelStream(walk.prefix, walk.start, walk.end, data[at:after])
    return walk.found


def _begin(data: bytes, limits: Limits) -> _Walk:
    if len(data) < 33:
        raise cut_short("the file ends inside the header")
    length, kind, width, height, bits, colour_type, method, filtering, interlace = struct.unpack_from(
        ">I4sIIBBBBB", data, 8
    )
    if kind != b"IHDR" or length != 13:
        raise damaged(data, "the first chunk is not IHDR")
    if crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise damaged(data, "checksum of chunk IHDR")
    check_size((width, height), limits)
    if method or filtering or interlace > 1 or (colour_type, bits) not in _MODES:
        raise damaged(data, f"colour type {colour_type}, {bits} bits, methods {method}, {filtering}, {interlace}")
    mode, maximum = _MODES[colour_type, bits]
    found = Found("PNG", mode, (width, height), has_alpha=colour_type >= 4, maximum=maximum)
    return _Walk(limits.metadata_bytes, found, colour_type, bits, data[:33])


def _ended(data: bytes, wanted: int, limits: Limits) -> ImageError:
    if wanted > limits.file_bytes + 12:
        return damaged(data, f"a chunk claims {wanted} bytes, more than any file may have")
    return cut_short(f"the file ends at byte {len(data)}, before the picture does")


def _take(walk: _Walk, data: bytes, kind: bytes, at: int, after: int) -> None:
    """One chunk other than IHDR, IDAT and IEND, at data[at:after]."""
    body = data[at + 8 : after - 4]
    found, first = walk.found, kind not in walk.seen
    walk.seen.add(kind)
    if kind == b"PLTE" and first and not walk.start:
        if len(body) % 3 or not 3 <= len(body) <= 768:
            raise damaged(data, f"palette of {len(body)} bytes")
        walk.palette = len(body) // 3
        if walk.colour_type == 3:
            walk.prefix += data[at:after]
    elif kind == b"tRNS" and first and not walk.start:
        _transparency(walk, body, data[at:after])
    elif kind == b"iCCP" and first:
        _profile(walk, body)
    elif kind == b"pHYs" and first and len(body) == 9:
        x, y, unit = struct.unpack(">IIB", body)
        if unit == 1:  # pixels per metre
            found.dpi = sensible_dpi(x * 0.0254, y * 0.0254)
    elif kind == b"eXIf" and first:
        found.exif = body
    elif kind in (b"tEXt", b"zTXt", b"iTXt"):
        _text(walk, kind, body)
    elif kind == b"acTL" and first and not walk.start and len(body) == 8:
        found.frames = max(1, int.from_bytes(body[:4], "big") & 0x7FFFFFFF)
        found.animated = found.frames > 1
    elif kind[:1].isupper() and kind != b"PLTE":
        raise damaged(data, f"unknown critical chunk {kind.decode()}")


def _transparency(walk: _Walk, body: bytes, chunk: bytes) -> None:
    """PNG specification 11.3.2.1: alphas of palette entries, or the one colour that is transparent."""
    found, colour_type = walk.found, walk.colour_type
    if colour_type == 3 and 0 < len(body) <= walk.palette:
        walk.prefix += chunk
        found.has_alpha = True
    elif (colour_type, len(body)) in ((0, 2), (2, 6)):
        key = struct.unpack(f">{len(body) // 2}H", body)
        scale = 255 // ((1 << walk.bits) - 1) if walk.bits < 8 else 1  # the decoder spreads small greys over 0..255
        found.colour_key = tuple(value * scale for value in key)
        found.has_alpha = True
    else:
        found.notes.append("transparency chunk does not fit the picture, left out")


def _profile(walk: _Walk, body: bytes) -> None:
    _name, _, rest = body.partition(b"\x00")
    if rest[:1] == b"\x00" and (profile := _unpacked(walk, rest[1:], "colour profile")):
        walk.found.icc_profile = profile
    else:
        walk.found.notes.append("colour profile damaged, left out")


def _text(walk: _Walk, kind: bytes, body: bytes) -> None:
    keyword, _, rest = body.partition(b"\x00")
    value: bytes | None = rest
    if kind == b"zTXt":
        value = _unpacked(walk, rest[1:], "text") if rest[:1] == b"\x00" else None
    elif kind == b"iTXt":
        packed, method, rest = rest[:1], rest[1:2], rest[2:]
        parts = rest.split(b"\x00", 2)
        value = parts[2] if len(parts) == 3 else None
        if value is not None and packed == b"\x01":
            value = _unpacked(walk, value, "text") if method == b"\x00" else None
    if value is None:
        walk.found.notes.append("text chunk damaged, left out")
    elif keyword == _XMP:
        walk.found.xmp = value
    elif word := _WORDS.get(keyword.decode("latin-1").lower()):
        encoding = "utf-8" if kind == b"iTXt" else "latin-1"  # as the specification has it
        walk.found.text.setdefault(word, clean_text(value.decode(encoding, "replace")))


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
        super().__init__()
        self._pieces = (
            memoryview(stream.prefix),
            memoryview(data)[stream.start : stream.end],
            memoryview(stream.suffix),
        )
        self._length = sum(map(len, self._pieces))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._length - self._at if size is None or size < 0 else size
        parts, at = [], self._at
        for piece in self._pieces:
            part = piece[max(at, 0) : max(at + wanted, 0)]
            parts.append(part)
            at -= len(piece)
        joined = b"".join(parts)
        self._at += len(joined)
        return joined
