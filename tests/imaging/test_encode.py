"""Files as the recipe asks: pixels exact, profile and resolution kept, text by allow-list, GPS never."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rmbgd.config.load import Recipe
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.encode import SUFFIXES, encode
from rmbgd.imaging.formats import SourceFacts
from tests.imaging import builders
from tests.imaging.builders import by_pillow, decoded, exif, photo, probed, rgb_profile, saved

FORMS = ["png", "webp", "tiff"]
METADATA = {"copyright": "© Jürgen 漢字", "artist": "Someone", "description": "a chair", "software": "Camera 1.0"}
FACTS = SourceFacts("JPEG", "RGB", (30, 20), 1, rgb_profile(), (300.0, 240.0), METADATA, "0" * 64)
RGBA = np.dstack([photo(20, 30), np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)])


def encoded(pixels: np.ndarray, recipe: Recipe, facts: SourceFacts = FACTS) -> bytes:
    buffer = io.BytesIO()
    encode(pixels, recipe, facts, buffer.write)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "kind"),
    [*itertools.product(FORMS, ["rgba", "rgb", "mask"]), ("png", "mask of 16 bits"), ("tiff", "mask of 16 bits")],
)
def test_pixels_come_back_exactly(form: str, kind: str) -> None:
    wide = np.random.default_rng(1).integers(0, 65536, (20, 30), np.uint16)
    pixels = {"rgba": RGBA, "rgb": RGBA[:, :, :3], "mask": RGBA[:, :, 3], "mask of 16 bits": wide}[kind]
    data = encoded(np.ascontiguousarray(pixels), Recipe(format=form, hidden_colours="keep"))
    with Image.open(io.BytesIO(data)) as opened:
        assert f".{opened.format.lower()[:3]}" in (SUFFIXES[form][:4], SUFFIXES[form])
        seen = np.asarray(opened.convert({"rgb": "RGB", "mask": "L"}[kind]) if kind in ("rgb", "mask") else opened)
    assert np.array_equal(seen, pixels)


@pytest.mark.parametrize("form", FORMS)
def test_profile_resolution_and_text_are_kept_and_none_is_made_up(form: str) -> None:
    header = probed(encoded(RGBA, Recipe(format=form)))
    mask = probed(encoded(np.ascontiguousarray(RGBA[:, :, 3]), Recipe(format=form, content="mask")))
    bare = probed(encoded(RGBA, Recipe(format=form), replace(FACTS, icc_profile=None, dpi=None, metadata={})))
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
    output = encoded(RGBA, Recipe(format=form, metadata=list(builders.TEXT_WORDS)), facts)
    assert facts.metadata == {"copyright": "Someone"}
    with Image.open(io.BytesIO(output)) as opened:
        opened.load()
        assert 0x8825 not in opened.getexif()
    assert b"GPS" not in output


@pytest.mark.parametrize(("height", "width"), [(16_384, 2), (2, 16_384)])
def test_an_image_too_long_for_webp_is_refused_before_anything_is_written(height: int, width: int) -> None:
    pieces: list[bytes] = []
    with pytest.raises(ImageError) as caught:
        encode(np.zeros((height, width, 4), np.uint8), Recipe(format="webp"), FACTS, pieces.append)
    assert (caught.value.reason, pieces) == (Reason.OUTPUT_TOO_LARGE, [])
    assert "png" in caught.value.detail
    assert probed(encoded(np.zeros((2, 16_383, 4), np.uint8), Recipe(format="webp"))).size == (16_383, 2)


def test_lossy_webp_is_smaller_and_keeps_alpha_exactly() -> None:
    pixels = np.dstack([photo(200, 300), np.random.default_rng(0).integers(0, 256, (200, 300), np.uint8)])
    lossy = encoded(pixels, Recipe(format="webp", webp_lossless=False, webp_quality=50))
    assert len(lossy) < len(encoded(pixels, Recipe(format="webp")))
    assert np.array_equal(by_pillow(lossy)[:, :, 3], pixels[:, :, 3])
