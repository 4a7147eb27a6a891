"""Second look: the image in a wider frame through the network once more, and how far the two mattes agree.

A matte that depends on where the frame ends is seldom right (test-time augmentation, as in Ayhan and Berens, 2018).
"""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.engine.types import MatteReport

Image = TypeVar("Image", NDArray[np.uint8], NDArray[np.float32])

MARGIN = 6  # one in so many of the side, on each side of the image
GREY = 0.2  # soft pixels for each solid one: half of 80 photographs have more; looks at the others find hardly more


def needs_second_look(matte: MatteReport) -> bool:
    """Whether a matte is neither surely right nor surely empty, so that a second look is worth its time."""
    return matte.peak >= 0.5 and matte.soft > GREY * matte.solid


def wider(image: Image) -> Image:
    """The image, [h, w, 3] at the network's size, smaller, and around it what a mirror at its border shows."""
    height, width = image.shape[:2]
    down, across = height // MARGIN, width // MARGIN
    wide = cv2.copyMakeBorder(image, down, down, across, across, cv2.BORDER_REFLECT_101)
    return np.asarray(cv2.resize(wide, (width, height), interpolation=cv2.INTER_AREA), image.dtype)


def disagreement(matte: NDArray[np.float32], wide: NDArray[np.float32]) -> float:
    """1 less the overlap (sum of the lesser alphas by that of the greater) of a matte with that of `wider`; 0..1.

    Both float32 [h, w], finite.
    """
    height, width = matte.shape
    top, left = (round(side * (side // MARGIN) / (side + 2 * (side // MARGIN))) for side in matte.shape)
    inner = np.ascontiguousarray(wide[top : height - top, left : width - left])
    other = cv2.resize(inner, (width, height), interpolation=cv2.INTER_LINEAR)
    union = float(np.maximum(matte, other).sum(dtype=np.float64))
    return 1 - float(np.minimum(matte, other).sum(dtype=np.float64)) / union if union else 0.0
