"""Every pixel layout that Pillow decodes to, as 8-bit RGB and alpha, band by band.

| stored                        | becomes                                                                          |
|-------------------------------|----------------------------------------------------------------------------------|
| 1, L (1 to 8 bits)            | grey, spread over 0..255                                                         |
| I;16 (9 to 16 bits)           | divided by the largest value that fits, rounded                                  |
| 16 bits in several channels   | the high byte (within one level of rounding)                                     |
| I (32 bits, or signed 16)     | as I;16; below zero is black                                                     |
| F (floating point)            | 0..1 is black to white, clipped beyond; up to 255 taken as 0..255; else refused  |
| P, PA                         | through the palette, with its alphas                                             |
| RGBA, LA                      | as they are; premultiplied ones are divided by their alpha                       |
| CMYK, LAB, grey with profile  | through the profile to sRGB (colour.py); CMYK without one by formula             |
| one transparent colour        | (PNG tRNS) alpha 0 exactly where the stored value equals it, 255 elsewhere       |

Does not know files or orientation.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rmbgd.errors import ImageError, Reason
from rmbgd.imaging.colour import ColourPlan, applied

Bytes = NDArray[np.uint8]
Band = tuple[Bytes, Bytes | None]
"""uint8 [k, W, 3], and uint8 [k, W] or None where everything is opaque."""

_VIA_RGBA = {"RGBA", "RGBa", "PA"}
_VIA_RGB = {"RGB", "RGBX", "CMYK", "YCbCr", "HSV"}
_UNSIGNED_32_MAXIMUM = (1 << 32) - 1


def convert_band(
    band: Image.Image,
    plan: ColourPlan,
    *,
    has_alpha: bool,
    key: tuple[int, ...] | None,
    maximum: int,
    float_scale: float,
) -> Band:
    """One band of rows. `float_scale` is what makes 255 of white in mode F (see float_scale_of).

    Raises ImageError(UNSUPPORTED_MODE).
    """
    mode = band.mode
    if mode == "P" and has_alpha:
        band, mode = band.convert("RGBA"), "RGBA"
    if mode in _VIA_RGBA:
        both = np.asarray(band if mode == "RGBA" else band.convert("RGBA"))
        return _bytes(cv2.cvtColor(both, cv2.COLOR_RGBA2RGB)), _bytes(cv2.extractChannel(both, 3))
    if mode in ("LA", "La"):
        both = np.asarray(band if mode == "LA" else band.convert("LA"))
        return _grey(both[:, :, 0], plan), np.ascontiguousarray(both[:, :, 1])
    if mode in ("1", "L"):
        grey = np.asarray(band.convert("L"))
        return _grey(grey, plan), _keyed(grey, key)
    if mode.startswith("I;16"):
        wide = np.asarray(band).astype(np.uint32)
        scaled = np.minimum((wide * 255 + maximum // 2) // maximum, 255).astype(np.uint8)
        return _grey(scaled, plan), _keyed(wide, key)
    if mode == "I":
        numbers = np.asarray(band)  # int32
        numbers = numbers.view(np.uint32) if maximum == _UNSIGNED_32_MAXIMUM else numbers
        shares = numbers.astype(np.float64) * (255.0 / maximum)
        return _grey(_bytes(np.rint(shares.clip(0.0, 255.0))), plan), None
    if mode == "F":
        values = np.nan_to_num(np.asarray(band), nan=0.0, posinf=np.inf, neginf=0.0) * float_scale
        return _grey(_bytes(np.rint(values.clip(0.0, 255.0))), plan), None
    if plan.transform is not None:
        return np.asarray(applied(plan, band)), None
    if mode in _VIA_RGB or mode == "P":
        colours = np.asarray(band if mode == "RGB" else band.convert("RGB"))
        return colours, _keyed(colours, key)
    raise ImageError(Reason.UNSUPPORTED_MODE, f"pixels of mode {mode}")


def float_scale_of(image: Image.Image) -> float:
    """What a floating point picture is multiplied by. Raises ImageError(UNSUPPORTED_MODE) when nobody can know."""
    if image.mode != "F":
        return 1.0
    values = np.asarray(image)
    finite = values[np.isfinite(values)]
    highest = float(finite.max()) if finite.size else 0.0
    if highest <= 2.0:  # white at 1, with highlights above it
        return 255.0
    if highest <= 255.0:
        return 1.0
    raise ImageError(Reason.UNSUPPORTED_MODE, f"floating point pixels up to {highest:g}, without saying what white is")


def _grey(values: Bytes, plan: ColourPlan) -> Bytes:
    values = np.ascontiguousarray(values)
    if plan.transform is not None:
        return np.asarray(applied(plan, Image.fromarray(values)))
    return _bytes(cv2.cvtColor(values, cv2.COLOR_GRAY2RGB))


def _bytes(values: object) -> Bytes:
    return np.asarray(values, dtype=np.uint8)


def _keyed(values: NDArray[np.uint8] | NDArray[np.uint32], key: tuple[int, ...] | None) -> Bytes | None:
    if key is None:
        return None
    same = values == np.asarray(key, values.dtype) if values.ndim == 3 else values == key[0]
    if same.ndim == 3:
        same = same.all(axis=2)
    return np.where(same, np.uint8(0), np.uint8(255))
