"""JPEG: equal pixels, equal judgement of damage, no work that was not asked for."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, Reason
from tests.imaging import builders
from tests.imaging.builders import by_pillow, decoded, jpeg_segment, photo, probed, refusal, saved, with_segments


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "grey"]), st.booleans())
def test_pixels_are_those_that_pillow_decodes(height: int, width: int, subsampling: str, progressive: bool) -> None:
    grey = subsampling == "grey"
    image = photo(height, width)[:, :, 0] if grey else photo(height, width)
    options = {} if grey else {"subsampling": subsampling}
    data = saved(image, "JPEG", quality=85, progressive=progressive, **options)
    assert np.array_equal(decoded(data)[0], by_pillow(data, "RGB"))


@pytest.mark.parametrize("progressive", [False, True])
def test_every_cut_is_truncated_and_waited_for(progressive: bool) -> None:
    data = saved(photo(90, 120), "JPEG", quality=80, progressive=progressive)
    whole, _, _ = decoded(data)
    complete = 0 if progressive else 2
    for end in [*range(1, len(data), 97), *range(len(data) - 60, len(data))]:
        result = builders.outcome(data[:end])
        if isinstance(result, ImageError):
            assert result.maybe_incomplete, (end, result)
            assert result.reason is (Reason.TRUNCATED if end >= 16 else Reason.UNIDENTIFIED)
        else:
            assert end >= len(data) - complete
            assert np.array_equal(result, whole)


def test_a_copy_that_is_still_being_filled_in_is_waited_for() -> None:
    data = saved(photo(90, 120), "JPEG", quality=80)
    assert builders.verdict(data[: len(data) // 2].ljust(len(data), b"\0")) == (Reason.TRUNCATED, True)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_damage_in_the_middle_is_corrupt_for_good(mode: str) -> None:
    """The end marker is there: waiting would not help. Pillow alone would give garbage, for CMYK without a word."""
    planes = np.dstack([photo(90, 120), photo(90, 120)[:, :, 0]])[:, :, : len(mode)]
    data = bytearray(saved(Image.fromarray(np.ascontiguousarray(planes), mode), "JPEG", quality=80))
    middle = len(data) // 2
    data[middle : middle + 200] = b"\xff\xd9" * 100
    assert builders.verdict(bytes(data)) == (Reason.CORRUPT, False)


def test_a_jpeg_stored_as_rgb_is_not_converted_twice() -> None:
    """Adobe's transform 0: the components are red, green and blue already."""
    rgb, _, _ = decoded(saved(photo(30, 20), "JPEG", quality=90, keep_rgb=True))
    assert np.abs(rgb.astype(int) - photo(30, 20)).max() < 30


def test_a_header_of_a_million_segments_is_refused() -> None:
    data = with_segments(saved(photo(8, 8), "JPEG"), b"\xff\xe5\x00\x02" * 600_000)
    assert refusal(data).reason is Reason.METADATA_BOMB


def test_harmless_oddities_are_noted_and_pass() -> None:
    plain = saved(photo(20, 20), "JPEG")
    at = plain.index(b"\xff\xdb")
    rgb, _, facts = decoded(plain[:at] + b"\x00\x01\x02" + plain[at:])
    assert np.array_equal(rgb, by_pillow(plain))
    assert any("extraneous" in note for note in facts.notes)


def test_what_follows_the_end_is_not_read() -> None:
    plain = saved(photo(20, 20), "JPEG")
    assert np.array_equal(decoded(plain + b"PK\x03\x04" + bytes(100))[0], by_pillow(plain))


