"""Preview of a cutout for review, as a JPEG: the original, the cutout on a checkerboard, the matte, text below them.

Everything is reduced first, so that a large image costs little more than a small one.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rmbgd.wording import printable

WIDTH, GAP = 1600, 16  # px of the whole, and between its parts
PART, TALLEST = (WIDTH - 4 * GAP) // 3, 720  # px that each of the three may be wide, and high
SQUARE = 12  # px of the checkerboard
LIGHT, DARK, PAPER, INK = 255, 205, (246, 246, 244), (32, 32, 32)
FONT_SIZE, LINE_HEIGHT = 24, 34  # px
COLUMNS, LINES = 112, 24  # characters of a line, and lines, of that size
QUALITY = 85
HEADS = ("original", "cutout", "matte")


def preview(rgb: np.ndarray, alpha: np.ndarray, lines: Sequence[str]) -> bytes:
    """A JPEG of WIDTH px of `rgb` (uint8 [H, W, 3]), its matte `alpha` (uint8 [H, W]) and `lines`, one after the other.

    Characters that the font lacks are drawn as boxes, those that cannot be printed as escapes.
    """
    parts = _parts(_reduced(rgb), _reduced(alpha))
    height = max(part.shape[0] for part in parts)
    text = [piece for line in lines for piece in textwrap.wrap(printable(line), COLUMNS) or [""]][:LINES]
    top = GAP + LINE_HEIGHT
    page = Image.new("RGB", (WIDTH, top + height + GAP + LINE_HEIGHT * len(text) + GAP * bool(text)), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)
    for number, (head, part) in enumerate(zip(HEADS, parts, strict=True)):
        left = GAP + number * (PART + GAP)
        draw.text((left, GAP // 2), head, INK, font)
        page.paste(Image.fromarray(part), (left, top))
    for number, line in enumerate(text):
        draw.text((GAP, top + height + GAP + number * LINE_HEIGHT), line, INK, font)
    file = io.BytesIO()
    page.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _reduced(plane: np.ndarray) -> np.ndarray:
    """To fit its place; never enlarged, and never without a pixel."""
    height, width = plane.shape[:2]
    scale = min(1.0, PART / width, TALLEST / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    whole = min(int(1.0 / scale), height, width)
    if whole > 1:  # by a whole number first, which takes a third of the time; what is over at the edge is cut off
        cut = plane[: height // whole * whole, : width // whole * whole]
        plane = _resized(cut, (width // whole, height // whole))
    return _resized(plane, size)


def _resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA))


def _parts(rgb: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, ...]:
    height, width = alpha.shape
    rows, columns = np.ogrid[:height, :width]
    board = np.where((rows // SQUARE + columns // SQUARE) % 2, DARK, LIGHT)[:, :, None]
    opacity = alpha[:, :, None].astype(np.float32) / 255.0
    cutout = np.rint(rgb * opacity + board * (1.0 - opacity)).astype(np.uint8)
    return np.ascontiguousarray(rgb), cutout, np.ascontiguousarray(alpha)
