"""Alpha and colour become the planes of the answer: rounded once, multiplied by the image's own alpha, straight RGBA.

Works in bands of rows so that each stays in the cache. Does not resize, crop or encode; does not know recipes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rmbgd.config.load import Recipe
from rmbgd.imaging.edges import clean_edges

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint16]
Floats = NDArray[np.float32]

BAND_BYTES = 1 << 19  # of the widest array touched; half a cache of the cores this runs on


def bands(array: NDArray[np.generic]) -> Iterator[slice]:
    """Slices of rows of about BAND_BYTES each."""
    rows = max(1, BAND_BYTES // max(1, array.strides[0]))
    for first in range(0, len(array), rows):
        yield slice(first, min(first + rows, len(array)))


def compose_rgba(rgb: Bytes, alpha: Floats, source_alpha: Bytes | None, out: Bytes, *, clean: bool) -> None:
    """Straight (unassociated) RGBA into `out`.

    rgb           uint8 [H, W, 3]; only read
    alpha         float32 [H, W], 0..1; beyond it is taken for 0 and 1
    source_alpha  uint8 [H, W] or None; alpha that the image came with, multiplied in
    out           uint8 [H, W, 4], contiguous; written completely
    clean         take the old background out of soft edges (foreground.py)

    The edges are cleaned for the network's alpha alone: the image's own alpha never mixed its colours.
    """
    rounding = _Rounding(alpha, source_alpha, out)
    for rows in bands(out):
        cv2.cvtColor(rgb[rows], cv2.COLOR_RGB2RGBA, dst=out[rows])
        cv2.insertChannel(rounding.of(rows), out[rows], 3)
    if clean:
        clean_edges(rgb, alpha, out)


def quantise_alpha(alpha: Floats, source_alpha: Bytes | None, out: Bytes | Words) -> None:
    """Alpha as integers into `out` (uint8 or uint16 [H, W]), rounded once, the image's own alpha multiplied in."""
    rounding = _Rounding(alpha, source_alpha, alpha)
    for rows in bands(alpha):
        if out.dtype == np.uint8:
            out[rows] = rounding.of(rows)
            continue
        scaled = alpha[rows].clip(0.0, 1.0) * np.float32(65535.0)
        if source_alpha is not None:
            scaled *= source_alpha[rows] * np.float32(1.0 / 255.0)
        out[rows] = np.rint(scaled)


def zero_hidden(rgba: Bytes) -> None:
    """Set the colours under alpha 0 to 0, in place; what anyone sees does not change, the file shrinks by half.

    rgba  uint8 [H, W, 4], contiguous
    """
    visible = np.empty(_first_band(rgba).shape[:2], np.bool_)
    for rows in bands(rgba):
        pixels = rgba[rows].view(np.uint32)[:, :, 0]
        here = visible[: len(pixels)]
        if sys.byteorder == "little":
            np.greater(pixels, 0x00FFFFFF, out=here)  # alpha is the highest byte
        else:
            np.not_equal(rgba[rows, :, 3], 0, out=here)
        np.multiply(pixels, here, out=pixels)


def flatten(rgba: Bytes, colour: tuple[int, int, int], out: Bytes) -> None:
    """The cutout laid on a colour, into `out` (uint8 [H, W, 3]); exactly that colour wherever alpha is 0.

    rgba  uint8 [H, W, 4], straight alpha
    """
    background = np.asarray(colour, np.uint16)
    for rows in bands(rgba):
        band = rgba[rows]
        share = band[:, :, 3:].astype(np.uint16)
        mixed = band[:, :, :3] * share
        mixed += background * (255 - share)
        mixed += 128  # rounded division by 255, exact for every product of two bytes
        mixed += mixed >> 8
        out[rows] = mixed >> 8


def extract_mask(rgba: Bytes) -> Bytes:
    """The alpha of uint8 [H, W, 4] as uint8 [H, W]."""
    return np.asarray(cv2.extractChannel(rgba, 3), np.uint8).reshape(rgba.shape[:2])


class _Rounding:
    """round(255 alpha) band by band, times the image's own alpha before rounding, in buffers that are used again."""

    def __init__(self, alpha: Floats, source_alpha: Bytes | None, banded: NDArray[np.generic]) -> None:
        self._alpha = alpha
        self._source_alpha = source_alpha
        shape = _first_band(banded).shape[:2]
        self._floats = np.empty(shape, np.float32)
        self._bytes = np.empty(shape, np.uint8)

    def of(self, rows: slice) -> Bytes:
        alpha = self._alpha[rows]
        floats, values = self._floats[: len(alpha)], self._bytes[: len(alpha)]
        shares = np.asarray(cv2.threshold(alpha, 0.0, 0.0, cv2.THRESH_TOZERO, dst=floats)[1]).reshape(alpha.shape)
        if self._source_alpha is not None:
            np.minimum(shares, 1.0, out=shares)
            shares *= self._source_alpha[rows]
        scale = 255.0 if self._source_alpha is None else 1.0
        return np.asarray(cv2.convertScaleAbs(shares, dst=values, alpha=scale), np.uint8).reshape(alpha.shape)


