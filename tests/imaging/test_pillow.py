"""TIFF, AVIF, HEIC and WebP: what Pillow or OpenCV decode for us."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from tests.imaging.builders import by_pillow, decoded, exif, outcome, photo, probed, refusal, saved, verdict

AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF decoder")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 31), (64, 5)])
@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize(
    ("form", "lossless"), [("WEBP", True), ("WEBP", False), pytest.param("AVIF", False, marks=AVIF)]
)
def test_webp_and_avif_pixels_are_pillows(form: str, lossless: bool, alpha: bool, height: int, width: int) -> None:
    image = photo(height, width)
    if alpha:
        image = np.dstack([image, np.random.default_rng(2).integers(0, 256, (height, width), np.uint8)])
    data = saved(image, form, lossless=lossless, quality=80, exact=True)
    rgb, seen, _ = decoded(data)
    assert np.array_equal(rgb if seen is None else np.dstack([rgb, seen]), by_pillow(data))
    assert (seen is not None) == alpha


def test_a_tiff_with_a_thumbnail_behind_it_is_one_image() -> None:
    """NewSubfileType 1: a reduced copy, as editors write."""
    small = Image.fromarray(photo(5, 8))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    small.encoderinfo = {"tiffinfo": tags}
    data = saved(photo(20, 30), "TIFF", save_all=True, append_images=[small])
    assert probed(data).frames == 2
    assert np.array_equal(decoded(data)[0], photo(20, 30))


@pytest.mark.parametrize("successor", [lambda at, _: at, lambda _, size: size - 3], ids=["itself", "beyond the end"])
def test_a_tiff_that_refers_to_itself_or_to_nothing_is_one_image(successor: Callable[[int, int], int]) -> None:
    data = bytearray(saved(photo(8, 8), "TIFF", compression="raw"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, successor(first, len(data)))
    assert np.array_equal(decoded(bytes(data))[0], photo(8, 8))


def test_the_preview_of_a_camera_raw_file_is_never_taken_for_the_photograph() -> None:
    """DNG, NEF and ARW are TIFFs whose first page is a small preview."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254], tags[330] = 1, 1000
    error = refusal(saved(photo(20, 30), "TIFF", tiffinfo=tags))
    assert (error.reason, "raw" in error.detail) == (Reason.FORMAT_NOT_ALLOWED, True)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_tiff_compressions_are_read(compression: str) -> None:
    data = saved(photo(40, 30), "TIFF", compression=compression)
    assert np.array_equal(decoded(data)[0], by_pillow(data, "RGB"))


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "TIFF raw", "BMP", "GIF", "AVIF"])
def test_a_missing_tail_is_truncated_and_waited_for(kind: str) -> None:
    image, form = Image.fromarray(photo(120, 90)), kind.partition(" ")[0]
    options = {"WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_adobe_deflate"}}.get(kind, {})
    data = saved(image.quantize(64) if form == "GIF" else image, form, **options)
    for end in (len(data) // 4, len(data) // 2, len(data) - len(data) // 10):
        assert verdict(data[:end]) == (Reason.TRUNCATED, True), end


@AVIF
def test_any_damage_of_an_avif_is_a_reason_or_an_image() -> None:
    data = saved(photo(16, 16), "AVIF", quality=50)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0xFF
        result = outcome(bytes(changed), limits=LimitSettings(pixels=100_000))
        assert result.detail if isinstance(result, ImageError) else result.shape[2] == 3


@pytest.fixture
def heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    pillow_heif.register_heif_opener()
    if not pillow_heif.libheif_info()["encoders"]:
        pytest.skip("this pillow-heif cannot write HEIC to test with")


@pytest.mark.usefixtures("heic")
def test_heic_pixels_are_those_of_the_plugin_turned_once() -> None:
    rgb, _, facts = decoded(saved(photo(48, 64), "HEIF", quality=90, exif=b"Exif\x00\x00" + exif(orientation=6)))
    assert facts.format == "HEIF"
    assert np.abs(rgb.astype(int) - photo(48, 64).swapaxes(0, 1)[:, ::-1]).mean() < 6


@pytest.mark.usefixtures("heic")
def test_a_collection_of_heic_images_is_one_image() -> None:
    images = [Image.fromarray(photo(48, 64, seed)) for seed in range(2)]
    assert probed(saved(images[0], "HEIF", save_all=True, append_images=images[1:])).frames == 2
