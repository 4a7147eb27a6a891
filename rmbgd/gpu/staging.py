"""Pictures on their way between the arena and the device: two rings of bytes there, copies on streams of their own.

Knows planes and places in memory, not what is computed. The arena's first bytes may be page-locked: a copy of those
runs beside the device's work, of the others the host makes a second copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.engine.base import OUTPUT_BYTES, Region, aligned
from rmbgd.gpu.device import Device, Mark
from rmbgd.gpu.ring import Piece, Ring


@dataclass
class Source:
    """The planes of a picture that are read, on the device as long as its piece is not gone.

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

    def __init__(self, device: Device, block: NDArray[np.uint8], upload: int, download: int, pinned: int) -> None:
        self._device = device
        self._block = torch.from_numpy(block)
        self._pinned = pinned
        self._up: Ring[Mark] = Ring(upload)
        self._down: Ring[Mark] = Ring(download)
        self._up_memory = torch.empty(upload, dtype=torch.uint8, device=device.torch)
        self._down_memory = torch.empty(download, dtype=torch.uint8, device=device.torch)

    def fits(self, region: Region) -> bool:
        """Whether a picture can be on the device at all, as a whole, and a row of its output."""
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