def _first_band(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return array[next(bands(array))]


# What the recipe asks of a finished cutout: cut to the subject, put on a canvas, laid on a colour, or its alpha alone.


Box = tuple[int, int, int, int]
"""top, bottom, left, right; pixels, half open."""

VISIBLE = 10  # of 255; fainter alpha is haze, and single faint specks would otherwise decide the box
SPECK = 0.01  # share of the largest component's area; smaller ones do not widen the box
GRID_SIDE = 1024  # cells; components are looked for on a grid of about this size, the box's sides on all pixels


@dataclass(frozen=True, slots=True)
class EncodeInput:
    """What is encoded: uint8 [H, W, 4] straight RGBA or [H, W, 3] RGB, or a uint8 or uint16 [H, W] mask; contiguous."""

    pixels: Bytes | Words


def arrange(rgba: Bytes | None, alpha: Bytes | Words | None, recipe: Recipe) -> EncodeInput:
    """The image that `recipe` asks for, from the engine's output plane (exactly one of `rgba` and `alpha`).

    The planes belong to the caller and are changed in place where that saves a copy.
    """
    pixels: Bytes | Words | None = alpha if rgba is None else rgba
    assert pixels is not None
    if recipe.crop:
        matte = pixels if rgba is None else rgba[:, :, 3]
        top, bottom, left, right = crop_box(matte, recipe.crop_margin)
        pixels = np.ascontiguousarray(pixels[top:bottom, left:right])  # type: ignore[assignment]
    if recipe.canvas:
        width, height = (int(side) for side in recipe.canvas.split("x"))
        pixels = place_on_canvas(pixels, height, width)
    if rgba is None:
        return EncodeInput(pixels)
    if recipe.content == "colour":
        flat = np.empty((*pixels.shape[:2], 3), np.uint8)
        flatten(np.asarray(pixels, np.uint8), parse_colour(recipe.background), flat)
        return EncodeInput(flat)
    if recipe.hidden_colours == "zero":
        zero_hidden(np.asarray(pixels, np.uint8))
    return EncodeInput(pixels)


def parse_colour(text: str) -> tuple[int, int, int]:
    """(red, green, blue) of "#rrggbb"."""
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def crop_box(alpha: Bytes | Words, margin: float) -> Box:
    """The subject's box with air around it, cut at the image's borders; the whole image when there is no subject.

    alpha   uint8 or uint16 [H, W]
    margin  share of the box's longer side
    Components smaller than SPECK of the largest one do not count (specks ruin a plain bounding box).
    """
    height, width = alpha.shape
    visible = alpha >= VISIBLE * (257 if alpha.dtype == np.uint16 else 1)
    step = max(1, max(height, width) // GRID_SIDE)
    grid = np.maximum.reduceat(visible.view(np.uint8), np.arange(0, height, step), axis=0)
    grid = np.maximum.reduceat(grid, np.arange(0, width, step), axis=1)
    count, labels, found, _centres = cv2.connectedComponentsWithStats(grid, connectivity=8)
    if count < 2:
        return 0, height, 0, width
    areas = found[1:, cv2.CC_STAT_AREA]
    kept = np.isin(labels, 1 + np.flatnonzero(areas >= SPECK * areas.max()))
    top, bottom = _ends(visible, kept, step)
    left, right = _ends(visible.T, kept.T, step)
    air = round(margin * max(bottom - top, right - left))
    return max(0, top - air), min(height, bottom + air), max(0, left - air), min(width, right + air)


def _ends(visible: NDArray[np.bool_], kept: NDArray[np.bool_], step: int) -> tuple[int, int]:
    """First row, and one after the last, with a visible pixel in a kept cell of the grid."""
    rows = np.flatnonzero(kept.any(axis=1))
    first, last = (
        np.flatnonzero((visible[row * step : (row + 1) * step] & _spread(kept[row], step, visible)).any(axis=1))
        for row in (rows[0], rows[-1])
    )
    return int(rows[0] * step + first[0]), int(rows[-1] * step + last[-1] + 1)


def _spread(cells: NDArray[np.bool_], step: int, like: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.repeat(cells, step)[: like.shape[1]]


def place_on_canvas(pixels: Bytes | Words, height: int, width: int) -> Bytes | Words:
    """The image fitted into height x width, aspect kept, in the middle; the rest is transparent.

    pixels  uint8 [H, W, 4] straight RGBA, or uint8 / uint16 [H, W]
    It is made smaller or larger as needed, with colours weighted by alpha so that hidden ones cannot bleed in.
    """
    factor = min(height / pixels.shape[0], width / pixels.shape[1])
    new_height = max(1, min(height, round(pixels.shape[0] * factor)))
    new_width = max(1, min(width, round(pixels.shape[1] * factor)))
    canvas = np.zeros((height, width, *pixels.shape[2:]), pixels.dtype)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    canvas[top : top + new_height, left : left + new_width] = _resized(pixels, new_height, new_width)
    return canvas


def _resized(pixels: Bytes | Words, height: int, width: int) -> Bytes | Words:
    """Filters without negative lobes, so that no rim brighter than the subject appears around it."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height < pixels.shape[0] or width < pixels.shape[1]
    if pixels.ndim == 2:
        filtering = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        single = np.asarray(cv2.resize(pixels, (width, height), interpolation=filtering)).reshape(height, width)
        return single.astype(np.uint8) if pixels.dtype == np.uint8 else single.astype(np.uint16)
    weighted = Image.fromarray(pixels).convert("RGBa")  # colours times alpha
    kernel = Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR
    return np.asarray(weighted.resize((width, height), kernel).convert("RGBA"), np.uint8)
