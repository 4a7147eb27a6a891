"""Resize images to the network's size and alpha back: antialiased bilinear, half-pixel centres.

The filter is the one that Pillow calls BILINEAR and torch `antialias=True`: a triangle whose support grows with the
reduction, and is one pixel when enlarging. Alpha is not stretched, clipped or rounded: its values stay absolute.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def matte_to_image(alpha: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Alpha of the network's size, float32 [h, w], at the image's size, float32 [height, width].

    OpenCV's bilinear is the same filter where nothing shrinks, at a fraction of the cost.
    """
    if alpha.shape == (height, width):
        return alpha
    if height >= alpha.shape[0] and width >= alpha.shape[1]:
        enlarged = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(enlarged, np.float32).reshape(height, width)
    image = Image.fromarray(np.ascontiguousarray(alpha, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)


def image_to_network(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """An image, uint8 [H, W, 3], at the network's size, uint8 [height, width, 3], rounded.

    The reference on the CPU without torch; the backend's own resize equals it within one level.
    """
    if rgb.shape[:2] == (height, width):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR), np.uint8)
