"""Every layout of pixels becomes the right 8-bit RGB and alpha, exactly and upright; reading from descriptors."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.decode import decode_into, place, read_limited
from rmbgd.imaging.formats import Header
from tests.imaging.builders import chunk, decoded, exif, photo, png, png_of, probed, refusal, saved

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (9, 13), np.uint8)
RGB = RNG.integers(0, 256, (9, 13, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (9, 13), np.uint8)


def grey3(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2)


def rounded(values: np.ndarray, maximum: int) -> np.ndarray:
    """The definition: nearest of 255 v / maximum."""
    return np.floor(values.astype(np.float64) * 255 / maximum + 0.5).astype(np.uint8)


def packed(values: np.ndarray, bits: int) -> list[bytes]:
    return [np.packbits(((row[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8)).tobytes() for row in values]


@pytest.mark.parametrize(
    ("form", "pixels"),
    [
        *((form, GREY) for form in ("PNG", "BMP", "TIFF", "WEBP", "GIF")),
        *((form, RGB) for form in ("PNG", "BMP", "TIFF", "WEBP")),
        *((form, np.dstack([RGB, ALPHA])) for form in ("PNG", "TIFF", "WEBP")),
        ("PNG", np.dstack([GREY, ALPHA])),
    ],
)
def test_8_bit_pixels_are_unchanged(form: str, pixels: np.ndarray) -> None:
    """Grey is spread over three channels; colours under alpha 0 are kept; without alpha in the file there is none."""
    rgb, alpha, _ = decoded(saved(pixels, form, **({"lossless": True, "exact": True} if form == "WEBP" else {})))
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    assert np.array_equal(rgb, pixels[:, :, :3] if channels >= 3 else grey3(pixels.reshape(9, 13, channels)[:, :, 0]))
    assert alpha is None if channels in (1, 3) else np.array_equal(alpha, ALPHA)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_channels_are_scaled_within_one_level(channels: int) -> None:
    stored = RNG.integers(0, 65536, (9, 13, channels), np.uint16)
    rgb, alpha, _ = decoded(png_of(stored))
    colours = stored[:, :, :-1] if channels in (2, 4) else stored
    limit = 0 if channels == 1 else 1
    assert np.abs(rgb.astype(int) - rounded(np.broadcast_to(colours, rgb.shape), 65535)).max() <= limit
    if channels in (2, 4):
        assert np.abs(alpha.astype(int) - rounded(stored[:, :, -1], 65535)).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_of_grey_are_spread_and_one_of_them_may_be_transparent(bits: int) -> None:
    values = RNG.integers(0, 1 << bits, (8, 16), np.uint8)
    values[0, 0] = key = (1 << bits) - 1
    rgb, alpha, _ = decoded(png(packed(values, bits), 16, bits, 0))
    _, keyed, _ = decoded(png(packed(values, bits), 16, bits, 0, before=chunk(b"tRNS", struct.pack(">H", key))))
    assert np.array_equal(rgb, grey3(values * (255 // ((1 << bits) - 1))))
    assert alpha is None
    assert np.array_equal(keyed, np.where(values == key, 0, 255))


@pytest.mark.parametrize(
    ("stored", "key", "expected"),
    [
        (np.array([[1000, 1001, 65535, 0]], np.uint16), (1000,), [[0, 255, 255, 255]]),
        (np.array([[[1, 2, 3], [1, 2, 4], [0, 2, 3], [1, 2, 3]]], np.uint8), (1, 2, 3), [[0, 255, 255, 0]]),
        (np.array([[[1, 2, 3], [1, 2, 4], [256, 514, 771]]], np.uint16), (1, 2, 3), [[0, 255, 255]]),
    ],
    ids=["16-bit grey", "8-bit colour", "16-bit colour"],
)
def test_one_transparent_colour_is_transparent_exactly_there(
    stored: np.ndarray, key: tuple[int, ...], expected: list[list[int]]
) -> None:
    """All channels and all 16 bits must match: a neighbour with the same high bytes stays opaque."""
    rgb, alpha, _ = decoded(png_of(stored, before=chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))))
    assert np.array_equal(alpha, expected)
    colours = stored if stored.itemsize == 1 else rounded(stored, 65535)
    assert np.array_equal(rgb, colours if colours.ndim == 3 else grey3(colours))


@pytest.mark.parametrize(("bits", "colour_type", "channels"), [(4, 0, 1), (8, 0, 1), (8, 2, 3)])
def test_bits_of_a_transparent_colour_beyond_the_depth_do_not_count(bits: int, colour_type: int, channels: int) -> None:
    """The standard's order to decoders: writers that fill them are not refused (PNG, 11.3.1.1)."""
    values = RNG.integers(0, 1 << bits, (8, 16, channels), np.uint8)
    rows = packed(values[:, :, 0], bits) if channels == 1 else [row.tobytes() for row in values]
    plain, filled = (struct.pack(f">{channels}H", *(int(each) | high for each in values[0, 0])) for high in (0, 0x7F00))
    _, expected, _ = decoded(png(rows, 16, bits, colour_type, before=chunk(b"tRNS", plain)))
    _, alpha, _ = decoded(png(rows, 16, bits, colour_type, before=chunk(b"tRNS", filled)))
    assert expected[0, 0] == 0
    assert np.array_equal(alpha, expected)


