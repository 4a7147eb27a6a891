"""Makes images that a network is likely to fail on from photographs with truth: seeded, with their truth adapted.

Kinds: `occluded` (something stands before the subject; its pixels are no subject), `faint` (little contrast, dark,
noisy), `blurred` (defocus or motion), `cut` (a window that holds a part of the subject), `empty` (a window without it).
Whether the network does fail on one is measured, not assumed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tools.benches.filters import Bytes, Case, Floats

Mask = NDArray[np.bool_]
SMALLEST = 160  # pixels; the shortest side of a window
TRIES = 80  # windows drawn until one fits
LEAST_LEFT = 0.3  # of the subject, behind what stands before it


@dataclass(frozen=True)
class MadeCase:
    """A case of `kind`, made from the photograph `source`; truth and counted are those of a Case."""

    source: str
    kind: str
    case: Case


def made(cases: Sequence[Case], kinds: Sequence[str], each: int, seed: int) -> Iterator[MadeCase]:
    """`each` of every kind for every case, where one can be made. An image depends on its name and the seed alone."""
    for at, case in enumerate(cases):
        for kind in kinds:
            for number in range(each):
                name = f"{case.name} {kind} {number}"
                random = np.random.default_rng([seed, zlib.crc32(name.encode())])
                other = cases[(at + int(random.integers(1, max(2, len(cases))))) % len(cases)]
                found = KINDS[kind](case, other, random)
                if found is not None:
                    yield MadeCase(case.name, kind, Case(name, *found))


Made = tuple[Bytes, Floats, Mask] | None


def occluded(case: Case, other: Case, random: np.random.Generator) -> Made:
    """An ellipse or a box before the subject, of one colour or of another photograph."""
    height, width = case.truth.shape
    rows, columns = np.nonzero(case.truth > 0.5)
    if not len(rows):
        return None
    at = int(random.integers(len(rows)))
    box = np.ptp(rows) + 1, np.ptp(columns) + 1
    half = [max(2, int(side * random.uniform(0.25, 0.6))) for side in box]
    shape = np.zeros((height, width), np.uint8)
    centre = int(columns[at]), int(rows[at])
    if random.random() < 0.5:
        cv2.ellipse(shape, centre, (half[1], half[0]), float(random.uniform(0, 180)), 0, 360, 1, -1)
    else:
        corners = cv2.boxPoints((centre, (2.0 * half[1], 2.0 * half[0]), float(random.uniform(-30, 30))))
        cv2.fillConvexPoly(shape, np.rint(corners).astype(np.int32), 1)
    before = shape.astype(bool)
    if random.random() < 0.4:
        texture = np.broadcast_to(random.integers(0, 256, 3), case.rgb.shape) + random.normal(0, 4, case.rgb.shape)
    else:
        texture = np.asarray(cv2.resize(other.rgb, (width, height), interpolation=cv2.INTER_AREA), float)
    truth = np.where(before, 0, case.truth).astype(np.float32)
    if (truth > 0.5).sum() < LEAST_LEFT * len(rows):
        return None
    return np.where(before[..., None], texture.clip(0, 255), case.rgb).astype(np.uint8), truth, case.counted | before


def faint(case: Case, _: Case, random: np.random.Generator) -> Made:
    """Contrast of 4 to 30 % around a grey of fog or night, with a sensor's noise."""
    share, level = np.exp(random.uniform(*np.log([0.04, 0.3]))), random.uniform(20, 235)
    noise = random.normal(0, random.uniform(1, 8), case.rgb.shape)
    mean = case.rgb.mean(axis=(0, 1))
    rgb = level + share * (case.rgb - mean) + noise
    return np.rint(rgb.clip(0, 255)).astype(np.uint8), case.truth, case.counted


def blurred(case: Case, _: Case, random: np.random.Generator) -> Made:
    """Defocus or motion over 3 to 15 % of the longer side. The truth is the sharp image's, blurred alike."""
    size = max(3, int(max(case.truth.shape) * np.exp(random.uniform(*np.log([0.03, 0.15])))))
    if random.random() < 0.5:
        kernel = np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)), np.float32)
    else:
        angle = random.uniform(0, np.pi)
        kernel = np.zeros((size, size), np.float32)
        middle, reach = (size - 1) / 2, (size - 1) / 2 * np.array([np.cos(angle), np.sin(angle)])
        ends = [tuple(round(float(middle + sign * step)) for step in reach) for sign in (-1, 1)]
        cv2.line(kernel, ends[0], ends[1], 1.0, max(1, size // 20))
    kernel = np.asarray(kernel / kernel.sum(), np.float32)
    rgb, truth = (cv2.filter2D(plane, -1, kernel, borderType=cv2.BORDER_REPLICATE) for plane in (case.rgb, case.truth))
    return np.asarray(rgb, np.uint8), np.asarray(truth, np.float32), case.counted


def cut(case: Case, _: Case, random: np.random.Generator) -> Made:
    """A window that holds 15 to 60 % of the subject, which fills 5 to 80 % of it."""

    def fits(part: Floats, whole: Floats) -> bool:
        inside = float((part > 0.5).sum())
        return 0.15 <= inside / max(1.0, float((whole > 0.5).sum())) <= 0.6 and 0.05 <= inside / part.size <= 0.8

    return _window(case, random, fits)


def empty(case: Case, _: Case, random: np.random.Generator) -> Made:
    """A window without the subject."""
    return _window(case, random, lambda part, _: bool(part.max() < 0.01))


def _window(case: Case, random: np.random.Generator, fits: Callable[[Floats, Floats], bool]) -> Made:
    height, width = case.truth.shape
    for _ in range(TRIES):
        h, w = (int(random.integers(min(SMALLEST, side), side + 1)) for side in (height, width))
        top, left = (int(random.integers(0, side - part + 1)) for side, part in ((height, h), (width, w)))
        here = np.s_[top : top + h, left : left + w]
        if case.counted[here].mean() > 0.9 and fits(case.truth[here] * case.counted[here], case.truth * case.counted):
            return np.ascontiguousarray(case.rgb[here]), case.truth[here].copy(), case.counted[here].copy()
    return None


KINDS: dict[str, Callable[[Case, Case, np.random.Generator], Made]] = {
    "occluded": occluded,
    "faint": faint,
    "blurred": blurred,
    "cut": cut,
    "empty": empty,
}
