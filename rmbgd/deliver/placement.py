"""Place the subject in a frame by fill, margins, alignment and straightening, with one resampling.

Colours are weighted by alpha while they are resampled, so that hidden ones cannot bleed in; no filter has negative
lobes, so that no rim brighter than the subject appears around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rmbgd.config.load import Look
from rmbgd.deliver.boxes import GRID_SIDE, SOLID, Box, counted, subject_box
from rmbgd.imaging.compose import Pixels

Edges = tuple[float, float, float, float]  # top, bottom, left, right

TURN_LEAST = 0.1  # degrees; less moves no pixel of a common frame by more than two
RECTANGULAR = (
    0.88  # share of its smallest upright or turned rectangle that the hull covers; that of an ellipse is 0.785
)
ELONGATED = 1.5  # times; ratio of the principal axes from which on their direction means something
ROUNDS = 5  # of measuring: thin ends of a subject vanish when it is made smaller, and its box with them
BAND_ROWS = 32  # of a turned frame, computed at once: a few megabytes


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the image lies in the frame: turned about its centre, scaled, moved.

    height, width  of the frame, pixels
    scale          frame pixels for one of the image
    y, x           of the image's centre in the frame
    turn           degrees, anticlockwise as seen
    """

    height: int
    width: int
    scale: float = 1.0
    y: float = 0.0
    x: float = 0.0
    turn: float = 0.0

    def fitted(self, box: Edges, inner: Box, align: str) -> Placement:
        """The box (from the turned image's centre, image pixels) as large as possible inside of `inner`."""
        top, bottom, left, right = box
        scale = min((inner[1] - inner[0]) / (bottom - top), (inner[3] - inner[2]) / (right - left))
        x = (inner[2] + inner[3] - scale * (left + right)) / 2
        y = inner[1] - scale * bottom if align == "bottom" else (inner[0] + inner[1] - scale * (top + bottom)) / 2
        return replace(self, scale=scale, y=y, x=x)

    def in_frame(self, box: Edges) -> Edges:
        top, bottom, left, right = (self.scale * edge for edge in box)
        return top + self.y, bottom + self.y, left + self.x, right + self.x


def place(alpha: Pixels, look: Look) -> Placement | None:
    """The placement that fill or margins, and straighten, ask for; None where nothing does or there is no subject.

    alpha  uint8 or uint16 [H, W]
    The subject's box (see subject_box) is measured in the frame that results, not only in the image: it lies to the
    pixel where it was asked to, if any placement does that. What is beside the box stays, where the frame has room.
    """
    if not (look.fill or look.margins) or (box := subject_box(alpha)) is None:
        return None
    turn = _tilt(alpha, look.straighten) if look.straighten else 0.0
    width, height = _size(look.canvas)
    edges, inner = _turned(alpha.shape, turn, box), _inner(look)
    return _measured(alpha, Placement(height, width, turn=turn), edges, inner, look.align)


def _size(canvas: str) -> tuple[int, int]:
    width, height = (int(side) for side in canvas.split("x"))
    return width, height


def _inner(look: Look) -> Box:
    """The part of the canvas that the subject's box may take: at least one pixel, margins rounded up."""
    width, height = _size(look.canvas)
    if look.fill:
        rows, columns = (max(1, math.ceil(look.fill * side - 1e-6)) for side in (height, width))
        top, left = (height - rows) // 2, (width - columns) // 2
        return top, top + rows, left, left + columns
    sides = (height, width, height, width)
    above, right, below, left = (
        math.ceil(share * side - 1e-6) for share, side in zip(look.margins, sides, strict=True)
    )
    top, left = min(above, height - 1), min(left, width - 1)
    return top, max(top + 1, height - below), left, max(left + 1, width - right)


def _measured(alpha: Pixels, frame: Placement, edges: Edges, inner: Box, align: str) -> Placement:
    """The placement whose box, found in the resampled alpha, lies where it is to lie; the best one of ROUNDS."""
    best, least = frame.fitted(edges, inner, align), math.inf
    for _ in range(ROUNDS):
        placement = frame.fitted(edges, inner, align)
        found = subject_box(placed(alpha, placement))
        if found is None:  # so thin that nothing of it is left
            break
        errors = [seen - wanted for seen, wanted in zip(found, placement.in_frame(edges), strict=True)]
        if (worst := max(map(abs, errors))) < least:
            best, least = placement, worst
        if worst <= 0.5:
            break
        top, bottom, left, right = (edge + error / placement.scale for edge, error in zip(edges, errors, strict=True))
        edges = top, max(bottom, top + 0.01), left, max(right, left + 0.01)
    return best


def _turned(shape: tuple[int, ...], turn: float, box: Box) -> Edges:
    """The box from the image's centre; of the turned image, that around its corners."""
    height, width = shape
    top, bottom, left, right = box[0] - height / 2, box[1] - height / 2, box[2] - width / 2, box[3] - width / 2
    if not turn:
        return top, bottom, left, right
    x, y = _rotation(turn) @ np.array([(left, right, left, right), (top, top, bottom, bottom)])
    return float(y.min()), float(y.max()), float(x.min()), float(x.max())


def _rotation(turn: float) -> NDArray[np.float64]:
    """Of (x, y) with y downwards."""
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return np.array([(cosine, sine), (-sine, cosine)])


