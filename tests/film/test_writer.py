"""What is made of a film: every frame at its time, alpha exact or nearly, colours and sound as they were."""

from __future__ import annotations

import io
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.film.conversion import convert, read
from tests.support.films import film, frame, pictures, png_frame

DECODERS = {"vp9": "libvpx-vp9"}  # libav's own leaves alpha out


def sounds_of(data: bytes) -> list[tuple[str, list[bytes]]]:
    """(codec, packets) of each stream."""
    with av.open(io.BytesIO(data)) as container:
        streams = {
            each.index: (each.codec_context.codec.canonical_name, list[bytes]()) for each in container.streams.audio
        }
        for packet in container.demux(*container.streams.audio):
            if packet.size:
                streams[packet.stream.index][1].append(bytes(packet))
    return list(streams.values())


@pytest.mark.parametrize(("form", "alpha_off", "colours_off"), [("prores4444", 0.5, 2.0), ("vp9", 4.0, 6.0)])
def test_alpha_and_colours(form: str, alpha_off: float, colours_off: float, tmp_path: Path) -> None:
    data = film(frames=5, options={"crf": "4"})
    made, notes = convert(data, form, tmp_path)
    shown, source = pictures(made, DECODERS.get(form)), read(data)[1]
    assert (len(shown), notes) == (5, [])
    for each, was in zip(shown, source, strict=True):
        assert np.abs(each[:, :, 3].astype(int) - was.rgb[:, :, 1]).mean() <= alpha_off
        assert np.abs(each[:, :, :3].astype(int) - was.rgb).mean() <= colours_off


def test_where_nothing_is_seen_through_prores_keeps_ten_bits(tmp_path: Path) -> None:
    """Values between those of 8 bits: a film of 8 bits could not have them."""
    levels = np.tile(np.linspace(600, 700, 64).astype(np.uint16), (48, 1))
    stored = av.VideoFrame(64, 48, "yuv420p10le")
    for number, plane in enumerate(stored.planes):
        rows = np.frombuffer(memoryview(plane), np.uint16).reshape(plane.height, -1)
        rows[:, : plane.width] = levels if number == 0 else 512
    stored.pts, stored.time_base = 0, Fraction(1, 25)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        container.mux(stream.encode(stored))
        container.mux(stream.encode(None))
    from rmbgd.config.load import LimitSettings, Recipe
    from rmbgd.film.reader import FilmReader
    from rmbgd.film.writer import FilmFile

    (path := tmp_path / "source").write_bytes(file.getvalue())
    (made := tmp_path / "made.mov").write_bytes(b"")
    with open(path, "rb") as source:
        reader = FilmReader(source.fileno(), LimitSettings())
        writer = FilmFile(str(made), reader, None, Recipe(film="prores4444"))
        for item in reader.frames():
            solid = np.full((48, 64), 255, np.uint8)
            writer.write(item, np.dstack((item.rgb, solid)), solid)
        writer.close()
    with av.open(str(made)) as container:
        back = next(container.decode(video=0)).reformat(format="yuv444p10le")
        luma = np.frombuffer(memoryview(back.planes[0]), np.uint16).reshape(48, -1)[:, :64]
    assert np.abs(luma.astype(int) - levels).max() <= 2
    assert len(np.unique(luma[20])) > 40  # of 26 in 8 bits


@pytest.mark.parametrize("form", ["prores4444", "vp9", "h264"])
def test_uneven_times_stay(form: str, tmp_path: Path) -> None:
    times = [0, 3000, 4500, 12_000, 30_000]
    data = film(frames=5, times=times, base=Fraction(1, 90_000), options={"bf": "0"})
    made, _ = convert(data, form, tmp_path)
    reader, frames = read(made)
    found = [float(each.pts * reader.time_base) for each in frames]
    assert found == pytest.approx([each / 90_000 for each in times], abs=0.00051 if form == "vp9" else 1e-6)


@pytest.mark.parametrize("form", ["prores4444", "vp9", "h264"])
def test_colour_tags_are_copied(form: str, tmp_path: Path) -> None:
    tags = {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1}
    made, _ = convert(film(frames=2, tags=tags), form, tmp_path)
    assert {name: read(made)[0].colours.tags[name] for name in tags} == tags


@pytest.mark.parametrize("form", ["prores4444", "vp9", "h264"])
def test_a_film_of_full_range_looks_as_it_did(form: str, tmp_path: Path) -> None:
    data = film(frames=2, pixels="yuvj420p", tags={"color_range": 2}, options={"crf": "4"})
    made, _ = convert(data, form, tmp_path)
    source = read(data)[1][0].rgb.astype(int)
    solid = source[:, :, 1] > 225
    shown = read(made)[1][0].rgb.astype(int)
    assert np.abs(shown - source)[solid].mean() < 8


