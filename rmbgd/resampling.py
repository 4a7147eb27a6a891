"""Resampling filters: by which an image is brought to a network's size, on the host and on every device.

Both are one thing for each axis: where an image is enlarged, bilinear on half-pixel centres.
"""

from __future__ import annotations

from enum import StrEnum


class Filter(StrEnum):
    """Of axes that shrink.

    BILINEAR  a triangle as wide as two steps between samples, cut and normalised at borders: Pillow's BILINEAR
    BOX       the mean of the pixels whose centres lie in the output pixel, by integer bounds: Pillow's BOX
    """

    BILINEAR = "bilinear"
    BOX = "box"


def box_bound(outer: int, inner_size: int, outer_size: int) -> int:
    """The first input that belongs to output `outer`: outer * inner_size / outer_size, rounded, halves up."""
    return (2 * outer * inner_size + outer_size) // (2 * outer_size)
