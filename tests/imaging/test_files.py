"""Formats that Pillow or OpenCV read for us, and reading from descriptors."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence, TiffImagePlugin, features

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.decode import decode_into, read_limited
from rmbgd.imaging.pillow import heif_installed
from tests.imaging.builders import decoded, exif, outcome, photo, probed, saved


def refusal(data: bytes, **options: object) -> ImageError:
    result = outcome(data, **options)  # type: ignore[arg-type]
    assert isinstance(result, ImageError), "decoded, but should have been refused"
    return result


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
def test_webp_pixels_are_those_of_the_reference_decoder(lossless: bool, alpha: bool) -> None:
    """Lossy and lossless, with and without alpha, in odd sizes."""
    for height, width in ((1, 1), (17, 31), (64, 5)):
        image = photo(height, width)
        if alpha:
            image = np.dstack([image, np.random.default_rng(2).integers(0, 256, (height, width), np.uint8)])
        data = saved(image, "WEBP", lossless=lossless, quality=80, exact=True)

        rgb, seen_alpha, _ = decoded(data)

        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(opened)
        assert np.array_equal(rgb, expected[:, :, :3])
        assert (seen_alpha is not None) == alpha
        if alpha:
            assert np.array_equal(seen_alpha, expected[:, :, 3])


def test_an_animated_webp_is_refused_or_gives_its_first_frame() -> None:
    """As the recipe says."""
    frames = [Image.fromarray(photo(20, 30, seed)) for seed in range(3)]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    rgb, _, _ = decoded(data, animated="first_frame")

    assert refusal(data).reason is Reason.ANIMATED
    assert np.array_equal(rgb, photo(20, 30, 0))


def test_an_animated_gif_is_refused_or_gives_its_first_frame() -> None:
    """As the recipe says."""
    frames = [Image.fromarray(photo(20, 30, seed)).quantize(16) for seed in range(3)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])

    rgb, _, _ = decoded(data, animated="first_frame")

    assert refusal(data).reason is Reason.ANIMATED
    assert np.array_equal(rgb, np.asarray(frames[0].convert("RGB")))


def test_a_tiff_of_several_pages_is_refused_or_gives_its_first_page() -> None:
    """A scanned document is not one image."""
    pages = [Image.fromarray(photo(20, 30, seed)) for seed in range(3)]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])

    rgb, _, _ = decoded(data, animated="first_frame")

    assert refusal(data).reason is Reason.ANIMATED
    assert np.array_equal(rgb, photo(20, 30, 0))


def test_a_tiff_with_a_thumbnail_behind_it_is_one_image() -> None:
    """NewSubfileType 1: a reduced copy, as editors write."""
    small = Image.fromarray(photo(5, 8))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254] = 1
    small.encoderinfo = {"tiffinfo": tags}
    data = saved(Image.fromarray(photo(20, 30)), "TIFF", save_all=True, append_images=[small])
    with Image.open(io.BytesIO(data)) as opened:
        assert len(list(ImageSequence.Iterator(opened))) == 2

    rgb, _, _ = decoded(data)

    assert np.array_equal(rgb, photo(20, 30))


def test_a_tiff_whose_second_directory_is_broken_is_one_image() -> None:
    """What nothing can read is no page."""
    data = bytearray(saved(photo(8, 8), "TIFF", compression="raw"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, len(data) - 3)

    rgb, _, _ = decoded(bytes(data))

    assert np.array_equal(rgb, photo(8, 8))


def test_the_preview_of_a_camera_raw_file_is_never_taken_for_the_photograph() -> None:
    """DNG, NEF and ARW are TIFFs whose first page is a small preview."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[254], tags[330] = 1, 1000

    error = refusal(saved(photo(20, 30), "TIFF", tiffinfo=tags))

    assert (error.reason, "raw" in error.detail) == (Reason.FORMAT_NOT_ALLOWED, True)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_tiff_compressions_are_read(compression: str) -> None:
    """Exact, but for JPEG inside."""
    options = {"quality": 95} if compression == "jpeg" else {}
    data = saved(photo(40, 30), "TIFF", compression=compression, **options)

    rgb, _, _ = decoded(data)

    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(rgb, np.asarray(opened.convert("RGB")))


