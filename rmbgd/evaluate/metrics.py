"""Metrics of a matte against its truth: S-measure, weighted F, IoU, SAD, gradient, connectivity, dtSSD.

Mattes and truths are float32 [H, W] in 0..1, masks bool [H, W]. docs/evaluation.md has sources and ranges. Nothing is
stretched to the full range, as some implementations do: a pale matte is a worse one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

HALF = 0.5  # foreground is what lies above it
BAND_RADIUS = 10 / 1024  # of the longer side: how far the unknown band reaches beyond soft pixels
BOUNDARY_SHARE = 0.02  # of the diagonal (Cheng 2021)
GRADIENT_SIGMA, GRADIENT_CUT = 1.4, 0.01  # Rhemann 2009; px, and where the kernel ends
CONNECTIVITY_STEP, CONNECTIVITY_SLACK = 0.1, 0.15  # Rhemann 2009
WINDOW, WINDOW_SIGMA = 7, 5.0  # px, of the weighted F-measure (Margolin 2014)
IMPORTANCE = math.log(0.5) / 5  # likewise: how errors grow in weight away from the foreground
BACKGROUNDS = np.array([(0, 0, 0), (1, 1, 1), (0, 1, 0)], np.float32)  # RGB
TINY = float(np.spacing(1.0))


@dataclass(frozen=True, slots=True)
class FigureKind:
    """How a figure is called in papers, and which way is better."""

    title: str
    higher_is_better: bool = False


FIGURES = {
    "s_measure": FigureKind("S-measure", higher_is_better=True),
    "weighted_f": FigureKind("weighted F", higher_is_better=True),
    "iou": FigureKind("IoU", higher_is_better=True),
    "boundary_iou": FigureKind("boundary IoU", higher_is_better=True),
    "mae": FigureKind("MAE"),
    "mse": FigureKind("MSE"),
    "sad": FigureKind("SAD"),
    "gradient": FigureKind("gradient"),
    "connectivity": FigureKind("connectivity"),
    "mse_band": FigureKind("MSE, band"),
    "sad_band": FigureKind("SAD, band"),
    "gradient_band": FigureKind("gradient, band"),
    "connectivity_band": FigureKind("connectivity, band"),
    "rim_error": FigureKind("rim error"),
    "false_foreground": FigureKind("false foreground"),
    "dtssd": FigureKind("dtSSD"),
    "moving_edge_error": FigureKind("moving edge error"),
}


def figures(alpha: Plane, truth: Plane) -> dict[str, float]:
    """All that one image has: without soft pixels in its truth none of the band, without foreground no overlap."""
    solid = truth > HALF
    off = np.abs(alpha - truth)
    found = {"s_measure": s_measure(alpha, solid), "mae": _mean(off), "mse": _mean(off * off)}
    if solid.any():
        found["weighted_f"] = weighted_f(alpha, solid)
        found["iou"] = iou(alpha > HALF, solid)
        found["boundary_iou"] = iou(boundary(alpha > HALF), boundary(solid))
    else:
        found["false_foreground"] = _mean(alpha > HALF)
    errors = {
        "sad": off,
        "gradient": gradient_errors(alpha, truth),
        "connectivity": connectivity_errors(alpha, truth),
    }
    found |= {name: _total(values) / 1000 for name, values in errors.items()}
    if (band := unknown_band(truth)).any():
        found |= {f"{name}_band": _total(values[band]) / 1000 for name, values in errors.items()}
        found["mse_band"] = _mean(np.square(off[band]))
    return found


def unknown_band(truth: Plane) -> Mask:
    """Where truth is soft, and BAND_RADIUS around it; empty where it is soft nowhere."""
    soft = (truth > 0) & (truth < 1)
    if not soft.any():
        return soft
    return np.asarray(_distance(~soft) <= max(1.0, BAND_RADIUS * max(truth.shape)))


def s_measure(alpha: Plane, solid: Mask) -> float:
    """Structure measure, half of objects and half of regions. Fan et al., ICCV 2017."""
    share = _mean(solid)
    if share in (0.0, 1.0):
        return _mean(alpha) if share else 1 - _mean(alpha)
    values = alpha.astype(np.float64)
    objects = share * _alike(values[solid]) + (1 - share) * _alike(1 - values[~solid])
    centre = [round(float((np.arange(len(counts)) @ counts) / counts.sum())) + 1 for counts in _profiles(solid)]
    rows, columns = ((slice(0, at), slice(at, None)) for at in centre)
    parts = [part for part in product(rows, columns) if solid[part].size]
    regions = sum(_similarity(values[part], solid[part]) * solid[part].size / solid.size for part in parts)
    return max(0.0, (objects + regions) / 2)


def _profiles(solid: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Foreground pixels in each row, and in each column."""
    return np.count_nonzero(solid, axis=1), np.count_nonzero(solid, axis=0)


def _alike(values: NDArray[np.float64]) -> float:
    """How near to 1, and how even, values are that should be 1."""
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + spread + TINY)


def _similarity(values: NDArray[np.float64], solid: Mask) -> float:
    """SSIM with one window over all of it and without constants."""
    x, y, degrees = float(values.mean()), float(solid.mean()), solid.size - 1 + TINY
    off_x, off_y = values - x, solid - y
    spread = float(np.sum(off_x**2) + np.sum(off_y**2)) / degrees
    above = 4 * x * y * float(np.sum(off_x * off_y)) / degrees
    below = (x**2 + y**2) * spread
    return above / (below + TINY) if above else float(below == 0)


