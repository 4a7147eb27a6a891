"""Small mattes and truths by formulas of whole numbers, the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
HEIGHT, WIDTH = 90, 120
NAMES = ("noise", "holes", "soft", "touching", "specks", "pale")


def _grain(seed: int) -> NDArray[np.int64]:
    """Whole numbers from 0 to 255 without a pattern."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.int64)
    state = (x * 73_856_093) ^ (y * 19_349_663) ^ (seed * 83_492_791)
    for _ in range(3):
        state = (state * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
        state ^= state >> 11
    return state & 255


def _disc(row: int, column: int, radius: int, *, edge: int = 0) -> NDArray[np.int64]:
    """255 inside, 0 outside; with `edge` > 0 the squared distance falls off linearly between."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.int64)
    far = (y - row) ** 2 + (x - column) ** 2 - radius**2
    return np.where(far <= 0, 255, 0) if not edge else np.clip(255 - far * 255 // edge, 0, 255)


def case(name: str) -> tuple[Bytes, Bytes]:
    """(prediction, truth). Every prediction but that of `pale` reaches from 0 to 255."""
    grain = _grain(NAMES.index(name) + 1)
    disc = _disc(44, 60, 27)
    if name == "noise":
        truth, found = disc, np.clip(_disc(46, 57, 25, edge=500) + (grain - 128) // 3, 0, 255)
    elif name == "holes":
        truth = np.where((_disc(30, 40, 6) > 0) | (grain % 29 == 0), 0, np.maximum(disc, _disc(20, 100, 8)))
        found = np.clip(_disc(44, 62, 26, edge=300) - grain // 5, 0, 255)
    elif name == "soft":
        truth = _disc(44, 60, 22, edge=700)
        found = np.clip(_disc(45, 58, 23, edge=400) + np.where(truth % 255 == 0, 0, grain // 4 - 32), 0, 255)
    elif name == "touching":
        truth = np.maximum(_disc(0, 118, 40), _disc(85, 5, 12))
        found = np.maximum(_disc(3, 110, 38, edge=900), grain // 6)
    elif name == "specks":
        truth = np.where(grain % 13 == 0, 255, 0)
        found = np.where(np.roll(grain, 1, 1) % 3 == 0, 255 - grain, truth * (grain % 5 > 0))
    else:
        truth, found = disc, 40 + _disc(44, 60, 27, edge=400) // 2
    return found.astype(np.uint8), truth.astype(np.uint8)
