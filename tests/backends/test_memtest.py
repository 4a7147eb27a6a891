"""The canary: what a pass finds, what it leaves behind, and the rate over its window."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmbgd.backends.memtest import BLOCK_BYTES, WORDS, MemoryTest, pattern
from rmbgd.engine.health_types import ErrorWindow
from rmbgd.engine.types import MemoryTestPass
from rmbgd.errors import EngineMemory


@pytest.fixture(params=[(np, "cpu"), (torch, "cpu")], ids=["numpy", "torch"])
def canary(request) -> MemoryTest:
    return MemoryTest(*request.param, 2048)


@pytest.mark.parametrize("bad", [[0], [1023, 1024], [5, 5, 7], list(range(16))])
def test_each_bad_block_is_counted_once(canary, monkeypatch, bad: list[int]):
    """However often it was hit, and on both sides of a chunk's edge."""
    write = canary.write

    def flips(number: int) -> None:
        write(number)
        for block in bad:
            canary.words[block, block % WORDS] ^= 1 << (block % 63)

    monkeypatch.setattr(canary, "write", flips)
    expected = len({block for block in bad if bad.count(block) % 2})  # two flips of one bit undo each other
    assert canary.check() == MemoryTestPass(2048, expected)


def test_what_went_bad_between_two_passes_is_found(canary):
    """The pattern stays where it is, and the next pass reads it first."""
    assert canary.check() == MemoryTestPass(2048, 0)
    canary.words[1433, 100] ^= 1 << 40
    assert canary.check() == MemoryTestPass(2048, 1)
    assert canary.check() == MemoryTestPass(2048, 0)


def test_a_block_written_elsewhere_is_found(canary):
    canary.check()
    canary.words[3] = canary.words[4]
    assert canary.check().bad == 1


def test_two_passes_hold_opposite_bits():
    index = np.arange(4 * WORDS, dtype=np.int64)
    assert (pattern(0, index) == ~pattern(1, index)).all()
    assert not (pattern(0, index) == pattern(2, index)).any()


def test_no_two_words_of_a_pass_are_equal():
    """An odd step visits every 64-bit number before it repeats."""
    words = pattern(4, np.arange(256 * WORDS, dtype=np.int64))
    assert len(np.unique(words)) == len(words)


def test_torch_computes_the_pattern_of_numpy_in_blocks_of_four_kibibytes():
    """Four KiB are the unit in which the error rate is counted."""
    by_numpy, by_torch = MemoryTest(np, "cpu", 1500), MemoryTest(torch, "cpu", 1500)  # more than one chunk
    by_numpy.check()
    by_torch.check()
    assert np.array_equal(by_torch.words.numpy(), by_numpy.words)
    assert by_numpy.words[0].nbytes == BLOCK_BYTES


def test_memory_that_cannot_be_had_is_said_by_the_engine_s_own_error(canary, monkeypatch):
    """Out of memory is no memory error, and a later pass may succeed."""
    with monkeypatch.context() as patch:
        patch.setattr(canary._arrays, "empty", Mock(side_effect=EngineMemory("no room")))
        with pytest.raises(EngineMemory):
            canary.check()
    canary.close()
    assert canary.check().bad == 0


def test_closing_gives_the_memory_back(canary):
    canary.check()
    canary.close()
    canary.close()
    assert canary.words is None
    assert canary.check() == MemoryTestPass(2048, 0)


def test_a_pass_that_breaks_gives_the_memory_back(canary, monkeypatch):
    """What was half written is not compared with anything later."""
    monkeypatch.setattr(canary, "compare", Mock(side_effect=RuntimeError("CUDA error: an illegal memory access")))
    with pytest.raises(RuntimeError):
        canary.check()
    assert canary.words is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 500), st.integers(1, 20_000), st.integers(0, 50)), max_size=30))
def test_the_rate_is_bad_blocks_over_blocks_of_the_window(passes):
    window, now, seen = ErrorWindow(), 0.0, []
    for gap, blocks, bad in passes:
        now += gap
        window = window.add(MemoryTestPass(blocks, bad), now, 600.0)
        seen.append((now, blocks, bad))
    kept = [(blocks, bad) for at, blocks, bad in seen if now - at <= 600.0]
    expected = sum(bad for _, bad in kept) / sum(blocks for blocks, _ in kept) if kept else 0.0
    assert expected == window.rate
