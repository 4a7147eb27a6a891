"""Puts bands of rows, in stored order, where an upright picture wants them (EXIF 2.32, orientation 1 to 8).

Works on planes of any number of channels; does not read EXIF.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_SWAPPED = {5, 6, 7, 8}
BAND_ROWS = 128  # rows turned at once: small enough for the cache, large enough that columns become long runs


def upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) after the turn."""
    return (size[1], size[0]) if orientation in _SWAPPED else size


def place(plane: Bytes, first: int, band: Bytes, orientation: int) -> None:
    """Write rows first .. first + k of the stored picture into the upright `plane`.

    plane  uint8 [H, W] or [H, W, C], upright
    band   uint8 [k, w] or [k, w, C], w being the stored width
    """
    last = first + len(band)
    height, width = plane.shape[:2]
    if orientation == 1:
        plane[first:last] = band
    elif orientation == 2:
        plane[first:last] = cv2.flip(band, 1).reshape(band.shape)
    elif orientation == 3:
        plane[height - last : height - first] = cv2.flip(band, -1).reshape(band.shape)
    elif orientation == 4:
        plane[height - last : height - first] = cv2.flip(band, 0).reshape(band.shape)
    elif orientation == 5:
        plane[:, first:last] = _transposed(band)
    elif orientation == 6:
        plane[:, width - last : width - first] = _flipped(_transposed(band), 1)
    elif orientation == 7:
        plane[:, width - last : width - first] = _flipped(_transposed(band), -1)
    else:
        plane[:, first:last] = _flipped(_transposed(band), 0)


def place_whole(plane: Bytes, stored: Bytes, orientation: int) -> None:
    """Turn a whole decoded picture into `plane`."""
    for first in range(0, len(stored), BAND_ROWS):
        place(plane, first, stored[first : first + BAND_ROWS], orientation)


def _transposed(band: Bytes) -> Bytes:
    return np.asarray(cv2.transpose(band), np.uint8).reshape(band.shape[1], band.shape[0], *band.shape[2:])


def _flipped(band: Bytes, axis: int) -> Bytes:
    return np.asarray(cv2.flip(band, axis), np.uint8).reshape(band.shape)
