"""POLICY: temporal filter against flicker: the mattes of a film's frames, steadied along optical flow.

Each frame's alpha is blended with what was published for the frame before, moved along the flow from this frame to that
one (DIS, Kroeger et al., "Fast optical flow using dense inverse search", 2016), on a small luma. The past weighs at
most WEIGHT, and nothing where it explains nothing: where the luma that it was moved with differs, where the flow there
and back again does not close, and where the network is sure of another thing and the luma is not that sure that nothing
is new. After a cut the filter begins anew. It is causal: no frame waits for another.

Alpha is moved at its full size, but only in rectangles around what is soft or changes; all else is decided at half of
the guide's size. Filtering the difference of small mattes instead keeps the finest flicker, and edges lose by it.

Measured (tools.bench temporal) with u2netp on 32 made sequences that nothing was tuned on, against frames one by one:
warped error -37 % (-44 % at the guide's size), dtSSD -20 %, as most of that is error that moves along with the subject
(-37 % along the motion), -66 % where all stands still; error at moving edges +0.2 %, with a learned plate -2.6 %. A
plain average of the same weight: +9 % dtSSD, and +83 % error at moving edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Plane = NDArray[np.integer[Any] | np.floating[Any]]
Rectangle = tuple[slice, slice]  # rows and columns of the image

GUIDE_SIDE = 640  # pixels; longest side of the luma that flow is measured on
PATCH, FINEST = (
    8,
    2,
)  # of DIS's preset: side of a patch in pixels; the scale at which it ends, 2: a quarter of each side
ITERATIONS = 6  # of DIS's descent; its preset's 12 find the same
BLUR = 3  # pixels of half a guide; side of the square over which differences of luma are averaged
WEIGHT = 0.6  # of the past, at most
SHARES = 256  # weights are whole numbers of so many parts
SLACK = 1.5  # of luma's noise: so far luma may differ where nothing has contrast,
STRICTEST, LOOSEST = 3, 30  # in levels at least and at most,
CONTRAST = 0.2  # and by which share of the contrast around it beside that
SAME = 0.25  # share of that limit up to which the past counts in full; from all of it on it does not count
BENT = (0.5, 2.0)  # pixels of the guide by which flow differs nearby: full weight, none; it is wrong beside an outline
OTHER = 20  # levels of luma from which on it is another thing that shows, wherever
ASTRAY, CLOSED = 4.0, 1.5  # pixels of the guide by which flow there and back may miss; likewise where figures are taken
SURE = 8  # levels of alpha from 0 or 255
CHANGED = 96  # levels of alpha between the network's, that is sure, and the past's
DOUBTED = 6  # levels of luma; where it differs more, the sure network is right at once
CUT_SHARE = 0.3  # of the frame where flow is unreliable
CUT_LEVELS = 24.0  # mean distance that luma moved, as histograms have it
FAINT = 1  # levels of alpha that nobody sees: where past and present differ no more, and are flat, nothing is done
ALIKE, LOW = 4, 96  # levels of luma from the plate; of alpha: below it a pixel that looks empty is taken to be
UNSEEN, BRIGHTEST = 255, 250  # what a plate holds that nothing was seen of, which is like no luma that it may hold
STRIP = 80  # rows of the image that are worked on at once
GAP = 12  # columns of half a guide; stretches that are nearer are worked on as one
STILL = 4  # levels of luma: what differs less stands still
MOVING = 1.0  # pixels of the guide between two frames: what moves
SLOPE = 8  # levels of alpha that a motion changes, from which on lag can be seen

_RELATIVE = cv2.INTER_LINEAR | cv2.WARP_RELATIVE_MAP
_AROUND = np.ones((3, 3), np.uint8)
_LIMIT = 128  # what a difference as large as its limit is
_WEIGHTS = np.floor(np.clip((1 - np.arange(256) / _LIMIT) / (1 - SAME), 0, 1) * WEIGHT * SHARES).astype(np.uint8)
"""Of the past, by how luma differs."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a filter remembers of the last frame of its sequence.

    guide  uint8 [h, w], luma of the last frame, at the guide's size
    alpha  uint8 [H, W], alpha of the last frame as it was published
    plate  uint8 [h, w], running median of the luma, for fixed cameras; None where none is kept
    small  uint8, `alpha` at half of the guide's size; None has it computed
    """

    guide: Bytes
    alpha: Bytes
    plate: Bytes | None = None
    small: Bytes | None = None


@dataclass(frozen=True, slots=True)
class FrameFigures:
    """Of one frame against the one before; None where nothing could be measured.

    still_change  mean change of alpha, 0..1, where luma stands still
    warped_error  mean difference, 0..1, of alpha from the last one moved along the flow, where that is reliable
    lag           frames by which moving edges are late against the network's; 0 is none, of a frozen matte 1 or more
    reset         why the filter began anew: "first", "size" or "cut"; None where it did not
    """

    still_change: float | None
    warped_error: float | None
    lag: float | None
    reset: str | None


@dataclass(frozen=True, slots=True)
class _Motion:
    """From a frame to the one before, at half of the guide's size.

    guide   uint8 [h, w], luma of the frame
    last    uint8 [h, w], luma of the frame before
    flow    float32 [h, w, 2], pixels of this size
    off     uint8 [h, w], levels by which luma differs from what it was moved from
    astray  uint8 [h, w], 255 where the flow does not close
    closed  uint8 [h, w], 255 where it does so well that figures may rest on it
    """

    guide: Bytes
    last: Bytes
    flow: Floats
    off: Bytes
    astray: Bytes
    closed: Bytes


def guide_of(rgb: Bytes) -> Bytes:
    """Luma of an image, uint8 [H, W, 3] RGB, at the guide's size: uint8 [h, w], longest side GUIDE_SIDE at most."""
    return _shrunk(np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8), guide_size(*rgb.shape[:2]))


