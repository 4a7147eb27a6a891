"""Pattern test of device memory, so that boards without ECC show memory errors too.

What a pass reads first is what the pass before wrote, often a minute ago: other work has since evicted it from the
device's cache (64 MiB on some boards, as much as is tested), so that it comes from the memory itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from rmbgd.engine.types import MemoryTestPass

BLOCK_BYTES = 4096
WORDS = BLOCK_BYTES // 8  # int64 words in a block
CHUNK_BLOCKS = 1024  # 4 MiB of expected values at a time

# Odd multipliers, so that no two words of a pass are equal and a wrong address shows as well as a wrong bit.
_WORD_STEP = -0x61C8864680B583EB  # 2^64 divided by the golden ratio, as a signed number
_SEED_STEP = 0x5851F42D4C957F2D

ArrayT = TypeVar("ArrayT")  # int64 array of numpy or of torch: multiplication wraps in both


@dataclass(frozen=True, slots=True)
class Pattern:
    """The words of one pass. Two passes in a row hold opposite bits, so that each cell is seen as 0 and as 1."""

    number: int

    def words(self, index: ArrayT) -> ArrayT:
        """The words at the word numbers `index`, int64 of any shape, from 0: numpy and torch arrays alike."""
        seed = (self.number // 2 + 1) * _SEED_STEP
        seed = (seed + (1 << 63)) % (1 << 64) - (1 << 63)  # as a signed 64-bit number
        values: Any = index
        values = values * _WORD_STEP + seed
        return ~values if self.number % 2 else values  # type: ignore[no-any-return]


def chunks(blocks: int) -> Iterator[tuple[int, int]]:
    """(first block, blocks) of chunks small enough that their expected values cost little memory."""
    for first in range(0, blocks, CHUNK_BLOCKS):
        yield first, min(CHUNK_BLOCKS, blocks - first)


class MemoryUnderTest(Protocol):
    """Memory on one device, int64 [blocks, WORDS]. Each call may raise the device's own errors, or EngineMemory."""

    def allocate(self, blocks: int) -> None: ...

    def write(self, pattern: Pattern) -> None:
        """Fill all of it with `pattern.words(...)`; word number = block * WORDS + word."""
        ...

    def compare(self, pattern: Pattern) -> list[int]:
        """Read all of it back; the numbers of the blocks in which any word differs."""
        ...

    def release(self) -> None: ...


class MemoryTest:
    """Owned by the thread that owns the device. Allocates at the first pass and keeps its memory until closed."""

    def __init__(self, memory: MemoryUnderTest, blocks: int) -> None:
        self._memory = memory
        self._blocks = blocks
        self._number = 0
        self._written: Pattern | None = None

    def check(self) -> MemoryTestPass:
        """One pass: compare what the last pass wrote, then write and compare the next pattern.

        A block is bad if either comparison failed. Raises the device's own errors, or EngineMemory.
        """
        bad: set[int] = set()
        if self._written is None:
            self._memory.allocate(self._blocks)
        else:
            bad.update(self._memory.compare(self._written))
        pattern = Pattern(self._number)
        self._written = None  # unknown while it is being written
        try:
            self._memory.write(pattern)
            bad.update(self._memory.compare(pattern))
        except BaseException:  # whatever it is: half a pattern must not be compared next time
            self._memory.release()
            raise
        self._written = pattern
        self._number += 1
        return MemoryTestPass(self._blocks, len(bad))

    def close(self) -> None:
        """Release the memory. May be called more than once; the next pass allocates again."""
        if self._written is not None:
            self._written = None
            self._memory.release()


class TorchMemory:
    """int64 [blocks, WORDS] on a torch device, which computes the expected values as well."""

    def __init__(self, device: Any) -> None:
        import torch  # here, because the test itself also runs on numpy, without torch

        self._torch, self._device = torch, device
        self._words = torch.empty(0, dtype=torch.int64)

    def allocate(self, blocks: int) -> None:
        self._words = self._torch.empty((blocks, WORDS), dtype=self._torch.int64, device=self._device)

    def write(self, pattern: Pattern) -> None:
        for first, count in chunks(len(self._words)):
            self._words[first : first + count] = self._expected(pattern, first, count)

    def compare(self, pattern: Pattern) -> list[int]:
        bad: list[int] = []
        for first, count in chunks(len(self._words)):
            wrong = (self._words[first : first + count] != self._expected(pattern, first, count)).any(dim=1)
            bad += [first + int(block) for block in wrong.nonzero().flatten().tolist()]
        return bad

    def release(self) -> None:
        self._words = self._torch.empty(0, dtype=self._torch.int64)

    def _expected(self, pattern: Pattern, first: int, count: int) -> Any:
        index = self._torch.arange(first * WORDS, (first + count) * WORDS, dtype=self._torch.int64, device=self._device)
        return pattern.words(index).view(count, WORDS)
