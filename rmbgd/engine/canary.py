"""The canary: device memory that holds a known pattern, so that boards without ECC show memory errors too.

Does not know any device: the memory is injected. Does not judge: `ErrorWindow` gives a rate, failover.py has the limit.

What a pass reads first is what the pass before left behind, often a minute ago: other work has since pushed it out of
the device's cache (64 MiB on some boards, as much as the canary), so that it comes from the memory itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

BLOCK_BYTES = 4096
WORDS = BLOCK_BYTES // 8  # int64 words in a block
CHUNK_BLOCKS = 1024  # 4 MiB of expected values at a time

# Odd multipliers, so that no two words of a pass are equal and a wrong address shows as well as a wrong bit.
_WORD_STEP = -0x61C8864680B583EB  # 2^64 divided by the golden ratio, as a signed number
_SEED_STEP = 0x5851F42D4C957F2D

ArrayT = TypeVar("ArrayT")  # int64 array of numpy or of a device: multiplication wraps in both


@dataclass(frozen=True, slots=True)
class Pattern:
    """The words of one pass. Two passes in a row hold opposite bits, so that each cell is seen as 0 and as 1."""

    number: int

    def words(self, index: ArrayT) -> ArrayT:
        """What stands at the word numbers `index` (int64, any shape, from 0). Works on arrays of numpy and of torch."""
        seed = _wrapped((self.number // 2 + 1) * _SEED_STEP)
        values: Any = index
        values = values * _WORD_STEP + seed
        return ~values if self.number % 2 else values  # type: ignore[no-any-return]


def _wrapped(value: int) -> int:
    """`value` as a signed 64-bit number."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def chunks(blocks: int) -> Iterator[tuple[int, int]]:
    """(first block, blocks) pieces small enough that their expected values cost little memory."""
    for first in range(0, blocks, CHUNK_BLOCKS):
        yield first, min(CHUNK_BLOCKS, blocks - first)


class DeviceMemory(Protocol):
    """Memory on one device, int64 [blocks, WORDS]. Each call may raise the device's own errors, or EngineMemory."""

    def allocate(self, blocks: int) -> None: ...

    def write(self, pattern: Pattern) -> None:
        """Put `pattern.words(...)` everywhere; word number = block * WORDS + word."""
        ...

    def compare(self, pattern: Pattern) -> list[int]:
        """Read all of it back; the numbers of the blocks in which any word differs."""
        ...

    def release(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CanaryPass:
    """What one pass found: `bad` of `blocks` blocks."""

    blocks: int
    bad: int


class Canary:
    """Owned by the thread that owns the device. Takes its memory at the first pass and keeps it until closed."""

    def __init__(self, memory: DeviceMemory, blocks: int) -> None:
        self._memory = memory
        self._blocks = blocks
        self._number = 0
        self._standing: Pattern | None = None

    def check(self) -> CanaryPass:
        """One pass: what stood since the last one, then the next pattern. A block is bad if either failed."""
        bad: set[int] = set()
        if self._standing is None:
            self._memory.allocate(self._blocks)
        else:
            bad.update(self._memory.compare(self._standing))
        pattern = Pattern(self._number)
        self._standing = None  # until it is written, nothing is known to stand
        try:
            self._memory.write(pattern)
            bad.update(self._memory.compare(pattern))
        except BaseException:
            self._memory.release()
            raise
        self._standing = pattern
        self._number += 1
        return CanaryPass(self._blocks, len(bad))

    def close(self) -> None:
        """Give the memory back. May be called more than once; the next pass takes it anew."""
        if self._standing is not None:
            self._standing = None
            self._memory.release()


@dataclass(frozen=True, slots=True)
class ErrorWindow:
    """POLICY: the rate of bad blocks over the passes of the last `window` seconds."""

    passes: tuple[tuple[float, int, int], ...] = ()

    def add(self, found: CanaryPass, now: float, window: float) -> ErrorWindow:
        kept = tuple(entry for entry in self.passes if now - entry[0] <= window)
        return ErrorWindow((*kept, (now, found.blocks, found.bad)))

    @property
    def bad(self) -> int:
        return sum(bad for _, _, bad in self.passes)

    @property
    def rate(self) -> float:
        """Bad blocks per block checked; 0 when nothing was checked."""
        checked = sum(blocks for _, blocks, _ in self.passes)
        return self.bad / checked if checked else 0.0


class FakeDeviceMemory:
    """Host memory with faults on command: `flips[i]` holds the blocks that go bad right after the i-th write."""

    def __init__(self, flips: list[list[int]] | None = None, *, fails: Exception | None = None) -> None:
        self._flips = list(flips or [])
        self._fails = fails
        self.words: np.ndarray[Any, np.dtype[np.int64]] | None = None

    def allocate(self, blocks: int) -> None:
        if self._fails is not None:
            raise self._fails
        self.words = np.empty((blocks, WORDS), np.int64)

    def write(self, pattern: Pattern) -> None:
        assert self.words is not None
        for first, count in chunks(len(self.words)):
            self.words[first : first + count] = pattern.words(self._index(first, count))
        for block in self._flips.pop(0) if self._flips else []:
            self.words[block, block % WORDS] ^= 1 << (block % 63)

    def compare(self, pattern: Pattern) -> list[int]:
        assert self.words is not None
        bad: list[int] = []
        for first, count in chunks(len(self.words)):
            expected = pattern.words(self._index(first, count))
            wrong = (self.words[first : first + count] != expected).any(axis=1)
            bad += [first + int(block) for block in np.flatnonzero(wrong)]
        return bad

    def release(self) -> None:
        self.words = None

    @staticmethod
    def _index(first: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.arange(first * WORDS, (first + count) * WORDS, dtype=np.int64).reshape(count, WORDS)