def weighted_f(alpha: Plane, solid: Mask) -> float:
    """Weighted F-measure, beta 1: errors count by their neighbours and their distance. Margolin et al., CVPR 2014."""
    error = np.abs(alpha - solid)
    distance = _distance(~solid)
    kernel = cv2.getGaussianKernel(WINDOW, WINDOW_SIGMA)
    spread = _with_nearest(error, solid, distance)
    smooth = np.asarray(cv2.sepFilter2D(spread, -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT))
    inside = np.minimum(error, smooth)[solid]
    outside = error[~solid] * (2 - np.exp(IMPORTANCE * distance[~solid]))
    right = inside.size - _total(inside)
    recall, precision = 1 - _mean(inside), right / (right + _total(outside) + TINY)
    return 2 * recall * precision / (recall + precision + TINY)


def _with_nearest(error: Plane, solid: Mask, distance: Plane) -> Plane:
    """`error`, where background that the window of a foreground pixel reaches has that of the nearest foreground.

    Of several that are equally near, the published implementation (SciPy's exact transform) takes the one furthest to
    the left, then furthest up; they may differ in error.
    """
    furthest = 2 * (WINDOW // 2) ** 2  # squared: from the window's corner; some that are nearer lie outside of it
    reach = math.isqrt(furthest)
    steps = [step for step in product(range(-reach, reach + 1), repeat=2) if math.hypot(*step) ** 2 < furthest + 0.5]
    steps.sort(key=lambda step: (step[0] ** 2 + step[1] ** 2, step[1], step[0]))
    spread, padded = error.copy(), np.pad(solid, reach)
    rows, columns = np.nonzero(~solid & (distance * distance < furthest + 0.5))
    for down, right in steps:
        hit = padded[rows + (reach + down), columns + (reach + right)]
        spread[rows[hit], columns[hit]] = error[rows[hit] + down, columns[hit] + right]
        rows, columns = rows[~hit], columns[~hit]
    return spread


def iou(found: Mask, solid: Mask) -> float:
    """Intersection over union; 1 where both are empty."""
    union = np.count_nonzero(found | solid)
    return np.count_nonzero(found & solid) / union if union else 1.0


def boundary(solid: Mask) -> Mask:
    """The foreground that is near background or the image's border. Cheng et al., CVPR 2021."""
    depth = max(1, round(BOUNDARY_SHARE * math.hypot(*solid.shape)))
    padded = np.pad(solid, 1).astype(np.uint8)
    steps = np.asarray(cv2.distanceTransform(padded, cv2.DIST_C, 3))[1:-1, 1:-1]
    return solid & (steps <= depth)


def gradient_errors(alpha: Plane, truth: Plane) -> Plane:
    """Squared difference of gradients. Rhemann et al., CVPR 2009."""
    return np.asarray(np.square(_gradient(alpha) - _gradient(truth)), np.float32)


def _gradient(plane: Plane) -> Plane:
    """By derivatives of a Gaussian, each kernel of norm 1."""
    sigma = GRADIENT_SIGMA
    reach = math.ceil(sigma * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * sigma * GRADIENT_CUT)))
    at = np.arange(-reach, reach + 1)
    bell = np.exp(-(at**2) / (2 * sigma**2))
    slope = -at * bell
    bell, slope = bell / np.linalg.norm(bell), slope / np.linalg.norm(slope)
    across = cv2.sepFilter2D(plane, -1, slope, bell, borderType=cv2.BORDER_REPLICATE)
    down = cv2.sepFilter2D(plane, -1, bell, slope, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(np.hypot(across, down), np.float32)


def connectivity_errors(alpha: Plane, truth: Plane) -> Plane:
    """How far both differ in what is not connected to the one largest object. Rhemann et al., CVPR 2009."""
    level, connected = np.ones_like(truth), np.ones(truth.shape, bool)
    both = np.minimum(alpha, truth)
    for step in range(1, round(1 / CONNECTIVITY_STEP) + 1):
        object_ = _largest(both >= np.float32(step * CONNECTIVITY_STEP))
        level[connected & ~object_] = (step - 1) * CONNECTIVITY_STEP
        connected &= object_
    parts = [plane - level for plane in (alpha, truth)]
    of_alpha, of_truth = (part * (part >= np.float32(CONNECTIVITY_SLACK)) for part in parts)
    return np.abs(of_alpha - of_truth)


def _largest(mask: Mask) -> Mask:
    """The largest of its 4-connected parts; empty where it has none."""
    count, labels, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count == 1:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(facts[1:, cv2.CC_STAT_AREA])))


def dtssd(alpha: Plane, truth: Plane, alpha_before: Plane, truth_before: Plane) -> float:
    """Flicker: how changes from the frame before differ, in per cent. Erofeev et al., BMVC 2015."""
    change = (alpha - alpha_before) - (truth - truth_before)
    return 100 * math.sqrt(_mean(change * change))


def rim_error(alpha: Plane, colours: Pixels, truth: Plane, true_colours: Pixels) -> float | None:
    """Mean error of colour in the unknown band over black, white and green; None where there is no band.

    colours  uint8 [H, W, 3], RGB, not multiplied with alpha
    """
    band = unknown_band(truth)
    if not band.any():
        return None
    a, t = alpha[band][:, None], truth[band][:, None]
    off = (a * colours[band] - t * true_colours[band]) / np.float32(255)
    return float(np.mean([_mean(np.abs(off + (t - a) * colour)) for colour in BACKGROUNDS]))


def _distance(mask: Mask) -> Plane:
    """Of each pixel to the nearest that is not in `mask`, px; large where there is none."""
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def _mean(values: NDArray[np.float32] | Mask) -> float:
    return float(values.mean(dtype=np.float64))


def _total(values: Plane) -> float:
    return float(values.sum(dtype=np.float64))
