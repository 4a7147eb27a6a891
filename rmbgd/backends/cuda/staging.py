"""Images on their way between the arena and the device: two rings of bytes there, copies on streams of their own.

Knows planes and places in memory, not what is computed. The arena's first bytes may be page-locked: a copy of those
runs beside the device's work, of the others the host makes a second copy.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.backends.cuda.device import CudaSeam, Mark
from rmbgd.engine.types import OUTPUT_BYTES, Region, aligned

# --- POLICY: which bytes of a staging buffer the next image gets, and whose it overwrites. First in, first out.


MarkT = TypeVar("MarkT")

ALIGNMENT = 256  # bytes; what device allocators give, and what wide loads like


@dataclass(eq=False)
class Piece(Generic[MarkT]):
    """Bytes start..end-1 of the buffer. All fields but the place belong to the ring's owner.

    held   not to be overwritten yet
    mark   of the last use; None when there was none
    after  marks to wait for before the first use
    gone   another piece has taken its place
    """

    start: int
    end: int
    held: bool = True
    mark: MarkT | None = None
    after: list[MarkT] = field(default_factory=list)
    gone: bool = False


class Ring(Generic[MarkT]):
    def __init__(self, byte_count: int) -> None:
        self.byte_count = byte_count
        self._live: deque[Piece[MarkT]] = deque()  # in the order in which they were taken
        self._head = 0

    def take(self, byte_count: int) -> Piece[MarkT] | None:
        """The next piece, held; None while a held one lies in its way. Raises ValueError for what can never fit."""
        wanted = max(ALIGNMENT, -(-byte_count // ALIGNMENT) * ALIGNMENT)
        if wanted > self.byte_count:
            raise ValueError(f"{byte_count} bytes can never fit into a ring of {self.byte_count}")
        wraps = self._head + wanted > self.byte_count
        start = 0 if wraps else self._head
        leaving = []
        for piece in self._live:
            skipped = wraps and piece.start >= self._head  # what is passed over leaves first: it is the oldest
            if not skipped and not (piece.start < start + wanted and start < piece.end):
                break
            if piece.held:
                return None
            leaving.append(piece)
        taken: Piece[MarkT] = Piece(start, start + wanted)
        for piece in leaving:
            self._live.popleft()
            piece.gone = True
            if piece.mark is not None:
                taken.after.append(piece.mark)
        self._live.append(taken)
        self._head = taken.end
        return taken

    def clear(self) -> None:
        """Forget everything: nobody reads or writes the buffer now."""
        for piece in self._live:
            piece.gone, piece.held = True, False
        self._live.clear()
        self._head = 0


# --- Images on their way between the arena and the device: two rings of bytes there, copies on streams of their own.


@dataclass
class Source:
    """The planes of an image that are read, on the device as long as its piece is not gone.

    rgb           uint8 [H, W, 3]
    source_alpha  uint8 [H, W] or None
    """

    piece: Piece[Mark]
    rgb: Tensor
    source_alpha: Tensor | None


@dataclass
class Band:
    """Bytes of an output plane that wait on the device: `memory` uint8 [n], for the block's bytes from `offset` on."""

    piece: Piece[Mark]
    memory: Tensor
    offset: int


class Staging:
    """`pinned`: bytes of the block that are page-locked, from its start."""

    def __init__(self, device: CudaSeam, block: NDArray[np.uint8], upload: int, download: int, pinned: int) -> None:
        self._device = device
        self._block = torch.from_numpy(block)
        self._pinned = pinned
        self._up: Ring[Mark] = Ring(upload)
        self._down: Ring[Mark] = Ring(download)
        self._up_memory = torch.empty(upload, dtype=torch.uint8, device=device.torch)
        self._down_memory = torch.empty(download, dtype=torch.uint8, device=device.torch)

    def fits(self, region: Region) -> bool:
        """Whether an image can be on the device at all, as a whole, and a row of its output."""
        row = OUTPUT_BYTES[region.output] * region.width
        return region.output_offset - region.offset <= self._up.byte_count and row <= self._down.byte_count

    def bring(self, region: Region) -> Source | None:
        """Start copying the planes that are read; None while a held piece lies in the way. To be followed: its mark."""
        byte_count = region.output_offset - region.offset
        piece = self._up.take(byte_count)
        if piece is None:
            return None
        memory = self._up_memory[piece.start : piece.start + byte_count]
        with self._device.upload():
            for mark in piece.after:
                self._device.follow(mark)
            for first, last in self._parts(region.offset, byte_count):
                memory[first:last].copy_(self._block[region.offset + first : region.offset + last], non_blocking=True)
            piece.mark = self._device.mark()
        height, width = region.height, region.width
        rgb = memory[: 3 * height * width].view(height, width, 3)
        if not region.source_alpha:
            return Source(piece, rgb, None)
        at = aligned(3 * height * width)
        return Source(piece, rgb, memory[at : at + height * width].view(height, width))

    def room(self, offset: int, byte_count: int) -> Band | None:
        """Device memory for output that goes to the block's bytes from `offset` on; None while others must leave first.

        What is written there must wait for the marks in its piece's `after`.
        """
        piece = self._down.take(byte_count)
        if piece is None:
            return None
        return Band(piece, self._down_memory[piece.start : piece.start + byte_count], offset)

    def send(self, band: Band, ready: Mark) -> Mark:
        """Start copying a band into the arena once `ready` is reached; the answer marks its arrival."""
        with self._device.download():
            self._device.follow(ready)
            for first, last in self._parts(band.offset, len(band.memory)):
                self._block[band.offset + first : band.offset + last].copy_(band.memory[first:last], non_blocking=True)
            arrived = self._device.mark()
        band.piece.mark, band.piece.held = arrived, False
        return arrived

    def clear(self) -> None:
        """Everything has ended, well or not."""
        self._up.clear()
        self._down.clear()

    def _parts(self, offset: int, byte_count: int) -> list[tuple[int, int]]:
        """A copy must lie on one side of the end of what is page-locked, or the driver refuses it."""
        edge = min(max(self._pinned - offset, 0), byte_count)
        return [part for part in ((0, edge), (edge, byte_count)) if part[0] < part[1]]
