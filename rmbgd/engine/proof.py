"""Does a network find the golden image's subject, at its own size and told by name. Knows no torch and no device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rmbgd.engine.golden_image import OVERLAP_EXPECTED, golden_image, overlap
from rmbgd.errors import EngineNonsense
from rmbgd.imaging.resize import matte_to_image


def proven(matte: NDArray[np.float32], model: str, name: str) -> float:
    """Overlap of an answer to the golden image, float32 [h, w], with the truth. Raises EngineNonsense if too small.

    model  as the registry calls it; name  as the recipe does
    """
    _, truth = golden_image()
    agreement = overlap(matte_to_image(matte, *truth.shape), truth)
    expected = OVERLAP_EXPECTED.get(model, 0.0)
    if agreement < expected:
        raise EngineNonsense(f"the golden image came out wrong: overlap {agreement:.3f}, expected {expected} ({name})")
    return float(agreement)
