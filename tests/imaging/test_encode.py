"""Files as the recipe asks: pixels exact, profile and resolution kept, text by allow-list, GPS never."""

from __future__ import annotations

import io
import itertools
import struct
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from rmbgd.config.load import Recipe
from rmbgd.deliver.arrange import arrange
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.colour_space import srgb_profile
from rmbgd.imaging.encode import encode
from rmbgd.imaging.formats import SourceFacts
from rmbgd.naming import EXTENSIONS
from tests.imaging import builders
from tests.imaging.builders import by_pillow, decoded, exif, photo, probed, rgb_profile, saved

LOSSLESS = ["png", "webp", "tiff"]
FORMS = [*LOSSLESS, "jpeg"]
METADATA = {"copyright": "© Jürgen 漢字", "artist": "Someone", "description": "a chair", "software": "Camera 1.0"}
FACTS = SourceFacts("JPEG", "RGB", (30, 20), 1, rgb_profile(), (300.0, 240.0), METADATA, "0" * 64)
RGBA = np.dstack([photo(20, 30), np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)])


def pixels_for(form: str) -> np.ndarray:
    """As `arrange` hands them over: JPEG never gets an alpha."""
    return np.ascontiguousarray(RGBA[:, :, :3]) if form == "jpeg" else RGBA


def encoded(pixels: np.ndarray, recipe: Recipe, facts: SourceFacts = FACTS) -> bytes:
    buffer = io.BytesIO()
    encode(pixels, recipe, facts, buffer.write)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "kind"),
    [*itertools.product(LOSSLESS, ["rgba", "rgb", "mask"]), ("png", "mask of 16 bits"), ("tiff", "mask of 16 bits")],
)
def test_pixels_come_back_exactly(form: str, kind: str) -> None:
    wide = np.random.default_rng(1).integers(0, 65536, (20, 30), np.uint16)
    pixels = {"rgba": RGBA, "rgb": RGBA[:, :, :3], "mask": RGBA[:, :, 3], "mask of 16 bits": wide}[kind]
    data = encoded(np.ascontiguousarray(pixels), Recipe(format=form, hidden_colours="keep"))
    with Image.open(io.BytesIO(data)) as opened:
        assert f".{opened.format.lower()[:3]}" in (EXTENSIONS[form][:4], EXTENSIONS[form])
        seen = np.asarray(opened.convert({"rgb": "RGB", "mask": "L"}[kind]) if kind in ("rgb", "mask") else opened)
    assert np.array_equal(seen, pixels)


@pytest.mark.parametrize("form", FORMS)
def test_profile_resolution_and_text_are_kept_and_none_is_made_up(form: str) -> None:
    header = probed(encoded(pixels_for(form), Recipe(format=form)))
    mask = probed(encoded(np.ascontiguousarray(RGBA[:, :, 3]), Recipe(format=form, content="mask")))
    without = replace(FACTS, icc_profile=None, dpi=None, metadata={})
    bare = probed(encoded(pixels_for(form), Recipe(format=form), without))
    assert (header.icc_profile, header.dpi, header.metadata) == (rgb_profile(), (300.0, 240.0), METADATA)
    assert (mask.icc_profile, mask.dpi) == (None, (300.0, 240.0))
    assert (bare.icc_profile, bare.metadata) == (None, {})
    assert bare.dpi in (None, (1.0, 1.0))  # TIFF cannot say "unknown": 1 without a unit


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", ["JPEG", "PNG", "TIFF"])
def test_a_gps_position_never_reaches_the_output(source: str, form: str) -> None:
    block = b"Exif\x00\x00" + exif(text={0x8298: b"Someone"}, gps=True)
    data = saved(photo(20, 30), source, exif=block)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.getexif().get_ifd(0x8825)
    _, _, facts = decoded(data)
    output = encoded(pixels_for(form), Recipe(format=form, metadata=list(builders.TEXT_WORDS)), facts)
    assert facts.metadata == {"copyright": "Someone"}
    with Image.open(io.BytesIO(output)) as opened:
        opened.load()
        assert 0x8825 not in opened.getexif()
    assert b"GPS" not in output


@pytest.mark.parametrize(("form", "most"), [("webp", 16_383), ("jpeg", 65_500)])
@pytest.mark.parametrize("upright", [True, False])
def test_an_image_too_long_for_its_format_is_refused_before_anything_is_written(
    form: str, most: int, *, upright: bool
) -> None:
    pieces: list[bytes] = []
    size = (most + 1, 2) if upright else (2, most + 1)
    with pytest.raises(ImageError) as caught:
        encode(np.zeros((*size, 3), np.uint8), Recipe(format=form), FACTS, pieces.append)
    assert (caught.value.reason, pieces) == (Reason.OUTPUT_TOO_LARGE, [])
    assert "png" in caught.value.detail
    data = encoded(np.zeros((2, most, 3), np.uint8), Recipe(format=form))
    with Image.open(io.BytesIO(data)) as opened:
        assert (most, 2) == opened.size


