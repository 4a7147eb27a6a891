"""Make a shadow below the subject: a contact shadow at its lower edge, or one cast on the ground away from the light.

A function of the alpha and the settings alone, computed on a coarse grid, as shadows are smooth.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from rmbgd.deliver.boxes import SOLID, subject_box
from rmbgd.imaging.compose import Bytes, Floats

_GRID_SIDE = 512  # pixels of the longer side, in which the shadow is drawn
_DEPTH = 0.3  # of the subject's height: a ground that a camera sees from some 17 degrees above
_LONGEST = 1.0  # times its height; the farthest to the side that a shadow falls, of light at 45 degrees and below
_FADED = 0.7  # of the darkness, gone at the shadow's far end


def shadow(alpha: Bytes, kind: str, *, opacity: float, size: float, light: float) -> Bytes | None:
    """How dark the ground is, uint8 [H, W]: 0 lit, 255 black; None when nothing stands on it.

    alpha    uint8 [H, W], of the frame; the shadow lies below it, and is no part of it
    kind     "contact": soft and dark along the lower edge, fading where that rises from the ground
             "cast": the matte laid on the ground, the softer and fainter the farther from the subject
    opacity  0..1, at its darkest
    size     how far a contact shadow spreads, how soft a cast one is; share of the longer side of the subject's box
    light    degrees, 0..180; where light comes from: 0 the right, 90 above (a cast shadow hides behind the subject)
    """
    height, width = alpha.shape
    step = max(1.0, max(height, width) / _GRID_SIDE)
    rows, columns = (max(1, round(side / step)) for side in (height, width))
    small = np.asarray(cv2.resize(alpha, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8).reshape(
        rows, columns
    )
    box = subject_box(small)
    if box is None:
        return None
    reach = max(1.0, size * max(box[1] - box[0], box[3] - box[2]))
    ground = box[1]
    if kind == "contact":
        drawn = _contact(small, ground, reach)
    else:
        drawn = _cast(small, ground, ground - box[0], reach, math.radians(light))
    darkest = float(drawn.max())
    dark = np.rint(drawn * (255 * opacity / darkest if darkest else 0.0)).astype(np.uint8)
    return np.asarray(cv2.resize(dark, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8).reshape(alpha.shape)


def _contact(alpha: Bytes, ground: int, reach: float) -> Floats:
    """Along the lowest solid pixel of each column, the fainter the higher that is above the ground."""
    solid = alpha >= SOLID
    lower = len(alpha) - np.argmax(solid[::-1], axis=0)  # the row below it
    weight = np.where(solid.any(axis=0), np.exp((lower - ground) / reach), 0.0)
    below = np.abs(np.arange(len(alpha))[:, None] + 0.5 - lower)
    band = (255 * weight * np.clip(2 - below / (0.25 * reach), 0, 1)).astype(np.uint8)
    return _blurred(band, 0.25 * reach, 0.12 * reach)


def _cast(alpha: Bytes, ground: int, tall: int, reach: float, light: float) -> Floats:
    """The matte laid on the ground behind the subject, away from the light."""
    aside = min(max(math.cos(light) / max(math.sin(light), 1e-6), -_LONGEST), _LONGEST)
    laid = np.array([(1, aside, -aside * ground), (0, _DEPTH, (1 - _DEPTH) * ground)])
    cast = cv2.warpAffine(alpha, laid, alpha.shape[::-1])
    above = np.float32(ground) - np.arange(len(alpha), dtype=np.float32)[:, None]
    far = np.clip(above / np.float32(_DEPTH * tall), 0, 1)
    near, soft = _blurred(cast, 0.05 * reach, 0.05 * reach), _blurred(cast, 0.5 * reach, 0.3 * reach)
    return np.asarray((near + far * (soft - near)) * (1 - _FADED * far), np.float32)


def _blurred(band: object, x: float, y: float) -> Floats:
    """By integers, which give the same on every processor."""
    sigma_x, sigma_y = max(0.5, x), max(0.5, y)
    blurred = cv2.GaussianBlur(np.asarray(band, np.uint8), (0, 0), sigma_x, sigmaY=sigma_y)
    return np.asarray(blurred, np.float32)
