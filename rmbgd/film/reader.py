"""Reads a film: its header, then frames as RGB in the order in which they are shown; and its sound, by PyAV.

For the process that may die: what is read here is hostile until it is proven otherwise.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.film.forms import SD_HEIGHT, FilmHeader, check_end, check_length, check_size, check_streams
from rmbgd.imaging.completeness import Tail, tail_of
from rmbgd.imaging.formats import claimed_format

Bytes = NDArray[np.uint8]


class UnreadableFilm(OSError):
    """The disk does not give the film's bytes."""


class FilmBytes(io.RawIOBase):
    """A film's bytes from a place of its own in the file, so that several can read one; a fault is the disk's."""

    def __init__(self, descriptor: int, alive: Callable[[], None]) -> None:
        """`alive` is called with each piece that is read."""
        self._descriptor, self._at, self._alive = descriptor, 0, alive
        self.size = os.fstat(descriptor).st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        try:
            data = os.pread(self._descriptor, self.size if size < 0 else size, self._at)
        except OSError as error:
            raise UnreadableFilm(error.errno, error.strerror) from error
        self._at += len(data)
        self._alive()
        return data


BUFFER_BYTES = 1 << 20
PROBE_BYTES = 256 << 20  # where these are granted, memory is not short
DECODER_THREADS = 2
RGB, UNKNOWN_MATRIX, UNKNOWN_RANGE = 0, 2, 0  # of libavutil's AVColorSpace and AVColorRange
BT2020_CONSTANT = 10  # luminance; swscale has no matrix of its own for it
LEADING_MAXIMUM = 64  # frames at a cut that may be damaged; encoders refer back by fewer
TAGS = {"colorspace": 2, "color_range": 0, "color_primaries": 2, "color_trc": 2}  # PyAV's names, and what means nothing
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # libav's own leave alpha out
SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True, slots=True)
class Colours:
    """How a film's values are to be read, and what it says of them, for the film that is made of it.

    matrix  of swscale: guessed by the height where the film does not say
    range   AVColorRange: likewise
    tags    as said: matrix, range, primaries, transfer, by PyAV's names of attributes
    """

    matrix: int
    range: int
    tags: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class FilmFrame:
    """A frame as it is shown, but for its rotation in `stored`.

    number    from 0
    pts       when it is shown, in `time_base` seconds; duration likewise, 0 unknown
    rgb       uint8 [H, W, 3], turned upright
    alpha     uint8 [H, W] that it came with, turned; None of a film without
    stored    as decoded, not turned
    """

    number: int
    pts: int
    duration: int
    rgb: Bytes
    alpha: Bytes | None
    stored: av.VideoFrame


