"""Writes a film: ProRes 4444, VP9 with alpha, H.264 on a colour, or a ZIP archive of PNG frames, by PyAV."""

from __future__ import annotations

import math
import os
import tempfile
import zipfile
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from av.audio.resampler import AudioResampler
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from rmbgd.config.load import Recipe
from rmbgd.film.forms import FORMS, FilmForm
from rmbgd.film.reader import (
    RGB,
    SCALING,
    UNKNOWN_MATRIX,
    Colours,
    FilmFrame,
    FilmReader,
    SoundReader,
    damage,
)
from rmbgd.imaging.png import write_png

Bytes = NDArray[np.uint8]

ENCODER_THREADS = 2
SOUND_RATES = {8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000}  # that AAC knows; Opus the last
GAP = 0.1  # s of silence that is not in the file
PRORES_MATRICES = {1: 1, 5: 6, 6: 6, 9: 9}  # by swscale's number, what ProRes calls it: BT.709, BT.601, BT.2020
PRORES_MATRICES_INSTEAD = {4: 5}  # FCC differs from BT.601 by less than a level; others become BT.709
PRORES_TRANSFERS = {1, 2, 14, 15, 16, 18}
LAYOUTS = {1: "mono", 6: "5.1", 8: "7.1"}  # of such sound, by the number of channels; else stereo
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # of files in an archive: equal films make equal archives


class FilmFile:
    """A film at `path`, which is there already. Raises OSError where it cannot be written; `notes` say what differs."""

    def __init__(self, path: str, reader: FilmReader, sound: SoundReader | None, recipe: Recipe) -> None:
        form, header = FORMS[recipe.film], reader.header
        self._form, self._colours = form, _written(reader.colours, form)
        self._from, self._base = reader.colours, reader.time_base
        assert reader.orientation is not None
        self._upright = reader.orientation.upright
        self._keeps = recipe.film == "prores4444" and recipe.content == "rgba"
        self.notes: list[str] = []
        self._container = av.open(path, "w", format=form.container)
        quality = {name: value.format(quality=recipe.film_quality) for name, value in form.options.items()}
        stream = self._container.add_stream(form.codec, rate=reader.rate, options=quality)
        assert isinstance(stream, av.VideoStream)
        self._width = header.width + header.width % 2 * form.even_width
        self._height = header.height + header.height % 2 * form.even_height
        self.notes += ["padded"] * ((self._width, self._height) != (header.width, header.height))
        context = stream.codec_context
        stream.width, stream.height, stream.pix_fmt = self._width, self._height, form.pixel_format
        context.time_base = stream.time_base = reader.time_base
        context.thread_type, context.thread_count = "AUTO", ENCODER_THREADS
        if reader.aspect != 1:
            context.sample_aspect_ratio = reader.aspect
            self.notes += ["aspect_lost"] * (form.container == "webm")  # PyAV has no way to say it to that muxer
        for name, value in self._colours.tags.items():
            setattr(context, name, value)
        if form.alpha and form.container == "webm":
            stream.metadata["alpha_mode"] = "1"
        self._video = stream
        self._sound = sound
        self._sounds = {each.index: self._stream(each) for each in sound.streams} if sound is not None else {}

    def write(self, frame: FilmFrame, pixels: Bytes, alpha: Bytes | None) -> None:
        """pixels: uint8 [H, W, 4] straight RGBA, or [H, W, 3] RGB; alpha: uint8 [H, W] of RGBA."""
        made = self._converted(pixels)
        if self._keeps and alpha is not None:
            self._put_back_stored(made, frame, alpha)
        made.pts, made.time_base, made.duration = frame.pts, self._base, frame.duration
        for name, value in self._colours.tags.items():
            setattr(made, name, value)
        self._hear(float(frame.pts * self._base))
        self._container.mux(self._video.encode(made))

    def close(self) -> None:
        """The last frames, sounds and the index: the film is whole then."""
        self._hear(math.inf)
        self._container.mux(self._video.encode(None))
        for sound in self._sounds.values():
            if sound is not None:
                sound.flush()
        self._container.close()

    def _hear(self, seconds: float) -> None:
        """Sound goes along with the frames, so that neither waits for long."""
        for packet in self._sound.until(seconds) if self._sound is not None else ():
            if (sound := self._sounds[packet.stream.index]) is not None:
                sound.write(packet)

    def _converted(self, pixels: Bytes) -> av.VideoFrame:
        if pixels.shape[:2] != (self._height, self._width):
            rows, columns = self._height - pixels.shape[0], self._width - pixels.shape[1]
            pixels = np.asarray(cv2.copyMakeBorder(pixels, 0, rows, 0, columns, cv2.BORDER_REPLICATE), np.uint8)
        frame = av.VideoFrame.from_ndarray(pixels, "rgba" if pixels.shape[2] == 4 else "rgb24")
        made = frame.reformat(
            format=self._form.pixel_format,
            src_colorspace=self._colours.matrix,
            dst_colorspace=self._colours.matrix,
            src_color_range=ColorRange.JPEG,
            dst_color_range=self._colours.range,
            interpolation=SCALING,
        )
        if self._form.alpha and pixels.shape[2] == 3:  # a film without alpha, in a format that has it
            _plane(made, 3)[...] = 1023 if made.format.name.endswith("10le") else 255
        elif self._form.pixel_format.endswith("10le"):
            levels = pixels[:, :, 3].astype(np.uint16)
            _plane(made, 3)[...] = (levels << 2) | (levels >> 6)
        return made

    def _put_back_stored(self, made: av.VideoFrame, frame: FilmFrame, alpha: Bytes) -> None:
        """Where nothing is to be seen through, the film's own values, with all their bits."""
        own = frame.stored.reformat(
            format="yuv444p10le",
            src_colorspace=self._colours.matrix,
            dst_colorspace=self._colours.matrix,
            src_color_range=self._from.range,
            dst_color_range=self._colours.range,
            interpolation=SCALING,
        )
        solid, (height, width) = alpha == 255, alpha.shape
        for number in range(3):
            np.copyto(_plane(made, number)[:height, :width], self._upright(_plane(own, number)), where=solid)

    def _stream(self, stream: av.AudioStream) -> _Copied | _Converted | None:
        context: Any = stream.codec_context
        if context is None:  # nothing here knows its codec
            self.notes += ["sound_left_out"] * ("sound_left_out" not in self.notes)
            return None
        if context.codec.canonical_name in self._form.sounds:
            is_raw = context.codec.canonical_name.startswith("pcm_")
            return _Copied(self._container, stream, self.notes if is_raw else None)
        self.notes += ["sound_converted"] * ("sound_converted" not in self.notes)
        return _Converted(self._container, stream, self._form.sound)


