"""EXIF, XMP and text: what is taken, what is bounded, what is never seen."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.imaging.metadata import TEXT_MAXIMUM, clean_text, read_exif, sensible_dpi, xmp_orientation
from tests.imaging.builders import exif


@pytest.mark.parametrize("order", ["<", ">"])
def test_facts_of_the_first_directory_are_read_in_both_byte_orders(order: str) -> None:
    """Orientation, resolution and text."""
    block = exif(orientation=6, dpi=240, text={0x8298: "Jürgen ©".encode(), 0x013B: b"Someone"}, order=order)

    facts = read_exif(b"Exif\x00\x00" + block)

    assert (facts.orientation, facts.dpi, facts.sound) == (6, (240.0, 240.0), True)
    assert facts.text == {"copyright": "Jürgen ©", "artist": "Someone"}


def test_latin_1_text_is_understood() -> None:
    """Old cameras and editors did not know UTF-8."""
    assert read_exif(exif(text={0x8298: "© Müller".encode("latin-1")})).text == {"copyright": "© Müller"}


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.booleans())
def test_no_block_of_bytes_makes_the_reader_raise(block: bytes, prefixed: bool) -> None:
    """Whatever the bytes: facts come back."""
    read_exif((b"II*\x00" if prefixed else b"") + block)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 200), st.integers(0, 255))
def test_damage_anywhere_in_a_real_block_does_not_make_the_reader_raise(at: int, value: int) -> None:
    """One changed byte of a sound block."""
    block = bytearray(exif(orientation=3, dpi=72, text={0x8298: b"a" * 40, 0x010E: b"b"}, gps=True))
    block[at % len(block)] = value

    facts = read_exif(bytes(block))

    assert facts.orientation is None or 0 <= facts.orientation < 1 << 32


def test_a_directory_that_points_nowhere_is_not_sound() -> None:
    """An offset outside the block."""
    assert not read_exif(b"II*\x00\xff\xff\xff\x7f").sound


def test_text_becomes_one_printable_line_of_bounded_length() -> None:
    """Control characters, line breaks and overlong text end here."""
    assert clean_text(b"  one\ntwo\x1b[31m\tthree\x00hidden") == "one two [31m three"
    assert len(clean_text("x" * 1_000_000)) == TEXT_MAXIMUM


@pytest.mark.parametrize("packet", [b'<x tiff:Orientation="3"/>', b"<tiff:Orientation>3</tiff:Orientation>"])
def test_orientation_is_found_in_both_notations_of_xmp(packet: bytes) -> None:
    """As an attribute and as an element."""
    assert xmp_orientation(packet) == 3


def test_absurd_resolutions_are_none() -> None:
    """Zero, negative, not a number, and larger than any device."""
    for x, y in [(0, 0), (-72, 72), (float("nan"), 72), (1e9, 72), (0.2, 0.2)]:
        assert sensible_dpi(x, y) is None
    assert sensible_dpi(299.9994, 72.009) == (300.0, 72.01)