@pytest.mark.parametrize(
    ("form", "sound", "codec", "copied"),
    [
        ("prores4444", "aac", "aac", True),
        ("prores4444", "pcm_s16le", "pcm_s16le", True),
        ("prores4444", "libopus", "pcm_s16le", False),
        ("vp9", "libopus", "opus", True),
        ("vp9", "aac", "opus", False),
        ("h264", "aac", "aac", True),
        ("h264", "pcm_s16le", "aac", False),
        ("h264", "flac", "aac", False),
    ],
)
def test_sound_is_copied_where_players_expect_it_and_else_converted(
    form: str, sound: str, codec: str, copied: bool, tmp_path: Path
) -> None:
    data = film("matroska", frames=25, sound=sound)
    made, notes = convert(data, form, tmp_path)
    [(name, packets)] = sounds_of(made)
    assert (name, notes) == (codec, [] if copied else ["sound_converted"])
    if copied and codec != "pcm_s16le":  # whose packets a muxer cuts as it likes
        assert packets == sounds_of(data)[0][1]
    with av.open(io.BytesIO(made)) as container:
        heard = sum(each.samples for each in container.decode(audio=0))
    assert heard == pytest.approx(48_000, abs=3000)


def test_several_streams_of_sound_stay_several(tmp_path: Path) -> None:
    made, _ = convert(film("matroska", frames=10, sound="aac", sounds=3), "prores4444", tmp_path)
    assert len(sounds_of(made)) == 3


def test_prores_needs_an_even_width_and_gets_it(tmp_path: Path) -> None:
    made, notes = convert(film("webm", "libvpx-vp9", size=(63, 47), frames=2), "prores4444", tmp_path)
    assert notes == ["padded"]
    assert pictures(made)[0].shape == (47, 64, 4)


def test_prores_says_matrices_that_it_has_words_for(tmp_path: Path) -> None:
    for said, written in ((5, 6), (7, 1), (1, 1)):
        tags = {"colorspace": said, "color_primaries": 5, "color_trc": 6}
        data = film(frames=1, tags=tags, options={"crf": "4"})
        made, _ = convert(data, "prores4444", tmp_path)
        reader, frames = read(made)
        assert reader.colours.tags["colorspace"] == written
        assert reader.colours.tags["color_trc"] == 1
        solid = frames[0].rgb[:, :, 1] > 200
        assert np.abs(frames[0].rgb.astype(int) - read(data)[1][0].rgb)[solid].mean() < 3


def test_h264_needs_even_sides_and_gets_them(tmp_path: Path) -> None:
    made, notes = convert(film("webm", "libvpx-vp9", size=(63, 47), frames=2), "h264", tmp_path)
    assert notes == ["padded"]
    assert pictures(made)[0].shape == (48, 64, 4)


def test_a_turned_film_looks_as_it_did(tmp_path: Path) -> None:
    data = film(frames=2, rotation=90, options={"crf": "4"})
    for form in ("prores4444", "h264"):
        made, _ = convert(data, form, tmp_path)
        reader, frames = read(made)
        assert (reader.header.width, reader.header.height, reader.header.rotation) == (48, 64, 0)
        solid = read(data)[1][0].rgb[:, :, 1] > 225
        assert np.abs(frames[0].rgb.astype(int) - read(data)[1][0].rgb)[solid].mean() < 8


def test_an_archive_holds_frames_times_and_sound(tmp_path: Path) -> None:
    times = [0, 2, 7]
    data = film("matroska", frames=3, times=times, sound="aac", options={"bf": "0"})
    made, _ = convert(data, "png", tmp_path)
    again, _ = convert(data, "png", tmp_path)
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        assert archive.testzip() is None
        frames = [f"take_{number:06}.png" for number in range(3)]
        assert archive.namelist() == [*frames, "times.csv", "sound.mka"]
        images = [png_frame(archive.read(name)) for name in frames]
        assert archive.read("times.csv").decode().splitlines() == [
            "frame,seconds",
            *(f"{name},{time * 0.04:.6f}" for name, time in zip(frames, times, strict=True)),
        ]
        [(codec, packets)] = sounds_of(archive.read("sound.mka"))
        assert (codec, packets) == ("aac", sounds_of(data)[0][1][1:])  # the first lies before the first frame
        again_frames = zipfile.ZipFile(io.BytesIO(again))
        assert [again_frames.read(name) for name in frames] == [archive.read(name) for name in frames]
    for number, image in enumerate(images):
        assert image.shape == (48, 64, 4)
        was = read(data)[1][number].rgb
        assert np.array_equal(image[:, :, [2, 1, 0]], was)
        assert np.array_equal(image[:, :, 3], was[:, :, 1])
    assert frame(0).shape == (48, 64, 3)


def test_the_shape_of_a_pixel_is_kept(tmp_path: Path) -> None:
    data = film("matroska", frames=2, tags={"sample_aspect_ratio": Fraction(4, 3)})
    for form in ("prores4444", "h264"):
        assert read(convert(data, form, tmp_path)[0])[0].aspect == Fraction(4, 3)
    assert convert(data, "vp9", tmp_path)[1] == ["aspect_lost"]