class FilmReader:
    """Of an open file. Raises ImageError wherever it is at fault, MemoryError, and UnreadableFilm."""

    def __init__(self, descriptor: int, limits: LimitSettings) -> None:
        self._limits, self._descriptor = limits, descriptor
        self._container = _opened(descriptor)
        streams = self._container.streams
        check_streams(len(streams), limits)
        # Cover art is a stream of one image.
        films = [each for each in streams.video if "attached_pic" not in str(each.disposition)]
        if not films:
            raise ImageError(Reason.NO_FRAMES, "it has no stream of images")
        best = self._container.streams.best("video")
        self._video = best if best in films else films[0]
        self._sounds = len(streams.audio)
        self.time_base = Fraction(self._video.time_base or Fraction(1, 90_000))
        context: Any = self._video.codec_context
        if context is None:
            raise ImageError(Reason.CORRUPT, "nothing here decodes its stream of images", maybe_incomplete=True)
        check_size(context.width, context.height, limits)
        seconds, frames = self._length()
        check_length(frames, seconds, limits)
        context.thread_type, context.thread_count = "AUTO", DECODER_THREADS
        self._decoder: Any = None  # another than libav's first
        modes = {value for name, value in self._video.metadata.items() if name.lower() == "alpha_mode"}
        if "1" in modes and context.name in ALPHA_DECODERS:
            self._decoder = av.CodecContext.create(ALPHA_DECODERS[context.name], "r")
        context.options = {"max_pixels": str(limits.pixels), "err_detect": "crccheck+bitstream+buffer+explode"}
        self.orientation: Orientation | None = None  # of the first frame
        self._has_begun, self._left_out = False, 0
        self._items = self._read()
        self._first = self._next_frame()
        stored, rate = self._first.stored, self._video.average_rate or self._video.guessed_rate
        self.colours = self._colours_of(stored)
        self.aspect = self._aspect(stored)
        height, width = self._first.rgb.shape[:2]
        self.header = FilmHeader(
            container=self._container.format.name,
            codec=context.name,
            pixel_format=stored.format.name,
            width=width,
            height=height,
            rotation=_turns(stored) * 90,
            frames=frames,
            seconds=round(seconds, 3),
            rate=round(float(rate or 0), 3),
            streams=len(streams),
            sounds=self._sounds,
            source_alpha=self._first.alpha is not None,
            notes=tuple(self._notes(films, stored)),
        )

    @property
    def rate(self) -> Fraction:
        """Frames a second, on the mean; encoders divide their bits by it."""
        found = self._video.average_rate or self._video.guessed_rate
        return Fraction(found) if found else Fraction(25)

    def frames(self) -> Iterator[FilmFrame]:
        yield self._first
        yield from self._items

    def sound(self, alive: Callable[[], None] = lambda: None) -> SoundReader | None:
        """Of the same file, read by itself; None of a silent film. `alive`: called while it reads, as that may take."""
        return SoundReader(_opened(self._descriptor, alive)) if self._sounds else None

    def _length(self) -> tuple[float, int]:
        """(seconds, frames) as the header says; 0 unknown."""
        seconds = float(self._video.duration * self.time_base) if self._video.duration else 0.0
        if not seconds and self._container.duration:
            seconds = self._container.duration / av.time_base
        rate = self._video.average_rate or self._video.guessed_rate
        return max(seconds, 0.0), max(self._video.frames, round(seconds * float(rate or 0)), 0)

    def _next_frame(self) -> FilmFrame:
        for frame in self._items:
            return frame
        detail = f"its stream of images holds none that can be shown, and {self._left_out} that are damaged"
        reason = Reason.CORRUPT if self._left_out else Reason.NO_FRAMES
        raise ImageError(reason, detail, maybe_incomplete=True)

    def _read(self) -> Iterator[FilmFrame]:
        number, end = 0, 0.0
        last: int | None = None
        size: tuple[int, int] | None = None
        for packet in self._packets():
            for stored in self._decoded(packet, end):
                if stored.pts is None:
                    stored.pts = 0 if last is None else last + 1
                pts = stored.pts if last is None else max(stored.pts, last + 1)
                if size is None:
                    size = stored.width, stored.height
                elif size != (stored.width, stored.height):
                    there = f"{stored.width}x{stored.height}, and {size[0]}x{size[1]} before"
                    raise ImageError(Reason.SIZE_CHANGES, f"frame {number} is {there}")
                duration = stored.duration or 0
                end = float((pts + max(duration, 1)) * self.time_base)
                check_length(number + 1, end - self._start(), self._limits)
                yield self._frame(number, pts, duration, stored)
                number, last = number + 1, pts
        if number:
            check_end(end - self._start(), self._own_length())

    def _packets(self) -> Iterator[av.Packet[Any]]:
        indexed, found = len(self._video.index_entries), 0  # of Matroska only key frames are
        with damage("where it is read on"):
            for packet in self._container.demux(self._video):
                found += packet.size > 0
                yield packet
        if found < indexed:
            raise ImageError(Reason.CORRUPT, f"its index has {indexed} frames, and {found} can be read")

    def _decoded(self, packet: av.Packet[Any], at: float) -> Iterator[av.VideoFrame]:
        """Frames that are as they should be. Those before the first such one may lack what they were made from, as a
        film was cut there, and are left out."""
        try:
            for frame in self._undamaged(packet, at):
                self._has_begun = True
                yield frame
        except ImageError:
            self._left_out += 1
            if self._has_begun or self._left_out > LEADING_MAXIMUM:
                raise

    def _undamaged(self, packet: av.Packet[Any], at: float) -> Iterator[av.VideoFrame]:
        """Raises ImageError for one that is damaged."""
        own = self._decoder
        if packet.is_corrupt:
            raise ImageError(Reason.CORRUPT, f"damaged data after {at:.1f} s")
        with damage(f"after {at:.1f} s"):
            for frame in packet.decode() if own is None else own.decode(packet if packet.size else None):
                assert isinstance(frame, av.VideoFrame)
                if frame.is_corrupt:
                    raise ImageError(Reason.CORRUPT, f"a damaged frame after {at:.1f} s")
                yield frame

    def _frame(self, number: int, pts: int, duration: int, stored: av.VideoFrame) -> FilmFrame:
        check_size(stored.width, stored.height, self._limits)
        colours = self._colours_of(stored)
        alpha = _has_alpha(stored)
        pixels = stored.reformat(
            format="rgba" if alpha else "rgb24",
            src_colorspace=colours.matrix,
            dst_colorspace=colours.matrix,
            src_color_range=colours.range,
            dst_color_range=ColorRange.JPEG,
            interpolation=SCALING,
        ).to_ndarray()
        if self.orientation is None:
            self.orientation = _orientation_of(stored)
        shown = self.orientation.upright(pixels)
        rgb = np.ascontiguousarray(shown[:, :, :3], np.uint8)
        own = np.ascontiguousarray(shown[:, :, 3], np.uint8) if alpha else None
        return FilmFrame(number, pts, duration, rgb, own, stored)

    def _start(self) -> float:
        return float((self._video.start_time or 0) * self.time_base)

    def _own_length(self) -> float:
        """Seconds of the stream of images, as the header says; the container's are those of whatever is longest."""
        if self._video.duration:
            length = float(self._video.duration * self.time_base)
            return length if self._video.frames else length - self._start()  # of fragments it is where they end
        if found := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", self._video.metadata.get("DURATION", "")):
            return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3]) - self._start()
        if len(self._container.streams) == 1 and self._container.duration:
            return self._container.duration / av.time_base - self._start()
        return 0.0

    def _aspect(self, stored: av.VideoFrame) -> Fraction:
        """Width of a pixel by its height, as shown; 1 where nothing is said."""
        ratio = self._video.sample_aspect_ratio
        if not ratio:
            return Fraction(1)
        return 1 / Fraction(ratio) if _turns(stored) % 2 else Fraction(ratio)

    def _colours_of(self, frame: av.VideoFrame) -> Colours:
        """Of the frame; where its decoder says nothing, of its stream."""
        tags: dict[str, int] = {}
        for name, unknown in TAGS.items():
            found = int(getattr(frame, name))
            tags[name] = found if found != unknown else int(getattr(self._video.codec_context, name))
        guess = Colorspace.ITU601 if frame.height <= SD_HEIGHT else Colorspace.ITU709
        known = {int(each) for each in Colorspace}
        said = Colorspace.BT2020 if tags["colorspace"] == BT2020_CONSTANT else tags["colorspace"]
        matrix = int(said if said in known else guess)
        full = frame.format.name.startswith("yuvj") or tags["color_range"] == ColorRange.JPEG
        return Colours(matrix, int(ColorRange.JPEG if full else ColorRange.MPEG), tags)

    def _notes(self, films: list[Any], stored: av.VideoFrame) -> Iterator[str]:
        if len(films) > 1:
            yield "other_films_left_out"
        if self._container.streams.subtitles:
            yield "subtitles_left_out"
        if self._left_out:
            yield "first_frames_left_out"
        if stored.interlaced_frame:
            yield "interlaced"


