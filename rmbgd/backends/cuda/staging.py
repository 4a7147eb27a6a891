"""Staging buffer: a ring on the device in which images lie as they lie in the arena, copied on streams of their own.

An image's chunk holds what is read and what is written. The arena's first bytes may be page-locked: a copy of those
runs beside the device's work; for others the host makes a second copy.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.backends.cuda.device import CudaSeam, Event
from rmbgd.engine.types import OUTPUT_BYTES, Region

ALIGNMENT = 256  # bytes; what device allocators give, and what wide loads like


@dataclass(eq=False)
class StagingChunk:
    """Bytes start..end-1 of a ring. All fields but the place belong to the ring's owner."""

    start: int
    end: int
    held: bool = True  # not to be overwritten yet
    last_use: Event | None = None  # event after it; None if there was none
    wait_for: list[Event] = field(default_factory=list)  # before the first use
    evicted: bool = False  # another chunk has taken its place

    def release(self, last_use: Event) -> None:
        """May be overwritten once `last_use` is reached."""
        self.last_use, self.held = last_use, False


class Ring:
    """POLICY: which bytes of a staging buffer come next, and which chunks they evict. First in, first out."""

    def __init__(self, byte_count: int) -> None:
        self.byte_count = byte_count
        self._live: deque[StagingChunk] = deque()  # in the order in which they were taken
        self._head = 0

    def take(self, byte_count: int) -> StagingChunk | None:
        """The next chunk, held; None while a held one is in its place. Raises ValueError for what can never fit."""
        wanted = max(ALIGNMENT, -(-byte_count // ALIGNMENT) * ALIGNMENT)
        if wanted > self.byte_count:
            raise ValueError(f"{byte_count} bytes can never fit into a ring of {self.byte_count}")
        wraps = self._head + wanted > self.byte_count
        start = 0 if wraps else self._head
        evicted = []
        for chunk in self._live:
            skipped = wraps and chunk.start >= self._head  # what is skipped is evicted first: it is the oldest
            if not skipped and not (chunk.start < start + wanted and start < chunk.end):
                break
            if chunk.held:
                return None
            evicted.append(chunk)
        taken = StagingChunk(start, start + wanted)
        for chunk in evicted:
            self._live.popleft()
            chunk.evicted = True
            if chunk.last_use is not None:
                taken.wait_for.append(chunk.last_use)
        self._live.append(taken)
        self._head = taken.end
        return taken

    def clear(self) -> None:
        """Evict everything: the buffer is neither read nor written now."""
        for chunk in self._live:
            chunk.evicted, chunk.held = True, False
        self._live.clear()
        self._head = 0


class Staging:
    """The ring and its memory.

    block   the shared arena, uint8 [bytes]
    memory  of the ring, uint8 [bytes] on the device
    pinned  bytes of the block that are page-locked, from its start
    """

    def __init__(self, device: CudaSeam, block: NDArray[np.uint8], memory: Tensor, pinned: int) -> None:
        self._device = device
        self._block = torch.from_numpy(block)
        self._pinned = pinned
        self._ring = Ring(len(memory) // ALIGNMENT * ALIGNMENT)
        self.memory = memory

    def fits(self, region: Region) -> bool:
        return _byte_count(region) <= self._ring.byte_count

    def upload(self, region: Region) -> StagingChunk | None:
        """Start copying what is read, complete at the chunk's `last_use`; None while a held chunk is in the way."""
        chunk = self._ring.take(_byte_count(region))
        if chunk is None:
            return None
        with self._device.upload_stream():
            for event in chunk.wait_for:
                self._device.wait_event(event)
            for first, last in self._parts(region.offset, region.output_offset - region.offset):
                place = self.memory[chunk.start + first : chunk.start + last]
                place.copy_(self._block[region.offset + first : region.offset + last], non_blocking=True)
            chunk.last_use = self._device.record_event()
        return chunk

    def rgb(self, region: Region, chunk: StagingChunk) -> Tensor:
        """uint8 [H, W, 3]"""
        flat = self.memory[chunk.start : chunk.start + 3 * region.height * region.width]
        return flat.view(region.height, region.width, 3)

    def download(self, region: Region, chunk: StagingChunk, ready: Event) -> Event:
        """Start copying the output plane into the arena once `ready` is reached; it is there at the resulting event,
        after which the chunk may be overwritten."""
        start = chunk.start + region.output_offset - region.offset
        with self._device.download_stream():
            self._device.wait_event(ready)
            for first, last in self._parts(region.output_offset, _output_bytes(region)):
                target = self._block[region.output_offset + first : region.output_offset + last]
                target.copy_(self.memory[start + first : start + last], non_blocking=True)
            arrived = self._device.record_event()
        chunk.release(arrived)
        return arrived

    def clear(self) -> None:
        """All copies have ended, completed or not."""
        self._ring.clear()

    def _parts(self, offset: int, byte_count: int) -> list[tuple[int, int]]:
        """A copy must be on one side of the end of what is page-locked, or the driver refuses it."""
        edge = min(max(self._pinned - offset, 0), byte_count)
        return [part for part in ((0, edge), (edge, byte_count)) if part[0] < part[1]]


def _output_bytes(region: Region) -> int:
    return OUTPUT_BYTES[region.output] * region.height * region.width


def _byte_count(region: Region) -> int:
    """Of all planes."""
    return region.output_offset - region.offset + _output_bytes(region)