def guide_size(height: int, width: int) -> tuple[int, int]:
    """(h, w) of the guide of an image."""
    share = min(1.0, GUIDE_SIDE / max(height, width))
    return max(1, round(height * share)), max(1, round(width * share))


def steady(
    rgb: Bytes, alpha: Bytes, memory: Memory | None, *, plate: Bytes | Literal["median"] | None = None
) -> tuple[Bytes, Memory, FrameFigures]:
    """Alpha of a frame, steadied by what was published for the frame before; what to remember; figures.

    rgb     uint8 [H, W, 3], the frame; only read
    alpha   uint8 [H, W], the network's; only read
    memory  of the frame before; None begins anew
    plate   of a fixed camera: luma of the empty scene at the guide's size, or "median" to learn it; None: there is none

    Equal inputs give equal outputs. Raises ValueError where alpha or plate have not the frame's size.
    """
    guide = _checked(rgb, alpha)
    if plate is not None and not isinstance(plate, str) and plate.shape != guide.shape:
        raise ValueError(f"the plate is {plate.shape}, the guide {guide.shape}")
    median = memory.plate if isinstance(plate, str) and memory is not None else None
    motion, reset = _seen(guide, alpha, memory)
    present, published = _shrunk(alpha, _half(guide.shape)), alpha.copy()
    small, figures = present, FrameFigures(None, None, None, reset)
    if memory is not None and motion is not None:
        past = _past(memory)
        moved = _moved(past, motion.flow)
        seen = median if isinstance(plate, str) else plate
        empty = None if seen is None else _empty(_shrunk(seen, present.shape), motion.guide, moved)
        _blend(
            published,
            memory.alpha,
            motion.flow,
            _weights(motion, present, moved, empty),
            _active(present, moved),
            empty,
        )
        small = _shrunk(published, present.shape)
        figures = _figures(motion, present, past, moved, small)
    kept = _learned(median if motion is not None else None, guide, small) if isinstance(plate, str) else None
    return published, Memory(guide, published, kept, small), figures


def looked_ahead(frames: Sequence[tuple[Bytes, Bytes]]) -> Bytes:
    """Alpha of the first of these frames, steadied by those after it; of one alone it is its own.

    frames  (rgb, alpha) as for `steady`, in their order

    It is the same filter, run backwards. `steady` over what it answers, forwards, then weighs both sides of a frame,
    and is not late.
    """
    published = frames[-1][1]
    if len(frames) == 1:
        return published
    memory: Memory | None = None
    for rgb, alpha in reversed(frames):
        published, memory, _ = steady(rgb, alpha, memory)
    return published