def _tilt(alpha: Pixels, limit: float) -> float:
    """By how many degrees to turn the image, anticlockwise, so that its subject stands straight; 0 if by more than
    `limit`, or if its shape has no direction: neither a rectangle nor elongated.
    """
    step = max(1.0, max(alpha.shape) / GRID_SIDE)
    size = [max(1, round(side / step)) for side in alpha.shape]
    small = cv2.resize(alpha, (size[1], size[0]), interpolation=cv2.INTER_AREA).reshape(size)
    solid = counted((small >= SOLID * (257 if alpha.dtype == np.uint16 else 1)).view(np.uint8))
    if solid is None:
        return 0.0
    inside = solid.view(np.uint8)
    hull = cv2.convexHull(cv2.findNonZero(inside))
    corners = cv2.boxPoints(cv2.minAreaRect(hull))
    sides = corners[1] - corners[0], corners[2] - corners[1]
    # half a pixel of every side lies outside of the pixels' centres
    area = float((np.hypot(*sides[0]) + 1) * (np.hypot(*sides[1]) + 1))
    if cv2.contourArea(hull) + cv2.arcLength(hull, closed=True) / 2 + 1 >= RECTANGULAR * area:
        x, y = map(float, max(sides, key=lambda side: float(np.hypot(*side))))
        direction = math.degrees(math.atan2(y, x))
    else:
        found = cv2.moments(inside, binaryImage=True)
        difference, mixed = found["mu20"] - found["mu02"], 2 * found["mu11"]
        spread, apart = found["mu20"] + found["mu02"], math.hypot(difference, mixed)
        if spread + apart < ELONGATED**2 * (spread - apart):
            return 0.0
        direction = math.degrees(math.atan2(mixed, difference)) / 2
    turn = (direction + 45) % 90 - 45  # to the nearest of upright and level
    return turn if TURN_LEAST <= abs(turn) <= limit else 0.0


def placed(pixels: Pixels, placement: Placement) -> Pixels:
    """The frame, from the image's pixels: uint8 [H, W, 4] straight RGBA, or uint8 or uint16 [H, W]; zero around it."""
    frame = (_warped if placement.turn else _straight)(pixels, placement)
    return frame if pixels.ndim == 2 else np.asarray(cv2.cvtColor(frame, cv2.COLOR_mRGBA2RGBA), np.uint8)


def _weighted(pixels: Pixels) -> Pixels:
    """Colours times alpha; a mask as it is."""
    return pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGBA2mRGBA), np.uint8)


def _straight(pixels: Pixels, placement: Placement) -> Pixels:
    """By Pillow; the image's borders lie on whole pixels of the frame, so its size is right to half a pixel."""
    frame = np.zeros((placement.height, placement.width, *pixels.shape[2:]), pixels.dtype)
    top, bottom, above, below = _overlap(pixels.shape[0], placement.height, placement.scale, placement.y)
    left, right, before, after = _overlap(pixels.shape[1], placement.width, placement.scale, placement.x)
    reach = 1 + math.ceil(max(1.0, 1 / placement.scale))  # of the filter, pixels of the image
    first, start = max(0, math.floor(above) - reach), max(0, math.floor(before) - reach)
    part = _weighted(pixels[first : math.ceil(below) + reach, start : math.ceil(after) + reach])
    wide = pixels.dtype == np.uint16
    height, width = part.shape[:2]
    if pixels.ndim == 3:
        source = Image.frombuffer("RGBa", (width, height), part, "raw", "RGBa", 0, 1)
    else:
        source = Image.fromarray(part.astype(np.float32) if wide else part)
    kernel = Image.Resampling.HAMMING if placement.scale < 1 else Image.Resampling.BILINEAR
    box = before - start, above - first, after - start, below - first
    resized = np.asarray(source.resize((right - left, bottom - top), kernel, box))
    frame[top:bottom, left:right] = np.rint(resized) if wide else resized
    return frame


def _overlap(side: int, frame: int, scale: float, centre: float) -> tuple[int, int, float, float]:
    """Of one axis: the pixels of the frame that the image covers, at least one, and the part of the image they show."""
    start, end = centre - scale * side / 2, centre + scale * side / 2
    first = min(max(round(start), 0), frame - 1)
    last = min(max(round(end), first + 1), frame)
    low, high = max(0.0, (first - start) / scale), min(float(side), (last - start) / scale)
    return first, last, min(low, side - 1e-3), max(high, min(low, side - 1e-3) + 1e-3)


def _warped(pixels: Pixels, placement: Placement) -> Pixels:
    """By OpenCV, which samples points: where the image becomes smaller, several of them for each pixel, averaged."""
    height, width, fine = placement.height, placement.width, max(1, math.ceil(1 / placement.scale))
    pixels = _weighted(pixels)
    linear = placement.scale * fine * _rotation(placement.turn)
    centre = np.array(pixels.shape[1::-1]) / 2 - 0.5  # OpenCV counts from the first pixel's centre
    moved = fine * np.array([placement.x, placement.y]) - 0.5 - linear @ centre
    frame = np.zeros((height, width, *pixels.shape[2:]), pixels.dtype)
    for first in range(0, height, BAND_ROWS):
        rows = min(BAND_ROWS, height - first)
        matrix = np.column_stack([linear, moved - (0, first * fine)])
        band = cv2.warpAffine(pixels, matrix, (width * fine, rows * fine), flags=cv2.INTER_LINEAR)
        reduced = cv2.resize(band, (width, rows), interpolation=cv2.INTER_AREA) if fine > 1 else band
        frame[first : first + rows] = reduced.reshape(rows, width, *pixels.shape[2:])
    return frame
