"""PNG: structure, checksums and weights are judged before any pixel; the decoder sees only what makes pixels.

And our own writer, read back by two decoders that are not ours.
"""

from __future__ import annotations

import io
import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib
from PIL import Image

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from rmbgd.imaging import png as png_module
from rmbgd.imaging.formats import PixelStream
from rmbgd.imaging.png import BAND_BYTES, PixelReader, write_png
from tests.imaging import builders
from tests.imaging.builders import PNG_SIGNATURE, by_pillow, chunk, decoded, ihdr, photo, png_of, probed, refusal, saved

STORED = photo(40, 30)


def test_every_cut_is_truncated_and_waited_for() -> None:
    data = saved(STORED, "PNG")
    for end in range(1, len(data), 53 if len(data) > 5000 else 7):
        error = refusal(data[:end])
        assert error.maybe_incomplete, (end, error)
        assert error.reason is (Reason.TRUNCATED if end >= 16 else Reason.UNIDENTIFIED)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_a_wrong_checksum_of_pixels_or_header_is_corrupt(kind: bytes) -> None:
    """Pillow alone would not look at the checksum of image data."""
    data = bytearray(png_of(STORED))
    at = data.index(kind)
    length = struct.unpack_from(">I", data, at - 4)[0]
    data[at + 4 + length] ^= 1
    assert builders.verdict(bytes(data)) == (Reason.CORRUPT, False)


def test_a_wrong_checksum_of_text_and_bytes_after_the_end_cost_nothing_else() -> None:
    text = bytearray(chunk(b"tEXt", b"Copyright\x00Someone"))
    text[-1] ^= 1
    rgb, _, facts = decoded(png_of(STORED, before=bytes(text)) + b"PK\x03\x04")
    assert np.array_equal(rgb, STORED)
    assert facts.metadata == {}
    assert facts.notes == ("chunk tEXt damaged, left out", "4 bytes after the end left out")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PNG_SIGNATURE + ihdr(0, 5, 8, 2), Reason.UNIDENTIFIED),
        (PNG_SIGNATURE + ihdr(5, 0, 8, 2), Reason.UNIDENTIFIED),
        (PNG_SIGNATURE + ihdr(2**31 - 1, 2**31 - 1, 8, 2), Reason.TOO_LARGE),
        (PNG_SIGNATURE + ihdr(30_000, 30_000, 8, 0), Reason.TOO_LARGE),
        (PNG_SIGNATURE + ihdr(1, 50_000_000, 8, 0), Reason.TOO_LARGE),
        (PNG_SIGNATURE + ihdr(8, 8, 3, 2), Reason.CORRUPT),
        (PNG_SIGNATURE + ihdr(8, 8, 8, 1), Reason.CORRUPT),
        (PNG_SIGNATURE + ihdr(8, 8, 8, 2, interlace=7), Reason.CORRUPT),
        (PNG_SIGNATURE + chunk(b"IDAT", bytes(40)), Reason.CORRUPT),
    ],
)
def test_a_header_that_cannot_be_is_refused_from_33_bytes(data: bytes, reason: Reason) -> None:
    assert refusal(data + bytes(12)).reason is reason


PACKED = zlib.compress(b"".join(b"\x00" + row.tobytes() for row in STORED))


@pytest.mark.parametrize(
    "body",
    [
        ihdr(30, 40, 8, 2),
        ihdr(30, 40, 8, 3) + chunk(b"IDAT", b"x"),
        ihdr(30, 40, 8, 2) + chunk(b"QDAT", b"x") + chunk(b"IDAT", b"x"),
        ihdr(30, 40, 8, 2) + chunk(b"IDAT", zlib.compress(bytes(100))),
        ihdr(30, 40, 8, 2) + chunk(b"IDAT", PACKED[:50]) + chunk(b"tEXt", b"a\x00b") + chunk(b"IDAT", PACKED[50:]),
        ihdr(30, 40, 8, 2) + struct.pack(">I", 0x7FFFFFFF) + b"IDAT" + bytes(50) + b"x",
    ],
    ids=["no data", "no palette", "unknown critical chunk", "too little data", "data in two runs", "endless chunk"],
)
def test_a_whole_file_without_a_whole_image_is_corrupt(body: bytes) -> None:
    """The end is there, or claimed beyond what any upload could complete, so it is not truncated."""
    assert builders.verdict(PNG_SIGNATURE + body + chunk(b"IEND", b"")) == (Reason.CORRUPT, False)


@pytest.fixture(scope="module")
def bomb() -> bytes:
    return zlib.compress(bytes(200_000_000), 1)


