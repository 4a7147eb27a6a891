"""What a recurrent network sees of the frame before: its image times its alpha, kept for the sequences in work."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from rmbgd.engine.types import FrameLink

SEQUENCES = 32  # that are remembered; the one that was used longest ago goes first


class Recurrence:
    """Owned by the backend's thread. It lasts as long as its process: after a restart a sequence begins from black."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[int, NDArray[np.uint8]]] = OrderedDict()  # ticket, image times alpha

    def before(self, link: FrameLink | None) -> NDArray[np.uint8] | None:
        """Of the frame before it, uint8 [h, w, 3]; None where that was not computed here, or there is none."""
        if link is None:
            return None
        ticket, image = self._kept.get(link.sequence, (0, None))
        return image if ticket and ticket == link.previous else None

    def keep(self, link: FrameLink | None, seen: NDArray[np.uint8]) -> None:
        """For the frame after it; once this one is finished, as one that fails is computed again."""
        if link is None:
            return
        self._kept[link.sequence] = link.ticket, seen
        self._kept.move_to_end(link.sequence)
        while len(self._kept) > SEQUENCES:
            self._kept.popitem(last=False)


def under_alpha(image: NDArray[np.uint8], alpha: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An image, uint8 [h, w, 3], times its alpha, float32 [h, w], 0..1."""
    return np.asarray(np.rint(image * alpha[:, :, None]), np.uint8)
