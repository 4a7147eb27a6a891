"""Compose the output plane: rounded alpha on straight colours, or a mask.

Works in bands of rows so that each stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.imaging.edges import clean_edges

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint16]
Floats = NDArray[np.float32]
Pixels = Bytes | Words
"""What is encoded: uint8 [H, W, 4] straight RGBA or [H, W, 3] RGB, or a uint8 or uint16 [H, W] mask; contiguous."""

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
    source_alpha  uint8 [H, W] or None; alpha that the image came with, multiplied in
    out           uint8 [H, W, 4], contiguous; written completely
    clean         take the old background out of soft edges (edges.py)

    The edges are cleaned for the network's alpha alone: the image's own alpha never mixed its colours.
    """
    for rows, values in _rounded(alpha, source_alpha, out):
        cv2.cvtColor(rgb[rows], cv2.COLOR_RGB2RGBA, dst=out[rows])
        cv2.insertChannel(values, out[rows], 3)
    if clean:
        clean_edges(rgb, alpha, out)


def with_alpha(rgb: Bytes, alpha: Bytes, out: Bytes) -> None:
    """The photograph's colours, uint8 [H, W, 3], and alpha that is rounded already, uint8 [H, W], into `out`, RGBA."""
    cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA, dst=out)
    cv2.insertChannel(alpha, out, 3)


def quantise_alpha(alpha: Floats, source_alpha: Bytes | None, out: Pixels) -> None:
    """Alpha as integers into `out` (uint8 or uint16 [H, W]), rounded once, the image's own alpha multiplied in."""
    if out.dtype == np.uint8:
        for rows, values in _rounded(alpha, source_alpha, alpha):
            out[rows] = values
        return
    for rows in bands(alpha):
        scaled = alpha[rows].clip(0.0, 1.0) * np.float32(65535.0)
        if source_alpha is not None:
            scaled *= source_alpha[rows] * np.float32(1.0 / 255.0)
        out[rows] = np.rint(scaled)


def _rounded(alpha: Floats, source_alpha: Bytes | None, banded: NDArray[np.generic]) -> Iterator[tuple[slice, Bytes]]:
    """round(255 alpha) by bands of `banded`, times the image's own alpha before rounding; in one buffer, used again."""
    shape = banded[next(bands(banded))].shape[:2]
    floats, values = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    scale = 255.0 if source_alpha is None else 1.0
    for rows in bands(banded):
        band = alpha[rows]
        shares = cv2.threshold(band, 0.0, 0.0, cv2.THRESH_TOZERO, dst=floats[: len(band)])[1].reshape(band.shape)
        if source_alpha is not None:
            np.minimum(shares, 1.0, out=shares)
            shares *= source_alpha[rows]
        rounded = cv2.convertScaleAbs(shares, dst=values[: len(band)], alpha=scale)
        yield rows, np.asarray(rounded, np.uint8).reshape(band.shape)
