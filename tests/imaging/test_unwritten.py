"""Parts of a file that were never written: found in every format, and never in whole images of any kind."""

from __future__ import annotations

import dataclasses
import functools
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.formats import Coded, Header
from rmbgd.imaging.unwritten import NO_TRACES, NOTE, WriteTraces, check_written
from rmbgd.imaging.zero_runs import PAGE, SECTOR, page_runs, zero_runs
from tests.imaging.builders import decoded, jpeg_segment, photo, probed, refusal, saved

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("RGB", "JPEG", {"quality": 95}),
    "optimized JPEG": ("RGB", "JPEG", {"quality": 95, "optimize": True}),
    "progressive JPEG": ("RGB", "JPEG", {"quality": 95, "progressive": True}),
    "JPEG with restart markers": ("RGB", "JPEG", {"quality": 95, "restart_marker_rows": 1}),
    "grey JPEG": ("L", "JPEG", {"quality": 97}),
    "CMYK JPEG": ("CMYK", "JPEG", {"quality": 95}),
    "PNG": ("RGB", "PNG", {}),
    "WebP": ("RGB", "WEBP", {"quality": 97, "method": 0}),
    "lossless WebP": ("RGB", "WEBP", {"lossless": True, "quality": 0, "method": 1}),
    "GIF": ("P", "GIF", {}),
    "BMP": ("RGB", "BMP", {}),
    "TIFF": ("RGB", "TIFF", {}),
    "TIFF, LZW": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "TIFF, deflate": ("RGB", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF, PackBits": ("RGB", "TIFF", {"compression": "packbits"}),
    "TIFF, fax": ("1", "TIFF", {"compression": "group4"}),
    "TIFF, JPEG": ("RGB", "TIFF", {"compression": "jpeg", "quality": 97}),
    "AVIF": ("RGB", "AVIF", {"quality": 95, "speed": 10}),
}
STORED = ("BMP", "TIFF")
CODED = [kind for kind in KINDS if kind not in STORED]


@functools.cache
def noisy() -> Image.Image:
    noise = np.random.default_rng(1).integers(-12, 12, (330, 410, 1))
    return Image.fromarray((photo(330, 410) + noise).clip(0, 255).astype(np.uint8))


def black_band() -> Image.Image:
    """A dark frame: rows of black, and black beside the subject."""
    image = noisy().copy()
    image.paste((0, 0, 0), (0, 0, image.width, 90))
    image.paste((0, 0, 0), (0, 90, 150, 200))
    return image


@functools.cache
def whole(kind: str, make: Any = noisy) -> bytes:
    mode, form, options = KINDS[kind]
    return saved(make().convert(mode), form, **options)


def half(data: bytes, start: float, end: float, *, off: int = 0) -> bytes:
    """`data` without the pages between two shares of it; both ends `off` by some bytes."""
    first, behind = (int(len(data) * share) // PAGE * PAGE + off for share in (start, end))
    assert behind - first >= 2 * PAGE
    return data[:first] + bytes(behind - first) + data[behind:]


def judged(data: bytes, traces: WriteTraces = NO_TRACES, *, accept: bool = False) -> tuple[str, ...] | Reason:
    """Notes of a file that is whole, or why it is not; then it may be completed."""
    try:
        header = probed(data)
        check_written(data, header, traces, accept=accept)
        return decoded(data)[2].notes + header.notes
    except ImageError as error:
        return error.reason if error.maybe_incomplete else Reason.CORRUPT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shares", [(0.15, 0.6), (0.3, 0.95)])
def test_pages_that_were_never_written_are_found(kind: str, shares: tuple[float, float]) -> None:
    assert judged(half(whole(kind), *shares)) is Reason.TRUNCATED


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("off", [1, 777])
def test_where_pixels_are_coded_zeros_are_found_wherever_they_begin(kind: str, off: int) -> None:
    assert judged(half(whole(kind), 0.2, 0.7, off=off)) is Reason.TRUNCATED


def black() -> Image.Image:
    return Image.new("RGB", (900, 700))


def white() -> Image.Image:
    return Image.new("RGB", (900, 700), "white")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [noisy, black_band, black, white])
def test_whole_images_pass_however_even_they_are(kind: str, make: Any) -> None:
    """Black that is stored as it is, is noted where it is long: it might be a part that was not written."""
    notes = judged(whole(kind, make))
    assert isinstance(notes, tuple)
    assert (NOTE in notes) == (kind in STORED and len(zero_spans(whole(kind, make))) > 0)


def zero_spans(data: bytes) -> list[tuple[int, int]]:
    return list(zero_runs(np.frombuffer(data, np.uint8), PAGE))


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("off", [0, 777])
def test_pages_of_an_animations_first_frame_are_found(lossless: bool, off: int) -> None:
    other = noisy().copy()
    other.putpixel((5, 5), (255, 0, 0))
    data = saved(noisy(), "WEBP", save_all=True, append_images=[other], quality=97, lossless=lossless, method=0)
    first, behind = 3 * PAGE + off, 8 * PAGE + off
    assert first + behind < len(data)
    assert animated(data[:first] + bytes(behind - first) + data[behind:]) is Reason.TRUNCATED
    assert animated(data) is None


