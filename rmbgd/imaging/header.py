"""What is known of a picture before any pixel is decoded, and the two ways of saying that it is damaged.

Values only: does not know any file format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rmbgd.config import Limits
from rmbgd.errors import ImageError, Reason

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
    """What a picture says of itself, checked against the limits.

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


Reader = Callable[[bytes, Limits], Found]
"""Reads the header of one format from the whole file. Raises ImageError; takes no memory for pixels."""


def check_size(size: Size, limits: Limits) -> None:
    """Raises ImageError(TOO_LARGE), or UNIDENTIFIED for a picture without area."""
    width, height = size
    if width <= 0 or height <= 0:
        raise ImageError(Reason.UNIDENTIFIED, f"the header says {width} x {height} pixels: no picture")
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
