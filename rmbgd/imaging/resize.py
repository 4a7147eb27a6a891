"""Resize images to the network's size by the model's filter, and alpha back by antialiased bilinear.

Bilinear is what Pillow calls BILINEAR and torch `antialias=True`: a triangle whose support grows with the reduction,
and is one pixel when enlarging. Alpha is not stretched, clipped or rounded: its values stay absolute.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rmbgd.resampling import Filter, box_bound


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
    if filter is Filter.BOX:
        return _by_box(rgb, *size)
    return np.asarray(Image.fromarray(rgb).resize(size[::-1], Image.Resampling.BILINEAR), np.uint8)


def _by_box(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Sums of whole pixels, exact in float32, rounded once.

    12 megapixels take 10 ms of one core, 7 of them for the rows; Pillow's BOX takes 53, OpenCV's INTER_AREA 38.
    """
    means: NDArray[np.float32] = rgb.astype(np.float32) if rgb.shape[0] <= height else _row_means(rgb, height)
    if means.shape[1] > width:
        bounds = _bounds(means.shape[1], width)
        means = np.add.reduceat(means, bounds[:-1], axis=1)
        means /= np.diff(bounds)[:, None].astype(np.float32)
    if means.shape[:2] != (height, width):
        means = np.asarray(cv2.resize(means, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    return (means.reshape(height, width, 3) + np.float32(0.5)).astype(np.uint8)


def _row_means(rgb: NDArray[np.uint8], height: int) -> NDArray[np.float32]:
    """Of the rows of each output row: float32 [height, W, 3]."""
    rows = rgb.reshape(len(rgb), -1)
    means = np.empty((height, rows.shape[1]), np.float32)
    bounds = _bounds(len(rows), height)
    for index, (first, last) in enumerate(itertools.pairwise(bounds)):
        cv2.reduce(rows[first:last], 0, cv2.REDUCE_SUM, means[index : index + 1], dtype=cv2.CV_32F)
    means /= np.diff(bounds)[:, None].astype(np.float32)
    return means.reshape(height, -1, 3)


def _bounds(inputs: int, outputs: int) -> NDArray[np.int64]:
    return np.array([box_bound(index, inputs, outputs) for index in range(outputs + 1)])