class FilmArchive:
    """A ZIP archive of PNG frames, `times.csv` with the seconds at which each is shown, and the sound as sound.mka.

    Not compressed once more. One file, so that it is there whole or not at all.
    """

    def __init__(self, path: str, reader: FilmReader, sound: SoundReader | None, recipe: Recipe, stem: str) -> None:
        self._file = open(path, "r+b")  # noqa: SIM115 - closed by close
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._level, self._base, self._sound = recipe.png_level, reader.time_base, sound
        self._stem = stem.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self._digits = max(6, len(str(reader.header.frames)))
        self._times = ["frame,seconds\n"]
        self._place = os.path.dirname(os.path.realpath(path))
        self.notes: list[str] = []

    def write(self, frame: FilmFrame, pixels: Bytes, _alpha: Bytes | None) -> None:
        """pixels: uint8 [H, W, 4] straight RGBA, [H, W, 3] RGB."""
        name = f"{self._stem}_{frame.number:0{self._digits}}.png"
        with self._zip.open(_entry(name), "w", force_zip64=True) as file:
            write_png(np.ascontiguousarray(pixels), file.write, level=self._level)
        self._times.append(f"{name},{float(frame.pts * self._base):.6f}\n")

    def close(self) -> None:
        self._zip.writestr(_entry("times.csv"), "".join(self._times))
        if self._sound is not None:
            self._hear(self._sound)
        self._zip.close()
        self._file.close()

    def _stream(self, container: OutputContainer, stream: av.AudioStream) -> _Copied | _Converted | None:
        context: Any = stream.codec_context
        if context is None:
            self.notes += ["sound_left_out"] * ("sound_left_out" not in self.notes)
            return None
        try:
            return _Copied(container, stream)
        except ValueError:  # a codec that Matroska has no word for
            self.notes += ["sound_converted"] * ("sound_converted" not in self.notes)
            return _Converted(container, stream, "flac")

    def _hear(self, sound: SoundReader) -> None:
        """All of it at once, by way of a file beside the archive, which cannot be written at two places."""
        with tempfile.TemporaryFile(dir=self._place) as file:
            with av.open(file, "w", format="matroska") as container:
                sounds = {each.index: self._stream(container, each) for each in sound.streams}
                for packet in sound.until(math.inf):
                    began = packet.pts if packet.pts is not None else packet.dts
                    # What is before the first frame would move all of it: Matroska has no negative times.
                    if (taker := sounds[packet.stream.index]) is not None and (began or 0) >= 0:
                        taker.write(packet)
                for each in sounds.values():
                    if each is not None:
                        each.flush()
            file.seek(0)
            with self._zip.open(_entry("sound.mka"), "w", force_zip64=True) as target:
                while data := file.read(1 << 20):
                    target.write(data)


