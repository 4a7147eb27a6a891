"""Image formats by content: the allow-list, refusals by name, header values and their limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.zero_runs import PAGE, SECTOR, zero_runs

Size = tuple[int, int]  # (width, height) in pixels

PARTS_MAXIMUM = 500_000  # chunks or segments of one file: 4 us each were measured, 2 s at most; no writer comes near it
NOTES_MAXIMUM = 8
TRANSPOSED = {5, 6, 7, 8}  # EXIF 2.32, orientations that swap rows and columns
HEAD_LEAST, HEAD_BYTES = 32, 160  # that tell what a file is: no signature needs more; DICOM's stands behind 128
SHORTEST = 16  # bytes; shorter files are no image yet
TAIL_BYTES = 1 << 16  # looked through at a file's end for its end marker
STEPS_MAXIMUM = 100_000  # chunks or boxes of an arriving file that are walked before giving up
ABSURD = 1 << 32  # a header that claims more than this lies: its decoder says so at once

ALLOWED = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")

MATROSKA = b"\x1aE\xdf\xa3"  # an EBML header; WebM is one, too
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # what begins files of boxes; of stills the first
FILM = "a film; a folder with kind = \"films\" takes it (pip install 'rmbgd[video]')"
_SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\x00", b"MM\x00*"),
}
_TIFF_VERSIONS = (b"*\x00", b"\x00*", b"+\x00", b"\x00+")  # 42, and 43 for BigTIFF
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_BRANDS = dict.fromkeys(_HEIF_BRANDS, "HEIF") | {b"avif": "AVIF", b"avis": "AVIF"}
_GENERIC_BRANDS = {b"mif1", b"msf1", b"miaf"}
_VIDEO_BRANDS = {b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"M4V ", b"qt  ", b"3gp4", b"3gp5", b"3gp6"}

# Formats that some decoder would open, and that are refused by name: (offset, name, signatures).
_REFUSED: tuple[tuple[int, str, tuple[bytes, ...]], ...] = (
    (0, "Photoshop document", (b"8BPS",)),
    (0, "PostScript", (b"%!PS",)),
    (0, "PostScript with a preview", (b"\xc5\xd0\xd3\xc6",)),
    (0, "PDF", (b"%PDF",)),
    (0, "JPEG 2000", (b"\x00\x00\x00\x0cjP  ",)),
    (0, "JPEG 2000 codestream", (b"\xff\x4f\xff\x51",)),
    (0, "JPEG XL", (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")),
    (0, "DirectDraw surface", (b"DDS ",)),
    (0, "Blizzard texture", (b"BLP1", b"BLP2")),
    (0, "Apple icon", (b"icns",)),
    (0, "Windows icon", (b"\x00\x00\x01\x00",)),
    (0, "Windows cursor", (b"\x00\x00\x02\x00",)),
    (0, "QOI", (b"qoif",)),
    (0, "OpenEXR", (b"\x76\x2f\x31\x01",)),
    (0, "Radiance HDR", (b"#?RADIANCE",)),
    (0, "FITS", (b"SIMPLE  =",)),
    (0, "GIMP document", (b"gimp xcf",)),
    (0, "SGI image", (b"\x01\xda",)),
    (0, "Sun raster", (b"\x59\xa6\x6a\x95",)),
    (0, "MSP image", (b"DanM", b"LinS")),
    (0, "XV thumbnail", (b"P7 332",)),
    (0, "MNG animation", (b"\x8aMNG\r\n\x1a\n",)),
    (0, "JNG image", (b"\x8bJNG\r\n\x1a\n",)),
    (0, "camera raw", (b"FUJIFILMCCD-RAW", b"IIU\x00", b"IIRO", b"MMOR")),
    (4, "camera raw", (b"ftypcrx ",)),
    (4, "FLI animation", (b"\x11\xaf", b"\x12\xaf")),
    (128, "DICOM", (b"DICM",)),
)


class Tail(Enum):
    """Whether the end of an image file is there."""

    COMPLETE = "complete"
    MISSING = "missing"  # beyond doubt
    DOUBTFUL = "doubtful"  # looks cut off, but only a decoder can tell damage from truncation
    UNKNOWN = "unknown"  # a format without a mark at its end, or none that we know


class Beginning(Enum):
    """What the first bytes of an arriving file say."""

    KNOWN = "known"  # an image may begin so; or too few bytes are there to say
    BLANK = "blank"  # zeros: space that is still to be filled
    FOREIGN = "foreign"  # whatever is still to come, this is no image that may be read


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the file said of itself, kept for the event and for the output's metadata."""

    format: str  # Pillow's name: JPEG, PNG, ...
    mode: str  # as stored, before conversion
    size: Size  # after orientation
    orientation: int  # EXIF value as found, 1 if none
    icc_profile: bytes | None  # the profile that belongs to the RGB that was decoded, or None for sRGB
    dpi: tuple[float, float] | None  # (x, y)
    metadata: dict[str, str]  # the allow-listed text fields that were present: name -> value
    sha256: str  # of the file's bytes, hex
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PixelStream:
    """The part of a PNG that makes pixels: everything else, hostile or not, stays unread."""

    prefix: bytes  # signature, IHDR, PLTE and a palette's tRNS
    start: int  # of the IDAT chunks within the file's bytes
    end: int
    suffix: bytes  # IEND


