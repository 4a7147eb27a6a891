"""Orientation 1 to 8, against the definition and against Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rmbgd.imaging import decode as orient
from tests.imaging.builders import chunk, decoded, exif, jpeg_segment, photo, png, saved, with_segments

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
    """Placed band by band, the image is what the definition says, whole and exact."""
    stored = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, depth), np.uint8)
    stored = stored[:, :, 0] if depth == 1 else stored
    expected = DEFINITION[turn](stored)
    plane = np.empty_like(expected, order="C")

    for first in range(0, height, rows):
        orient.place(plane, first, np.ascontiguousarray(stored[first : first + rows]), turn)

    assert np.array_equal(plane, expected)
    assert orient.upright((width, height), turn) == expected.shape[1::-1]


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_jpeg_is_turned_upright(turn: int) -> None:
    """Exactly as Pillow does it; more rows than one band."""
    block = b"Exif\x00\x00" + exif(orientation=turn)
    data = with_segments(saved(photo(201, 150), "JPEG", quality=90), jpeg_segment(0xE1, block))

    rgb, _, facts = decoded(data)

    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(rgb, expected)
    assert (facts.orientation, facts.size) == (turn, expected.shape[1::-1])


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["WEBP", "TIFF", "AVIF"])
def test_other_formats_are_turned_upright(form: str, turn: int) -> None:
    """Also where the decoder turns by itself: never twice."""
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(form, {})
    block = Image.Exif()
    block[0x0112] = turn
    data = saved(photo(40, 27), form, exif=block, **options)

    rgb, _, _ = decoded(data)

    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(rgb, np.asarray(ImageOps.exif_transpose(opened).convert("RGB")))


@pytest.mark.parametrize("turn", range(1, 9))
def test_alpha_is_turned_with_its_image(turn: int) -> None:
    """PNG with an eXIf chunk, RGBA."""
    stored = np.random.default_rng(1).integers(0, 256, (5, 7, 4), np.uint8)
    data = png([row.tobytes() for row in stored], 7, 8, 6, before=chunk(b"eXIf", exif(orientation=turn)))

    rgb, alpha, _ = decoded(data)

    assert np.array_equal(rgb, DEFINITION[turn](stored[:, :, :3]))
    assert np.array_equal(alpha, DEFINITION[turn](stored[:, :, 3]))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_meaningless_orientation_is_noted_and_not_obeyed(value: int) -> None:
    """Values outside 1 to 8."""
    stored = photo(6, 9)
    data = png([row.tobytes() for row in stored], 9, 8, 2, before=chunk(b"eXIf", exif(orientation=value)))

    rgb, _, facts = decoded(data)

    assert np.array_equal(rgb, stored)
    assert any("orientation" in note for note in facts.notes)


def test_exif_wins_over_xmp_and_xmp_counts_where_exif_is_silent() -> None:
    """Editors write both; some write XMP alone."""
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\x00\x00\x00\x00\x00" + b'<x tiff:Orientation="3"/>')
    stored = photo(6, 9)
    rows = [row.tobytes() for row in stored]

    alone, _, _ = decoded(png(rows, 9, 8, 2, before=xmp))
    both, _, _ = decoded(png(rows, 9, 8, 2, before=xmp + chunk(b"eXIf", exif(orientation=2))))

    assert np.array_equal(alone, DEFINITION[3](stored))
    assert np.array_equal(both, DEFINITION[2](stored))
