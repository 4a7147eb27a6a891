"""Which image format these bytes are, by their content alone: the allow-list, and names for what is refused.

Does not know names of files, and reads no further than the first kilobytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the file said of itself, kept for the event and for the output's metadata.

    format       Pillow's name: JPEG, PNG, ...
    mode         the mode as stored, before conversion
    size         (width, height) after orientation
    orientation  EXIF value as found, 1 if none
    icc_profile  the profile that belongs to the RGB that was decoded, or None for sRGB
    dpi          (x, y) or None
    metadata     the allow-listed text fields that were present: name -> value
    sha256       of the file's bytes, hex
    """

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int
    icc_profile: bytes | None
    dpi: tuple[float, float] | None
    metadata: dict[str, str]
    sha256: str
    notes: tuple[str, ...] = ()


# --- What is known of an image before any pixel is decoded, and the two ways of saying that it is damaged.


Size = tuple[int, int]
"""(width, height) in pixels."""

PARTS_MAXIMUM = 500_000
"""Chunks or segments of one file: 4 us each were measured, 2 s at most. No writer comes near it."""

NOTES_MAXIMUM = 8

SECTOR = 512  # bytes; what a copy tool that reserves space first leaves as zeros is at least this long


@dataclass(frozen=True, slots=True)
class PixelStream:
    """The part of a PNG that makes pixels: everything else, hostile or not, stays unread.

    prefix      signature, IHDR, PLTE and a palette's tRNS
    start, end  the IDAT chunks within the file's bytes
    suffix      IEND
    """

    prefix: bytes
    start: int
    end: int
    suffix: bytes


