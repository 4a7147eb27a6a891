"""Images and parts of image files, made byte by byte, for tests."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.decode import decode_into, probe
from rmbgd.imaging.formats import Header, SourceFacts

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_WORDS = ("copyright", "artist", "description", "software", "datetime")


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth colour image with a little noise, uint8 [H, W, 3], no two corners alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width, 2)
    channels = [128 + 100 * np.sin(3 * x + k) * np.cos(2 * y - k) + 20 * x - 15 * y for k in range(3)]
    return np.clip(np.stack(channels, axis=2) + rng.normal(0, 3, (height, width, 1)), 0, 255).astype(np.uint8)


def saved(image: Image.Image | NDArray[Any], form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def probed(data: bytes, *, animated: str = "refuse", limits: LimitSettings | None = None) -> Header:
    return probe(data, limits or LimitSettings(), animated=animated, metadata=TEXT_WORDS)  # type: ignore[arg-type]


def decoded(data: bytes, **options: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, SourceFacts]:
    """RGB, alpha where the image has it, and facts. The planes hold rubbish before, so that unwritten pixels show."""
    header = probed(data, **options)
    width, height = header.size
    rgb = np.full((height, width, 3), 77, np.uint8)
    alpha = np.full((height, width), 77, np.uint8) if header.has_alpha else None
    facts = decode_into(data, header, rgb, alpha, sha256="0" * 64)
    return rgb, alpha, facts


def outcome(data: bytes, **options: Any) -> NDArray[np.uint8] | ImageError:
    try:
        return decoded(data, **options)[0]
    except ImageError as error:
        return error


def refusal(data: bytes, **options: Any) -> ImageError:
    result = outcome(data, **options)
    assert isinstance(result, ImageError), "decoded, but should have been refused"
    return result


def verdict(data: bytes, **options: Any) -> tuple[Reason, bool]:
    error = refusal(data, **options)
    return error.reason, error.maybe_incomplete


def by_pillow(data: bytes, mode: str | None = None) -> NDArray[Any]:
    """The reference: what Pillow alone decodes."""
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert(mode) if mode else opened)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def ihdr(width: int, height: int, bits: int, colour_type: int, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlace))


def png(rows: Sequence[bytes], width: int, bits: int, colour_type: int, *, before: bytes = b"") -> bytes:
    """A PNG of packed rows, filter 0. `before` are chunks before the image data."""
    packed = zlib.compress(b"".join(b"\x00" + row for row in rows))
    header = ihdr(width, len(rows), bits, colour_type)
    return PNG_SIGNATURE + header + before + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def png_of(pixels: NDArray[Any], *, before: bytes = b"") -> bytes:
    """A PNG of uint8 or uint16 [H, W], [H, W, 2], [H, W, 3] or [H, W, 4]: grey, grey with alpha, RGB, RGBA."""
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    rows = [row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels]
    return png(rows, pixels.shape[1], 8 * pixels.itemsize, colour_type, before=before)


def exif(
    *,
    orientation: int | None = None,
    text: dict[int, bytes] | None = None,
    dpi: int = 0,
    gps: bool = False,
    order: str = "<",
) -> bytes:
    """A TIFF-structured block, without the "Exif" prefix."""
    block = Image.Exif()
    block.endian = order
    block.update(text or {})
    if orientation is not None:
        block[0x0112] = orientation
    if dpi:
        block[0x011A] = block[0x011B] = TiffImagePlugin.IFDRational(dpi, 1)
        block[0x0128] = 2
    if gps:
        block[0x8825] = {1: "N"}
    return block.tobytes().removeprefix(b"Exif\x00\x00")


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


@functools.cache
def rgb_profile() -> bytes:
    """sRGB, made once: LittleCMS writes the time into it."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _profile(space: bytes, kind: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC version 2 profile (ICC.1:2001-04) of these tags."""
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78), **tags}
    tags[b"cprt"] = b"text\0\0\0\0none\0"
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    at, table, bodies = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += name + struct.pack(">II", at + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    total = 128 + len(table) + len(bodies)
    header = struct.pack(">I", total) + b"\0\0\0\0" + struct.pack(">I", 0x02400000) + kind + space + connection
    header = header.ljust(36, b"\0") + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + table + bodies


def wide_profile() -> bytes:
    """Of the primaries of Adobe RGB (1998), adapted to D50, gamma 2.2."""
    primaries = {
        b"rXYZ": (0.60974, 0.31111, 0.01947),
        b"gXYZ": (0.20528, 0.62567, 0.06087),
        b"bXYZ": (0.14919, 0.06322, 0.74457),
    }
    tags = {name: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in c)) for name, c in primaries.items()}
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    return _profile(b"RGB ", b"mntr", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def grey_profile(gamma: float) -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return _profile(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": curve})


def cmyk_profile() -> bytes:
    """A printer whose inks are mixed up, so that no formula gives its colours: cyan is grey, magenta is pale."""
    nodes = bytearray()
    for corner in range(16):  # C changes slowest, K fastest
        c, m, y, k = (corner >> 3) & 1, (corner >> 2) & 1, (corner >> 1) & 1, corner & 1
        lightness = 255 * (1 - 0.5 * c) * (1 - 0.9 * k)
        nodes += bytes((round(lightness), 128 + 60 * m * (1 - k), 128 + 60 * y * (1 - k)))
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(0x10000 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + ramp * 4 + bytes(nodes) + ramp * 3
    return _profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": table})
