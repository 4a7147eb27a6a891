"""Score how likely a matte is right (IoU with the truth of at least 0.7), from the matte and its image alone.

The score is a logistic function of a few measures, each of which can only lower it. `tools/fit_confidence.py` finds
the coefficients; docs/confidence.md says what was measured, and what the score cannot see.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

FEATURE_VERSION = 2  # of Features and terms(): coefficients fitted to others mean nothing
SIDE = 256  # pixels: everything is measured on a copy whose longer side has so many
BAND = 5  # pixels of that copy, on both sides of the edge: about 2 % of the longer side
SOLID, SURE, FAINT = 128, 204, 51  # levels of alpha: 0.5, 0.8 and 0.2
COUNTS = 0.02  # of the largest component: smaller ones are specks
LEAST_AREA = 0.001  # share of the image: the least that shares of a subject are taken of
NEIGHBOURHOOD = 9  # pixels of the copy at half size in which colours on both sides of the edge are compared
BUSY = 30.0  # levels a pixel: a scene full of detail
DIFFERENT = 40.0  # units of Lab from which on colours count as clearly different
HISTORY = 20  # images of a folder before the area of one can be unusual
LEAST_SPREAD = 0.02  # of the logarithm of areas: a studio whose areas hardly differ
COEFFICIENTS = "confidence.json"
REASONS = 4  # for people, at most
LIMITS = {  # of doubts, from which on people are given them as a reason; `touching` is the most of one side
    "soft": 0.25,
    "core": 0.1,
    "unsteady": 0.3,
    "outside": 0.1,
    "scattered": 0.1,
    "small": 1.7,
    "touching": 0.1,
    "holes": 0.1,
    "alike": 0.65,
    "busy": 0.9,
    "reframed": 0.4,
}


@dataclass(frozen=True, slots=True)
class Features:
    """What is measured of one matte; shares are 0..1, and of the image unless another whole is named.

    area          alpha of at least 0.5
    coverage      mean alpha
    peak          highest alpha
    soft          sum of 4a(1-a) by the sum of alpha: how much of the subject is undecided; may exceed 1
    core          mean of 4a(1-a) deep within the subject
    band          mean of 4a(1-a) along its edge
    unsteady      of the pixels from alpha 0.2, those below 0.8: how far the outline moves with the threshold
    outside       of all alpha, what lies beyond the edge
    second        area of the second component by that of the largest
    scattered     of the area, what is not the largest component
    parts         components, specks left out
    holes         of the area with its holes filled, the holes
    left, top, right, bottom  of each side of the image, the part that the subject touches
    busy          slope of the image's grey that nine in ten pixels stay below, levels a pixel of the copy at half size
    separation    mean difference of colour between both sides of the edge; 1 is clear
    disagreement  of the second look (backends/second_look.py), 0..1; None: none was taken
    """

    area: float
    coverage: float
    peak: float
    soft: float
    core: float
    band: float
    unsteady: float
    outside: float
    second: float
    scattered: float
    parts: int
    holes: float
    left: float
    top: float
    right: float
    bottom: float
    busy: float
    separation: float
    disagreement: float | None = None

    def document(self) -> dict[str, float | None]:
        """For a sidecar, with four digits."""
        return {key: None if value is None else round(value, 4) for key, value in asdict(self).items()}


def terms(found: Features) -> dict[str, float]:
    """What the score is a function of: each grows with doubt, within fixed bounds, and none ever raises the score.

    More of the features in it made the score worse on kinds of failures that it was not fitted to.
    """
    every = {
        "soft": min(found.soft, 2.0),
        "busy": min(found.busy / BUSY, 1.5),
        "small": -math.log10(max(found.area, LEAST_AREA)),
    }
    if found.disagreement is not None:
        every["reframed"] = found.disagreement
    return every


@functools.cache
def coefficients() -> Any:
    """Of the package. Raises ValueError where they were fitted to other features than these."""
    found = json.loads(resources.files("rmbgd.deliver").joinpath(COEFFICIENTS).read_text(encoding="utf-8"))
    if found["feature_version"] != FEATURE_VERSION:
        raise ValueError(f"{COEFFICIENTS} belongs to feature version {found['feature_version']}, not {FEATURE_VERSION}")
    return found


def score(found: Features, model: str) -> float:
    """Probability, 0..1, that the IoU with the truth is at least 0.7; 0 without a subject.

    For a network that nothing was fitted for it has the coefficients of the default one: it still ranks images, but is
    no probability. With a disagreement other coefficients count than without.
    """
    if not found.area:
        return 0.0
    known = coefficients()
    family = known["models"].get(model, known["models"][known["default"]])
    fitted = family["plain" if found.disagreement is None else "second_look"]
    return logistic(fitted["bias"] + sum(fitted["weights"][name] * value for name, value in terms(found).items()))


def logistic(doubt: float) -> float:
    """Probability of a right matte; `doubt` is the logarithm of the odds against it."""
    return 1 / (1 + math.exp(min(doubt, 700.0)))


def unusual(area: float, history: Sequence[float]) -> float | None:
    """How far the logarithm of an area lies from the median of its folder's, in robust deviations (1.4826 MAD).

    Areas are shares of the image, 0..1. None with fewer than HISTORY. It ranks images for review, and is no part of
    the score.
    """
    if len(history) < HISTORY:
        return None
    logs = np.log(np.maximum(np.array(history, float), LEAST_AREA))
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    return abs(math.log(max(area, LEAST_AREA)) - middle) / max(spread, LEAST_SPREAD)


def reasons(found: Features) -> list[str]:
    """What people may look at, in words, the most conspicuous first; at most REASONS."""
    if not found.area:
        return ["no subject was found"]
    sides = {side: getattr(found, side) for side in ("left", "top", "right", "bottom")}
    touched = [side for side, share in sides.items() if share >= LIMITS["touching"]]
    doubts = terms(found) | {
        "unsteady": found.unsteady,
        "scattered": found.scattered,
        "core": found.core,
        "outside": found.outside,
        "touching": max(sides.values()),
        "holes": found.holes,
        "alike": 1 - found.separation,
    }
    said = {
        "soft": f"{_part(found.soft)} of the subject is half-transparent",
        "core": "the inside of the subject is not opaque",
        "unsteady": "the outline is not clear",
        "outside": "faint parts lie beyond the subject",
        "scattered": f"the subject is in {found.parts} parts" if found.parts > 1 else "there are specks",
        "small": "the subject is very small",
        "touching": f"the subject touches the {_listed(touched)} border",
        "holes": "the subject has large holes",
        "alike": "the subject has nearly the colours of its background",
        "busy": "the image is full of detail",
        "reframed": "the network sees another subject in a wider frame",
    }
    above = {name: doubts[name] / limit for name, limit in LIMITS.items() if doubts.get(name, 0.0) >= limit}
    return [said[name] for name in sorted(above, key=lambda name: -above[name])][:REASONS]


def _part(share: float) -> str:
    words = ((0.15, "some"), (0.29, "a quarter"), (0.42, "a third"), (0.6, "half"), (0.85, "most"))
    return next((word for limit, word in words if share < limit), "nearly all")


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1] if words else ""


def features(alpha: Bytes, rgb: Bytes, disagreement: float | None = None) -> Features:
    """Measure a matte, uint8 [H, W], and its image, uint8 [H, W, 3], RGB, of any size. Neither is changed."""
    small, colours = _copy(alpha, SIDE), _copy(rgb, SIDE // 2)
    values = small.astype(np.float32) / np.float32(255)
    undecided = 4 * values * (1 - values)
    mass = float(values.sum())
    solid = (small >= SOLID).astype(np.uint8)
    near = np.ones((2 * BAND + 1, 2 * BAND + 1), np.uint8)
    inner, outer = cv2.erode(solid, near) > 0, cv2.dilate(solid, near) > 0
    least = LEAST_AREA * values.size
    areas = _areas(solid)
    largest = max(1.0, float(areas[0]))
    counted = max(least, float(np.count_nonzero(small >= FAINT)))
    sides = solid[:, 0], solid[0], solid[:, -1], solid[-1]
    left, top, right, bottom = (float(side.mean()) for side in sides)
    return Features(
        float(solid.mean()),
        float(values.mean()),
        float(small.max()) / 255,
        float(undecided.sum()) / max(mass, least),
        _mean(undecided, inner),
        _mean(undecided, outer & ~inner),
        1 - float(np.count_nonzero(small >= SURE)) / counted,
        float(values[~outer].sum()) / max(mass, least),
        float(areas[1]) / largest if len(areas) > 1 else 0.0,
        1 - float(areas[0]) / max(1.0, float(areas.sum())),
        int(np.count_nonzero(areas >= max(1.0, COUNTS * largest))),
        _holes(solid),
        left,
        top,
        right,
        bottom,
        _busy(colours),
        _separation(solid, colours),
        disagreement,
    )


def _copy(plane: Bytes, side: int) -> Bytes:
    """With a longer side of `side`, each pixel the mean of four of the plane: the cost does not grow with the image."""
    share = side / max(plane.shape[:2])
    width, height = (max(1, round(length * share)) for length in plane.shape[1::-1])
    sampled = cv2.resize(plane, (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(cv2.resize(sampled, (width, height), interpolation=cv2.INTER_AREA))


def _areas(solid: Bytes) -> NDArray[np.int32]:
    """Of all components, the largest first; [0] where there are none."""
    _, _, facts, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    found = np.sort(facts[1:, cv2.CC_STAT_AREA])[::-1]
    return np.asarray(found if len(found) else [0], np.int32)


def _holes(solid: Bytes) -> float:
    outlines, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.count_nonzero(cv2.drawContours(np.zeros_like(solid), outlines, -1, 1, cv2.FILLED))
    return float(1 - np.count_nonzero(solid) / filled) if filled else 0.0


def _busy(colours: Bytes) -> float:
    grey = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
    slopes = cv2.magnitude(*(cv2.Sobel(grey, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1))))
    return float(np.quantile(slopes, 0.9)) / 8  # the kernel's weights


def _separation(solid: Bytes, colours: Bytes) -> float:
    """Of the mean colours on both sides of each place of the edge; 1 where there is no edge."""
    solid = np.asarray(cv2.resize(solid, colours.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT))
    lab = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB).astype(np.float32)
    cross, wide = (cv2.getStructuringElement(cv2.MORPH_RECT, (2 * reach + 1, 2 * reach + 1)) for reach in (1, 3))
    deeper, further = cv2.erode(solid, cross), cv2.dilate(solid, cross)
    window = NEIGHBOURHOOD, NEIGHBOURHOOD
    means, weights = [], []
    for rim in ((solid > 0) & (cv2.erode(solid, wide) == 0), (cv2.dilate(solid, wide) > 0) & (further == 0)):
        weight = cv2.blur(rim.astype(np.float32), window)
        means.append(cv2.blur(lab * rim[..., None].astype(np.float32), window) / np.maximum(weight, 1e-6)[..., None])
        weights.append(weight)
    edge = (further > deeper) & (np.minimum(*weights) > 0.02)
    if not edge.any():
        return 1.0
    apart = np.linalg.norm(means[0][edge] - means[1][edge], axis=1)
    return float(np.minimum(apart, DIFFERENT).mean()) / DIFFERENT


def _mean(values: Floats, where: Mask) -> float:
    """1 where there is nothing to take the mean of: nothing is decided there."""
    return float(values[where].mean()) if where.any() else 1.0
