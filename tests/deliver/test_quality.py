"""Quality is searched with few encodings: up until a rule holds, down until the file fits; failure is said."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rmbgd.deliver.quality import LEAST, MOST, search, search_down, search_up


class Encoder:
    """A file of as many bytes as its quality, which is its first byte."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, quality: int) -> bytes:
        self.calls += 1
        return bytes([quality] * quality)


@given(st.integers(1, 100), st.integers(1, 101))
def test_the_lowest_quality_that_holds_is_found_with_few_encodings(first: int, needed: int) -> None:
    encode = Encoder()
    found = search_up(encode, lambda data: data[0] >= needed, first)
    assert (found.quality, found.held) == (max(first, min(needed, MOST)), max(first, MOST) >= needed)
    assert found.data == bytes([found.quality] * found.quality)
    assert encode.calls <= 9


@given(st.integers(1, 100), st.integers(1, 101))
def test_the_highest_quality_that_fits_is_found_with_few_encodings(first: int, most: int) -> None:
    encode = Encoder()
    found = search_down(encode, most, first)
    least = min(first, LEAST)
    assert (found.quality, found.fits) == (max(min(first, most), least), least <= most)
    assert encode.calls <= 9  # both ends, and seven bisections of what lies between 30 and 100


@given(st.integers(30, 100), st.integers(0, 101), st.integers(0, 101))
def test_of_a_rule_and_a_size_what_cannot_be_met_is_said(first: int, needed: int, most: int) -> None:
    found = search(Encoder(), first, holds=lambda data: data[0] >= needed, bytes_maximum=most)
    assert found.held == (found.quality >= needed)
    assert found.fits == (not most or found.quality <= most)
    if needed <= MOST:
        assert found.held
        assert found.fits or needed > most or most < LEAST
    elif most >= LEAST:
        assert found.fits


def test_what_is_asked_for_nothing_is_encoded_once() -> None:
    encode = Encoder()
    assert (search(encode, 80).quality, encode.calls) == (80, 1)
