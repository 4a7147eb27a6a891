"""Our PNG writer, read back by two decoders that are not ours."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rmbgd.imaging import png as deflate
from rmbgd.imaging.png import BAND_BYTES, write_png
from tests.imaging.builders import photo, png_chunks, rgb_profile


def written(pixels: np.ndarray, **options: object) -> bytes:
    pieces: list[bytes] = []
    write_png(pixels, lambda piece: pieces.append(bytes(piece)), **{"level": 2, **options})  # type: ignore[arg-type]
    return b"".join(pieces)


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened)


def by_opencv(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    codes = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, codes[pixels.shape[2]])


def noise(height: int, width: int, kind: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "grey16":
        return rng.integers(0, 65536, (height, width), np.uint16)
    shape = {"grey": (height, width), "rgb": (height, width, 3), "rgba": (height, width, 4)}[kind]
    return rng.integers(0, 256, shape, np.uint8)


KINDS = ["grey", "grey16", "rgb", "rgba"]


@settings(deadline=None, max_examples=120)
@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from(KINDS), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_two_decoders_read_exactly_what_was_written(height: int, width: int, kind: str, level: int, seed: int) -> None:
    """Every layout, size and level."""
    pixels = noise(height, width, kind, seed)
    data = written(pixels, level=level)

    assert np.array_equal(by_pillow(data), pixels)
    assert np.array_equal(by_opencv(data), pixels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(1, 300_000), (300_000, 1), (1203, 1001)])
def test_images_of_many_bands_are_seamless(kind: str, height: int, width: int) -> None:
    """Rows longer than a band, more rows than a band holds, and bands that do not divide the height."""
    pixels = noise(height, width, kind)

    data = written(pixels)

    assert pixels.nbytes > BAND_BYTES // 2
    assert np.array_equal(by_pillow(data), pixels)
    if max(height, width) < 1 << 17:  # libpng's own limit in OpenCV
        assert np.array_equal(by_opencv(data), pixels)


def test_standard_zlib_stands_in_where_isal_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A valid file of the same pixels, on machines without ISA-L."""
    monkeypatch.setattr(deflate, "_backend", zlib)
    pixels = noise(70, 51, "rgba")

    assert np.array_equal(by_pillow(written(pixels)), pixels)
    assert np.array_equal(by_opencv(written(pixels)), pixels)


def test_isal_is_what_this_machine_uses() -> None:
    """The dependency is there; a silent fallback would cost four times the time."""
    assert deflate.NAME == "isal"


def test_profile_resolution_and_text_are_there() -> None:
    """And in an order that the specification allows: all before the image."""
    text = [("Copyright", "© Müller"), ("Author", "漢字")]

    data = written(photo(20, 30), icc_profile=rgb_profile(), dpi=(300.0, 72.0), text=text)

    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        assert opened.info["icc_profile"] == rgb_profile()
        assert opened.info["dpi"] == pytest.approx((300.0, 72.0), abs=0.02)
        assert (opened.info["Copyright"], opened.info["Author"]) == ("© Müller", "漢字")
    kinds = [kind for kind, _ in png_chunks(data)]
    assert kinds == [b"IHDR", b"iCCP", b"pHYs", b"tEXt", b"iTXt", *[b"IDAT"] * (len(kinds) - 6), b"IEND"]


def test_nothing_is_written_that_was_not_asked_for() -> None:
    """No gamma, no colour space, no time, no text; every checksum right."""
    kinds = {kind for kind, _ in png_chunks(written(photo(20, 30)))}

    assert kinds == {b"IHDR", b"IDAT", b"IEND"}


def test_16_bit_values_are_big_endian_in_the_file() -> None:
    """The first pixel of a 1 x 1 image, unpacked by hand."""
    data = written(np.array([[0x1234]], np.uint16))

    packed = b"".join(body for kind, body in png_chunks(data) if kind == b"IDAT")
    assert zlib.decompress(packed) == b"\x02" + struct.pack(">H", 0x1234)


def test_the_file_is_at_most_a_seventh_larger_than_pillows() -> None:
    """One row filter for all rows costs little on photographs."""
    pixels = np.dstack([photo(600, 800), np.full((600, 800), 255, np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")

    assert len(written(pixels)) < len(buffer.getvalue()) * 8 / 7