@dataclass(frozen=True, slots=True)
class Coded:
    """A part of the file that makes pixels, from byte `start` to before `end`.

    zeros  the longest run of zero bytes that an encoder writes there; None where pixels are stored as they are
    row    bytes of a row where they are; 0 where that is not known
    """

    start: int
    end: int
    zeros: int | None = None
    row: int = 0


@dataclass(slots=True)
class Header:
    """What an image says of itself: filled by its format's reader as stored, completed and judged by decode.probe."""

    format: str  # Pillow's name: JPEG, MPO, PNG, WEBP, TIFF, BMP, GIF, AVIF, HEIF
    mode: str  # as stored, in Pillow's words; with the bits where Pillow has no word ("RGB;16")
    stored_size: Size  # before orientation
    has_alpha: bool = False  # decoding fills a source_alpha plane
    frames: int = 1  # how many were counted; at least 2 where counting would mean reading the whole file
    animated: bool = False  # more than one image, and the recipe decides whether that is allowed
    orientation: int = 1  # EXIF value as found, 1 if none; values other than 1 to 8 are not obeyed
    turn: int = 1  # the orientation that decoding still has to apply, 1 to 8
    exif: bytes | None = None
    xmp: bytes | None = None
    icc_profile: bytes | None = None  # as embedded; it belongs to `mode`, not necessarily to what decoding gives
    dpi: tuple[float, float] | None = None
    metadata: dict[str, str] = field(default_factory=dict)  # fields of metadata.TEXT_TAGS that are there and wanted
    colour_key: tuple[int, ...] | None = None  # the one transparent colour, in decoded values (PNG tRNS)
    maximum: int = 255  # the stored value that means white, for integer modes of more than 8 bits
    stream: PixelStream | None = None
    coded: list[Coded] = field(default_factory=list)  # none for a PNG, whose checksums say more
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        """After orientation."""
        return self.stored_size[::-1] if self.turn in TRANSPOSED else self.stored_size

    def facts(self, sha256: str) -> SourceFacts:
        """What is known before decoding, which may add notes and decide which profile the pixels are in."""
        fields = self.format, self.mode, self.size, self.orientation, self.icc_profile, self.dpi, self.metadata
        return SourceFacts(*fields, sha256, self.notes)

    def note(self, text: str) -> None:
        """Add a remark for the event: each once, and only the first few, whatever the file repeats."""
        if len(self.notes) < NOTES_MAXIMUM and text not in self.notes:
            self.notes += (text,)

    def take_profile(self, profile: bytes, limits: LimitSettings) -> None:
        """Keep an embedded colour profile, or note that it is too large (or, in a damaged TIFF, no bytes at all)."""
        if isinstance(profile, bytes) and len(profile) <= limits.metadata_bytes:
            self.icc_profile = profile
        else:
            self.note(f"colour profile of {len(profile)} bytes left out")


Reader = Callable[[bytes, LimitSettings], Header]
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
    """Raises ImageError(METADATA_BOMB) for a file of more pieces than can be walked over in time."""
    if count > PARTS_MAXIMUM:
        raise ImageError(Reason.METADATA_BOMB, f"more than {PARTS_MAXIMUM} chunks or segments")


def cut_short(detail: str) -> ImageError:
    """The tail is missing: an upload that has not ended looks like this."""
    return ImageError(Reason.TRUNCATED, detail, maybe_incomplete=True)