@pytest.mark.parametrize(
    ("kind", "start"), [(b"zTXt", b"a\x00\x00"), (b"iTXt", b"a\x00\x01\x00\x00\x00"), (b"iCCP", b"a\x00\x00")]
)
def test_text_that_unpacks_to_200_megabytes_is_a_metadata_bomb(kind: bytes, start: bytes, bomb: bytes) -> None:
    assert refusal(png_of(STORED, before=chunk(kind, start + bomb))).reason is Reason.METADATA_BOMB


def test_many_small_bombs_count_together() -> None:
    part = chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(300_000)))
    assert refusal(png_of(STORED, before=part * 30)).reason is Reason.METADATA_BOMB
    assert np.array_equal(decoded(png_of(STORED, before=part * 20))[0], STORED)


def test_200_000_text_chunks_are_read_over_and_600_000_refused() -> None:
    """4 MB of text chunks cost no memory; walking over many more would take longer than the watchdog's patience."""
    rgb, _, _ = decoded(png_of(STORED, before=chunk(b"tEXt", b"k\x00value") * 200_000))
    assert np.array_equal(rgb, STORED)
    assert refusal(png_of(STORED, before=chunk(b"tEXt", b"") * 600_000)).reason is Reason.METADATA_BOMB


def test_a_thousand_damaged_chunks_make_a_few_notes() -> None:
    before = b"".join(chunk(b"te" + bytes((a, b)), b"x")[:-1] + b"!" for a in range(65, 91) for b in range(65, 91))
    _, _, facts = decoded(png_of(STORED, before=before))
    assert 1 < len(facts.notes) < 10


def test_allow_listed_text_is_taken_from_all_three_kinds_of_chunks() -> None:
    """Latin-1, compressed, and UTF-8, packed or not; keywords in any case. What is damaged is left out and noted."""
    before = chunk(b"tEXt", b"Copyright\x00" + "© Müller".encode("latin-1")) + chunk(b"tEXt", b"GPS\x00somewhere")
    before += chunk(b"zTXt", b"description\x00\x00" + zlib.compress(b"a chair"))
    before += chunk(b"iTXt", b"Author\x00\x00\x00\x00\x00" + "漢字".encode())
    before += chunk(b"iTXt", b"Software\x00\x01\x00\x00\x00" + zlib.compress(b"Camera"))
    damaged = chunk(b"zTXt", b"Copyright\x00\x00no deflate"), chunk(b"iTXt", b"Copyright\x00\x00\x00en")
    header = probed(png_of(STORED, before=before))
    text = {"copyright": "© Müller", "artist": "漢字", "description": "a chair", "software": "Camera"}
    assert header.metadata == text
    for one in damaged:
        header = probed(png_of(STORED, before=one))
        assert (header.metadata, header.notes) == ({}, ("text chunk damaged, left out",))


def test_resolution_is_read_in_pixels_per_metre() -> None:
    metre, aspect = struct.pack(">IIB", 11811, 11811, 1), struct.pack(">IIB", 2, 1, 0)
    assert probed(png_of(STORED, before=chunk(b"pHYs", metre))).dpi == (300.0, 300.0)
    assert probed(png_of(STORED, before=chunk(b"pHYs", aspect))).dpi is None


@pytest.mark.parametrize(
    ("colour_type", "channels", "content"), [(2, 3, b"\x00\x01"), (0, 1, b"\x00"), (3, 1, bytes(9)), (6, 4, bytes(6))]
)
def test_a_transparency_chunk_that_does_not_fit_is_noted(colour_type: int, channels: int, content: bytes) -> None:
    palette = chunk(b"PLTE", bytes(6)) if colour_type == 3 else b""
    header = probed(builders.png([bytes(4 * channels)], 4, 8, colour_type, before=palette + chunk(b"tRNS", content)))
    assert any("transparency" in note for note in header.notes)
    assert header.has_alpha == (colour_type == 6)