@dataclass(slots=True)
class Found:
    """What a reader of one format found, as stored; nothing is applied yet."""

    format: str
    mode: str
    size: Size
    has_alpha: bool = False
    frames: int = 1
    animated: bool = False
    orientation: int | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    icc_profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    colour_key: tuple[int, ...] | None = None
    maximum: int = 255
    stream: PixelStream | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says of itself, checked against the limits.

    format       Pillow's name: JPEG, MPO, PNG, WEBP, TIFF, BMP, GIF, AVIF, HEIF
    mode         as stored, in Pillow's words; with the bits where Pillow has no word ("RGB;16")
    size         after orientation
    stored_size  before orientation
    orientation  EXIF value as found, 1 if none; values other than 1 to 8 are not obeyed
    turn         the orientation that decoding still has to apply, 1 to 8
    has_alpha    decoding fills a source_alpha plane
    frames       1, or how many were counted; at least 2 where counting would mean reading the whole file
    icc_profile  as embedded; it belongs to `mode`, not necessarily to what decoding gives
    colour_key   the one colour that is transparent, in decoded values (PNG tRNS), or None
    maximum      the stored value that means white, for integer modes of more than 8 bits
    """

    format: str
    mode: str
    size: Size
    stored_size: Size
    orientation: int
    turn: int
    has_alpha: bool
    frames: int
    icc_profile: bytes | None
    dpi: tuple[float, float] | None
    metadata: dict[str, str]
    notes: tuple[str, ...]
    colour_key: tuple[int, ...] | None = None
    maximum: int = 255
    stream: PixelStream | None = None


Reader = Callable[[bytes, LimitSettings], Found]
"""Reads the header of one format from the whole file. Raises ImageError; takes no memory for pixels."""


def check_size(size: Size, limits: LimitSettings) -> None:
    """Raises ImageError(TOO_LARGE), or UNIDENTIFIED for an image without area."""
    width, height = size
    if width <= 0 or height <= 0:
        raise ImageError(Reason.UNIDENTIFIED, f"the header says {width} x {height} pixels: no image")
    if max(size) > limits.side:
        raise ImageError(Reason.TOO_LARGE, f"{width} x {height} pixels; limits.side allows {limits.side}")
    if width * height > limits.pixels:
        raise ImageError(Reason.TOO_LARGE, f"{width} x {height} pixels; limits.pixels allows {limits.pixels}")


def check_parts(count: int) -> None:
    """Raises ImageError(METADATA_BOMB) for a file that is made of more pieces than anyone should walk over."""
    if count > PARTS_MAXIMUM:
        raise ImageError(Reason.METADATA_BOMB, f"more than {PARTS_MAXIMUM} chunks or segments")


def cut_short(detail: str) -> ImageError:
    """The tail is missing: an upload that has not ended looks like this."""
    return ImageError(Reason.TRUNCATED, detail, maybe_incomplete=True)


def damaged(data: bytes, detail: str) -> ImageError:
    """Damage in the middle. A file that ends in zeros may be one whose space was reserved before it was filled."""
    if blank_tail(data):
        return cut_short(f"{detail}; the file ends in zeros, like a copy that is still being filled in")
    return ImageError(Reason.CORRUPT, detail)


def blank_tail(data: bytes) -> bool:
    return len(data) >= SECTOR and data.endswith(bytes(SECTOR))


# --- Which image format these bytes are, by their content alone: the allow-list, and names for what is refused.


ALLOWED = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")

SHORTEST = 16  # bytes; below it nothing can be told from anything

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_GENERIC_BRANDS = {b"mif1", b"msf1", b"miaf"}

# Formats that some decoder would open, and that are refused by name: (offset, bytes, name).
_REFUSED: tuple[tuple[int, bytes, str], ...] = (
    (0, b"8BPS", "Photoshop document"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript with a preview"),
    (0, b"%PDF", "PDF"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000 codestream"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"DDS ", "DirectDraw surface"),
    (0, b"BLP1", "Blizzard texture"),
    (0, b"BLP2", "Blizzard texture"),
    (0, b"icns", "Apple icon"),
    (0, b"\x00\x00\x01\x00", "Windows icon"),
    (0, b"\x00\x00\x02\x00", "Windows cursor"),
    (0, b"qoif", "QOI"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"gimp xcf", "GIMP document"),
    (0, b"\x01\xda", "SGI image"),
    (0, b"\x59\xa6\x6a\x95", "Sun raster"),
    (0, b"DanM", "MSP image"),
    (0, b"LinS", "MSP image"),
    (0, b"P7 332", "XV thumbnail"),
    (0, b"\x8aMNG\r\n\x1a\n", "MNG animation"),
    (0, b"\x8bJNG\r\n\x1a\n", "JNG image"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (0, b"IIU\x00", "camera raw"),
    (0, b"IIRO", "camera raw"),
    (0, b"MMOR", "camera raw"),
    (4, b"ftypcrx ", "camera raw"),
    (4, b"\x11\xaf", "FLI animation"),
    (4, b"\x12\xaf", "FLI animation"),
    (128, b"DICM", "DICOM"),
)
_VIDEO_BRANDS = {b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"M4V ", b"qt  ", b"3gp4", b"3gp5", b"3gp6"}


def sniff(data: bytes) -> str:
    """The name of the format, one of ALLOWED. Raises ImageError: EMPTY, UNIDENTIFIED, FORMAT_NOT_ALLOWED or CORRUPT.

    A file without content, or of zeros only, may be one that is still to be filled: `maybe_incomplete` says so.
    """
    if not data:
        raise ImageError(Reason.EMPTY, "0 bytes", maybe_incomplete=True)
    if len(data) < SHORTEST:
        raise ImageError(Reason.UNIDENTIFIED, f"{len(data)} bytes are too few to be an image", maybe_incomplete=True)
    head = data[:64]
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] in (b"II", b"MM") and _is_tiff(head):
        return "TIFF"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") <= 0xFFFF:
        return "BMP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[4:8] == b"ftyp" and (name := _iso_media(data)):
        return name
    raise _refusal(data)


def _is_tiff(head: bytes) -> bool:
    if head[2:4] not in (b"*\x00", b"\x00*", b"+\x00", b"\x00+"):
        return False
    if head[8:10] == b"CR":
        raise ImageError(Reason.FORMAT_NOT_ALLOWED, "camera raw (CR2): its first image is only a preview")
    return True


def _iso_media(data: bytes) -> str | None:
    """AVIF or HEIF by the brands of the file type box (ISO/IEC 14496-12)."""
    length = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, length - 3, 4))]
    if brands[0] in _VIDEO_BRANDS:
        raise ImageError(Reason.UNIDENTIFIED, "a video")
    for brand in brands:
        if brand in _AVIF_BRANDS:
            return "AVIF"
        if brand in _HEIF_BRANDS:
            return "HEIF"
    return "HEIF" if brands[0] in _GENERIC_BRANDS else None


def _refusal(data: bytes) -> ImageError:
    for offset, magic, name in _REFUSED:
        if data.startswith(magic, offset):
            return ImageError(Reason.FORMAT_NOT_ALLOWED, f"{name}; allowed are {', '.join(ALLOWED)}")
    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if data[:1] == b"P" and data[1:2] in b"123456f" and data[2:3] in b" \t\r\n#":
        return ImageError(Reason.FORMAT_NOT_ALLOWED, f"portable anymap; allowed are {', '.join(ALLOWED)}")
    if start.startswith((b"<svg", b"<?xml", b"<!DOCTYPE svg")) and b"<svg" in start:
        return ImageError(Reason.FORMAT_NOT_ALLOWED, "SVG is a drawing, not pixels; it is never interpreted")
    if data[1:4] == b"PNG" or data[:8].replace(b"\r", b"").replace(b"\n", b"") == b"\x89PNG\x1a":
        return ImageError(Reason.CORRUPT, "the PNG signature is damaged, as by a transfer in text mode")
    if not any(data[:SHORTEST]) and blank_tail(data):
        return ImageError(
            Reason.UNIDENTIFIED, "nothing but zeros, like space reserved for a copy", maybe_incomplete=True
        )
    return ImageError(Reason.UNIDENTIFIED, f"no known image format begins with {data[:8].hex(' ')}")
