"""Run-length encoding of masks, as COCO's uncompressed RLE has it.

Lengths of runs of 0 and 1 by turns, beginning with 0, column by column: cocodataset/cocoapi, common/maskApi.h.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def encode(mask: NDArray[np.bool_]) -> list[int]:
    """The runs of a mask, bool [H, W]."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff(changes, prepend=0, append=flat.size).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def sample(
    runs: Sequence[int], height: int, rows: NDArray[np.integer], columns: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """What a mask of `height` rows, given by runs that add up to its pixels, is at rows x columns, both ascending.

    The whole mask is never built: the cost is that of the runs and of what is returned, bool [rows, columns].
    """
    column, row = np.divmod(np.cumsum(np.asarray(runs, np.int64)), height)
    before = np.searchsorted(columns, column)
    inside = np.append(columns, -1)[before] == column
    ends = before * len(rows) + np.where(inside, np.searchsorted(rows, row), 0)
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, np.diff(ends, prepend=0)).reshape(len(columns), len(rows)).T
