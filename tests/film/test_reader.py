"""Films are read as they are shown: times, sizes, colours, rotation; what is damaged is refused with a reason."""

from __future__ import annotations

import gc
import io
from fractions import Fraction
from unittest import mock

import av
import numpy as np
import pytest

from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.completeness import Beginning, Tail, head_of, tail_of
from tests.film.conversion import read
from tests.support.films import film, frame, with_broken_index


def refused(data: bytes, **limits: float) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read(data, **limits)
    return caught.value


@pytest.mark.parametrize(
    ("form", "codec", "container", "name"),
    [
        ("mp4", "libx264", "mov,mp4,m4a,3gp,3g2,mj2", "h264"),
        ("mov", "prores_aw", "mov,mp4,m4a,3gp,3g2,mj2", "prores"),
        ("matroska", "libx264", "matroska,webm", "h264"),
        ("webm", "libvpx-vp9", "matroska,webm", "vp9"),
    ],
)
def test_the_four_containers(form: str, codec: str, container: str, name: str) -> None:
    pixels = "yuv422p10le" if codec == "prores_aw" else "yuv420p"
    reader, frames = read(film(form, codec, pixels=pixels))
    header = reader.header
    assert (header.container.split(",")[0], header.codec) == (container.split(",", maxsplit=1)[0], name)
    assert (header.width, header.height, len(frames), header.rotation) == (64, 48, 12, 0)
    assert header.seconds == pytest.approx(0.48, abs=0.05)
    assert [each.number for each in frames] == list(range(12))
    times = [float(each.pts * reader.time_base) for each in frames]
    assert np.diff(times) == pytest.approx([0.04] * 11, abs=0.0011)
    shown = np.mean([np.abs(each.rgb.astype(int) - frame(n).astype(int)).mean() for n, each in enumerate(frames)])
    assert shown < 6


def test_uneven_times_are_kept() -> None:
    times = [0, 3, 4, 9, 20]
    reader, frames = read(film(frames=5, times=times, base=Fraction(1, 90_000), options={"bf": "0"}))
    assert [int(each.pts * reader.time_base * 90_000) for each in frames] == times


def test_frames_are_turned_upright() -> None:
    _, plain = read(film(frames=1))
    for degrees, turns in ((90, 1), (180, 2), (270, 3)):
        reader, turned = read(film(frames=1, rotation=degrees))
        assert reader.header.rotation == degrees
        assert np.array_equal(turned[0].rgb, np.rot90(plain[0].rgb, turns))
        assert (reader.header.width, reader.header.height) == turned[0].rgb.shape[1::-1]


def test_untagged_films_are_read_by_their_height() -> None:
    """As players do: up to 576 rows BT.601, above it BT.709."""
    low, _ = read(film(frames=1, size=(64, 48)))
    high, _ = read(film(frames=1, size=(64, 580)))
    said, _ = read(film(frames=1, size=(64, 580), tags={"colorspace": 9}))
    assert (low.colours.matrix, high.colours.matrix, said.colours.matrix) == (5, 1, 9)


def test_full_range_is_read_as_such() -> None:
    image = film(frames=1, pixels="yuvj420p", tags={"color_range": 2})
    reader, frames = read(image)
    assert reader.colours.range == 2
    assert np.abs(frames[0].rgb.astype(int) - frame(0).astype(int)).mean() < 6


def test_alpha_of_its_own_comes_along() -> None:
    alpha = np.full((48, 64), 128, np.uint8)
    reader, frames = read(film("mov", "qtrle", pixels="argb", alpha=alpha, frames=2))
    assert reader.header.source_alpha
    assert frames[0].alpha is not None
    assert np.array_equal(frames[0].alpha, alpha)


def test_a_film_of_sound_alone_has_no_frames() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        heard = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        heard.sample_rate, heard.pts = 48_000, 0
        container.mux(stream.encode(heard))
        container.mux(stream.encode(None))
    assert refused(file.getvalue()).reason is Reason.NO_FRAMES


def test_limits_are_checked_on_the_header() -> None:
    data = film(frames=50, sound="aac", sounds=9)
    assert refused(data).reason is Reason.TOO_MANY_STREAMS
    assert refused(data, film_streams=12, film_seconds=1).reason is Reason.TOO_LONG
    assert refused(data, film_streams=12, film_frames=49).reason is Reason.TOO_LONG
    assert refused(data, film_streams=12, pixels=1000).reason is Reason.TOO_LARGE


def test_a_header_of_ten_hours_is_believed_before_a_frame_is_read() -> None:
    data = bytearray(film(frames=3, times=[0, 1, 900_000], options={"bf": "0"}))
    assert refused(bytes(data)).reason is Reason.TOO_LONG


def test_an_index_that_asks_for_gigabytes_is_damaged_unless_memory_is_short() -> None:
    data = with_broken_index(film(frames=30, options={"bf": "0"}), b"stts", 4, 0xFFFFFFFF)
    error = refused(data)
    assert (error.reason, error.maybe_incomplete) == (Reason.CORRUPT, False)
    with mock.patch("rmbgd.film.reader.PROBE_BYTES", 1 << 62), pytest.raises(MemoryError):
        read(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"#EXTM3U\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile x.mp4\n", bytes(500), b"RIFF" + bytes(60)],
)
def test_what_is_no_film_is_not_given_to_any_demuxer(data: bytes) -> None:
    assert refused(data).reason is Reason.UNIDENTIFIED


