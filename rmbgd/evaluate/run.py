"""Judges pairs of masks, as many at once as there are cores; of each only its figures stay in memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import cv2
import numpy as np

from rmbgd.config.load import LimitSettings
from rmbgd.errors import ImageError, RmbgdError
from rmbgd.evaluate.metrics import Pixels, Plane, dtssd, figures, rim_error
from rmbgd.evaluate.pairs import MaskPair
from rmbgd.evaluate.sequence import moving_edge_error
from rmbgd.fs import open_regular
from rmbgd.imaging.decode import decode_into, place, probe, read_limited
from rmbgd.imaging.formats import Header
from rmbgd.imaging.pillow import opened

MISSING, SIZE, COLOUR, UNREADABLE = "missing_prediction", "size_differs", "no_mask", "unreadable"
"""Reasons besides those of errors.Reason."""
LARGE = 8_000_000  # pixels: larger ones are judged one at a time, at some 45 bytes a pixel
GREY_SLACK = 16  # of 255: a mask saved as a colour JPEG is grey but for its rounding

Decoded = TypeVar("Decoded")


class UnusablePair(RmbgdError):
    """A pair that has no figures, with a reason for programs and a detail for people."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True, slots=True)
class Matte:
    """`alpha` float32 [H, W] in 0..1; `colours` uint8 [H, W, 3], RGB, of an image that has an alpha channel."""

    alpha: Plane
    colours: Pixels | None = None


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """What came out for one pair: `figures` by the names of metrics.FIGURES, or `reason` and `detail`."""

    pair: MaskPair
    width: int = 0
    height: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Judge:
    """`ignore` is a value of 8 bits that means in truths: here nobody knows."""

    limits: LimitSettings
    ignore: int | None = None
    _large: threading.Lock = field(default_factory=threading.Lock)

    def all(self, pairs: Iterable[tuple[MaskPair, MaskPair | None]], workers: int) -> Iterator[JudgedPair]:
        """In the order of `pairs`, each with the frame before it or None."""
        left = iter(pairs)
        pool = ThreadPoolExecutor(workers)
        try:
            waiting = deque(pool.submit(self.one, *each) for each in islice(left, 2 * workers))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(self.one, *each) for each in islice(left, 1))
        finally:
            pool.shutdown(cancel_futures=True)

    def one(self, pair: MaskPair, before: MaskPair | None = None) -> JudgedPair:
        try:
            found, truth = self.read(pair)
        except UnusablePair as error:
            return JudgedPair(pair, reason=error.reason, detail=error.detail)
        with self._large if truth.alpha.size > LARGE else nullcontext():
            measured = figures(found.alpha, truth.alpha)
        if found.colours is not None and truth.colours is not None:
            rim = rim_error(found.alpha, found.colours, truth.alpha, truth.colours)
            measured |= {"rim_error": rim} if rim is not None else {}
        if before is not None:
            measured |= self._in_motion(found.alpha, truth.alpha, before)
        height, width = truth.alpha.shape
        return JudgedPair(pair, width, height, measured)

    def _in_motion(self, alpha: Plane, truth: Plane, before: MaskPair) -> dict[str, float]:
        """Flicker, and the error at edges that moved.

        Nothing where the frame before is unusable, which its own row says, or of another size.
        """
        try:
            earlier, true = self.read(before)
        except UnusablePair:
            return {}
        if true.alpha.shape != truth.shape:
            return {}
        edges = moving_edge_error(alpha, truth, true.alpha)
        flicker = {"dtssd": dtssd(alpha, truth, earlier.alpha, true.alpha)}
        return flicker if edges is None else flicker | {"moving_edge_error": edges}

    def read(self, pair: MaskPair) -> tuple[Matte, Matte]:
        """(prediction, truth), both 0 where the truth says that nobody knows. Raises UnusablePair."""
        if pair.prediction is None:
            raise UnusablePair(MISSING, "there is no prediction of this name")
        found, truth = read_matte(pair.prediction, self.limits), read_matte(pair.truth, self.limits)
        if found.alpha.shape != truth.alpha.shape:
            sizes = [f"{width} x {height}" for height, width in (found.alpha.shape, truth.alpha.shape)]
            raise UnusablePair(SIZE, f"the prediction has {sizes[0]} pixels, the truth {sizes[1]}")
        if self.ignore is not None:
            unknown = np.abs(truth.alpha * 255 - self.ignore) < 0.5
            found.alpha[unknown] = truth.alpha[unknown] = 0
        return found, truth


def read_matte(path: str, limits: LimitSettings) -> Matte:
    """The alpha channel of an image, or a grey image, upright; links are followed. Raises UnusablePair."""
    return _read(path, limits, _decoded)


def read_photograph(path: str, limits: LimitSettings) -> Pixels:
    """The colours of an image as the service has them, uint8 [H, W, 3], RGB, upright. Raises UnusablePair."""
    return _read(path, limits, _colours)


def _read(path: str, limits: LimitSettings, decode: Callable[[bytes, LimitSettings], Decoded]) -> Decoded:
    try:
        descriptor = open_regular(os.path.realpath(path))
        try:
            data = read_limited(descriptor, limits)
        finally:
            os.close(descriptor)
        return decode(data, limits)
    except ImageError as error:
        raise UnusablePair(str(error.reason), f"{path}: {error.detail}") from error
    except UnusablePair as error:
        raise UnusablePair(error.reason, f"{path}: {error.detail}") from error
    except OSError as error:
        raise UnusablePair(UNREADABLE, f"{path}: {error.strerror or error}") from error


def _colours(data: bytes, limits: LimitSettings) -> Pixels:
    header = probe(data, limits, animated="first_frame", metadata=())
    width, height = header.size
    rgb = np.empty((height, width, 3), np.uint8)
    decode_into(data, header, rgb, np.empty((height, width), np.uint8) if header.has_alpha else None)
    return rgb


def _decoded(data: bytes, limits: LimitSettings) -> Matte:
    header = probe(data, limits, animated="first_frame", metadata=())
    header.icc_profile = None  # values of a mask are shares, not colours
    width, height = header.size
    if header.mode.startswith("I;16") and header.colour_key is None:
        return Matte(_grey_of_16_bits(data, header))
    rgb = np.empty((height, width, 3), np.uint8)
    plane = np.empty((height, width), np.uint8) if header.has_alpha else None
    decode_into(data, header, rgb, plane)
    if plane is not None:
        return Matte(_shares(plane), rgb)
    darkest, brightest = (
        function(function(rgb[:, :, 0], rgb[:, :, 1]), rgb[:, :, 2]) for function in (cv2.min, cv2.max)
    )
    if int(cv2.subtract(brightest, darkest).max()) > GREY_SLACK:
        raise UnusablePair(COLOUR, "a colour image without an alpha channel; give masks in grey, or cutouts")
    return Matte(_shares(np.asarray(rgb[:, :, 1], np.uint8)))


def _grey_of_16_bits(data: bytes, header: Header) -> Plane:
    with opened(data, header.format, header.stream) as image:
        image.load()
        stored = np.asarray(image).astype(np.float32) / np.float32(header.maximum)
    upright = np.empty(header.size[::-1], np.float32)
    place(upright, 0, np.minimum(stored, 1), header.turn)
    return upright


def _shares(values: Pixels) -> Plane:
    return values.astype(np.float32) / np.float32(255)
