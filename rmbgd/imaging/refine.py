"""Refine a matte's edges by the image's own colours (guided upsampling of alpha), where the matte was much enlarged.

Around each pixel of the matte alpha is fitted as a linear function of colour, gain . rgb + offset, from the matte and
the image at the matte's size; the functions are enlarged and applied to the full image (He, Sun, "Fast guided filter",
2015, arXiv:1505.00996, with colours as the guide). Differences from the paper, each measured: windows are not averaged,
as enlarging the functions does that; and a function counts only as far as it explains the matte (r squared, the share
of alpha's variance), and never beyond what the matte holds nearby: texture within a subject makes no holes in it.
Elsewhere alpha stays the enlarged matte, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

LARGEST_NETWORK = 320  # pixels on the longer side; larger ones are sharper, and refining them was not measured
ENLARGED = 2.0  # times, along either side; from here on alpha is visibly softer than the image
RADIUS = 2  # of a window, in pixels of the matte; 3 leaves more haze
FLATNESS = 1.0  # levels squared, added to the variance of colours: rounding and noise
FAINT = (1 / 255) ** 2  # added to the variance of alpha: a matte that is so flat has no edge
EXPLAINED = 0.7  # r squared at which a function begins to count, in full at 1; 0.5 gains more and loses more
NEARBY = np.ones((3, 3), np.uint8)  # pixels of the matte whose least and greatest value bound alpha
MIDDLE = 128.0  # taken off levels, so that sums of their products are exact in float32
BAND_ROWS = 64  # of the image, refined at once
GAP = 8  # pixels of the matte; soft stretches of a band that are nearer are refined as one


def refines(network: tuple[int, int], height: int, width: int) -> bool:
    """Whether mattes of this size, (height, width), are refined for an image of that size."""
    down, across = height / network[0], width / network[1]
    return max(network) <= LARGEST_NETWORK and max(down, across) > ENLARGED and min(down, across) >= 1


def refine_edges(rgb: Bytes, matte: Floats, guide: Bytes, alpha: Floats) -> None:
    """Let alpha follow the image where the matte is soft, in place.

    rgb    uint8 [H, W, 3]; only read
    matte  float32 [h, w], 0..1, no larger than the image
    guide  uint8 [h, w, 3], the image as the network saw it (resize.image_to_network)
    alpha  float32 [H, W], the matte enlarged to the image by resize.matte_to_image
    """
    (height, width), (rows, columns) = alpha.shape, matte.shape
    linear = fit(matte, guide)
    linear[..., 3] /= 255.0  # it meets a fourth channel of 255
    soft = (linear[..., 0] != 0) | (linear[..., 1] != 0) | (linear[..., 2] != 0)
    bounds = np.stack((cv2.erode(matte, NEARBY), cv2.dilate(matte, NEARBY)), axis=-1).astype(np.float32, copy=False)
    position = np.clip((np.arange(height) + 0.5) * (rows / height) - 0.5, 0, rows - 1)
    above = position.astype(np.intp)
    below = np.minimum(above + 1, rows - 1)
    part = (position - above).astype(np.float32)[:, None, None]
    for top in range(0, height, BAND_ROWS):
        band = slice(top, top + BAND_ROWS)
        first, end = int(above[band][0]), int(below[band][-1]) + 1
        runs = list(_runs(soft[first:end].any(axis=0)))
        if not runs:
            continue
        wide = [_widened(planes[first:end], width) for planes in (linear, bounds)]
        for left, right in runs:
            here = band, slice(left * width // columns, -(-right * width // columns))
            function, limits = (
                _between(planes[:, here[1]], above[band] - first, below[band] - first, part[band]) for planes in wide
            )
            function *= cv2.cvtColor(rgb[here], cv2.COLOR_RGB2RGBA)
            found = cv2.transform(function, np.ones((1, 4), np.float32)).reshape(function.shape[:2])
            np.clip(found, limits[..., 0], limits[..., 1], out=alpha[here])


def _widened(planes: Floats, width: int) -> Floats:
    """Rows [n, w, c] as bilinear enlarging has them: [n, width, c]."""
    return np.asarray(cv2.resize(planes, (width, len(planes)), interpolation=cv2.INTER_LINEAR), np.float32)


def _between(planes: Floats, above: Indices, below: Indices, part: Floats) -> Floats:
    """Rows `above` and, for `part` [n, 1, 1] of the way, `below` them."""
    upper, found = planes[above], planes[below]
    found -= upper
    found *= part
    found += upper
    return found


def fit(matte: Floats, guide: Bytes) -> Floats:
    """Alpha as a function of colour around each pixel: float32 [h, w, 4], the gains of a level of each colour, offset.

    matte  float32 [h, w], 0..1
    guide  uint8 [h, w, 3], the image at the matte's size
    Where the function does not count, gains are 0 and the offset is the matte.
    """
    linear = np.zeros((*matte.shape, 4), np.float32)
    linear[..., 3] = matte
    total, squares = _sums(matte), _sums(matte * matte)
    count = (2 * RADIUS + 1) ** 2
    variance = (count * squares - total * total) / count**2
    at = np.nonzero(EXPLAINED * (variance + FAINT) < variance)  # elsewhere nothing can explain enough
    if not len(at[0]):
        return linear
    rows, columns = (slice(max(0, each.min() - RADIUS), each.max() + RADIUS + 1) for each in at)
    here = at[0] - rows.start, at[1] - columns.start
    colours = guide[rows, columns].astype(np.float32) - MIDDLE
    planes = [*(np.ascontiguousarray(colours[..., colour]) for colour in range(3)), matte[rows, columns]]
    sums = [_sums(plane)[here] for plane in planes]

    def covariance(one: int, other: int) -> Floats:
        products = _sums(planes[one] * planes[other])[here]
        return np.asarray((count * products - sums[one] * sums[other]) / count**2, np.float32)

    # Solved by L D L', which stays exact where colours change together.
    d0 = covariance(0, 0) + FLATNESS
    l1, l2 = covariance(0, 1) / d0, covariance(0, 2) / d0
    d1 = covariance(1, 1) + FLATNESS - l1 * l1 * d0
    l3 = (covariance(1, 2) - l1 * l2 * d0) / d1
    d2 = covariance(2, 2) + FLATNESS - l2 * l2 * d0 - l3 * l3 * d1
    with_alpha = [covariance(colour, 3) for colour in range(3)]
    y1 = with_alpha[1] - l1 * with_alpha[0]
    blue = (with_alpha[2] - l2 * with_alpha[0] - l3 * y1) / d2
    green = y1 / d1 - l3 * blue
    red = with_alpha[0] / d0 - l1 * green - l2 * blue
    explained = red * with_alpha[0] + green * with_alpha[1] + blue * with_alpha[2]
    counts = np.clip((explained / (variance[at] + FAINT) - EXPLAINED) / (1 - EXPLAINED), 0, 1)
    offset = (sums[3] - red * sums[0] - green * sums[1] - blue * sums[2]) / count - MIDDLE * (red + green + blue)
    own = matte[at]
    linear[at] = np.stack((counts * red, counts * green, counts * blue, own + counts * (offset - own)), axis=-1)
    return linear


def _sums(plane: Floats) -> Floats:
    """Over the window around each pixel; beyond the border the last pixels repeat."""
    side = (2 * RADIUS + 1, 2 * RADIUS + 1)
    found = cv2.boxFilter(plane, cv2.CV_32F, side, normalize=False, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32).reshape(plane.shape)


def _runs(soft: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(first, end) of stretches that hold every true value and, as enlarging reaches so far, one more on each side."""
    found = np.flatnonzero(soft)
    if len(found):
        for run in np.split(found, np.flatnonzero(np.diff(found) > GAP) + 1):
            yield max(0, int(run[0]) - 1), min(len(soft), int(run[-1]) + 2)
