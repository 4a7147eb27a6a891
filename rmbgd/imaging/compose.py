"""Alpha and colour become the planes of the answer: rounded once, multiplied by the picture's own alpha, straight RGBA.

Works in bands of rows so that each stays in the cache. Does not resize, crop or encode; does not know recipes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.imaging.foreground import clean_edges

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint16]
Floats = NDArray[np.float32]

BAND_BYTES = 1 << 19  # of the widest array touched; half a cache of the cores this runs on


def bands(array: NDArray[np.generic]) -> Iterator[slice]:
    """Slices of rows of about BAND_BYTES each."""
    rows = max(1, BAND_BYTES // max(1, array.strides[0]))
    for first in range(0, len(array), rows):
        yield slice(first, min(first + rows, len(array)))


def compose_rgba(rgb: Bytes, alpha: Floats, source_alpha: Bytes | None, out: Bytes, *, clean: bool) -> None:
    """Straight (unassociated) RGBA into `out`.

    rgb           uint8 [H, W, 3]; only read
    alpha         float32 [H, W], 0..1; beyond it is taken for 0 and 1
    source_alpha  uint8 [H, W] or None; alpha that the picture came with, multiplied in
    out           uint8 [H, W, 4], contiguous; written completely
    clean         take the old background out of soft edges (foreground.py)

    The edges are cleaned for the network's alpha alone: the picture's own alpha never mixed its colours.
    """
    rounding = _Rounding(alpha, source_alpha, out)
    for rows in bands(out):
        cv2.cvtColor(rgb[rows], cv2.COLOR_RGB2RGBA, dst=out[rows])
        cv2.insertChannel(rounding.of(rows), out[rows], 3)
    if clean:
        clean_edges(rgb, alpha, out)


def quantise_alpha(alpha: Floats, source_alpha: Bytes | None, out: Bytes | Words) -> None:
    """Alpha as integers into `out` (uint8 or uint16 [H, W]), rounded once, the picture's own alpha multiplied in."""
    rounding = _Rounding(alpha, source_alpha, alpha)
    for rows in bands(alpha):
        if out.dtype == np.uint8:
            out[rows] = rounding.of(rows)
            continue
        scaled = alpha[rows].clip(0.0, 1.0) * np.float32(65535.0)
        if source_alpha is not None:
            scaled *= source_alpha[rows] * np.float32(1.0 / 255.0)
        out[rows] = np.rint(scaled)


def zero_hidden(rgba: Bytes) -> None:
    """Set the colours under alpha 0 to 0, in place; what anyone sees does not change, the file shrinks by half.

    rgba  uint8 [H, W, 4], contiguous
    """
    visible = np.empty(_first_band(rgba).shape[:2], np.bool_)
    for rows in bands(rgba):
        pixels = rgba[rows].view(np.uint32)[:, :, 0]
        here = visible[: len(pixels)]
        if sys.byteorder == "little":
            np.greater(pixels, 0x00FFFFFF, out=here)  # alpha is the highest byte
        else:
            np.not_equal(rgba[rows, :, 3], 0, out=here)
        np.multiply(pixels, here, out=pixels)


def flatten(rgba: Bytes, colour: tuple[int, int, int], out: Bytes) -> None:
    """The cutout laid on a colour, into `out` (uint8 [H, W, 3]); exactly that colour wherever alpha is 0.

    rgba  uint8 [H, W, 4], straight alpha
    """
    background = np.asarray(colour, np.uint16)
    for rows in bands(rgba):
        band = rgba[rows]
        share = band[:, :, 3:].astype(np.uint16)
        mixed = band[:, :, :3] * share
        mixed += background * (255 - share)
        mixed += 128  # rounded division by 255, exact for every product of two bytes
        mixed += mixed >> 8
        out[rows] = mixed >> 8


def extract_mask(rgba: Bytes) -> Bytes:
    """The alpha of uint8 [H, W, 4] as uint8 [H, W]."""
    return np.asarray(cv2.extractChannel(rgba, 3), np.uint8).reshape(rgba.shape[:2])


class _Rounding:
    """round(255 alpha) band by band, times the picture's own alpha before rounding, in buffers that are used again."""

    def __init__(self, alpha: Floats, source_alpha: Bytes | None, banded: NDArray[np.generic]) -> None:
        self._alpha = alpha
        self._source_alpha = source_alpha
        shape = _first_band(banded).shape[:2]
        self._floats = np.empty(shape, np.float32)
        self._bytes = np.empty(shape, np.uint8)

    def of(self, rows: slice) -> Bytes:
        alpha = self._alpha[rows]
        floats, values = self._floats[: len(alpha)], self._bytes[: len(alpha)]
        shares = np.asarray(cv2.threshold(alpha, 0.0, 0.0, cv2.THRESH_TOZERO, dst=floats)[1]).reshape(alpha.shape)
        if self._source_alpha is not None:
            np.minimum(shares, 1.0, out=shares)
            shares *= self._source_alpha[rows]
        scale = 255.0 if self._source_alpha is None else 1.0
        return np.asarray(cv2.convertScaleAbs(shares, dst=values, alpha=scale), np.uint8).reshape(alpha.shape)


def _first_band(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return array[next(bands(array))]
