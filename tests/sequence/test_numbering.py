"""Which sequence a file belongs to, and its number there."""

from __future__ import annotations

import pytest

from rmbgd.sequence.numbering import FrameNumber, frame_number, is_end_marker


@pytest.mark.parametrize(
    ("path", "sequence", "number"),
    [
        ("take/frame_0007.jpg", "take/frame_", 7),
        ("take/frame_7.png", "take/frame_", 7),  # another width is the same number
        ("take/0001.jpg", "take/", 1),
        ("0000.jpg", ".", 0),
        ("v2_0031.tif", "v2_", 31),  # the last run counts
        ("shot12/cam.3.0100.png", "shot12/cam.3.", 100),
        ("a_0012_left.png", "a_*_left", 12),
        ("take/f00005~2.png", "take/f", 5),  # put back beside a newer version
        ("a_2147483648.png", "a_", 2**31),
        ("a_999999999999999999.png", "a_", 10**18 - 1),
        ("a_" + "0" * 60 + "5.png", "a_", 5),
    ],
)
def test_a_number_and_a_sequence(path: str, sequence: str, number: int) -> None:
    assert frame_number(path) == FrameNumber(sequence, number)


@pytest.mark.parametrize("path", ["poster.png", "take/poster.png", "a_1000000000000000000.png", "take7/x.png", "٣.png"])
def test_a_still_has_none(path: str) -> None:
    assert frame_number(path) is None


def test_a_marker_has_one_name_in_any_directory() -> None:
    assert is_end_marker("sequence.end")
    assert is_end_marker("take/sequence.end")
    assert not is_end_marker("take/sequence.end.png")