def damaged(data: bytes, detail: str) -> ImageError:
    """Damage in the middle. In a file with pages of zeros, those may be space that is still to be filled."""
    if blank_tail(data) or has_blank_pages(data):
        return cut_short(f"{detail}; parts of the file are zeros, like a copy that is still being filled in")
    return ImageError(Reason.CORRUPT, detail)


def blank_tail(data: bytes) -> bool:
    return len(data) >= SECTOR and data.endswith(bytes(SECTOR))


def has_blank_pages(data: bytes) -> bool:
    return any(zero_runs(np.frombuffer(data, np.uint8), PAGE))


def claimed_format(head: bytes) -> str | None:
    """The format that these first bytes are of, also of films, "ISO" for all files of boxes; or None."""
    for form, signatures in _SIGNATURES.items():
        if head.startswith(signatures):
            return form
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(MATROSKA):
        return "MATROSKA"
    return "ISO" if head[4:8] in BOXES else None


def judge_head(head: bytes) -> Beginning:
    """From the first HEAD_BYTES of a file."""
    if len(head) < HEAD_LEAST or claimed_format(head) is not None or _is_tiff(head):
        return Beginning.KNOWN
    if any(head[:HEAD_LEAST]) or any(head.startswith(each, offset) for offset, _, kinds in _REFUSED for each in kinds):
        return Beginning.FOREIGN
    return Beginning.BLANK


def _is_tiff(head: bytes) -> bool:
    return head[:2] in (b"II", b"MM") and head[2:4] in _TIFF_VERSIONS


def sniff(data: bytes) -> str:
    """The name of the format, one of ALLOWED. Raises ImageError: EMPTY, UNIDENTIFIED, FORMAT_NOT_ALLOWED or CORRUPT.

    A file without content, or of zeros only, may be one that is still to be filled: `maybe_incomplete` says so.
    """
    if not data:
        raise ImageError(Reason.EMPTY, "0 bytes", maybe_incomplete=True)
    if len(data) < SHORTEST:
        raise ImageError(Reason.UNIDENTIFIED, f"{len(data)} bytes are too few to be an image", maybe_incomplete=True)
    head = data[:64]
    form = claimed_format(head)
    if form in ("JPEG", "PNG", "WEBP", "GIF"):
        return form
    if _is_tiff(head):
        if head[8:10] == b"CR":
            raise ImageError(Reason.FORMAT_NOT_ALLOWED, "camera raw (CR2): its first image is only a preview")
        return "TIFF"
    if form == "BMP" and int.from_bytes(head[14:18], "little") <= 0xFFFF:
        return form
    if head[4:8] == b"ftyp" and (name := _iso_media(data)):
        return name
    raise _refusal(data)


def _iso_media(data: bytes) -> str | None:
    """AVIF or HEIF by the brands of the file type box (ISO/IEC 14496-12)."""
    length = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, length - 3, 4))]
    if brands[0] in _VIDEO_BRANDS:
        raise ImageError(Reason.UNIDENTIFIED, FILM)
    generic = "HEIF" if brands[0] in _GENERIC_BRANDS else None
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), generic)


def _refusal(data: bytes) -> ImageError:
    for offset, name, signatures in _REFUSED:
        if data.startswith(signatures, offset):
            return ImageError(Reason.FORMAT_NOT_ALLOWED, f"{name}; allowed are {', '.join(ALLOWED)}")
    if data.startswith(MATROSKA) or data[4:8] in BOXES[1:3]:
        return ImageError(Reason.UNIDENTIFIED, FILM)
    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if data[:1] == b"P" and data[1:2] in b"123456f" and data[2:3] in b" \t\r\n#":
        return ImageError(Reason.FORMAT_NOT_ALLOWED, f"portable anymap; allowed are {', '.join(ALLOWED)}")
    if start.startswith((b"<svg", b"<?xml", b"<!DOCTYPE svg")) and b"<svg" in start:
        return ImageError(Reason.FORMAT_NOT_ALLOWED, "SVG is a drawing, not pixels; it is never interpreted")
    if data[1:4] == b"PNG" or data[:8].replace(b"\r", b"").replace(b"\n", b"") == b"\x89PNG\x1a":
        return ImageError(Reason.CORRUPT, "the PNG signature is damaged, as by a transfer in text mode")
    if not any(data[:SHORTEST]) and blank_tail(data):
        detail = "nothing but zeros, like space reserved for a copy"
        return ImageError(Reason.UNIDENTIFIED, detail, maybe_incomplete=True)
    return ImageError(Reason.UNIDENTIFIED, f"no known image format begins with {data[:8].hex(' ')}")
