"""POLICY: film formats that are written, what a film's header says, and whether that is within the limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason

SD_HEIGHT = 576  # rows of standard definition at most: what says nothing of its colours is BT.601 up to it, else BT.709
SHORT_SECONDS, SHORT_SHARE = 0.5, 0.001  # by which a film may end before the time that its header says, added
ARCHIVE = "png"


@dataclass(frozen=True, slots=True)
class FilmForm:
    """How films are written.

    container, codec, pixel_format  as libavformat, libavcodec and libavutil call them
    alpha    whether it holds alpha
    even_width, even_height  it needs
    options  of the encoder; `{quality}` stands for the recipe's film_quality
    sounds   codecs that players expect in the container, and that are copied into it; others become `sound`
    """

    container: str
    codec: str
    pixel_format: str
    alpha: bool
    options: Mapping[str, str]
    sounds: frozenset[str]
    sound: str
    even_width: bool = False
    even_height: bool = False


FORMS: Mapping[str, FilmForm] = {
    "prores4444": FilmForm(
        *("mov", "prores_aw", "yuva444p10le", True),  # a quarter of the time of prores_ks, and alpha is as exact
        {"profile": "4"},
        frozenset({"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"}),
        "pcm_s16le",
        even_width=True,
    ),
    # libvpx keeps no alternate reference frames beside alpha.
    "vp9": FilmForm(
        *("webm", "libvpx-vp9", "yuva420p", True),
        {"crf": "{quality}", "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1", "auto-alt-ref": "0"},
        frozenset({"opus", "vorbis"}),
        "libopus",
    ),
    "h264": FilmForm(
        *("mp4", "libx264", "yuv420p", False),
        {"crf": "{quality}", "preset": "medium"},
        frozenset({"aac", "mp3", "ac3", "eac3", "alac"}),
        "aac",
        even_width=True,
        even_height=True,
    ),
}
"""By the recipe's `film`; ARCHIVE has no encoder of films."""


@dataclass(frozen=True, slots=True)
class FilmHeader:
    """What a film says of itself, and its first frame.

    container, codec, pixel_format  as FilmForm calls them
    width, height  pixels, as shown: after rotation
    rotation       degrees counterclockwise by which stored frames are turned to be shown: 0, 90, 180 or 270
    frames         as the header has it, or from time and rate; 0: it does not say
    seconds        likewise
    rate           frames a second, on the mean
    streams        of every kind; sounds: those of sound
    source_alpha   its frames have alpha of their own
    notes          remarks for the event
    """

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    frames: int
    seconds: float
    rate: float
    streams: int
    sounds: int
    source_alpha: bool
    notes: tuple[str, ...] = ()


def check_streams(count: int, limits: LimitSettings) -> None:
    """Raises ImageError."""
    if count > limits.film_streams:
        detail = f"{count} streams; limits.film_streams allows {limits.film_streams}: leave out what is not needed"
        raise ImageError(Reason.TOO_MANY_STREAMS, detail)


def check_size(width: int, height: int, limits: LimitSettings) -> None:
    """Of stored frames. Raises ImageError."""
    if width * height > limits.pixels or max(width, height) > limits.side:
        detail = f"frames of {width}x{height}; limits.pixels allows {limits.pixels}, limits.side {limits.side}"
        raise ImageError(Reason.TOO_LARGE, detail)
    if min(width, height) < 1:
        raise ImageError(Reason.CORRUPT, f"frames of {width}x{height}")


def check_length(frames: int, seconds: float, limits: LimitSettings) -> None:
    """Of what the header says, and again of what was read. Raises ImageError."""
    if seconds > limits.film_seconds:
        detail = f"{seconds:.0f} s; limits.film_seconds allows {limits.film_seconds:g}: cut it, or raise the limit"
        raise ImageError(Reason.TOO_LONG, detail)
    if frames > limits.film_frames:
        detail = f"{frames} frames; limits.film_frames allows {limits.film_frames}: cut it, or raise the limit"
        raise ImageError(Reason.TOO_LONG, detail)


def check_end(last: float, seconds: float) -> None:
    """`last`: when what was read ends; `seconds`: what the header says, 0 nothing. Raises ImageError."""
    if last < seconds - SHORT_SECONDS - SHORT_SHARE * seconds:
        detail = f"it ends after {last:.1f} s, and its header says {seconds:.1f} s"
        raise ImageError(Reason.TRUNCATED, detail, maybe_incomplete=True)
