"""EXIF, XMP and text: what is taken and what is bounded. Colour profiles: kept, applied, or left out where broken."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from rmbgd.imaging.metadata import TEXT_MAXIMUM, clean_text, read_exif, sensible_dpi, xmp_orientation
from tests.imaging import builders
from tests.imaging.builders import by_pillow, chunk, cmyk_profile, decoded, exif, photo, png_of, rgb_profile, saved

SOUND = exif(orientation=3, dpi=72, text={0x8298: b"a" * 40, 0x010E: b"b"}, gps=True)


@pytest.mark.parametrize("order", ["<", ">"])
def test_facts_of_the_first_directory_are_read_in_both_byte_orders(order: str) -> None:
    block = exif(orientation=6, dpi=240, text={0x8298: "Jürgen ©".encode(), 0x013B: b"Someone"}, order=order)
    facts = read_exif(b"Exif\x00\x00" + block)
    assert (facts.orientation, facts.dpi, facts.sound) == (6, (240.0, 240.0), True)
    assert facts.text == {"copyright": "Jürgen ©", "artist": "Someone"}


@settings(deadline=None, max_examples=400)
@given(
    st.binary(max_size=300).map(lambda block: b"II*\x00" + block)
    | st.binary(max_size=300)
    | st.builds(lambda at, value: SOUND[:at] + value + SOUND[at + 1 :], st.integers(0, 200), st.binary(max_size=1))
)
def test_no_block_of_bytes_makes_the_reader_raise(block: bytes) -> None:
    facts = read_exif(block)
    assert facts.orientation is None or 0 <= facts.orientation < 1 << 32


@pytest.mark.parametrize("block", [b"II*\x00\xff\xff\xff\x7f", b"II*\x00", b"no EXIF", exif(dpi=72)[:40]])
def test_a_block_that_cannot_be_read_to_its_end_is_not_sound(block: bytes) -> None:
    assert not read_exif(block).sound


def test_text_becomes_one_printable_line_of_bounded_length() -> None:
    assert clean_text(b"  one\ntwo\x1b[31m\tthree\x00hidden") == "one two [31m three"
    assert clean_text("© Müller".encode("latin-1")) == "© Müller"  # old cameras did not know UTF-8
    assert len(clean_text("x" * 1_000_000)) == TEXT_MAXIMUM


@pytest.mark.parametrize("packet", [b'<x tiff:Orientation="3"/>', b"<tiff:Orientation>3</tiff:Orientation>"])
def test_orientation_is_found_in_both_notations_of_xmp(packet: bytes) -> None:
    assert xmp_orientation(packet) == 3


def test_absurd_resolutions_are_none() -> None:
    for x, y in [(0, 0), (-72, 72), (float("nan"), 72), (1e9, 72), (0.2, 0.2)]:
        assert sensible_dpi(x, y) is None
    assert sensible_dpi(299.9994, 72.009) == (300.0, 72.01)


def test_an_rgb_profile_is_carried_and_values_stay() -> None:
    data = saved(photo(16, 20), "JPEG", quality=95, icc_profile=rgb_profile())
    rgb, _, facts = decoded(data)
    assert facts.icc_profile == rgb_profile()
    assert np.array_equal(rgb, by_pillow(data))


@pytest.mark.parametrize(
    ("form", "mode", "limit"),
    [("JPEG", "CMYK", 2), ("TIFF", "CMYK", 2), ("JPEG", "L", 3), ("PNG", "L", 0), ("TIFF", "L", 0)],
)
def test_cmyk_and_grey_are_converted_through_their_profile(form: str, mode: str, limit: int) -> None:
    """A printer whose cyan is grey: the formula would give another colour. Linear grey becomes lighter in sRGB."""
    ramp = Image.fromarray(np.tile(np.arange(32, 256, 8, dtype=np.uint8), (8, 1)))
    image = ramp if mode == "L" else Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    profile = builders.grey_profile(1.0) if mode == "L" else cmyk_profile()
    rgb, _, facts = decoded(saved(image, form, icc_profile=profile, **({"quality": 100} if form == "JPEG" else {})))
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    how = ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB", False, ImageCms.Flags.BLACKPOINTCOMPENSATION
    expected = np.asarray(ImageCms.profileToProfile(image, source, target, *how)).astype(int)
    assert np.abs(rgb.astype(int) - expected).max() <= limit
    assert np.ptp(rgb[0, 0].astype(int)) <= 2
    assert facts.icc_profile is None


@pytest.mark.parametrize(("ink", "colour"), [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0), ((255, 255, 255, 255), 0)])
def test_cmyk_without_a_profile_is_converted_by_formula_and_noted(ink: tuple[int, ...], colour: int) -> None:
    rgb, _, facts = decoded(saved(Image.new("CMYK", (8, 8), ink), "JPEG", quality=100))
    assert np.abs(rgb.astype(int) - colour).max() <= 1
    assert any("CMYK" in note for note in facts.notes)


def test_lab_is_converted_to_srgb() -> None:
    image = Image.new("LAB", (3, 1))
    image.putdata([(255, 128, 128), (0, 128, 128), (137, 128, 128)])
    rgb = decoded(saved(image, "TIFF"))[0]
    assert np.abs(rgb[0, :, 0].astype(int) - [255, 0, 128]).max() <= 2


@pytest.mark.parametrize("profile", [b"garbage" * 20, rgb_profile()[:200], cmyk_profile()])
def test_a_profile_that_does_not_fit_is_left_out_and_noted(profile: bytes) -> None:
    stored = photo(6, 5)
    rgb, _, facts = decoded(png_of(stored, before=chunk(b"iCCP", b"x\x00\x00" + zlib.compress(profile))))
    assert np.array_equal(rgb, stored)
    assert facts.icc_profile is None
    assert any("profile" in note for note in facts.notes)