def measured(rgb: Bytes, alpha: Bytes, published: Bytes, memory: Memory | None) -> tuple[Memory, FrameFigures]:
    """Figures of what was published for a frame by whatever filter, or by none, in place of the network's alpha.

    All as for `steady`; published: uint8 [H, W]. Raises ValueError.
    """
    guide = _checked(rgb, alpha)
    motion, reset = _seen(guide, alpha, memory)
    present, small = (_shrunk(each, _half(guide.shape)) for each in (alpha, published))
    kept = Memory(guide, published, None, small)
    if memory is None or motion is None:
        return kept, FrameFigures(None, None, None, reset)
    past = _past(memory)
    return kept, _figures(motion, present, past, _moved(past, motion.flow), small)


def unfiltered(rgb: Bytes, alpha: Bytes, memory: Memory | None) -> tuple[Bytes, Memory, FrameFigures]:
    """As `steady`, but alpha stays what it is: figures to compare with."""
    return (alpha, *measured(rgb, alpha, alpha, memory))


def _checked(rgb: Bytes, alpha: Bytes) -> Bytes:
    """The guide of a frame whose alpha has its size. Raises ValueError."""
    if alpha.shape != rgb.shape[:2]:
        raise ValueError(f"alpha is {alpha.shape}, the frame {rgb.shape[:2]}")
    return guide_of(rgb)


