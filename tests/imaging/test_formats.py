"""Formats are told by content; what is refused is refused by name."""

from __future__ import annotations

import pytest

from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.formats import sniff


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("JPEG", b"\xff\xd8\xff\xe0"),
        ("PNG", b"\x89PNG\r\n\x1a\n"),
        ("WEBP", b"RIFF\x10\x00\x00\x00WEBPVP8 "),
        ("TIFF", b"II*\x00\x08\x00\x00\x00"),
        ("TIFF", b"MM\x00*\x00\x00\x00\x08"),
        ("TIFF", b"II+\x00\x08\x00\x00\x00"),
        ("BMP", b"BM" + bytes(12) + b"\x28\x00\x00\x00"),
        ("GIF", b"GIF89a"),
        ("GIF", b"GIF87a"),
        ("AVIF", b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00"),
        ("AVIF", b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00miafavif"),
        ("HEIF", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1"),
        ("HEIF", b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00heic"),
    ],
)
def test_allowed_formats_are_known_by_their_first_bytes(form: str, start: bytes) -> None:
    """The name of the format, whatever follows."""
    assert sniff(start + b"\x01" * 64) == form


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (b"8BPS\x00\x01", "Photoshop"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"\xc5\xd0\xd3\xc6", "PostScript"),
        (b"%PDF-1.7", "PDF"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a\x00", "JPEG XL"),
        (b"BLP1", "texture"),
        (b"DDS |", "surface"),
        (b"\x00\x00\x01\x00\x01\x00", "icon"),
        (b"P6\n640 480\n", "anymap"),
        (b"<?xml version='1.0'?><svg xmlns='x'>", "SVG"),
        (b"\xef\xbb\xbf  <svg>", "SVG"),
        (b"II*\x00\x10\x00\x00\x00CR\x02\x00", "raw"),
        (b"FUJIFILMCCD-RAW ", "raw"),
        (b"\x00\x00\x00\x18ftypcrx ", "raw"),
    ],
)
def test_other_image_formats_are_refused_by_name(start: bytes, word: str) -> None:
    """FORMAT_NOT_ALLOWED, with a word that an operator understands."""
    with pytest.raises(ImageError) as caught:
        sniff(start + b"\x01" * 64)

    assert caught.value.reason is Reason.FORMAT_NOT_ALLOWED
    assert word in caught.value.detail


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html><body>no image</body></html>",
        b"<?php system($_GET['c']); ?>       ",
        b"PK\x03\x04" + bytes(60) + b"x",
        b"\x7fELF\x02\x01\x01" + bytes(60) + b"x",
        b"\x00\x00\x00\x20ftypisom" + bytes(60) + b"x",
        b"RIFF\x10\x00\x00\x00AVI LIST" + b"x" * 60,
    ],
)
def test_what_is_no_image_is_unidentified(data: bytes) -> None:
    """Text, programs, archives and videos, for good: waiting would not make them images."""
    with pytest.raises(ImageError) as caught:
        sniff(data)

    assert (caught.value.reason, caught.value.maybe_incomplete) == (Reason.UNIDENTIFIED, False)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"\xff", Reason.UNIDENTIFIED),
        (b"\xff\xd8\xff", Reason.UNIDENTIFIED),
        (b"\x89PNG\r\n\x1a\n", Reason.UNIDENTIFIED),
        (bytes(65536), Reason.UNIDENTIFIED),
    ],
)
def test_what_may_still_be_filled_is_said_to_be_maybe_incomplete(data: bytes, reason: Reason) -> None:
    """No bytes, a few bytes, or the zeros of reserved space: an upload that has just begun looks like this."""
    with pytest.raises(ImageError) as caught:
        sniff(data)

    assert (caught.value.reason, caught.value.maybe_incomplete) == (reason, True)


def test_a_png_mangled_by_a_text_transfer_is_corrupt() -> None:
    """The signature was made to show exactly this."""
    with pytest.raises(ImageError) as caught:
        sniff(b"\x89PNG\n\x1a\n" + b"\x01" * 64)

    assert caught.value.reason is Reason.CORRUPT
