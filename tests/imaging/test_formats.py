"""Formats are recognised by content; what is refused is refused by name."""

from __future__ import annotations

import pytest

from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.formats import Head, judge_head, sniff


def refused(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        sniff(data)
    return caught.value


STARTS = {
    "JPEG": [b"\xff\xd8\xff\xe0"],
    "PNG": [b"\x89PNG\r\n\x1a\n"],
    "WEBP": [b"RIFF\x10\x00\x00\x00WEBPVP8 "],
    "TIFF": [b"II*\x00\x08\x00\x00\x00", b"MM\x00*\x00\x00\x00\x08", b"II+\x00\x08\x00\x00\x00"],
    "BMP": [b"BM" + bytes(12) + b"\x28\x00\x00\x00"],
    "GIF": [b"GIF89a", b"GIF87a"],
    "AVIF": [b"\0\0\0\x1cftypavif\0\0\0\0", b"\0\0\0\x1cftypmif1\0\0\0\0miafavif"],
    "HEIF": [b"\0\0\0\x18ftypheic\0\0\0\0mif1", b"\0\0\0\x18ftypmif1\0\0\0\0heic"],
}


@pytest.mark.parametrize("form", STARTS)
def test_allowed_formats_are_known_by_their_first_bytes(form: str) -> None:
    assert {sniff(start + b"\x01" * 64) for start in STARTS[form]} == {form}


OTHERS = {
    "Photoshop": [b"8BPS\x00\x01"],
    "PostScript": [b"%!PS-Adobe-3.0 EPSF-3.0", b"\xc5\xd0\xd3\xc6"],
    "PDF": [b"%PDF-1.7"],
    "JPEG 2000": [b"\x00\x00\x00\x0cjP  \r\n\x87\n"],
    "JPEG XL": [b"\xff\x0a\x00"],
    "texture": [b"BLP1"],
    "surface": [b"DDS |"],
    "icon": [b"\x00\x00\x01\x00\x01\x00"],
    "anymap": [b"P6\n640 480\n"],
    "SVG": [b"<?xml version='1.0'?><svg xmlns='x'>", b"\xef\xbb\xbf  <svg>"],
    "raw": [b"II*\x00\x10\x00\x00\x00CR\x02\x00", b"FUJIFILMCCD-RAW ", b"\x00\x00\x00\x18ftypcrx "],
}


@pytest.mark.parametrize("word", OTHERS)
def test_other_image_formats_are_refused_by_name(word: str) -> None:
    errors = [refused(start + b"\x01" * 64) for start in OTHERS[word]]
    assert {error.reason for error in errors} == {Reason.FORMAT_NOT_ALLOWED}
    assert all(word in error.detail for error in errors)


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        *((start.ljust(160, b"\x01"), Head.KNOWN) for starts in STARTS.values() for start in starts),
        *((start.ljust(160, b"\x01"), Head.FOREIGN) for start in (*OTHERS["PDF"], *OTHERS["icon"], *OTHERS["anymap"])),
        (b"shopping list: two loaves of bread", Head.FOREIGN),
        (b"shopping list", Head.KNOWN),  # too few bytes to say
        (bytes(31) + b"\x01", Head.FOREIGN),
        (bytes(32) + b"\x01" * 128, Head.BLANK),
        (bytes(128) + b"DICM" + bytes(28), Head.FOREIGN),
        (bytes(31), Head.KNOWN),
    ],
)
def test_a_beginning_tells_images_from_space_to_be_filled_and_from_all_else(head: bytes, answer: Head) -> None:
    assert judge_head(head) is answer


@pytest.mark.parametrize(
    ("data", "reason", "maybe_incomplete"),
    [
        (b"<!DOCTYPE html><html><body>no image</body></html>", Reason.UNIDENTIFIED, False),
        (b"<?php system($_GET['c']); ?>       ", Reason.UNIDENTIFIED, False),
        (b"PK\x03\x04" + bytes(60) + b"x", Reason.UNIDENTIFIED, False),
        (b"\x7fELF\x02\x01\x01" + bytes(60) + b"x", Reason.UNIDENTIFIED, False),
        (b"\x00\x00\x00\x20ftypisom" + bytes(60) + b"x", Reason.UNIDENTIFIED, False),
        (b"RIFF\x10\x00\x00\x00AVI LIST" + b"x" * 60, Reason.UNIDENTIFIED, False),
        (b"\x89PNG\n\x1a\n" + b"\x01" * 64, Reason.CORRUPT, False),  # as a transfer in text mode leaves it
        (b"", Reason.EMPTY, True),
        (b"\xff", Reason.UNIDENTIFIED, True),
        (b"\xff\xd8\xff", Reason.UNIDENTIFIED, True),
        (b"\x89PNG\r\n\x1a\n", Reason.UNIDENTIFIED, True),
        (bytes(65536), Reason.UNIDENTIFIED, True),
    ],
)
def test_no_image_is_unidentified_and_waited_for_if_it_may_still_be_filled(
    data: bytes, reason: Reason, maybe_incomplete: bool
) -> None:
    error = refused(data)
    assert (error.reason, error.maybe_incomplete) == (reason, maybe_incomplete)