def _frame_header(data: bytes, marker: int = 0xC0, bits: int = 8, height: int = 8, width: int = 8) -> bytes:
    at = data.index(b"\xff\xc0")
    fields = struct.pack(">BHH", bits, height, width)
    return data[: at + 1] + bytes((marker,)) + data[at + 2 : at + 4] + fields + data[at + 9 :]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bits": 12}, Reason.UNSUPPORTED_MODE),
        ({"marker": 0xC3}, Reason.UNSUPPORTED_MODE),
        ({"marker": 0xC5}, Reason.UNSUPPORTED_MODE),
        ({"height": 0}, Reason.UNIDENTIFIED),
        ({"width": 0}, Reason.UNIDENTIFIED),
        ({"width": 65535, "height": 65535}, Reason.TOO_LARGE),
        ({"width": 20000, "height": 20000}, Reason.TOO_LARGE),
    ],
)
def test_frames_that_cannot_be_decoded_are_refused_by_their_header(changes: dict[str, int], reason: Reason) -> None:
    assert refusal(_frame_header(saved(photo(8, 8), "JPEG"), **changes)).reason is reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff\xd9", Reason.CORRUPT),
        (jpeg_segment(0xE5, bytes(20)) + b"\xff\xd9", Reason.CORRUPT),
        (b"\xff\xe5\x00\x01" + b"\xff\xd9", Reason.CORRUPT),
        (jpeg_segment(0xDA, b"\x01") + b"\xff\xd9", Reason.CORRUPT),
        (jpeg_segment(0xC0, b"\x08\x00\x08"), Reason.CORRUPT),
        (jpeg_segment(0xC0, b"\x08\x00\x08\x00\x08\x02"), Reason.UNSUPPORTED_MODE),
        (b"\xff\xff\xff\x01" + jpeg_segment(0xE5, bytes(20))[:-4], Reason.TRUNCATED),
    ],
    ids=["end", "no image", "no length", "no frame", "short frame", "two components", "cut off"],
)
def test_headers_that_make_no_sense_are_refused(body: bytes, reason: Reason) -> None:
    assert refusal(b"\xff\xd8\xff\xfe\x00\x12" + bytes(16) + body).reason is reason


def test_thousands_of_scans_over_a_large_image_are_refused() -> None:
    """A progressive file may repeat its last scan for ever; decoding costs seconds each time."""
    data = saved(photo(64, 64), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    frame = data.index(b"\xff\xc2")
    large = data[: frame + 5] + struct.pack(">HH", 6000, 8000) + data[frame + 9 : -2]
    error = refusal(large + data[at:-2] * 1000 + b"\xff\xd9")
    assert error.reason is Reason.TOO_LARGE
    assert "scans" in error.detail


def test_the_second_image_of_an_mpo_is_left_alone() -> None:
    second = Image.fromarray(photo(24, 32, seed=1))
    data = saved(photo(24, 32), "MPO", save_all=True, append_images=[second], quality=95)
    rgb, _, facts = decoded(data)
    assert np.array_equal(rgb, by_pillow(data))
    assert facts.format == "MPO"


def test_text_resolution_and_orientation_are_taken_and_nothing_else() -> None:
    block = builders.exif(orientation=6, dpi=240, text={0x8298: b"Someone", 0x0132: b"2026:01:02 03:04:05"}, gps=True)
    header = probed(saved(photo(8, 12), "JPEG", exif=b"Exif\x00\x00" + block))
    assert (header.size, header.stored_size, header.orientation) == ((8, 12), (12, 8), 6)
    assert header.dpi == (240.0, 240.0)
    assert header.metadata == {"copyright": "Someone", "datetime": "2026:01:02 03:04:05"}


def test_resolution_of_jfif_counts_in_inches_and_centimetres() -> None:
    data = saved(photo(8, 8), "JPEG", dpi=(300, 200))
    assert probed(data).dpi == (300.0, 200.0)
    assert probed(data.replace(b"JFIF\x00\x01\x01\x01", b"JFIF\x00\x01\x01\x02")).dpi == (762.0, 508.0)


def _piece(number: int, count: int, content: bytes) -> bytes:
    return jpeg_segment(0xE2, b"ICC_PROFILE\x00" + bytes((number, count)) + content)


def test_a_profile_in_pieces_is_put_together_in_order_or_left_out() -> None:
    profile, plain = builders.rgb_profile(), saved(photo(4, 4), "JPEG")
    pieces = _piece(2, 2, profile[300:]), _piece(1, 2, profile[:300])
    assert probed(with_segments(plain, *pieces)).icc_profile == profile
    half = probed(with_segments(plain, pieces[1]))
    large = probed(with_segments(plain, _piece(1, 1, bytes(2000))), limits=LimitSettings(metadata_bytes=1024))
    for header in (half, large):
        assert header.icc_profile is None
        assert any("profile" in note for note in header.notes)
