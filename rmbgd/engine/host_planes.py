"""On the host, from a network's answer to the output plane of one picture: resize, clean colours, compose.

Chooses nothing. The engine on the CPU ends with it, one on a GPU for pictures that its staging memory cannot hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rmbgd.engine.base import Slot
from rmbgd.imaging.compose import compose_rgba, quantise_alpha
from rmbgd.imaging.resize import matte_to_image


def finish(slot: Slot, matte: NDArray[np.float32], *, clean: bool) -> None:
    """Write the output plane of one picture from its matte, float32 [h, w]."""
    alpha = matte_to_image(matte, *slot.rgb.shape[:2])
    if slot.rgba is not None:
        compose_rgba(slot.rgb, alpha, slot.source_alpha, slot.rgba, clean=clean)
    elif slot.alpha is not None:
        quantise_alpha(alpha, slot.source_alpha, slot.alpha)
