"""Resampling filters by name: how an image is brought to a network's size.

Each is Pillow's of that name: as wide as the step between samples when reducing, cut and normalised at borders.
"""

from __future__ import annotations

from enum import StrEnum


class Filter(StrEnum):
    BOX = "box"
    BILINEAR = "bilinear"
    HAMMING = "hamming"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"
