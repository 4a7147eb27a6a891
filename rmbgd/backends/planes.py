"""Pixels in: the statistics of ImageNet, for every network here. Mattes measured; output planes out, on the host."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.engine.types import Slot
from rmbgd.imaging.compose import compose_rgba, quantise_alpha
from rmbgd.imaging.resize import matte_to_image

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

# (x / 255 - mean) / deviation = SCALE * x + SHIFT, per channel, x in 0..255
SCALE = tuple(1 / (255 * deviation) for deviation in DEVIATION)
SHIFT = tuple(-mean / deviation for mean, deviation in zip(MEAN, DEVIATION, strict=True))


def statistics(mattes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each matte, float32 [b, h, w]: mean, peak, share >= 0.5, share in 0.05..0.95; each float32 [b]."""
    flat = mattes.flatten(1)
    solid, soft = flat >= 0.5, (flat > 0.05) & (flat < 0.95)
    return flat.mean(dim=1), flat.amax(dim=1), solid.float().mean(dim=1), soft.float().mean(dim=1)


def finish(slot: Slot, matte: NDArray[np.float32], *, clean: bool) -> None:
    """Write the output plane of one image from its matte, float32 [h, w]: resize, clean colours, compose."""
    alpha = matte_to_image(matte, *slot.rgb.shape[:2])
    if slot.rgba is not None:
        compose_rgba(slot.rgb, alpha, slot.source_alpha, slot.rgba, clean=clean)
    elif slot.alpha is not None:
        quantise_alpha(alpha, slot.source_alpha, slot.alpha)
