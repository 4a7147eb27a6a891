"""Colour profiles: kept where they describe the result, applied where they cannot, left out where they are broken."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.imaging.builders import (
    chunk,
    cmyk_profile,
    decoded,
    grey_profile,
    jpeg_segment,
    photo,
    png,
    probed,
    rgb_profile,
    saved,
    with_segments,
)


def test_an_rgb_profile_is_carried_and_values_stay() -> None:
    """No conversion: the output gets the same profile."""
    data = saved(photo(16, 20), "JPEG", quality=95, icc_profile=rgb_profile())

    rgb, _, facts = decoded(data)

    assert facts.icc_profile == rgb_profile()
    assert np.array_equal(rgb, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_is_converted_through_its_profile(form: str) -> None:
    """A printer whose cyan is grey: the formula would give another colour."""
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    options = {"quality": 100} if form == "JPEG" else {}

    rgb, _, facts = decoded(saved(image, form, icc_profile=cmyk_profile(), **options))

    expected = _by_littlecms(image, cmyk_profile())
    assert np.abs(rgb.astype(int) - expected).max() <= 2
    assert np.ptp(rgb[0, 0].astype(int)) <= 2
    assert facts.icc_profile is None


@pytest.mark.parametrize(("ink", "colour"), [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0), ((255, 255, 255, 255), 0)])
def test_cmyk_without_a_profile_is_converted_by_formula_and_noted(ink: tuple[int, ...], colour: int) -> None:
    """No ink is white, in the inverted notation of Adobe too."""
    rgb, _, facts = decoded(saved(Image.new("CMYK", (8, 8), ink), "JPEG", quality=100))

    assert np.abs(rgb.astype(int) - colour).max() <= 1
    assert any("CMYK" in note for note in facts.notes)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_grey_is_converted_through_its_profile(form: str) -> None:
    """Linear grey becomes lighter in sRGB; the result needs no profile."""
    values = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (8, 1))
    options = {"quality": 100} if form == "JPEG" else {}

    rgb, _, facts = decoded(saved(values, form, icc_profile=grey_profile(1.0), **options))

    expected = _by_littlecms(Image.fromarray(values), grey_profile(1.0))
    limit = 3 if form == "JPEG" else 0  # what the JPEG changed itself, steepened by the curve
    assert np.abs(rgb.astype(int) - expected)[:, 4:].max() <= limit
    assert facts.icc_profile is None


def test_lab_is_converted_to_srgb() -> None:
    """White, black and mid grey; there is no RGB without a conversion."""
    image = Image.new("LAB", (3, 1))
    image.putdata([(255, 128, 128), (0, 128, 128), (137, 128, 128)])

    rgb, _, _ = decoded(saved(image, "TIFF"))

    assert np.abs(rgb[0, :, 0].astype(int) - [255, 0, 128]).max() <= 2


@pytest.mark.parametrize("profile", [b"garbage" * 20, rgb_profile()[:200], cmyk_profile()])
def test_a_profile_that_does_not_fit_is_left_out_and_noted(profile: bytes) -> None:
    """Unreadable, or for another kind of colour: pixels as they are."""
    stored = photo(6, 5)
    packed = b"x\x00\x00" + zlib.compress(profile)

    rgb, _, facts = decoded(png([row.tobytes() for row in stored], 5, 8, 2, before=chunk(b"iCCP", packed)))

    assert np.array_equal(rgb, stored)
    assert facts.icc_profile is None
    assert any("profile" in note for note in facts.notes)


def _piece(number: int, count: int, content: bytes) -> bytes:
    return jpeg_segment(0xE2, b"ICC_PROFILE\x00" + bytes((number, count)) + content)


def test_a_profile_in_pieces_is_put_together_in_order() -> None:
    """JPEG splits profiles over segments, which may come in any order."""
    profile, plain = rgb_profile(), saved(photo(4, 4), "JPEG")

    data = with_segments(plain, _piece(2, 2, profile[300:]), _piece(1, 2, profile[:300]))

    assert probed(data).icc_profile == profile


def test_a_profile_with_a_missing_piece_is_left_out_and_noted() -> None:
    """Half a profile is none."""
    header = probed(with_segments(saved(photo(4, 4), "JPEG"), _piece(1, 2, rgb_profile()[:300])))

    assert header.icc_profile is None
    assert any("profile" in note for note in header.notes)


def _by_littlecms(image: Image.Image, profile: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(
        image,
        source,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None
    return np.asarray(converted).astype(int)