def test_lossy_webp_is_smaller_and_keeps_alpha_exactly() -> None:
    pixels = np.dstack([photo(200, 300), np.random.default_rng(0).integers(0, 256, (200, 300), np.uint8)])
    lossy = encoded(pixels, Recipe(format="webp", webp_lossless=False, webp_quality=50))
    assert len(lossy) < len(encoded(pixels, Recipe(format="webp")))
    assert np.array_equal(by_pillow(lossy)[:, :, 3], pixels[:, :, 3])


@pytest.mark.parametrize("colour", ["#ffffff", "#f5f5f5", "#663399"])
def test_jpeg_has_the_background_in_plain_areas_and_colours_of_full_resolution(colour: str) -> None:
    """8 bits of brightness and two differences cannot tell all colours: one level may be lost."""
    rgba = np.dstack([photo(160, 240), np.zeros((160, 240), np.uint8)])
    rgba[48:112, 72:168, 3] = 255
    recipe = Recipe(format="jpeg", background=colour)
    data = encoded(arrange(rgba.copy(), None, recipe).pixels, recipe)
    with Image.open(io.BytesIO(data)) as opened:
        assert ("JPEG", "RGB", [(1, 1)] * 3) == (opened.format, opened.mode, [layer[1:3] for layer in opened.layer])
        seen = np.asarray(opened).astype(int)
    wanted = np.array(list(bytes.fromhex(colour[1:])))
    plain = np.ones((160, 240), np.bool_)
    plain[48:112, 72:168] = False
    assert np.abs(seen[plain] - wanted).max() <= (0 if len(set(wanted)) == 1 else 1)
    assert np.abs(seen - rgba[:, :, :3])[~plain].mean() < 4


def test_jpeg_of_higher_quality_is_larger_and_nearer() -> None:
    sizes, errors = [], []
    for quality in (50, 90, 100):
        data = encoded(photo(100, 150), Recipe(format="jpeg", jpeg_quality=quality))
        sizes.append(len(data))
        errors.append(np.abs(by_pillow(data).astype(int) - photo(100, 150)).mean())
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)


def test_text_and_resolution_that_jpeg_cannot_hold_are_cut_to_what_it_can() -> None:
    facts = replace(FACTS, dpi=(100_000.0, 90_000.0), metadata=dict.fromkeys(builders.TEXT_WORDS, "漢" * 4096))
    header = probed(encoded(photo(20, 30), Recipe(format="jpeg"), facts))
    assert dict.fromkeys(builders.TEXT_WORDS, "漢" * 4000) == header.metadata
    assert (65_535.0, 65_535.0) == header.dpi


def test_profile_that_jpeg_cannot_hold_is_refused() -> None:
    with pytest.raises(ImageError, match="output_too_large: JPEG holds no colour profile"):
        encoded(photo(20, 30), Recipe(format="jpeg"), replace(FACTS, icc_profile=bytes(17_000_000)))


@pytest.mark.parametrize("form", FORMS)
def test_srgb_and_resolution_are_said_where_the_recipe_asks(form: str) -> None:
    recipe = Recipe(format=form, colour_space="srgb", dpi=150)
    for facts in (FACTS, replace(FACTS, icc_profile=None, dpi=None)):
        header = probed(encoded(pixels_for(form), recipe, facts))
        assert header.icc_profile == srgb_profile()
        assert header.dpi == pytest.approx((150.0, 150.0), abs=0.02)


def test_the_srgb_profile_is_the_same_on_every_run() -> None:
    """LittleCMS writes the time into a profile, to the second; this one has a fixed date."""
    assert srgb_profile.__wrapped__() == srgb_profile()
    assert struct.unpack(">6H", srgb_profile()[24:36]) == (2026, 1, 1, 0, 0, 0)
    assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile())))


@pytest.mark.parametrize(("content", "kind"), [("rgba", 2), ("foreground", 1)])
def test_a_tiff_says_whether_its_colours_are_multiplied_by_alpha(content: str, kind: int) -> None:
    data = encoded(RGBA, Recipe(format="tiff", content=content, hidden_colours="keep"))
    with Image.open(io.BytesIO(data)) as opened:
        assert (opened.mode, opened.tag_v2[338]) == ("RGBA", (kind,))


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_quality_can_be_given_for_one_file(form: str) -> None:
    recipe = Recipe(format=form, webp_lossless=False)
    sizes = []
    for quality in (30, 95):
        buffer = io.BytesIO()
        encode(photo(100, 150), recipe, FACTS, buffer.write, quality=quality)
        sizes.append(len(buffer.getvalue()))
    assert sizes[0] < sizes[1]


def test_white_blocks_of_a_jpeg_are_exactly_white_to_two_decoders() -> None:
    rgba = np.dstack([photo(160, 240), np.zeros((160, 240), np.uint8)])
    rgba[48:112, 72:168, 3] = 255
    recipe = Recipe(format="jpeg", jpeg_quality=80)
    data = encoded(arrange(rgba, None, recipe).pixels, recipe)
    for seen in (by_pillow(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)):
        white = np.ones((160, 240), np.bool_)
        white[48:112, 72:168] = False
        assert (seen[white] == 255).all()
        assert (seen[~white] < 255).any()
