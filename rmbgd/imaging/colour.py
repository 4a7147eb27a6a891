"""Embedded colour profiles: which are kept for the output, which are converted to sRGB, which are left out.

A picture that is stored as RGB keeps its values and its profile. Grey, CMYK and Lab become sRGB through their profile,
because the cutout is RGB and their profile cannot describe it. Does not touch pixels itself: gives a transform.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageCms

_SPACES = {
    "1": "GRAY", "L": "GRAY", "LA": "GRAY", "La": "GRAY", "I": "GRAY", "F": "GRAY",
    "RGB": "RGB", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB", "P": "RGB", "PA": "RGB", "YCbCr": "RGB",
    "CMYK": "CMYK", "LAB": "Lab",
}  # fmt: skip
_INPUT_MODES = {"GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}


@dataclass(frozen=True, slots=True)
class ColourPlan:
    """What to do with a decoded picture.

    kept       profile that the decoded RGB is in, to be carried to the output; None means sRGB
    transform  applied to every band of mode `source`, giving RGB; None means none
    """

    kept: bytes | None
    source: str = ""
    transform: ImageCms.ImageCmsTransform | None = None
    note: str | None = None


def colour_plan(mode: str, profile: bytes | None) -> ColourPlan:
    """The plan for a picture of Pillow's `mode` with this embedded profile; one that cannot be used is left out."""
    space = _SPACES.get("I" if mode.startswith("I;") else mode, "")
    if profile is None:
        if space == "Lab":
            return _converted(ImageCms.createProfile("LAB"), "Lab")
        return ColourPlan(None, note="CMYK without a profile, converted by formula" if space == "CMYK" else None)
    parsed = _parsed(profile)
    found = profile[16:20].decode("latin-1").strip()
    if parsed is not None and found == "RGB" and space in ("RGB", "GRAY"):
        return ColourPlan(profile)
    if parsed is not None and found == space and space in _INPUT_MODES:
        return _converted(parsed, space)
    without = colour_plan(mode, None)
    told = f"colour profile {'for ' + found if parsed is not None else 'unreadable'}, left out"
    return ColourPlan(None, without.source, without.transform, "; ".join(filter(None, (told, without.note))))


def _parsed(profile: bytes) -> ImageCms.ImageCmsProfile | None:
    if len(profile) < 132 or profile[36:40] != b"acsp":
        return None
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except OSError:
        return None


def _converted(source: Any, space: str) -> ColourPlan:
    """Relative colorimetric with black point compensation, as editors and browsers do by default."""
    try:
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            _INPUT_MODES[space],
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError:
        return ColourPlan(None, note="colour profile cannot be applied, left out")
    return ColourPlan(None, _INPUT_MODES[space], transform)


def applied(plan: ColourPlan, band: Image.Image) -> Image.Image:
    """The band as sRGB. Only for plans with a transform."""
    assert plan.transform is not None
    source = band if band.mode == plan.source else band.convert(plan.source)
    converted = ImageCms.applyTransform(source, plan.transform)
    assert converted is not None
    return converted