def test_an_interlaced_png_is_decoded() -> None:
    """Adam7, 8 x 8 grey, from its seven passes (PNG specification, section 8.2)."""
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    rows = [row for top, down, left, right in passes for row in values[top::down, left::right]]
    packed = zlib.compress(b"".join(b"\x00" + row.tobytes() for row in rows))
    data = PNG_SIGNATURE + ihdr(8, 8, 8, 0, interlace=1) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    assert np.array_equal(decoded(data)[0], np.repeat(values[:, :, None], 3, axis=2))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_the_pieces_read_like_one_file(data: st.DataObject) -> None:
    prefix, whole, suffix = (data.draw(st.binary(min_size=1, max_size=30)) for _ in range(3))
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    pieces = PixelReader(whole, PixelStream(prefix, start, end, suffix))
    reference = io.BytesIO(prefix + whole[start:end] + suffix)
    for _ in range(data.draw(st.integers(1, 8))):
        if data.draw(st.booleans()):
            place = data.draw(st.integers(0, 100))
            assert pieces.seek(place) == reference.seek(place)
        size = data.draw(st.integers(-1, 40))
        assert pieces.read(size) == reference.read(size)
        assert pieces.tell() == reference.tell()


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 100_000), st.binary(min_size=1, max_size=6))
def test_any_damage_is_a_reason_or_the_same_image(at: int, bytes_: bytes) -> None:
    data = bytearray(saved(photo(12, 10), "PNG"))
    at %= len(data)
    data[at : at + len(bytes_)] = bytes_
    result = builders.outcome(bytes(data), limits=LimitSettings(pixels=100_000))
    assert result.detail if isinstance(result, ImageError) else np.array_equal(result, photo(12, 10))


def written(pixels: np.ndarray, **options: object) -> bytes:
    pieces: list[bytes] = []
    write_png(pixels, lambda piece: pieces.append(bytes(piece)), **{"level": 2, **options})  # type: ignore[arg-type]
    return b"".join(pieces)


def chunks(data: bytes) -> list[bytes]:
    found, at = [], 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        found.append(kind)
        at += 12 + length
    return found


def by_opencv(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    codes = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, codes[pixels.shape[2]])


KINDS = {"grey": (), "grey16": (), "rgb": (3,), "rgba": (4,)}  # -> channels


def noise(height: int, width: int, kind: str, seed: int = 0) -> np.ndarray:
    dtype = np.uint16 if kind == "grey16" else np.uint8
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, *KINDS[kind]), dtype)


@settings(deadline=None, max_examples=120)
@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([*KINDS]), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_two_decoders_read_exactly_what_was_written(height: int, width: int, kind: str, level: int, seed: int) -> None:
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


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("length", [20, 288, 289, 305, 900])
def test_equal_parts_give_equal_bytes_wherever_the_compressor_lies(
    level: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes from the third on equal the address of the compressor, and come again: see png.deflate."""
    compressors = [isal_zlib.compressobj(level, zlib.DEFLATED, 15, 9) for _ in range(12)]
    addresses = [id(compressor) >> 16 for compressor in compressors]
    assert len({*addresses}) > 6
    for one, other, address in zip(compressors[:6], compressors[6:], addresses, strict=False):
        seen = struct.pack("<I", address & 0xFFFFFFFF) + b"seen"
        text = bytes(np.random.default_rng(address).integers(97, 113, length, np.uint8))
        data = (b"\2\7" + seen + text[14 : length // 2] + seen + text)[:length]
        results = []
        for compressor in (one, other):
            monkeypatch.setattr(png_module, "_backend", SimpleNamespace(compressobj=lambda *_, it=compressor: it))
            results.append(b"".join(png_module.deflate([data], level)))
        assert zlib.decompress(results[0]) == data
        assert results[0] == results[1]


def test_standard_zlib_is_used_where_isal_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A valid file of the same pixels. Here ISA-L is there: a silent fallback would cost four times the time."""
    assert png_module._backend is not zlib
    monkeypatch.setattr(png_module, "_backend", zlib)
    pixels = noise(70, 51, "rgba")
    assert np.array_equal(by_pillow(written(pixels)), pixels)
    assert np.array_equal(by_opencv(written(pixels)), pixels)


def test_profile_resolution_and_text_are_there_and_nothing_else() -> None:
    """In an order that the specification allows: all before the image. No gamma, no colour space, no time."""
    text = [("Copyright", "© Müller"), ("Author", "漢字")]
    data = written(photo(20, 30), icc_profile=builders.rgb_profile(), dpi=(300.0, 72.0), text=text)
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        assert opened.info["icc_profile"] == builders.rgb_profile()
        assert opened.info["dpi"] == pytest.approx((300.0, 72.0), abs=0.02)
        assert (opened.info["Copyright"], opened.info["Author"]) == ("© Müller", "漢字")
    kinds = chunks(data)
    assert kinds == [b"IHDR", b"iCCP", b"pHYs", b"tEXt", b"iTXt", *[b"IDAT"] * (len(kinds) - 6), b"IEND"]
    assert set(chunks(written(photo(20, 30)))) == {b"IHDR", b"IDAT", b"IEND"}


def test_the_file_is_at_most_a_seventh_larger_than_pillows() -> None:
    pixels = np.dstack([photo(600, 800), np.full((600, 800), 255, np.uint8)])
    assert len(written(pixels)) < len(saved(pixels, "PNG")) * 8 / 7