class _Copied:
    """One stream of sound, as it is."""

    def __init__(self, container: OutputContainer, stream: av.AudioStream, notes: list[str] | None = None) -> None:
        """`notes`: get a word where the container closes gaps of raw sound up."""
        self._container, self._stream = container, container.add_stream_from_template(stream)
        self._notes = notes
        self._end: float | None = None
        self._last: int | None = None
        _describe(self._stream, stream)

    def write(self, packet: av.Packet[Any]) -> None:
        if self._notes is not None and packet.pts is not None and packet.time_base:
            began = float(packet.pts * packet.time_base)
            if self._end is not None and began > self._end + GAP and "sound_gaps_closed" not in self._notes:
                self._notes.append("sound_gaps_closed")
            self._end = began + float((packet.duration or 0) * packet.time_base)
        if packet.dts is not None:
            if self._last is not None and packet.dts <= self._last:  # muxers take no time twice
                packet.dts = self._last + 1
                packet.pts = max(packet.pts or packet.dts, packet.dts)
            self._last = packet.dts
        packet.stream = self._stream
        self._container.mux(packet)

    def flush(self) -> None: ...


class _Converted:
    """One stream of sound that the container does not take as it is. Raises ImageError where it is damaged."""

    def __init__(self, container: OutputContainer, stream: av.AudioStream, codec: str) -> None:
        rate = stream.rate if codec != "libopus" and stream.rate in SOUND_RATES else max(SOUND_RATES)
        made: Any = container.add_stream(codec, rate=rate, layout=LAYOUTS.get(stream.channels, "stereo"))
        self._container, self._source, self._made = container, stream, made
        self._resampler: AudioResampler | None = None
        self._kind: tuple[str, str, int] | None = None  # of what comes in
        self._end = Fraction(-1 << 40)  # s; sound does not go back in time
        _describe(made, stream)

    def write(self, packet: av.Packet[Any]) -> None:
        with damage("in its sound"):
            frames = packet.decode()
        self._encode(frames)

    def flush(self) -> None:
        with damage("in its sound"):
            frames = self._source.codec_context.decode(None)
        self._encode(frames)
        self._drain()
        self._container.mux(self._made.encode(None))

    def _encode(self, frames: Iterable[Any]) -> None:
        for frame in frames:
            kind = frame.format.name, frame.layout.name, frame.sample_rate
            if kind != self._kind:
                self._drain()
                self._kind, context = kind, self._made.codec_context
                if not context.is_open:
                    context.open(strict=False)
                size = context.frame_size or None
                self._resampler = AudioResampler(context.format, context.layout, context.sample_rate, size)
            if frame.pts is not None and frame.time_base:
                frame.pts = max(frame.pts, math.ceil(self._end / frame.time_base))
                self._end = frame.pts * frame.time_base + Fraction(frame.samples, frame.sample_rate)
            assert self._resampler is not None
            self._mux(self._resampler.resample(frame))

    def _drain(self) -> None:
        if self._resampler is not None:
            self._mux(self._resampler.resample(None))
            self._resampler = None

    def _mux(self, frames: Iterable[Any]) -> None:
        for frame in frames:
            self._container.mux(self._made.encode(frame))


def _describe(made: Any, stream: av.AudioStream) -> None:
    """Which language it is, and whether it is what is heard first."""
    if language := stream.metadata.get("language"):
        made.metadata["language"] = language
    made.disposition = stream.disposition


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, FIXED_TIME)


def _written(colours: Colours, form: FilmForm) -> Colours:
    """What the film that is made says of its colours: what its source says, as far as the format can."""
    tags, matrix, spread = dict(colours.tags), colours.matrix, colours.range
    if tags["colorspace"] == RGB:
        tags["colorspace"] = matrix
    if form.container == "mov":  # ProRes has words for few, and no place to say that the range is full
        spread = int(ColorRange.MPEG)
        if matrix not in PRORES_MATRICES:
            matrix = PRORES_MATRICES_INSTEAD.get(matrix, int(Colorspace.ITU709))
            tags["colorspace"] = matrix
        elif tags["colorspace"] != UNKNOWN_MATRIX:
            tags["colorspace"] = PRORES_MATRICES[matrix]
        if tags["color_trc"] not in PRORES_TRANSFERS:
            tags["color_trc"] = 1 if tags["color_trc"] in (6, 7) else UNKNOWN_MATRIX  # the same curve
    tags["color_range"] = spread if tags["color_range"] or spread == ColorRange.JPEG else 0
    return Colours(matrix, spread, tags)


def _plane(frame: av.VideoFrame, number: int) -> NDArray[Any]:
    """One plane of 8 or 10 bits, uint8 or uint16 [H, W]; writing to it writes to the frame."""
    plane = frame.planes[number]
    data = memoryview(plane)
    if frame.format.name.endswith("10le"):
        return np.frombuffer(data, np.uint16).reshape(plane.height, plane.line_size // 2)[:, : plane.width]
    return np.frombuffer(data, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
