"""Resize images to the network's size by the model's filter, and alpha back by antialiased bilinear.

Bilinear is what Pillow calls BILINEAR and torch `antialias=True`: a triangle whose support grows with the reduction,
and is one pixel when enlarging. Alpha is not stretched, clipped or rounded: its values stay absolute.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rmbgd.resampling import Filter


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


def image_to_network(
    rgb: NDArray[np.uint8],
    size: tuple[int, int],
    filter: Filter,  # noqa: A002
) -> NDArray[np.uint8]:
    """An image, uint8 [H, W, 3], at the network's size (h, w): uint8 [h, w, 3], rounded.

    What a device computes, by torch or a kernel, equals it within one level.
    """
    if rgb.shape[:2] == size:
        return rgb
    resized = Image.fromarray(rgb).resize(size[::-1], Image.Resampling[filter.name])
    return np.asarray(resized, np.uint8)
