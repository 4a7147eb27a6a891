"""The staging ring: nobody's bytes are given away before they are done with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.backends.cuda.staging import ALIGNMENT, Ring

SIZE = 16 * ALIGNMENT


@given(st.lists(st.tuples(st.integers(1, SIZE), st.booleans()), max_size=60))
def test_live_pieces_never_overlap(requests):
    """Whatever is asked for: pieces lie inside the ring, aligned, apart from each other; held ones stay."""
    ring = Ring(SIZE)
    live = []
    for byte_count, released in requests:
        chunk = ring.take(byte_count)
        if chunk is None:
            assert any(other.held for other in live)
            for other in live:
                other.held = False
            continue
        live = [other for other in live if not other.evicted]
        assert 0 <= chunk.start < chunk.end <= SIZE
        assert chunk.start % ALIGNMENT == 0
        assert chunk.end - chunk.start >= byte_count
        assert all(other.end <= chunk.start or chunk.end <= other.start for other in live)
        live.append(chunk)
        chunk.held = not released
    assert not any(chunk.evicted and chunk.held for chunk in live)


def test_who_takes_a_place_learns_what_to_wait_for():
    """The marks of all that lay there, and of nothing else; a chunk without a mark was never used."""
    ring = Ring(4 * ALIGNMENT)
    first, second, third = (ring.take(ALIGNMENT) for _ in range(3))
    for chunk, mark in ((first, "first"), (second, None), (third, "third")):
        assert chunk is not None
        chunk.held, chunk.last_use = False, mark
    fourth = ring.take(3 * ALIGNMENT)

    assert fourth is not None
    assert fourth.wait_for == ["first", "third"]
    assert (first.evicted, second.evicted, third.evicted) == (True, True, True)


def test_a_held_piece_stops_who_comes_after():
    """Nothing is given, and nothing is evicted, as long as a held chunk lies in the way."""
    ring = Ring(2 * ALIGNMENT)
    first, second = ring.take(1), ring.take(1)
    assert first is not None
    assert second is not None
    first.held = False

    assert ring.take(2 * ALIGNMENT) is None
    assert not first.evicted
    second.held = False
    assert ring.take(2 * ALIGNMENT) is not None


def test_what_can_never_fit_is_a_bug_of_the_caller():
    """It would wait for ever."""
    with pytest.raises(ValueError, match="can never fit"):
        Ring(ALIGNMENT).take(ALIGNMENT + 1)


def test_a_cleared_ring_begins_anew():
    """After a fault nobody holds anything."""
    ring = Ring(2 * ALIGNMENT)
    chunk = ring.take(2 * ALIGNMENT)
    ring.clear()
    again = ring.take(2 * ALIGNMENT)

    assert chunk is not None
    assert chunk.evicted
    assert again is not None
    assert again.wait_for == []
