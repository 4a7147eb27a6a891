"""JPEG scans: where they lie, whether every restart marker is there, and how many zero bytes they may hold.

ITU-T T.81. An encoder writes a run of zero bytes only where the codes of its Huffman tables that are all zeros mean an
even area; with other tables zeros are pixels that no encoder would make, so they were never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rmbgd.imaging.formats import Coded, damaged
from rmbgd.imaging.zero_runs import SECTOR

_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # of what is decoded: sequential and progressive, Huffman and arithmetic
PROGRESSIVE = {0xC2, 0xCA}
_ARITHMETIC = {0xC9, 0xCA}
_DHT, _EOI, _SOS, _DRI = 0xC4, 0xD9, 0xDA, 0xDD
_BLOCK = 8  # pixels
SCANS_MAXIMUM = 1000  # that are looked at; ten are usual


@dataclass(slots=True)
class Scans:
    """What the segments before a scan say of it.

    components  by identifier: samples per unit, across and down
    zero_codes  by class (0: DC, 1: AC) and number of a table: the symbol of the code that is all zeros, and its length
    """

    marker: int = 0
    size: tuple[int, int] = (0, 0)
    components: dict[int, tuple[int, int]] = field(default_factory=dict)
    zero_codes: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    interval: int = 0  # units between two restart markers; 0: there are none

    def take(self, marker: int, segment: bytes) -> None:
        """A segment other than a scan's."""
        if marker in _FRAMES and len(segment) > 5 and len(segment) >= 6 + 3 * segment[5] > 6:
            self.marker = marker
            self.size = int.from_bytes(segment[3:5], "big"), int.from_bytes(segment[1:3], "big")
            samples = (segment[at : at + 2] for at in range(6, 6 + 3 * segment[5], 3))
            self.components = {name: (max(1, both >> 4), max(1, both & 15)) for name, both in samples}
        elif marker == _DRI and len(segment) >= 2:
            self.interval = int.from_bytes(segment[:2], "big")
        elif marker == _DHT:
            at = 0
            while at + 17 < len(segment):
                counts = segment[at + 1 : at + 17]
                length = next((bits for bits, count in enumerate(counts, 1) if count), 16)
                self.zero_codes[segment[at] >> 4, segment[at] & 15] = (segment[at + 17], length)
                at += 17 + sum(counts)

    def walk(self, data: bytes, segment: bytes, at: int) -> Iterator[Coded]:
        """The scans; data of the first begin at byte `at`. Raises ImageError where restart markers are missing."""
        if not self.components:
            return
        whole = np.frombuffer(data, np.uint8)
        found = _markers(whole[at:]) + at
        kinds = whole[found + 1]
        others = np.flatnonzero((kinds < 0xD0) | (kinds > 0xD7))  # than restart markers
        for _ in range(SCANS_MAXIMUM):
            first = int(np.searchsorted(found, at))
            after = int(np.searchsorted(others, first))
            last = int(others[after]) if after < len(others) else len(found)
            end = int(found[last]) if last < len(found) else len(data)
            self._check_restarts(data, segment, kinds[first:last])
            yield Coded(at, end, self._zeros(segment))
            at = end
            while True:  # the segments up to the next scan
                if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] == _EOI:
                    return
                if data[at + 1] == 0xFF:
                    at += 1
                    continue
                marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
                segment, at = data[at + 4 : at + 2 + length], at + 2 + length
                if marker == _SOS:
                    break
                self.take(marker, segment)

    def _check_restarts(self, data: bytes, segment: bytes, kinds: NDArray[np.uint8]) -> None:
        if not self.interval:
            return
        expected = (self._units(segment) - 1) // self.interval
        order = (np.arange(len(kinds)) & 7) + 0xD0
        if len(kinds) not in (expected, expected + 1) or not np.array_equal(kinds, order):  # some write one at the end
            raise damaged(data, f"{len(kinds)} restart markers in a scan that needs {expected}, or out of order")

    def _names(self, segment: bytes) -> list[tuple[int, int]]:
        """Of a scan's components: identifier, and the numbers of both tables."""
        count = segment[0] if segment else 0
        return [(segment[at], segment[at + 1]) for at in range(1, min(1 + 2 * count, len(segment) - 1), 2)]

    def _units(self, segment: bytes) -> int:
        """How many units (T.81: MCU) a scan codes."""
        names = self._names(segment)
        across = max(h for h, _ in self.components.values())
        down = max(v for _, v in self.components.values())
        width, height = self.size
        if len(names) == 1:  # not interleaved: one block a unit, and none for padding
            h, v = self.components.get(names[0][0], (1, 1))
            width, height = -(-width * h // across), -(-height * v // down)
            across = down = 1
        return -(-width // (_BLOCK * across)) * -(-height // (_BLOCK * down))

    def _zeros(self, segment: bytes) -> int:
        """The longest run of zero bytes that an encoder writes into this scan."""
        names = self._names(segment)
        if len(segment) < 4 or not names:
            return SECTOR
        blocks = self._units(segment)
        if len(names) > 1:
            blocks *= sum(h * v for h, v in (self.components.get(name, (1, 1)) for name, _ in names))
        if self.marker in _ARITHMETIC:
            return SECTOR + blocks // 8
        first, _, approximation = segment[-3:]
        bits = 0
        if self.marker not in PROGRESSIVE or first == 0:
            refines = self.marker in PROGRESSIVE and approximation >> 4  # one bit a block, not coded
            codes = [(0, 1)] if refines else [self.zero_codes.get((0, tables >> 4), (1, 0)) for _, tables in names]
            bits = 0 if any(symbol for symbol, _ in codes) else max(length for _, length in codes)
        if bits and self.marker not in PROGRESSIVE:
            codes = [self.zero_codes.get((1, tables & 15), (1, 0)) for _, tables in names]
            bits = 0 if any(symbol for symbol, _ in codes) else bits + max(length for _, length in codes)
        # AC coefficients of a progressive file: even blocks are counted in one code, so zeros are never many.
        return SECTOR + blocks * bits // 8


def _markers(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where FF stands before anything but a stuffed zero or a fill byte."""
    at = np.flatnonzero(data[:-1] == 0xFF).astype(np.int64, copy=False)
    following = data[at + 1]
    found: NDArray[np.int64] = at[(following != 0) & (following != 0xFF)]
    return found
