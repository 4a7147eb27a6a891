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
    recurrent  it takes the frame before as well
    """

    facts: dict[str, object]
    sizes: tuple[int, ...]
    size: tuple[int, int]
    filter: Filter
    recurrent: bool

    def infer(
        self, images: Sequence[NDArray[np.uint8]], previous: Sequence[NDArray[np.uint8] | None] = ()
    ) -> NDArray[np.float32]:
        """Alpha [n, h, w] of images [H, W, 3] of any sizes, not checked to be finite; valid until the next call.

        previous  for a recurrent network: of each image the frame before it, times its alpha, uint8 [h, w, 3] of the
                  network's size; None, or nothing at all, is black
        """