def animated(data: bytes) -> Reason | None:
    try:
        header = probed(data, animated="first_frame")
        check_written(data, header, NO_TRACES, accept=False)
        decoded(data, animated="first_frame")
    except ImageError as error:
        return error.reason
    return None


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("off", [0, 500])
def test_pages_of_an_alpha_channel_are_found(stored: bool, off: int) -> None:
    """Coded, and as it is."""
    image = noisy().copy()
    image.putalpha(Image.fromarray(np.random.default_rng(2).integers(1, 256, (330, 410)).astype(np.uint8)))
    data = saved(image, "WEBP", quality=30, alpha_quality=100)
    at = data.index(b"ALPH")
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    if stored:
        alpha = b"\0" + np.asarray(image)[..., 3].tobytes()
        pieces = data[12:at] + b"ALPH" + len(alpha).to_bytes(4, "little") + alpha + bytes(len(alpha) & 1)
        pieces += data[at + 8 + length + (length & 1) :]
        data = b"RIFF" + (len(pieces) + 4).to_bytes(4, "little") + b"WEBP" + pieces
    assert isinstance(judged(data), tuple)
    first, behind = at // PAGE * PAGE + 5 * PAGE + off, at // PAGE * PAGE + 19 * PAGE + off
    assert judged(data[:first] + bytes(behind - first) + data[behind:]) is Reason.TRUNCATED


@pytest.mark.parametrize("kind", ["WebP", "lossless WebP", "TIFF, JPEG", "TIFF, LZW"])
@pytest.mark.parametrize("lacking", [16, 200])
def test_a_file_that_was_seen_to_be_filled_has_its_last_bytes(kind: str, lacking: int) -> None:
    filled = WriteTraces(refilled=True)
    assert NOTE not in judged(whole(kind), filled)
    assert NOTE not in judged(whole(kind, white), filled), "what ends in zeros by itself"
    assert judged(whole(kind)[:-lacking] + bytes(lacking), filled) in (Reason.TRUNCATED, Reason.CORRUPT)


def test_an_image_of_boxes_does_not_end_in_zeros() -> None:
    assert judged(whole("AVIF")[:-20] + bytes(20)) is Reason.TRUNCATED
    assert judged(whole("AVIF")[:-20] + bytes(20), accept=True) != ()


def test_padding_among_metadata_and_behind_the_end_is_none_of_the_pixels() -> None:
    exif = Image.Exif()
    exif[0xEA1C] = bytes(2060)  # what Windows leaves for later edits
    assert judged(saved(noisy(), "AVIF", quality=80, speed=10, exif=exif.tobytes())) == ()
    assert judged(whole("GIF") + bytes(5000)) == ()


def test_a_gap_is_found_below_a_black_band() -> None:
    frame = noisy().copy()
    frame.paste((0, 0, 0), (0, 250, frame.width, frame.height))  # a bitmap begins at the bottom
    data = saved(frame, "BMP")
    first, behind = 40 * PAGE + 1000, 70 * PAGE + 555
    assert judged(data[:first] + bytes(behind - first) + data[behind:]) is Reason.TRUNCATED


def test_crafted_files_take_no_time_to_speak_of() -> None:
    """Each of them took, or would take, minutes: a long run of zeros, thousands of scans, of chunks, of holes."""
    white = saved(Image.new("RGB", (4000, 4000), "white"), "JPEG", quality=30, optimize=True)
    outcome_of(white[:-2] + bytes(200_000) + b"\1\2\3" + white[-2:])
    small = saved(photo(8, 8), "JPEG")
    scan = small[small.index(b"\xff\xda") : -2]
    outcome_of(small[:-2] + scan * 100_000 + small[-2:])
    frame = b"ANMF" + (616).to_bytes(4, "little") + bytes(16) + b"VP8 " + (592).to_bytes(4, "little") + bytes(592)
    webp = saved(noisy(), "WEBP", save_all=True, append_images=[noisy().rotate(1)])
    outcome_of(webp[:4] + (len(webp) - 8 + 7000 * len(frame)).to_bytes(4, "little") + webp[8:] + frame * 7000)
    data = bytearray(saved(Image.new("RGB", (3000, 2000)), "BMP"))
    holes = tuple((at, at + PAGE) for at in range(2 * PAGE, len(data) - PAGE, 2 * PAGE))
    assert NOTE in judged(bytes(data), WriteTraces(holes))


@pytest.mark.parametrize("kind", STORED)
def test_zeros_that_begin_beside_colour_are_no_black_area(kind: str) -> None:
    """Of a photograph, wherever they begin. A dark frame, and a line across the image, are black."""
    assert judged(half(whole(kind), 0.2, 0.7, off=1000)) is Reason.TRUNCATED
    lines = Image.new("RGB", (1500, 300), "white")
    lines.paste((0, 0, 0), (20, 100, 1490, 101))
    lines.paste((0, 0, 0), (0, 200, 1500, 260))
    mode, form, options = KINDS[kind]
    assert NOTE in judged(saved(lines.convert(mode), form, **options))


