"""The canary: what a pass finds, what it leaves behind, and the rate over its window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.backends.memtest import BLOCK_BYTES, WORDS, MemoryTest, Pattern
from rmbgd.engine.health_types import ErrorWindow
from rmbgd.engine.types import MemoryTestPass
from rmbgd.errors import EngineMemory
from rmbgd.testing.engine import FakeDeviceMemory


def test_sound_memory_has_no_bad_block():
    """Three passes over memory without faults, none found."""
    canary = MemoryTest(FakeDeviceMemory(), 3000)

    assert [canary.check() for _ in range(3)] == [MemoryTestPass(3000, 0)] * 3


@pytest.mark.parametrize("bad", [[0], [1023, 1024], [5, 5, 7], list(range(16))])
def test_each_bad_block_is_counted_once(bad: list[int]):
    """However often it was hit, and on both sides of a chunk's edge."""
    canary = MemoryTest(FakeDeviceMemory([bad]), 2048)

    expected = len({block for block in bad if bad.count(block) % 2})  # two flips of one bit undo each other
    assert canary.check() == MemoryTestPass(2048, expected)


def test_what_went_bad_between_two_passes_is_found():
    """The pattern stays where it is, and the next pass reads it first."""
    memory = FakeDeviceMemory()
    canary = MemoryTest(memory, 64)
    canary.check()
    assert memory.words is not None
    memory.words[33, 100] ^= 1 << 40

    assert canary.check() == MemoryTestPass(64, 1)
    assert canary.check() == MemoryTestPass(64, 0)


def test_a_block_written_elsewhere_is_found():
    """Equal blocks would hide a wrong address: no two are equal."""
    memory = FakeDeviceMemory()
    canary = MemoryTest(memory, 64)
    canary.check()
    assert memory.words is not None
    memory.words[3] = memory.words[4]

    assert canary.check().bad == 1


def test_two_passes_hold_opposite_bits():
    """Each cell is seen as 0 and as 1."""
    index = np.arange(4 * WORDS, dtype=np.int64)

    assert (Pattern(0).words(index) == ~Pattern(1).words(index)).all()
    assert not (Pattern(0).words(index) == Pattern(2).words(index)).any()


def test_no_two_words_of_a_pass_are_equal():
    """An odd step visits every 64-bit number before it repeats."""
    words = Pattern(4).words(np.arange(256 * WORDS, dtype=np.int64))

    assert len(np.unique(words)) == len(words)


def test_a_block_is_four_kibibytes():
    """The unit in which the error rate is counted."""
    assert FakeDeviceMemory._index(0, 1).nbytes == BLOCK_BYTES


def test_memory_that_cannot_be_had_is_said_by_the_engine_s_own_error():
    """Out of memory is no memory error, and a later pass may succeed."""
    canary = MemoryTest(FakeDeviceMemory(fails=EngineMemory("no room")), 64)
    with pytest.raises(EngineMemory):
        canary.check()

    canary.close()


def test_closing_gives_the_memory_back():
    """Twice does no harm, and the next pass takes it anew."""
    memory = FakeDeviceMemory()
    canary = MemoryTest(memory, 64)
    canary.check()
    canary.close()
    canary.close()
    assert memory.words is None

    assert canary.check() == MemoryTestPass(64, 0)


def test_a_pass_that_breaks_gives_the_memory_back():
    """What was half written is not compared with anything later."""

    class Breaking(FakeDeviceMemory):
        def compare(self, pattern: Pattern) -> list[int]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    memory = Breaking()
    with pytest.raises(RuntimeError):
        MemoryTest(memory, 64).check()

    assert memory.words is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 500), st.integers(1, 20_000), st.integers(0, 50)), max_size=30))
def test_the_rate_is_bad_blocks_over_blocks_of_the_window(passes):
    """Against a plain sum over the passes that are not older than the window."""
    window, now, seen = ErrorWindow(), 0.0, []
    for gap, blocks, bad in passes:
        now += gap
        window = window.add(MemoryTestPass(blocks, bad), now, 600.0)
        seen.append((now, blocks, bad))
    kept = [(blocks, bad) for at, blocks, bad in seen if now - at <= 600.0]

    expected = sum(bad for _, bad in kept) / sum(blocks for blocks, _ in kept) if kept else 0.0
    assert expected == window.rate
