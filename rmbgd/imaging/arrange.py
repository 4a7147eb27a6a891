"""Arrange the output image as its recipe asks: cropped, on a canvas, on a colour.

Apart from compose.py, as that runs in the engine's process too: recipes bring pydantic, an eighth of a second of its
start.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rmbgd.config.load import Recipe
from rmbgd.imaging.compose import Bytes, Pixels, bands

Box = tuple[int, int, int, int]  # top, bottom, left, right; pixels, half open

VISIBLE = 10  # of 255; fainter alpha is haze, and single faint specks would otherwise decide the box
SPECK = 0.01  # share of the largest component's area; smaller ones do not widen the box
GRID_SIDE = 1024  # cells; components are looked for on a grid of about this size, the box's sides on all pixels


def zero_hidden(rgba: Bytes) -> None:
    """Set the colours under alpha 0 to 0, in place; what is visible does not change, the file shrinks by half.

    rgba  uint8 [H, W, 4], contiguous
    """
    for rows in bands(rgba):
        pixels = rgba[rows].view("<u4")[:, :, 0]  # alpha is the highest byte
        np.multiply(pixels, pixels > 0x00FFFFFF, out=pixels)


def flatten(rgba: Bytes, colour: Sequence[int], out: Bytes) -> None:
    """The cutout laid on a colour, into `out` (uint8 [H, W, 3]); exactly that colour wherever alpha is 0.

    rgba    uint8 [H, W, 4], straight alpha
    colour  red, green, blue; 0..255
    """
    background = np.asarray(list(colour), np.uint16)
    for rows in bands(rgba):
        band = rgba[rows]
        share = band[:, :, 3:].astype(np.uint16)
        mixed = band[:, :, :3] * share
        mixed += background * (255 - share)
        mixed += 128  # rounded division by 255, exact for every product of two bytes
        mixed += mixed >> 8
        out[rows] = mixed >> 8


def arrange(rgba: Bytes | None, alpha: Pixels | None, recipe: Recipe) -> Pixels:
    """The image that `recipe` asks for, from the engine's output plane (exactly one of `rgba` and `alpha`).

    The planes belong to the caller and are changed in place where that saves a copy.
    """
    pixels: Pixels | None = alpha if rgba is None else rgba
    assert pixels is not None
    if recipe.crop:
        matte = pixels if rgba is None else rgba[:, :, 3]
        top, bottom, left, right = crop_box(matte, recipe.crop_margin)
        pixels = np.ascontiguousarray(pixels[top:bottom, left:right])  # type: ignore[assignment]
    if recipe.canvas:
        width, height = (int(side) for side in recipe.canvas.split("x"))
        pixels = place_on_canvas(pixels, height, width)
    if rgba is None:
        return pixels
    if recipe.flat:
        flat = np.empty((*pixels.shape[:2], 3), np.uint8)
        flatten(np.asarray(pixels, np.uint8), bytes.fromhex(recipe.background.removeprefix("#")), flat)
        return flat
    if recipe.hidden_colours == "zero":
        zero_hidden(np.asarray(pixels, np.uint8))
    return pixels


def crop_box(alpha: Pixels, margin: float) -> Box:
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
    rows, width = np.flatnonzero(kept.any(axis=1)), visible.shape[1]
    first, last = (
        np.flatnonzero((visible[row * step : (row + 1) * step] & np.repeat(kept[row], step)[:width]).any(axis=1))
        for row in (rows[0], rows[-1])
    )
    return int(rows[0] * step + first[0]), int(rows[-1] * step + last[-1] + 1)


def place_on_canvas(pixels: Pixels, height: int, width: int) -> Pixels:
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


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
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
