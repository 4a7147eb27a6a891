"""Looking at an engine that works: the golden image computed in passing, and the canary. The seam and its values.

A leaf beside base.py: does not compare or judge what is seen, and does not know when to look.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rmbgd.engine.golden_image import HEIGHT, WIDTH
from rmbgd.engine.types import Backend, MemoryTestPass

LEVELS = 65535


@dataclass(frozen=True, slots=True)
class Golden:
    """The golden image as one model sees it: alpha float32 [240, 320] in 0..1, and the seconds that it took."""

    alpha: NDArray[np.float32]
    seconds: float


class Examined(Backend, Protocol):
    """An engine that can be looked at between two batches, by its owner."""

    def golden(self, model: str) -> Golden:
        """Compute the golden image with `model`. Raises EngineFault."""
        ...

    def canary(self, blocks: int) -> MemoryTestPass:
        """One pass over `blocks` blocks of device memory. Raises EngineFault."""
        ...


def from_golden(golden: Golden) -> dict[str, Any]:
    """As JSON: 16 bits a pixel, compressed; some ten kilobytes."""
    levels = np.floor(golden.alpha.clip(0, 1) * LEVELS + 0.5).astype("<u2")
    return {"alpha": base64.b64encode(zlib.compress(levels.tobytes(), 1)).decode(), "seconds": golden.seconds}


def to_golden(message: dict[str, Any]) -> Golden:
    """Raises ValueError, KeyError or TypeError for what cannot be a golden image."""
    unpacked = zlib.decompressobj()
    try:
        data = unpacked.decompress(base64.b64decode(message["alpha"], validate=True), 2 * HEIGHT * WIDTH + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    levels = np.frombuffer(data, "<u2").reshape(HEIGHT, WIDTH)  # ValueError for any other size
    return Golden(levels.astype(np.float32) / np.float32(LEVELS), float(message["seconds"]))