class SoundReader:
    """Packets of all streams of sound, as far as they are wanted."""

    def __init__(self, container: InputContainer) -> None:
        self._container = container
        self.streams = list(container.streams.audio)
        self._packets = self._read()
        self._next: av.Packet[Any] | None = next(self._packets, None)

    def until(self, seconds: float) -> Iterator[av.Packet[Any]]:
        """Those that begin before."""
        while (packet := self._next) is not None and _begin_of(packet) < seconds:
            yield packet
            self._next = next(self._packets, None)

    def _read(self) -> Iterator[av.Packet[Any]]:
        with damage("in its sound"):
            for packet in self._container.demux(*self.streams):
                if packet.size:  # else the end of a stream
                    yield packet


def container_of(head: bytes) -> str | None:
    """Libavformat's demuxer for a file that begins so; None where it is no film. No other is let loose on it."""
    return {"MATROSKA": "matroska", "ISO": "mov"}.get(claimed_format(head) or "")


def _opened(descriptor: int, alive: Callable[[], None] = lambda: None) -> InputContainer:
    file = FilmBytes(descriptor, alive)
    head = file.read(16)
    file.seek(0)
    if not any(head):
        raise ImageError(Reason.UNIDENTIFIED, "nothing but zeros at its beginning", maybe_incomplete=True)
    if (name := container_of(head)) is None:
        raise ImageError(Reason.UNIDENTIFIED, "no film begins so: MP4, MOV, MKV and WebM are read")
    # Zeros behind the end are room that a recorder has reserved.
    if tail_of(descriptor, file.size) in (Tail.DOUBTFUL, Tail.MISSING) and any(
        os.pread(descriptor, 64, max(0, file.size - 64))
    ):
        detail = f"its parts reach beyond the end of the file, at {file.size} bytes"
        raise ImageError(Reason.TRUNCATED, detail, maybe_incomplete=True)
    try:
        # A film may name other files and hosts; it gets none of them.
        container = av.open(
            file, format=name, io_open=_nothing_else, buffer_size=BUFFER_BYTES, metadata_errors="replace"
        )
    except MemoryError as error:
        raise _of_memory("in its header or its index", error) from error
    except (av.FFmpegError, ValueError, EOFError) as error:
        detail = f"it cannot be opened, as where its end or its index is missing: {_words(error)}"
        raise ImageError(Reason.TRUNCATED, detail, maybe_incomplete=True) from error
    assert isinstance(container, InputContainer)
    return container


