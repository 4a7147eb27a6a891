"""Every layout of pixels becomes the right 8-bit RGB and alpha, exactly."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from rmbgd.errors import ImageError, Reason
from tests.imaging.builders import chunk, decoded, photo, png, probed, saved

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (9, 13), np.uint8)
RGB = RNG.integers(0, 256, (9, 13, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (9, 13), np.uint8)
WIDE = RNG.integers(0, 65536, (9, 13), np.uint16)


def grey3(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2)


def rounded(values: np.ndarray, maximum: int) -> np.ndarray:
    """The definition: nearest of 255 v / maximum."""
    return np.floor(values.astype(np.float64) * 255 / maximum + 0.5).astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_8_bit_grey_is_spread_over_three_channels(form: str) -> None:
    """Unchanged values, no alpha."""
    options = {"lossless": True} if form == "WEBP" else {}

    rgb, alpha, _ = decoded(saved(GREY, form, **options))

    assert np.array_equal(rgb, grey3(GREY))
    assert alpha is None


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_8_bit_rgb_is_unchanged(form: str) -> None:
    """Bit by bit."""
    options = {"lossless": True} if form == "WEBP" else {}

    rgb, alpha, _ = decoded(saved(RGB, form, **options))

    assert np.array_equal(rgb, RGB)
    assert alpha is None


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_rgba_keeps_its_colours_and_its_alpha(form: str) -> None:
    """Also the colours under alpha 0."""
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}

    rgb, alpha, _ = decoded(saved(np.dstack([RGB, ALPHA]), form, **options))

    assert np.array_equal(rgb, RGB)
    assert np.array_equal(alpha, ALPHA)


def test_grey_with_alpha_keeps_both() -> None:
    """Mode LA."""
    rgb, alpha, _ = decoded(saved(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), "PNG"))

    assert np.array_equal(rgb, grey3(GREY))
    assert np.array_equal(alpha, ALPHA)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    """The nearest of v / 257."""
    rgb, _, _ = decoded(png([row.astype(">u2").tobytes() for row in WIDE], 13, 16, 0))

    assert np.array_equal(rgb, grey3(rounded(WIDE, 65535)))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_channels_are_scaled_within_one_level(colour_type: int, channels: int) -> None:
    """RGB, grey with alpha and RGBA of 16 bits."""
    stored = RNG.integers(0, 65536, (9, 13, channels), np.uint16)
    rgb, alpha, _ = decoded(png([row.astype(">u2").tobytes() for row in stored], 13, 16, colour_type))

    colours = stored if channels == 3 else stored[:, :, :-1]
    assert np.abs(rgb.astype(int) - rounded(np.broadcast_to(colours, rgb.shape), 65535)).max() <= 1
    if channels != 3:
        assert alpha is not None
        assert np.abs(alpha.astype(int) - rounded(stored[:, :, -1], 65535)).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_grey_are_spread_over_the_whole_range(bits: int) -> None:
    """0 is black and the highest value is white."""
    values = RNG.integers(0, 1 << bits, (8, 16), np.uint8)
    packed = [np.packbits(((row[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8)).tobytes() for row in values]

    rgb, _, _ = decoded(png(packed, 16, bits, 0))

    assert np.array_equal(rgb, grey3(values * (255 // ((1 << bits) - 1))))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_one_transparent_grey_is_transparent_exactly_there(bits: int) -> None:
    """PNG tRNS names a value as stored, also where the decoder spreads small values."""
    values = RNG.integers(0, 1 << bits, (8, 16), np.uint8)
    values[0, 0] = key = (1 << bits) - 1
    packed = [np.packbits(((row[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8)).tobytes() for row in values]

    _, alpha, _ = decoded(png(packed, 16, bits, 0, before=chunk(b"tRNS", struct.pack(">H", key))))

    assert np.array_equal(alpha, np.where(values == key, 0, 255))


def test_one_transparent_16_bit_grey_is_compared_with_all_16_bits() -> None:
    """A neighbour that rounds to the same byte stays opaque."""
    values = np.array([[1000, 1001, 65535, 0]], np.uint16)

    _, alpha, _ = decoded(
        png([values.astype(">u2").tobytes()], 4, 16, 0, before=chunk(b"tRNS", struct.pack(">H", 1000)))
    )

    assert np.array_equal(alpha, [[0, 255, 255, 255]])


def test_one_transparent_colour_is_transparent_exactly_there() -> None:
    """All three channels must match."""
    stored = np.array([[[1, 2, 3], [1, 2, 4], [0, 2, 3], [1, 2, 3]]], np.uint8)

    rgb, alpha, _ = decoded(png([stored.tobytes()], 4, 8, 2, before=chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))))

    assert np.array_equal(alpha, [[0, 255, 255, 0]])
    assert np.array_equal(rgb, stored)


def test_one_transparent_16_bit_colour_is_compared_with_all_16_bits() -> None:
    """A colour with the same high bytes stays opaque."""
    stored = np.array([[[1, 2, 3], [1, 2, 4], [65535, 65535, 65535], [256, 514, 771]]], np.uint16)

    rgb, alpha, _ = decoded(
        png([stored.astype(">u2").tobytes()], 4, 16, 2, before=chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))
    )

    assert np.array_equal(alpha, [[0, 255, 255, 255]])
    assert np.array_equal(rgb, rounded(stored, 65535))


@pytest.mark.parametrize("alphas", [b"\x00", b"\x00\x80\xff", bytes(range(0, 250, 50))])
def test_a_palette_with_alphas_gives_colours_and_alpha(alphas: bytes) -> None:
    """Entries beyond the list are opaque."""
    palette = RNG.integers(0, 256, (5, 3), np.uint8)
    values = RNG.integers(0, 5, (6, 8), np.uint8)
    before = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", alphas)

    rgb, alpha, _ = decoded(png([row.tobytes() for row in values], 8, 8, 3, before=before))

    table = np.frombuffer(alphas.ljust(5, b"\xff"), np.uint8)
    assert np.array_equal(rgb, palette[values])
    assert np.array_equal(alpha, table[values])


def test_a_palette_without_alphas_has_no_alpha() -> None:
    """No plane is asked for."""
    palette = RNG.integers(0, 256, (256, 3), np.uint8)
    values = RNG.integers(0, 256, (6, 8), np.uint8)

    rgb, alpha, _ = decoded(png([row.tobytes() for row in values], 8, 8, 3, before=chunk(b"PLTE", palette.tobytes())))

    assert np.array_equal(rgb, palette[values])
    assert alpha is None


def test_a_transparent_gif_has_alpha() -> None:
    """One palette entry is transparent."""
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
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    data = bytearray(saved(weighted, "TIFF", tiffinfo=tags))
    with Image.open(io.BytesIO(bytes(data))) as opened:
        assert opened.tag_v2[338] == (2,)
    entry = data.index(struct.pack("<HHI", 338, 3, 1))
    data[entry + 8] = 1

    rgb, alpha, _ = decoded(bytes(data))

    visible = rgba[:, :, 3] > 0
    assert np.array_equal(alpha, rgba[:, :, 3])
    assert np.abs(rgb.astype(int) - RGB)[visible].max() <= 1


def test_floats_from_0_to_1_are_black_to_white() -> None:
    """Highlights above 1 are clipped, what is no number is black."""
    values = np.array([[0.0, 0.25, 0.5, 1.0, 1.5, -0.5, np.nan, np.inf]], np.float32)

    rgb, _, _ = decoded(saved(values, "TIFF"))

    assert np.array_equal(rgb[:, :, 0], [[0, 64, 128, 255, 255, 0, 0, 255]])


def test_floats_from_0_to_255_are_taken_as_bytes() -> None:
    """As image processing tools write them."""
    rgb, _, _ = decoded(saved(np.array([[0.0, 99.6, 255.0]], np.float32), "TIFF"))

    assert np.array_equal(rgb[:, :, 1], [[0, 100, 255]])


def test_floats_of_unknown_range_are_refused() -> None:
    """Heights, temperatures, counts: nobody can know what white is."""
    with pytest.raises(ImageError) as caught:
        decoded(saved(np.array([[0.0, 4000.0]], np.float32), "TIFF"))

    assert caught.value.reason is Reason.UNSUPPORTED_MODE


@pytest.mark.parametrize(
    ("order", "kind", "maximum"),
    [
        ("<", "u2", 65535), (">", "u2", 65535), ("<", "i2", 32767), (">", "i2", 32767),
        ("<", "i4", 2**31 - 1), (">", "i4", 2**31 - 1), ("<", "u4", 2**32 - 1),
    ],
)  # fmt: skip
def test_wide_integers_of_a_tiff_are_scaled_by_their_largest_value(order: str, kind: str, maximum: int) -> None:
    """Signed ones are black below zero."""
    values = np.array([[0, maximum // 4, maximum // 2, maximum]], np.dtype(kind).newbyteorder(order))
    bits, sample = 8 * values.itemsize, 2 if kind.startswith("i") else 1
    entries = [(256, 4), (257, 1), (258, bits), (259, 1), (262, 1), (273, 200), (277, 1), (278, 1)]
    entries += [(279, values.nbytes), (339, sample)]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries:
        directory += struct.pack(f"{order}HHII", tag, 4, 1, value)
    start = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(f"{order}I", 8)
    data = (start + directory + bytes(4)).ljust(200, b"\0") + values.tobytes()

    rgb, _, _ = decoded(data)

    assert np.abs(rgb[0, :, 0].astype(int) - [0, 64, 127, 255]).max() <= 1
    assert rgb[0, 3, 0] == 255


def test_stored_modes_are_named() -> None:
    """What the event says of the input."""
    assert probed(saved(photo(4, 4), "JPEG")).mode == "RGB"
    assert probed(saved(GREY, "JPEG")).mode == "L"
    assert probed(png([bytes(24)], 4, 16, 2)).mode == "RGB;16"
    assert probed(saved(Image.new("CMYK", (4, 4)), "JPEG")).mode == "CMYK"
