"""A network on the CPU, whatever computes it: images in, alpha out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rmbgd.resampling import Filter


class CpuNetwork(Protocol):
    """Owned by the backend's thread.

    facts   for the log, as Provenance has them
    sizes   of batches that it gains by; ascending, from 1
    size    of its input, (height, width)
    filter  by which images are brought to it
    """

    facts: dict[str, object]
    sizes: tuple[int, ...]
    size: tuple[int, int]
    filter: Filter

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Alpha [n, h, w] of images [H, W, 3] of any sizes, not checked to be finite; valid until the next call."""