# Rows of unknown length, so that only place, holes and history of the zeros count.
ROWLESS = Header("TIFF", "RGB", (300, 300))


def traces_of(start: int, end: int, **seen: Any) -> str:
    """ "noted" or "refused", for zeros from `start` to `end` in a file of 100 pages."""
    data = bytearray(b"\1" * 100 * PAGE)
    data[start:end] = bytes(end - start)
    header = dataclasses.replace(ROWLESS, coded=[Coded(8, len(data))])
    try:
        check_written(bytes(data), header, WriteTraces(**seen), accept=False)
    except ImageError:
        return "refused"
    return "noted" if header.notes == (NOTE,) else "passed"


@pytest.mark.parametrize(
    ("start", "end", "plainly", "refilled", "hole", "reserved"),
    [
        (10 * PAGE, 20 * PAGE, "refused", "refused", "refused", "refused"),
        (10 * PAGE, 14 * PAGE + 9, "noted", "refused", "refused", "refused"),
        (10 * PAGE + 9, 14 * PAGE, "noted", "refused", "refused", "refused"),
        (10 * PAGE, 40 * PAGE + 9, "refused", "refused", "refused", "refused"),
        (10 * PAGE + 9, 40 * PAGE, "refused", "refused", "refused", "refused"),
        (10 * PAGE + 9, 40 * PAGE + 9, "noted", "noted", "noted", "refused"),
        (60 * PAGE, 100 * PAGE, "refused", "refused", "refused", "refused"),
    ],
)
def test_zeros_that_may_be_black_are_judged_by_where_they_lie_and_by_what_was_seen(
    start: int, end: int, plainly: str, refilled: str, hole: str, reserved: str
) -> None:
    pages = ((-(-start // PAGE) * PAGE, end // PAGE * PAGE),)
    assert traces_of(start, end) == plainly
    assert traces_of(start, end, refilled=True) == refilled
    assert traces_of(start, end, holes=pages) == hole
    assert traces_of(start, end, holes=pages, reserved=True) == reserved


def test_the_setting_accepts_what_was_never_written() -> None:
    assert NOTE in judged(half(whole("BMP"), 0.2, 0.7), accept=True)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(1, 6000), st.integers(0, 6000)), min_size=1, max_size=6))
@example([(PAGE, PAGE), (PAGE, 0)])
@example([(PAGE - 1, SECTOR), (1, PAGE + 1)])
def test_every_long_run_is_found_and_no_short_one(pieces: list[tuple[int, int]]) -> None:
    """Pieces of so many ones, and then so many zeros."""
    data, runs = bytearray(), []
    for ones, zeros in pieces:
        data += b"\1" * ones
        runs.append((len(data), len(data) + zeros))
        data += bytes(zeros)
    data += b"\1"
    merged = np.frombuffer(bytes(data), np.uint8)
    for minimum in (SECTOR, PAGE):
        assert list(zero_runs(merged, minimum)) == [run for run in runs if run[1] - run[0] >= minimum]
    at_pages = {run for run in runs if run[1] - run[0] >= PAGE and (run[0] % PAGE == 0 or run[1] % PAGE == 0)}
    assert set(page_runs(merged, 0, len(merged))) == at_pages


def test_a_restart_marker_that_is_missing_is_damage() -> None:
    data = bytearray(whole("JPEG with restart markers"))
    at = data.index(b"\xff\xd3", 1000)
    del data[at : at + 2]
    error = refusal(bytes(data))
    assert (error.reason, error.maybe_incomplete) == (Reason.CORRUPT, False)
    assert "restart markers" in error.detail


def test_what_a_decoder_has_left_over_is_damage() -> None:
    """A flipped bit in the middle: the decoder loses its place, and is done before its data are."""
    data, at = bytearray(whole("JPEG")), len(whole("JPEG")) // 2
    refused = [bytes((*data[: at + k], data[at + k] ^ 16, *data[at + k + 1 :])) for k in range(40)]
    details = [error.detail for each in refused if isinstance(error := outcome_of(each), ImageError)]
    assert any("extraneous" in detail for detail in details)


def outcome_of(data: bytes) -> NDArray[np.uint8] | ImageError:
    try:
        return decoded(data)[0]
    except ImageError as error:
        return error


def test_padding_before_the_end_marker_is_harmless() -> None:
    plain = whole("JPEG")
    padded = plain[:-2] + bytes(40) + plain[-2:]
    assert np.array_equal(decoded(padded)[0], decoded(plain)[0])


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=12), st.sampled_from([0xC0, 0xC2, 0xC4, 0xC9, 0xDA, 0xDD]))
def test_segments_of_nonsense_are_answered(body: bytes, marker: int) -> None:
    plain = saved(photo(20, 20), "JPEG")
    at = plain.index(b"\xff\xda")
    damaged = plain[:at] + jpeg_segment(marker, body) + plain[at:]
    assert isinstance(outcome_of(damaged), (np.ndarray, ImageError))
    frame = plain.index(b"\xff\xc0")
    assert isinstance(outcome_of(plain[:frame] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body), ImageError)