def parts() -> list[tuple[str, bytes]]:
    fast = {"movflags": "faststart"}
    return [
        ("index at the end", film(frames=30, sound="aac")),
        ("index first", film(frames=30, sound="aac", container_options=fast)),
        ("mkv", film("matroska", frames=30, sound="aac")),
        ("webm", film("webm", "libvpx-vp9", frames=30, sound="libopus")),
    ]


@pytest.mark.parametrize(("_name", "data"), parts(), ids=[name for name, _ in parts()])
def test_half_a_film_is_never_taken_for_a_whole_one(_name: str, data: bytes, tmp_path) -> None:
    whole = len(read(data)[1])
    assert whole == 30
    for share in (0.05, 0.3, 0.5, 0.7, 0.9):
        half = data[: int(len(data) * share)]
        (path := tmp_path / "half").write_bytes(half)
        with open(path, "rb") as file:
            seen_by_its_tail = tail_of(file.fileno(), len(half)) in (Tail.DOUBTFUL, Tail.MISSING)
        assert seen_by_its_tail
        error = refused(half)
        assert error.reason in (Reason.TRUNCATED, Reason.CORRUPT, Reason.NO_FRAMES)
    (path := tmp_path / "whole").write_bytes(data)
    with open(path, "rb") as file:
        assert tail_of(file.fileno(), len(data)) in (Tail.COMPLETE, Tail.UNKNOWN)
        assert head_of(file.fileno()) is Beginning.KNOWN


def test_frames_of_another_size_are_refused() -> None:
    """Two films of VP8 in one stream: each key frame may have a size of its own."""
    file, packets = io.BytesIO(), []
    for size in ((64, 48), (32, 48)):
        with av.open(io.BytesIO(film("webm", "libvpx", frames=3, size=size))) as part:
            packets += [bytes(packet) for packet in part.demux(video=0) if packet.size]
    with av.open(file, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = number in (0, 3)
            container.mux(packet)
    assert refused(file.getvalue()).reason is Reason.SIZE_CHANGES


def with_matrix(data: bytes, *values: int) -> bytes:
    """The film with a, b, c and d of another matrix in its track's header (ISO/IEC 14496-12, 8.3.2)."""
    found = (
        data.index(b"tkhd") + 4 + 4 + 4 * 5 + 8 + 8
    )  # version and flags, times and numbers, reserved, layer to volume
    changed = bytearray(data)
    for place, value in zip((0, 4, 12, 16), values, strict=True):
        changed[found + place : found + place + 4] = (value << 16).to_bytes(4, "big", signed=True)
    return bytes(changed)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((-1, 0, 0, -1), lambda image: image[::-1, ::-1]),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
        ((0, 1, -1, 0), lambda image: np.rot90(image, 3)),
    ],
)
def test_frames_are_mirrored_as_the_film_says(matrix: tuple[int, ...], shown) -> None:
    data = film(frames=1)
    _, plain = read(data)
    _, found = read(with_matrix(data, *matrix))
    assert np.array_equal(found[0].rgb, shown(plain[0].rgb))


def test_a_film_with_alpha_of_ours_is_read_with_it() -> None:
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    data = film(
        "webm", "libvpx-vp9", pixels="yuva420p", alpha=alpha, frames=3, options={"auto-alt-ref": "0"}, alpha_mode=True
    )
    reader, frames = read(data)
    assert reader.header.source_alpha
    assert frames[0].alpha is not None
    assert len(frames) == 3
    assert np.abs(frames[0].alpha.astype(int) - alpha).mean() < 4


def test_a_stream_that_nothing_decodes_is_said() -> None:
    error = refused(film(frames=2).replace(b"avc1", b"xyz1"))
    assert (error.reason, error.maybe_incomplete) == (Reason.CORRUPT, True)


def test_frames_are_gone_once_they_are_not_held() -> None:
    """And not when the garbage collector comes by: a film of thousands would fill the memory until then."""
    data = film(frames=30)
    gc.collect()
    gc.disable()
    try:
        _, frames = read(data)
        frames.clear()
        assert sum(type(each) is av.VideoFrame for each in gc.get_objects()) < 6  # the reader has its first
    finally:
        gc.enable()


def test_a_film_that_was_cut_at_a_key_frame_begins_with_its_first_whole_frame() -> None:
    """Frames of an open group refer back beyond the cut; players leave them out, too."""
    params = "open-gop=1:keyint=10:min-keyint=10:bframes=3:scenecut=0"
    whole = film("matroska", frames=40, options={"x264-params": params, "bf": "3"})
    file = io.BytesIO()
    with av.open(io.BytesIO(whole)) as source, av.open(file, "w", format="matroska") as target:
        stream, keys = target.add_stream_from_template(source.streams.video[0]), 0
        for packet in source.demux(video=0):
            keys += packet.is_keyframe
            if packet.size and keys >= 2:
                packet.stream = stream
                target.mux(packet)
    reader, frames = read(file.getvalue())
    assert 28 <= len(frames) <= 30
    assert reader.header.width == 64