@pytest.mark.parametrize("alphas", [b"", b"\x00", b"\x00\x80\xff", bytes(range(0, 250, 50))])
@pytest.mark.parametrize("entries", [5, 256])
def test_a_palette_gives_colours_and_alpha(alphas: bytes, entries: int) -> None:
    """Entries beyond the list of alphas are opaque; without a list no plane is asked for."""
    palette = RNG.integers(0, 256, (entries, 3), np.uint8)
    values = RNG.integers(0, entries, (6, 8), np.uint8)
    before = chunk(b"PLTE", palette.tobytes()) + (chunk(b"tRNS", alphas) if alphas else b"")
    rgb, alpha, _ = decoded(png([row.tobytes() for row in values], 8, 8, 3, before=before))
    assert np.array_equal(rgb, palette[values])
    table = np.frombuffer(alphas.ljust(entries, b"\xff"), np.uint8)
    assert np.array_equal(alpha, table[values]) if alphas else alpha is None


def test_a_transparent_gif_has_alpha() -> None:
    values = RNG.integers(0, 4, (6, 8), np.uint8)
    image = Image.fromarray(values).convert("P")
    image.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
    rgb, alpha, _ = decoded(saved(image, "GIF", transparency=2))
    assert np.array_equal(alpha, np.where(values == 2, 0, 255))
    assert np.array_equal(rgb[values != 2], np.asarray(image.convert("RGB"))[values != 2])


def test_premultiplied_alpha_is_divided_out() -> None:
    """TIFF with associated alpha (ExtraSamples 1): straight colours within the rounding of 8 bits."""
    rgba = np.dstack([RGB, np.full_like(ALPHA, 200)])
    rgba[0, 0, 3] = 0
    weighted = rgba.copy()
    weighted[:, :, :3] = np.rint(rgba[:, :, :3].astype(float) * rgba[:, :, 3:] / 255)
    data = bytearray(saved(weighted, "TIFF"))
    entry = data.index(struct.pack("<HHI", 338, 3, 1))
    assert data[entry + 8] == 2
    data[entry + 8] = 1
    rgb, alpha, _ = decoded(bytes(data))
    visible = rgba[:, :, 3] > 0
    assert np.array_equal(alpha, rgba[:, :, 3])
    assert np.abs(rgb.astype(int) - RGB)[visible].max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 0.5, 1.0, 1.5, -0.5, np.nan, np.inf], [0, 64, 128, 255, 255, 0, 0, 255]),
        ([0.0, 99.6, 255.0], [0, 100, 255]),
    ],
)
def test_floats_from_0_to_1_or_to_255_are_black_to_white(values: list[float], expected: list[int]) -> None:
    rgb, _, _ = decoded(saved(np.array([values], np.float32), "TIFF"))
    assert np.array_equal(rgb, grey3(np.array([expected])))


