"""Find the subject's bounding box in its alpha, specks left out: for cropping, and for what marketplaces measure."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rmbgd.imaging.compose import Bytes, Pixels

Box = tuple[int, int, int, int]  # top, bottom, left, right; pixels, half open

VISIBLE = 10  # of 255; fainter alpha is haze, and single faint specks would otherwise decide the box
SOLID = 128  # of 255; the subject as marketplaces measure it: alpha of 0.5 and more
SPECK = 0.01  # share of the largest component's area; smaller ones do not widen the box
GRID_SIDE = 1024  # cells; components are looked for on a grid of about this size, the box's sides on all pixels


def crop_box(alpha: Pixels, margin: float) -> Box:
    """The subject's box with air around it, cut at the image's borders; the whole image when there is no subject.

    alpha   uint8 or uint16 [H, W]
    margin  share of the box's longer side
    Components smaller than SPECK of the largest one do not count (specks ruin a plain bounding box).
    """
    height, width = alpha.shape
    box = _box(alpha >= VISIBLE * _scale(alpha))
    if box is None:
        return 0, height, 0, width
    top, bottom, left, right = box
    air = round(margin * max(bottom - top, right - left))
    return max(0, top - air), min(height, bottom + air), max(0, left - air), min(width, right + air)


def subject_box(alpha: Pixels) -> Box | None:
    """The box of alpha >= 0.5, of components that count; None when there is none. `alpha`: uint8 or uint16 [H, W]."""
    return _box(alpha >= SOLID * _scale(alpha))


def _scale(alpha: Pixels) -> int:
    return 257 if alpha.dtype == np.uint16 else 1


def _box(inside: NDArray[np.bool_]) -> Box | None:
    """The box of the components that count. `inside`: [H, W]."""
    height, width = inside.shape
    step = max(1, max(height, width) // GRID_SIDE)
    grid = inside.view(np.uint8)
    if step > 1:
        grid = np.maximum.reduceat(grid, np.arange(0, height, step), axis=0)
        grid = np.maximum.reduceat(grid, np.arange(0, width, step), axis=1)
    kept = counted(grid)
    return None if kept is None else (*_ends(inside, kept, step), *_ends(inside.T, kept.T, step))


def counted(grid: Bytes) -> NDArray[np.bool_] | None:
    """The cells of components of at least SPECK of the largest one's area; None when there is no component.

    grid  uint8 [H, W], not 0 inside
    """
    count, labels, found, _centres = cv2.connectedComponentsWithStats(grid, connectivity=8)
    areas = found[1:, cv2.CC_STAT_AREA]
    return np.append(False, areas >= SPECK * areas.max())[labels] if count > 1 else None


def _ends(inside: NDArray[np.bool_], kept: NDArray[np.bool_], step: int) -> tuple[int, int]:
    """First row, and one after the last, with a pixel of the subject in a kept cell of the grid."""
    rows, width = np.flatnonzero(kept.any(axis=1)), inside.shape[1]
    first, last = (
        np.flatnonzero((inside[row * step : (row + 1) * step] & np.repeat(kept[row], step)[:width]).any(axis=1))
        for row in (rows[0], rows[-1])
    )
    return int(rows[0] * step + first[0]), int(rows[-1] * step + last[-1] + 1)
