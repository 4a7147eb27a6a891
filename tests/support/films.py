"""Films for tests, made with PyAV: a square that walks over noise, with sound, times, colours and rotation as asked."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

RATE, SOUND_RATE = 25, 48_000


def frame(number: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB; the engine of the tests takes green for alpha."""
    image = np.full((height, width, 3), 30, np.uint8)
    image[:, :, 0] = np.linspace(20, 200, width, dtype=np.uint8)
    left = (2 * number) % (width - 16)
    image[height // 4 : -height // 4, left : left + 16] = (80, 235, 60)
    return image


def film(
    form: str = "mp4",
    codec: str = "libx264",
    *,
    frames: int = 12,
    size: tuple[int, int] = (64, 48),
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    base: Fraction = Fraction(1, RATE),
    sound: str | None = None,
    rotation: int = 0,
    tags: dict[str, int] | None = None,
    sounds: int = 1,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    alpha: NDArray[np.uint8] | None = None,
    alpha_mode: bool = False,
    more_sound: int = 0,
) -> bytes:
    """A film's bytes.

    times       of each frame, in `base`
    sound       its codec; sounds: streams of it; more_sound: twenty-fifths of a second by which it is longer
    """
    with tempfile.NamedTemporaryFile() as file:  # a true file: an index is put first by reading it again
        with av.open(file.name, "w", format=form, options=container_options or {}) as container:
            video: Any = container.add_stream(codec, rate=RATE, options=options or {})
            video.width, video.height, video.pix_fmt = *size, pixels
            video.codec_context.time_base = video.time_base = base
            if alpha_mode:
                video.metadata["alpha_mode"] = "1"
            for name, value in (tags or {}).items():
                setattr(video.codec_context, name, value)
            if rotation:
                video.set_display_rotation(rotation)
            count = sounds if sound else 0
            streams: list[Any] = [container.add_stream(sound, rate=SOUND_RATE, layout="mono") for _ in range(count)]
            for stream in streams:
                stream.codec_context.open(strict=False)
            for number in range(frames + more_sound):
                if number < frames:
                    made = _frame_of(number, size, alpha).reformat(format=pixels)
                    made.pts, made.time_base = (number if times is None else times[number]), base
                    container.mux(video.encode(made))
                for stream in streams:
                    _beep(container, stream, number)
            container.mux(video.encode(None))
            for stream in streams:
                container.mux(stream.encode(None))
        return file.read()


def with_subtitles_and_fonts(data: bytes) -> bytes:
    """The frames of a film in Matroska, with subtitles that draw, and attachments that renderers would open."""
    heading = b"[Script Info]\r\n[V4+ Styles]\r\nFormat: Name, Fontname\r\nStyle: Default,Strange\r\n[Events]\r\n"
    out = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", format="matroska") as container:
        video = container.add_stream_from_template(source.streams.video[0])
        subtitles: Any = container.add_stream("ass")
        subtitles.codec_context.subtitle_header = heading
        container.add_attachment("strange.ttf", "font/ttf", b"\0\1\0\0" + b"\xff" * 5000)
        container.add_attachment("cover.svg", "image/svg+xml", b"<svg onload='x'/>")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                container.mux(packet)
        line = av.Packet(b"0,0,Default,,0,0,0,,{\\p1}m 0 0{\\p0}text")
        line.stream, line.pts, line.dts, line.duration, line.time_base = subtitles, 0, 0, 40, Fraction(1, 1000)
        container.mux(line)
    return out.getvalue()


def with_broken_index(data: bytes, box: bytes, offset: int, value: int) -> bytes:
    """An MP4 whose box says something else, so many bytes behind its name."""
    at = data.index(box) + len(box) + offset
    return data[:at] + value.to_bytes(4, "big") + data[at + 4 :]


def _frame_of(number: int, size: tuple[int, int], alpha: NDArray[np.uint8] | None) -> av.VideoFrame:
    image = frame(number, *size)
    planes = image if alpha is None else np.dstack((image, alpha))
    return av.VideoFrame.from_ndarray(planes, "rgb24" if alpha is None else "rgba")


def _beep(container: Any, stream: Any, number: int) -> None:
    count = SOUND_RATE // RATE
    values = np.sin(np.arange(number * count, (number + 1) * count) * 0.06).astype(np.float32)[None]
    heard = av.AudioFrame.from_ndarray(values, "fltp", "mono")
    heard.sample_rate, heard.pts, heard.time_base = SOUND_RATE, number * count, Fraction(1, SOUND_RATE)
    resampler = av.AudioResampler(stream.codec_context.format, "mono", SOUND_RATE)
    for each in resampler.resample(heard):
        container.mux(stream.encode(each))


def pictures(data: bytes, decoder: str | None = None) -> list[NDArray[np.uint8]]:
    """Its frames as RGBA, uint8 [H, W, 4]. `decoder`: another than libav's first."""
    found = []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        if decoder is None:
            return [_rgba(each) for each in container.decode(stream)]
        context: Any = av.CodecContext.create(decoder, "r")
        for packet in container.demux(stream):
            found += [_rgba(each) for each in context.decode(packet)]
    return found


def _rgba(decoded: Any) -> NDArray[np.uint8]:
    return np.asarray(decoded.reformat(format="rgba").to_ndarray(), np.uint8)


def png_frame(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)