def test_a_tiff_that_refers_to_itself_ends() -> None:
    """A directory whose successor is itself."""
    data = bytearray(saved(photo(8, 8), "TIFF", compression="raw"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)

    rgb, _, _ = decoded(bytes(data))

    assert np.array_equal(rgb, photo(8, 8))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("WEBP", {"lossless": True}),
        ("TIFF", {"compression": "raw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("BMP", {}),
        ("GIF", {}),
        ("AVIF", {}),
    ],
)
def test_a_missing_tail_is_truncated_and_waited_for(form: str, options: dict[str, object]) -> None:
    """Half a file, of every format."""
    image = Image.fromarray(photo(120, 90))
    data = saved(image.quantize(64) if form == "GIF" else image, form, **options)

    for end in (len(data) // 4, len(data) // 2, len(data) - len(data) // 10):
        error = refusal(data[:end])
        assert (error.reason, error.maybe_incomplete) == (Reason.TRUNCATED, True), (end, error)


def test_avif_pixels_are_those_of_the_reference_decoder() -> None:
    """With alpha, where this Pillow has the decoder."""
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF decoder")
    data = saved(np.dstack([photo(40, 30), photo(40, 30)[:, :, 0]]), "AVIF", quality=90)

    rgb, alpha, _ = decoded(data)

    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(np.dstack([rgb, alpha]), np.asarray(opened))


def test_any_damage_of_an_avif_is_a_reason_or_an_image() -> None:
    """Its plugin raises what no other plugin does."""
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF decoder")
    data = saved(photo(16, 16), "AVIF", quality=50)

    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0xFF
        result = outcome(bytes(changed), limits=LimitSettings(pixels=100_000))
        assert result.detail if isinstance(result, ImageError) else result.shape[2] == 3


def test_heic_pixels_are_those_of_the_plugin_turned_once() -> None:
    """With its orientation, where pillow-heif is installed."""
    if not heif_installed():
        pytest.skip("pillow-heif is not installed")
    import pillow_heif

    pillow_heif.register_heif_opener()
    if not pillow_heif.libheif_info()["encoders"]:
        pytest.skip("this pillow-heif cannot write HEIC to test with")
    block = b"Exif\x00\x00" + exif(orientation=6)
    data = saved(photo(48, 64), "HEIF", quality=90, exif=block)

    rgb, _, facts = decoded(data)

    assert facts.format == "HEIF"
    assert rgb.shape == (64, 48, 3)
    assert np.abs(rgb.astype(int) - photo(48, 64).swapaxes(0, 1)[:, ::-1]).mean() < 6


def test_a_collection_of_heic_images_is_one_image() -> None:
    """Bursts and live photos: the primary one, not an animation."""
    if not heif_installed():
        pytest.skip("pillow-heif is not installed")
    import pillow_heif

    pillow_heif.register_heif_opener()
    if not pillow_heif.libheif_info()["encoders"]:
        pytest.skip("this pillow-heif cannot write HEIC to test with")
    images = [Image.fromarray(photo(48, 64, seed)) for seed in range(2)]

    assert probed(saved(images[0], "HEIF", save_all=True, append_images=images[1:])).frames == 2


def test_decoding_writes_every_byte_of_both_planes() -> None:
    """A source_alpha plane without alpha in the image is opaque."""
    data = saved(photo(10, 12), "JPEG")
    header = probed(data)
    rgb, alpha = np.full((10, 12, 3), 77, np.uint8), np.full((10, 12), 77, np.uint8)

    decode_into(data, header, rgb, alpha)

    assert (alpha == 255).all()
    assert not (rgb == 77).all(axis=2).any()


def test_planes_of_the_wrong_size_are_an_error_of_the_caller() -> None:
    """ValueError: no image is to blame."""
    data = saved(np.dstack([photo(10, 12), photo(10, 12)[:, :, 0]]), "PNG")
    header = probed(data)

    with pytest.raises(ValueError, match="planes"):
        decode_into(data, header, np.empty((12, 10, 3), np.uint8), np.empty((10, 12), np.uint8))
    with pytest.raises(ValueError, match="source_alpha"):
        decode_into(data, header, np.empty((10, 12, 3), np.uint8), None)


def test_a_memoryview_decodes_like_bytes() -> None:
    """Callers may map the file."""
    data = saved(photo(10, 12), "PNG")
    header = probed(memoryview(data))  # type: ignore[arg-type]
    rgb = np.empty((10, 12, 3), np.uint8)

    decode_into(memoryview(data), header, rgb, None)

    assert np.array_equal(rgb, photo(10, 12))


# -------------------------------------------------------------------------------------------------------- read_limited


def read(path: Path, limits: LimitSettings | None = None) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return read_limited(descriptor, limits or LimitSettings())
    finally:
        os.close(descriptor)


def test_a_file_is_read_whole_from_its_beginning(tmp_path: Path) -> None:
    """Whatever the descriptor's own position is, which does not move."""
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    os.lseek(descriptor, 5000, os.SEEK_SET)

    data = read_limited(descriptor, LimitSettings())

    assert data == bytes(range(256)) * 1000
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 5000
    os.close(descriptor)


def test_an_empty_file_is_empty_and_waited_for(tmp_path: Path) -> None:
    """Created, not yet written."""
    (tmp_path / "a").touch()

    with pytest.raises(ImageError) as caught:
        read(tmp_path / "a")

    assert (caught.value.reason, caught.value.maybe_incomplete) == (Reason.EMPTY, True)


def test_a_file_beyond_the_limit_is_refused_without_reading_it(tmp_path: Path) -> None:
    """A sparse terabyte costs nothing."""
    with (tmp_path / "a").open("wb") as stream:
        stream.truncate(1 << 40)

    with pytest.raises(ImageError) as caught:
        read(tmp_path / "a")

    assert caught.value.reason is Reason.TOO_MANY_BYTES


def test_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    """One byte more is not."""
    (tmp_path / "a").write_bytes(bytes(1000))

    assert len(read(tmp_path / "a", LimitSettings(file_bytes=1000))) == 1000
    with pytest.raises(ImageError):
        read(tmp_path / "a", LimitSettings(file_bytes=999))


def test_a_file_that_grows_or_shrinks_meanwhile_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fstat said is only a hint."""
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    real = os.fstat

    for told in (1, 255_999, 256_001, 10_000_000):
        monkeypatch.setattr(os, "fstat", lambda fd, told=told: os.stat_result([*real(fd)[:6], told, *real(fd)[7:]]))
        assert read(tmp_path / "a") == bytes(range(256)) * 1000


@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    """Never read from, never waited on."""
    path = {"directory": tmp_path, "pipe": tmp_path / "p", "device": Path("/dev/zero")}[kind]
    if kind == "pipe":
        os.mkfifo(path)

    with pytest.raises(ImageError) as caught:
        read(path)

    assert caught.value.reason is Reason.NOT_REGULAR
