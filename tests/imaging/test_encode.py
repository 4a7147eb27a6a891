"""Files as the recipe asks: pixels exact, profile and resolution kept, text by allow-list, GPS never."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from rmbgd.config.load import Recipe
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.compose import EncodeInput
from rmbgd.imaging.encode import SUFFIXES, encode
from rmbgd.imaging.formats import SourceFacts
from tests.imaging.builders import (
    TEXT_WORDS,
    chunk,
    decoded,
    exif,
    jpeg_segment,
    photo,
    png,
    probed,
    rgb_profile,
    saved,
    with_segments,
)

METADATA = {"copyright": "© Jürgen 漢字", "artist": "Someone", "description": "a chair", "software": "Camera 1.0"}
FACTS = SourceFacts("JPEG", "RGB", (30, 20), 1, rgb_profile(), (300.0, 240.0), METADATA, "0" * 64)
RGBA = np.dstack([photo(20, 30), np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)])


def encoded(pixels: np.ndarray, recipe: Recipe, facts: SourceFacts = FACTS) -> bytes:
    buffer = io.BytesIO()
    count = encode(EncodeInput(pixels), recipe, facts, buffer.write)
    assert count == len(buffer.getvalue())
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["png", "webp", "tiff"])
@pytest.mark.parametrize("pixels", [RGBA, RGBA[:, :, :3], RGBA[:, :, 3]], ids=["rgba", "rgb", "mask"])
def test_pixels_come_back_exactly(form: str, pixels: np.ndarray) -> None:
    """Lossless in every format; the colours under alpha 0 too when they are kept."""
    pixels = np.ascontiguousarray(pixels)

    data = encoded(pixels, Recipe(format=form, hidden_colours="keep"))

    with Image.open(io.BytesIO(data)) as opened:
        assert f".{opened.format.lower()[:3]}" in (SUFFIXES[form][:4], SUFFIXES[form])
        modes = {2: "L", 3: "RGB"}
        seen = np.asarray(opened if pixels.ndim == 3 and pixels.shape[2] == 4 else opened.convert(modes[pixels.ndim]))
    assert np.array_equal(seen, pixels)


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_a_16_bit_mask_comes_back_exactly(form: str) -> None:
    """Every step of a soft edge."""
    mask = np.random.default_rng(1).integers(0, 65536, (20, 30), np.uint16)

    data = encoded(mask, Recipe(format=form, content="mask", mask_bits=16))

    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(np.asarray(opened), mask)


@pytest.mark.parametrize("form", ["png", "webp", "tiff"])
def test_profile_resolution_and_text_are_kept(form: str) -> None:
    """As our own reader, which meets cutouts as inputs too, finds them."""
    header = probed(encoded(RGBA, Recipe(format=form)))

    assert header.icc_profile == rgb_profile()
    assert header.dpi == (300.0, 240.0)
    assert header.metadata == METADATA


@pytest.mark.parametrize("form", ["png", "webp", "tiff"])
def test_without_facts_nothing_is_made_up(form: str) -> None:
    """No profile, no resolution, no text."""
    header = probed(encoded(RGBA, Recipe(format=form), replace(FACTS, icc_profile=None, dpi=None, metadata={})))

    assert (header.icc_profile, header.metadata) == (None, {})
    assert header.dpi in (None, (1.0, 1.0))  # TIFF cannot say "unknown": 1 without a unit


@pytest.mark.parametrize("form", ["png", "webp", "tiff"])
def test_a_mask_has_no_colour_profile(form: str) -> None:
    """It is not a colour; an RGB profile on grey is an error to strict readers."""
    header = probed(encoded(np.ascontiguousarray(RGBA[:, :, 3]), Recipe(format=form, content="mask")))

    assert header.icc_profile is None
    assert header.dpi == (300.0, 240.0)


@pytest.mark.parametrize("form", ["png", "webp", "tiff"])
@pytest.mark.parametrize("source", ["jpeg", "png", "tiff"])
def test_a_gps_position_never_reaches_the_output(source: str, form: str) -> None:
    """Whatever the input and output are, and even if all text is carried over."""
    block = exif(text={0x8298: b"Someone"}, gps=True)
    plain = photo(20, 30)
    if source == "jpeg":
        data = with_segments(saved(plain, "JPEG"), jpeg_segment(0xE1, b"Exif\x00\x00" + block))
    elif source == "png":
        data = png([row.tobytes() for row in plain], 30, 8, 2, before=chunk(b"eXIf", block))
    else:
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[0x8298] = "Someone"
        tags[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
        data = saved(plain, "TIFF", tiffinfo=tags)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.getexif().get_ifd(0x8825)

    _, _, facts = decoded(data)
    output = encoded(RGBA, Recipe(format=form, metadata=list(TEXT_WORDS)), facts)

    assert facts.metadata == {"copyright": "Someone"}
    with Image.open(io.BytesIO(output)) as opened:
        opened.load()
        assert not opened.getexif().get_ifd(0x8825)
        assert 0x8825 not in opened.getexif()
    assert b"GPS" not in output


@pytest.mark.parametrize(("height", "width"), [(16_384, 2), (2, 16_384)])
def test_an_image_too_long_for_webp_is_refused_before_anything_is_written(height: int, width: int) -> None:
    """With what to do instead."""
    pieces: list[bytes] = []

    with pytest.raises(ImageError) as caught:
        encode(EncodeInput(np.zeros((height, width, 4), np.uint8)), Recipe(format="webp"), FACTS, pieces.append)

    assert caught.value.reason is Reason.OUTPUT_TOO_LARGE
    assert "png" in caught.value.detail
    assert pieces == []


def test_the_longest_webp_is_written() -> None:
    """16,383 pixels: the limit itself."""
    data = encoded(np.zeros((2, 16_383, 4), np.uint8), Recipe(format="webp"))

    assert probed(data).size == (16_383, 2)


def test_lossy_webp_is_smaller_and_keeps_alpha_exactly() -> None:
    """Quality is for colours."""
    pixels = np.dstack([photo(200, 300), np.random.default_rng(0).integers(0, 256, (200, 300), np.uint8)])

    lossy = encoded(pixels, Recipe(format="webp", webp_lossless=False, webp_quality=50))
    lossless = encoded(pixels, Recipe(format="webp"))

    assert len(lossy) < len(lossless)
    with Image.open(io.BytesIO(lossy)) as opened:
        assert np.array_equal(np.asarray(opened)[:, :, 3], pixels[:, :, 3])


def test_webp_forgets_hidden_colours_unless_they_are_kept() -> None:
    """The format may; the recipe decides."""
    hidden = RGBA.copy()
    hidden[:, :, 3] = 0

    kept = encoded(hidden, Recipe(format="webp", hidden_colours="keep"))

    with Image.open(io.BytesIO(kept)) as opened:
        assert np.array_equal(np.asarray(opened), hidden)


@pytest.mark.parametrize("form", ["png", "webp", "tiff"])
def test_what_write_raises_comes_through(form: str) -> None:
    """A full disk is the disk's fault, and whoever writes says so."""

    def full(_: bytes | memoryview) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        encode(EncodeInput(RGBA), Recipe(format=form), FACTS, full)
