"""Pixels in: the statistics of ImageNet, for every network here. Output planes out, on the host. Without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rmbgd.engine.types import Slot
from rmbgd.imaging.compose import compose_rgba, quantise_alpha
from rmbgd.imaging.refine import refine_edges
from rmbgd.imaging.resize import matte_to_image

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

# (x / 255 - mean) / deviation = SCALE * x + SHIFT, per channel, x in 0..255
SCALE = tuple(1 / (255 * deviation) for deviation in DEVIATION)
SHIFT = tuple(-mean / deviation for mean, deviation in zip(MEAN, DEVIATION, strict=True))


def finish(slot: Slot, matte: NDArray[np.float32], *, clean: bool, guide: NDArray[np.uint8] | None = None) -> None:
    """Write the output plane of one image from its matte, float32 [h, w]: resize, refine, clean colours, compose.

    guide  uint8 [h, w, 3], the image as the network saw it, where alpha is to be refined (refine.refines)
    """
    alpha = matte_to_image(matte, *slot.rgb.shape[:2])
    if guide is not None:
        refine_edges(slot.rgb, matte, guide, alpha)
    if slot.rgba is not None:
        compose_rgba(slot.rgb, alpha, slot.source_alpha, slot.rgba, clean=clean)
    elif slot.alpha is not None:
        quantise_alpha(alpha, slot.source_alpha, slot.alpha)
