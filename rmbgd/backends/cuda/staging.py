"""Staging buffers: two ring buffers on the device between the arena and the network, copies on streams of their own.

The arena's first bytes may be page-locked: a copy of those runs beside the device's work; for others the host makes a
second copy.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.backends.cuda.device import CudaSeam, Event
from rmbgd.engine.types import OUTPUT_BYTES, Region, aligned

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


@dataclass
class StagedImage:
    """The planes of an image that are read, on the device until the chunk is evicted."""

    chunk: StagingChunk
    rgb: Tensor  # uint8 [H, W, 3]
    source_alpha: Tensor | None  # uint8 [H, W]


@dataclass
class Band:
    """Bytes of an output plane on the device: `memory` uint8 [n], for the block's bytes from `offset` on."""

    chunk: StagingChunk
    memory: Tensor
    offset: int


class Staging:
    """The rings of both directions.

    block             the shared arena, uint8 [bytes]
    upload, download  bytes of the rings
    pinned            bytes of the block that are page-locked, from its start
    """

    def __init__(self, device: CudaSeam, block: NDArray[np.uint8], upload: int, download: int, pinned: int) -> None:
        self._device = device
        self._block = torch.from_numpy(block)
        self._pinned = pinned
        self._up = Ring(upload)
        self._down = Ring(download)
        self._up_memory = torch.empty(upload, dtype=torch.uint8, device=device.torch)
        self._down_memory = torch.empty(download, dtype=torch.uint8, device=device.torch)

    def fits(self, region: Region) -> bool:
        """Whether an image can be on the device at all, as a whole, and a row of its output."""
        row = OUTPUT_BYTES[region.output] * region.width
        return region.output_offset - region.offset <= self._up.byte_count and row <= self._down.byte_count

    def upload(self, region: Region) -> StagedImage | None:
        """Start copying what is read, complete at the chunk's `last_use`; None while a held chunk is in the way."""
        byte_count = region.output_offset - region.offset
        chunk = self._up.take(byte_count)
        if chunk is None:
            return None
        memory = self._up_memory[chunk.start : chunk.start + byte_count]
        with self._device.upload_stream():
            for event in chunk.wait_for:
                self._device.wait_event(event)
            for first, last in self._parts(region.offset, byte_count):
                memory[first:last].copy_(self._block[region.offset + first : region.offset + last], non_blocking=True)
            chunk.last_use = self._device.record_event()
        height, width = region.height, region.width
        rgb = memory[: 3 * height * width].view(height, width, 3)
        at = aligned(3 * height * width)
        alpha = memory[at : at + height * width].view(height, width) if region.source_alpha else None
        return StagedImage(chunk, rgb, alpha)

    def take_band(self, offset: int, byte_count: int) -> Band | None:
        """Memory for output, to be written after the chunk's `wait_for`; None while a held chunk is in the way."""
        chunk = self._down.take(byte_count)
        return Band(chunk, self._down_memory[chunk.start : chunk.start + byte_count], offset) if chunk else None

    def download(self, band: Band, ready: Event) -> Event:
        """Start copying a band into the arena once `ready` is reached; the result is reached when it is there."""
        with self._device.download_stream():
            self._device.wait_event(ready)
            for first, last in self._parts(band.offset, len(band.memory)):
                self._block[band.offset + first : band.offset + last].copy_(band.memory[first:last], non_blocking=True)
            arrived = self._device.record_event()
        band.chunk.release(arrived)
        return arrived

    def clear(self) -> None:
        """All copies have ended, completed or not."""
        self._up.clear()
        self._down.clear()

    def _parts(self, offset: int, byte_count: int) -> list[tuple[int, int]]:
        """A copy must be on one side of the end of what is page-locked, or the driver refuses it."""
        edge = min(max(self._pinned - offset, 0), byte_count)
        return [part for part in ((0, edge), (edge, byte_count)) if part[0] < part[1]]
