"""Pattern test of device memory, so that boards without ECC show memory errors too.

What a pass reads first is what the pass before wrote, often a minute ago: other work has since evicted it from the
device's cache (64 MiB on some boards, as much as is tested), so that it comes from the memory itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rmbgd.engine.types import MemoryTestPass

BLOCK_BYTES = 4096
WORDS = BLOCK_BYTES // 8  # int64 words in a block
CHUNK_BLOCKS = 1024  # 4 MiB of expected values at a time

# Odd multipliers, so that no two words of a pass are equal and a wrong address shows as well as a wrong bit.
_WORD_STEP = -0x61C8864680B583EB  # 2^64 divided by the golden ratio, as a signed number
_SEED_STEP = 0x5851F42D4C957F2D


def pattern(number: int, index: Any) -> Any:
    """The words of pass `number` at the word numbers `index`, int64 of any shape: numpy and torch arrays alike.

    Two passes in a row hold opposite bits, so that each cell is seen as 0 and as 1. Multiplication wraps in both.
    """
    seed = (number // 2 + 1) * _SEED_STEP
    seed = (seed + (1 << 63)) % (1 << 64) - (1 << 63)  # as a signed 64-bit number
    values = index * _WORD_STEP + seed
    return ~values if number % 2 else values


class MemoryTest:
    """Owned by the thread that owns the device. Allocates at the first pass and keeps its memory until closed.

    arrays  numpy or torch: holds the memory, `words` int64 [blocks, WORDS], and computes the expected values
    device  as `arrays` takes it
    """

    def __init__(self, arrays: Any, device: object, blocks: int) -> None:
        self.words: Any = None  # None while nothing is allocated
        self._arrays = arrays
        self._device = device
        self._blocks = blocks
        self._number = 0

    def check(self) -> MemoryTestPass:
        """One pass: compare what the last pass wrote, then write and compare the next pattern.

        A block is bad if either comparison failed. Raises the device's own errors, or EngineMemory.
        """
        bad: set[int] = set()
        if self.words is None:
            self.words = self._arrays.empty((self._blocks, WORDS), dtype=self._arrays.int64, device=self._device)
        else:
            bad.update(self.compare(self._number - 1))
        try:
            self.write(self._number)
            bad.update(self.compare(self._number))
        except BaseException:  # whatever it is: half a pattern must not be compared next time
            self.close()
            raise
        self._number += 1
        return MemoryTestPass(self._blocks, len(bad))

    def write(self, number: int) -> None:
        """Fill all of the memory with the pattern of pass `number`."""
        for chunk, expected in self._chunks(number):
            self.words[chunk] = expected

    def compare(self, number: int) -> list[int]:
        """Read all of it back; the numbers of the blocks in which any word differs."""
        bad: list[int] = []
        for chunk, expected in self._chunks(number):
            wrong = (self.words[chunk] != expected).any(1).tolist()
            bad += [block for block, is_wrong in enumerate(wrong, start=chunk.start) if is_wrong]
        return bad

    def close(self) -> None:
        """Release the memory. May be called more than once; the next pass allocates again."""
        self.words = None

    def _chunks(self, number: int) -> Iterator[tuple[slice, Any]]:
        """Blocks, few enough that their expected values cost little memory, and these: int64 [blocks, WORDS]."""
        for first in range(0, self._blocks, CHUNK_BLOCKS):
            last = min(first + CHUNK_BLOCKS, self._blocks)
            index = self._arrays.arange(first * WORDS, last * WORDS, dtype=self._arrays.int64, device=self._device)
            yield slice(first, last), pattern(number, index).reshape(-1, WORDS)