def test_floats_of_unknown_range_are_refused() -> None:
    assert refusal(saved(np.array([[0.0, 4000.0]], np.float32), "TIFF")).reason is Reason.UNSUPPORTED_MODE


@pytest.mark.parametrize(
    ("order", "kind", "maximum"),
    [
        ("<", "u2", 65535), (">", "u2", 65535), ("<", "i2", 32767), (">", "i2", 32767),
        ("<", "i4", 2**31 - 1), (">", "i4", 2**31 - 1), ("<", "u4", 2**32 - 1),
    ],
)  # fmt: skip
def test_wide_integers_of_a_tiff_are_scaled_by_their_largest_value(order: str, kind: str, maximum: int) -> None:
    values = np.array([[0, maximum // 4, maximum // 2, maximum]], np.dtype(kind).newbyteorder(order))
    bits, sample = 8 * values.itemsize, 2 if kind.startswith("i") else 1
    entries = [(256, 4), (257, 1), (258, bits), (259, 1), (262, 1), (273, 200), (277, 1), (278, 1)]
    entries += [(279, values.nbytes), (339, sample)]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries:
        directory += struct.pack(f"{order}HHII", tag, 4, 1, value)
    start = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(f"{order}I", 8)
    rgb, _, _ = decoded((start + directory + bytes(4)).ljust(200, b"\0") + values.tobytes())
    assert np.abs(rgb[0, :, 0].astype(int) - [0, 64, 127, 255]).max() <= 1
    assert rgb[0, 3, 0] == 255


# What EXIF says where row 0 and column 0 of the stored image belong, as array operations.
DEFINITION = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 40), st.integers(1, 45), st.sampled_from([1, 3, 4]))
def test_bands_of_any_height_give_the_turned_image(turn: int, height: int, width: int, rows: int, depth: int) -> None:
    stored = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, depth), np.uint8)
    stored = stored[:, :, 0] if depth == 1 else stored
    expected = DEFINITION[turn](stored)
    plane = np.empty_like(expected, order="C")
    for first in range(0, height, rows):
        place(plane, first, np.ascontiguousarray(stored[first : first + rows]), turn)
    assert np.array_equal(plane, expected)
    assert Header("PNG", "RGB", (width, height), turn=turn).size == expected.shape[1::-1]


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "TIFF", "AVIF"])
def test_files_are_turned_upright_exactly_as_pillow_does_it(form: str, turn: int) -> None:
    """Also where the decoder turns by itself: never twice; a JPEG of more rows than one band."""
    options = {"JPEG": {"quality": 90}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    data = saved(photo(201, 150), form, exif=b"Exif\0\0" + exif(orientation=turn), **options.get(form, {}))
    rgb, _, facts = decoded(data)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    assert np.array_equal(rgb, expected)
    assert facts.size == expected.shape[1::-1]
    assert form == "AVIF" or facts.orientation == turn


@pytest.mark.parametrize("turn", range(1, 9))
def test_alpha_is_turned_with_its_image(turn: int) -> None:
    stored = np.random.default_rng(1).integers(0, 256, (5, 7, 4), np.uint8)
    rgb, alpha, _ = decoded(png_of(stored, before=chunk(b"eXIf", exif(orientation=turn))))
    assert np.array_equal(np.dstack([rgb, alpha]), DEFINITION[turn](stored))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_meaningless_orientation_is_noted_and_not_obeyed(value: int) -> None:
    rgb, _, facts = decoded(png_of(photo(6, 9), before=chunk(b"eXIf", exif(orientation=value))))
    assert np.array_equal(rgb, photo(6, 9))
    assert any("orientation" in note for note in facts.notes)


def test_exif_wins_over_xmp_and_xmp_counts_where_exif_is_silent() -> None:
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\x00\x00\x00\x00\x00" + b'<x tiff:Orientation="3"/>')
    stored = photo(6, 9)
    alone, _, _ = decoded(png_of(stored, before=xmp))
    both, _, _ = decoded(png_of(stored, before=xmp + chunk(b"eXIf", exif(orientation=2))))
    assert np.array_equal(alone, DEFINITION[3](stored))
    assert np.array_equal(both, DEFINITION[2](stored))


@pytest.mark.parametrize("form", ["WEBP", "GIF", "TIFF", "PNG"])
def test_several_frames_or_pages_are_refused_or_give_the_first(form: str) -> None:
    frames = [Image.fromarray(photo(20, 30, seed)) for seed in range(3)]
    frames = [frame.quantize(16) for frame in frames] if form == "GIF" else frames
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    rgb, _, facts = decoded(data, animated="first_frame")
    error = refusal(data)
    counted = "3 frames" if form in ("WEBP", "PNG") else "more than one"
    assert (error.reason, counted in error.detail) == (Reason.ANIMATED, True)
    assert np.array_equal(rgb, np.asarray(frames[0].convert("RGB")))
    assert any("first" in note for note in facts.notes)


def test_decoding_writes_every_byte_of_both_planes() -> None:
    data = saved(photo(10, 12), "PNG")
    rgb, alpha = np.full((10, 12, 3), 77, np.uint8), np.full((10, 12), 77, np.uint8)
    decode_into(data, probed(data), rgb, alpha)
    assert (alpha == 255).all()
    assert np.array_equal(rgb, photo(10, 12))


def test_planes_of_the_wrong_size_are_an_error_of_the_caller() -> None:
    data = saved(np.dstack([photo(10, 12), photo(10, 12)[:, :, 0]]), "PNG")
    header = probed(data)
    with pytest.raises(ValueError, match="planes"):
        decode_into(data, header, np.empty((12, 10, 3), np.uint8), np.empty((10, 12), np.uint8))
    with pytest.raises(ValueError, match="source_alpha"):
        decode_into(data, header, np.empty((10, 12, 3), np.uint8), None)


def read(path: Path, **limits: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return read_limited(descriptor, LimitSettings(**limits))
    finally:
        os.close(descriptor)


def refused(path: Path, **limits: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read(path, **limits)
    return caught.value


def test_an_empty_file_is_empty_and_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    error = refused(tmp_path / "a")
    assert (error.reason, error.maybe_incomplete) == (Reason.EMPTY, True)


def test_a_file_beyond_the_limit_is_refused_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    (tmp_path / "b").touch()
    os.truncate(tmp_path / "b", 1 << 40)
    assert read(tmp_path / "a", file_bytes=1000) == bytes(1000)
    assert refused(tmp_path / "a", file_bytes=999).reason is Reason.TOO_MANY_BYTES
    assert refused(tmp_path / "b").reason is Reason.TOO_MANY_BYTES


@pytest.mark.parametrize("size", [256_000, 1, 255_999, 256_001, 10_000_000])
def test_a_file_that_grows_or_shrinks_meanwhile_is_read_whole_from_its_beginning(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result([*real(fd)[:6], size, *real(fd)[7:]]))
    with (tmp_path / "a").open("rb", buffering=0) as file:
        file.seek(5000)
        assert read_limited(file.fileno(), LimitSettings()) == bytes(range(256)) * 1000
        assert file.tell() == 5000


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = {"directory": tmp_path, "pipe": tmp_path / "p", "device": Path("/dev/zero")}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    assert refused(path).reason is Reason.NOT_REGULAR