def _half(size: tuple[int, ...]) -> tuple[int, int]:
    return max(1, size[0] // 2), max(1, size[1] // 2)


def _past(memory: Memory) -> Bytes:
    return _shrunk(memory.alpha, _half(memory.guide.shape)) if memory.small is None else memory.small


def _seen(guide: Bytes, alpha: Bytes, memory: Memory | None) -> tuple[_Motion | None, str]:
    """The motion since the last frame; or None, and why it cannot be known."""
    if memory is None:
        return None, "first"
    if memory.guide.shape != guide.shape or memory.alpha.shape != alpha.shape:
        return None, "size"
    half, last_half = (_shrunk(each, _half(guide.shape)) for each in (guide, memory.guide))
    if _histogram_distance(half, last_half) > CUT_LEVELS:
        return None, "cut"
    motion = _motion(guide, memory.guide, half, last_half)
    unreliable = cv2.bitwise_or(motion.astray, _within(motion.off, OTHER, 255))
    return (None, "cut") if cv2.countNonZero(unreliable) > CUT_SHARE * motion.off.size else (motion, "")


def _histogram_distance(one: Bytes, other: Bytes) -> float:
    """Earth mover's distance of two histograms of luma, in levels: lights that dim by three levels are three apart."""
    bins = 32
    found = [cv2.calcHist([each], [0], None, [bins], [0, 256]).ravel().cumsum() / each.size for each in (one, other)]
    return float(np.abs(found[0] - found[1]).sum()) * 256 / bins


def _motion(guide: Bytes, last: Bytes, half: Bytes, last_half: Bytes) -> _Motion:
    """The flow is measured on the guide; back again is looked at in half the size, where it costs a fourth."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)  # type: ignore[attr-defined]
    dis.setGradientDescentIterations(ITERATIONS)
    flow = _flow(dis, guide, last)
    flow = np.asarray(cv2.resize(flow, half.shape[::-1], interpolation=cv2.INTER_AREA), np.float32)
    flow *= np.float32(0.5)
    off = cv2.blur(cv2.absdiff(half, _moved(last_half, flow)), (BLUR, BLUR))
    back = _flow(dis, last_half, half)
    missed = np.asarray(cv2.add(_warped(back, flow), flow), np.float32)
    across, down = cv2.split(missed)
    far = cv2.magnitude(across, down)
    astray, closed = _within(far, ASTRAY / 2, np.inf), _within(far, 0, CLOSED / 2)
    return _Motion(half, last_half, flow, np.asarray(off, np.uint8), astray, closed)


def _flow(dis: Any, one: Bytes, other: Bytes) -> Floats:
    """From one luma to the other, float32 [h, w, 2]; zero in frames without room for patches.

    DIS begins at the scale at which four patches fill the longer side, or one the shorter. Where that is finer than the
    finest, it takes another from the width alone and crashes in low frames (OpenCV 5.0; 96 x 24), so that is not left
    to it.
    """
    short, long = min(one.shape), max(one.shape)
    if short < PATCH or long < 3 * PATCH:
        return np.zeros((*one.shape, 2), np.float32)
    coarsest = min(int(math.log2(long / (4 * PATCH)) + 0.5), int(math.log2(short / PATCH)))
    dis.setFinestScale(min(FINEST, coarsest))
    return np.asarray(dis.calc(one, other, None), np.float32)


def _weights(motion: _Motion, present: Bytes, moved: Bytes, empty: Bytes | None) -> Bytes:
    """Of the past, in SHARES, uint8 [h, w]; in full where the scene is seen to be empty."""
    contrast = cv2.morphologyEx(motion.guide, cv2.MORPH_GRADIENT, _AROUND)
    noise = SLACK * float(np.median(motion.off[::2, ::2])) + 1
    least = min(max(STRICTEST, noise), OTHER / 2)
    limit = np.minimum(cv2.convertScaleAbs(contrast, alpha=CONTRAST, beta=least), LOOSEST)
    found = cv2.LUT(cv2.divide(motion.off, limit, scale=_LIMIT), _WEIGHTS)
    found = cv2.multiply(found, _straight(motion.flow), scale=1 / 255)
    sure = cv2.bitwise_not(_within(present, SURE + 1, 254 - SURE))
    changed = _within(cv2.absdiff(present, moved), CHANGED + 1, 255)
    doubted = _within(motion.off, DOUBTED + 1, 255)
    barred = cv2.bitwise_or(motion.astray, cv2.bitwise_and(cv2.bitwise_and(sure, changed), doubted))
    found = cv2.bitwise_and(found, cv2.bitwise_not(barred))
    if empty is not None:
        found = cv2.max(found, np.minimum(empty, _WEIGHTS[0]))
    return np.asarray(found, np.uint8)


def _straight(flow: Floats) -> Bytes:
    """How even the flow is, 0..255, uint8 [h, w]: within an object it is, across an outline two motions meet."""
    height, width = flow.shape[:2]
    coarse = cv2.resize(flow, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA)
    across, down = cv2.split(cv2.morphologyEx(coarse, cv2.MORPH_GRADIENT, _AROUND))
    low, high = BENT
    slope = -255 / (high - low)
    even = np.clip(cv2.max(across, down) * np.float32(2 * slope) - high * np.float32(slope), 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _empty(plate: Bytes, guide: Bytes, moved: Bytes) -> Bytes:
    """255 where luma is that of the empty scene and the past had hardly anything, uint8 [h, w]."""
    alike = _within(cv2.blur(cv2.absdiff(guide, plate), (3, 3)), 0, ALIKE)
    return np.asarray(cv2.bitwise_and(alike, _within(moved, 0, LOW - 1)), np.uint8)


def _learned(plate: Bytes | None, guide: Bytes, published: Bytes) -> Bytes:
    """The plate, a level nearer to what shows now (a running median), where that is background; UNSEEN before."""
    if plate is None or plate.shape != guide.shape:
        plate = np.full(guide.shape, UNSEEN, np.uint8)
    shown = np.minimum(guide, np.uint8(BRIGHTEST))
    nearer = np.clip(shown, np.maximum(plate, 1) - 1, np.minimum(plate, 254) + 1)
    other = cv2.bitwise_or(_within(cv2.absdiff(shown, plate), OTHER + 1, 255), _within(plate, UNSEEN, UNSEEN))
    background = _within(published, 0, SURE)
    background = np.asarray(cv2.resize(background, guide.shape[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
    learned = plate.copy()
    cv2.copyTo(nearer, background, learned)
    cv2.copyTo(shown, cv2.bitwise_and(background, other), learned)
    return learned


def _active(present: Bytes, moved: Bytes) -> Bytes:
    """Where past and present may differ at full size, uint8 [h, w], not 0: where one is soft or both differ."""
    soft = _within(present, FAINT + 1, 254 - FAINT)
    differ = _within(cv2.absdiff(present, moved), FAINT + 1, 255)
    return np.asarray(cv2.dilate(cv2.bitwise_or(soft, differ), _AROUND), np.uint8)


def _blend(published: Bytes, last: Bytes, flow: Floats, weight: Bytes, active: Bytes, empty: Bytes | None) -> None:
    """Move `published` towards `last`, in place: by its weight, along the flow, where it is active.

    Of the empty scene the past is 0.

    published, last              uint8 [H, W]
    flow, weight, active, empty  at half of the guide's size
    """
    height, width = published.shape
    down, across = height / weight.shape[0], width / weight.shape[1]
    for rows, columns in _rectangles(active, published.shape):
        top, left = rows.start, columns.start
        place = np.array([[1 / across, 0, (left + 0.5) / across - 0.5], [0, 1 / down, (top + 0.5) / down - 0.5]])
        size = (columns.stop - left, rows.stop - top)
        way = cv2.transform(_part(flow, place, size), np.array([[across, 0, left], [0, down, top]]))
        past = _warped(last, way)
        if empty is not None:
            past = cv2.subtract(past, _part(empty, place, size))
        present = published[rows, columns]
        change = cv2.subtract(past, present, dtype=cv2.CV_16S)
        change = cv2.multiply(change, _part(weight, place, size), scale=1 / SHARES, dtype=cv2.CV_16S)
        cv2.add(change, present, dst=present, dtype=cv2.CV_8U)


def _part(plane: Plane, place: NDArray[np.float64], size: tuple[int, int]) -> Plane:
    """A part of a plane of the flow's size, enlarged to `size` pixels of the image, bilinear."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(plane, place, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _rectangles(active: Bytes, shape: tuple[int, int]) -> Iterator[Rectangle]:
    """Parts of an image of `shape` that hold all of `active`, which is smaller; they do not overlap."""
    (height, width), (rows, columns) = shape, active.shape
    for top in range(0, height, STRIP):
        bottom = min(top + STRIP, height)
        strip = active[top * rows // height : -(-bottom * rows // height)]
        found = np.flatnonzero(strip.max(axis=0))
        if not len(found):
            continue
        gaps = np.flatnonzero(np.diff(found) > GAP).tolist()
        for first, last in zip([0, *(gap + 1 for gap in gaps)], [*gaps, len(found) - 1], strict=True):
            left, right = int(found[first]) * width // columns, -(-(int(found[last]) + 1) * width // columns)
            yield slice(top, bottom), slice(left, right)


def _figures(motion: _Motion, present: Bytes, past: Bytes, moved: Bytes, published: Bytes) -> FrameFigures:
    """present: the network's alpha, past and published: of the frame before and of this one; at the motion's size."""
    still = _within(cv2.blur(cv2.absdiff(motion.guide, motion.last), (3, 3)), 0, STILL)
    reliable = cv2.bitwise_and(_within(motion.off, 0, OTHER - 1), motion.closed)
    return FrameFigures(
        _mean_change(published, past, still),
        _mean_change(published, moved, reliable),
        _lag(motion.flow, present, published),
        None,
    )


def _mean_change(one: Bytes, other: Bytes, where: Plane) -> float | None:
    if not cv2.countNonZero(where):
        return None
    return float(cv2.mean(cv2.absdiff(one, other), where)[0]) / 255


def _lag(flow: Floats, present: Bytes, published: Bytes) -> float | None:
    """Frames by which `published` is late: how much of one frame's motion would have to be undone to explain it.

    The least squares fit of (published - present) by (present as one frame of motion ago - present).
    """
    across, down = cv2.split(flow)
    moving = _within(cv2.magnitude(across, down), MOVING / 2, np.inf)
    left, top, width, height = cv2.boundingRect(cv2.bitwise_and(moving, _within(present, 1, 255)))
    box = np.s_[top : top + height, left : left + width]
    if not width:
        return None
    part = np.ascontiguousarray(present[box])
    step = cv2.subtract(_moved(part, -flow[box]), part, dtype=cv2.CV_16S)
    seen = (np.abs(step) >= SLOPE) & (moving[box] > 0)
    if not seen.any():
        return None
    steps = step[seen].astype(np.float32)
    late = cv2.subtract(published[box], part, dtype=cv2.CV_16S)[seen].astype(np.float32)
    return float(late @ steps / (steps @ steps))


def _moved(plane: Bytes, flow: Floats) -> Bytes:
    return np.asarray(_warped(plane, flow), np.uint8)


def _warped(plane: Plane, flow: Plane) -> Plane:
    """Of a plane what lies where the flow points to, bilinear; beyond the border its last pixels."""
    return cv2.remap(plane, flow, None, _RELATIVE, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload,no-any-return]


def _within(plane: Plane, low: float, high: float) -> Bytes:
    """255 where low <= plane <= high."""
    return np.asarray(cv2.inRange(plane, low, high), np.uint8)


def _shrunk(plane: Bytes, size: tuple[int, ...]) -> Bytes:
    """At `size`, (height, width), no larger than the plane; each pixel the mean of what it covers."""
    if plane.shape == size:
        return plane
    return np.asarray(cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)