def _nothing_else(url: str, _flags: int, _options: Mapping[str, str]) -> Any:
    raise PermissionError(f"a film may not open {url}")


@contextmanager
def damage(where: str) -> Iterator[None]:
    """What libav refuses within becomes an ImageError; `where` in words."""
    try:
        yield
    except MemoryError as error:
        raise _of_memory(where, error) from error
    except (av.FFmpegError, EOFError) as error:
        raise ImageError(Reason.CORRUPT, f"damaged {where}: {_words(error)}") from error


def _of_memory(where: str, error: MemoryError) -> Exception:
    """Libav says the same of a system without memory and of a film that asks for more than it ever grants."""
    try:
        np.empty(PROBE_BYTES, np.uint8)
    except MemoryError:
        return error
    return ImageError(Reason.CORRUPT, f"damaged {where}: it asks for more memory than any film needs")


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error)


def _begin_of(packet: av.Packet[Any]) -> float:
    began = packet.pts if packet.dts is None else packet.dts
    return float((began or 0) * (packet.time_base or Fraction(0)))


def _has_alpha(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _turns(frame: av.VideoFrame) -> int:
    """Quarter turns counterclockwise, 0 to 3."""
    with suppress(ValueError, OverflowError):
        return round(frame.rotation / 90) % 4
    return 0


@dataclass(frozen=True, slots=True)
class Orientation:
    """How stored frames become shown ones: rows and columns change places first."""

    transposed: bool = False
    across: bool = False  # mirrored, left and right
    down: bool = False

    def upright(self, plane: NDArray[Any]) -> NDArray[Any]:
        """A plane [H, W, ...] as it is shown; a view."""
        shown = plane.swapaxes(0, 1) if self.transposed else plane
        return shown[:: -1 if self.down else 1, :: -1 if self.across else 1]


def _orientation_of(frame: av.VideoFrame) -> Orientation:
    """By the film's matrix (ISO/IEC 14496-12: a point at (x, y) is shown at (ax + cy, bx + dy)); as it is stored where
    that neither keeps the axes nor swaps them.

    Of one frame only: who asks PyAV for what lies beside a frame ties it into a cycle, which only the garbage
    collector ends, and frames are large.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = np.sign(np.frombuffer(memoryview(matrix), np.int32)).tolist()
    if bool(a) == bool(b) or bool(c) == bool(d) or bool(a) == bool(c):
        return Orientation()
    return Orientation(False, a < 0, d < 0) if a else Orientation(True, c < 0, b < 0)
