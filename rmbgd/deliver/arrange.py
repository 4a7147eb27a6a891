"""Arrange the image as a file of it asks: cropped or placed in a frame, on a colour, with a shadow.

Apart from imaging/compose.py, as that runs in the engine's process too: recipes bring pydantic, an eighth of a second
of its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image

from rmbgd.config.load import Look
from rmbgd.deliver.boxes import crop_box
from rmbgd.deliver.placement import place, placed
from rmbgd.deliver.shadow import shadow
from rmbgd.imaging.colour_space import as_srgb
from rmbgd.imaging.compose import Bytes, Pixels, Words, bands


@dataclass(frozen=True, slots=True)
class Arranged:
    """The finished image.

    pixels    what is encoded
    alpha     uint8 [H, W], the subject's matte in it; a shadow is not part of it, so rules of a white background see
              the shadow. None for a mask of 16 bits
    enlarged  times; 1.0 when the image was not made larger
    """

    pixels: Pixels
    alpha: Bytes | None
    enlarged: float = 1.0


def zero_hidden(rgba: Bytes, out: Bytes) -> Bytes:
    """`rgba` with its colours under alpha 0 set to 0, in `out`; nothing that is seen changes, the file halves.

    rgba, out  uint8 [H, W, 4], contiguous; may be the same
    """
    for rows in bands(rgba):
        pixels = rgba[rows].view("<u4")[:, :, 0]  # alpha is the highest byte
        np.multiply(pixels, pixels > 0x00FFFFFF, out=out[rows].view("<u4")[:, :, 0])
    return out


def flatten(rgba: Bytes, colour: Sequence[int], out: Bytes, dark: Bytes | None = None) -> None:
    """The cutout laid on a colour, into `out` (uint8 [H, W, 3]); exactly that colour wherever alpha is 0.

    rgba    uint8 [H, W, 4], straight alpha
    colour  red, green, blue; 0..255
    dark    uint8 [H, W], 255 - lit: the colour is multiplied by lit / 255 before
    """
    background = np.asarray(list(colour), np.uint16)
    for rows in bands(rgba):
        band = rgba[rows]
        share = band[:, :, 3:].astype(np.uint16)
        mixed = band[:, :, :3] * share
        if dark is None or not dark[rows].any():
            mixed += background * (255 - share)
        else:
            mixed += _divided(background * (255 - dark[rows, :, None].astype(np.uint16))) * (255 - share)
        out[rows] = _divided(mixed)


def _divided(products: Words) -> Words:
    """By 255, rounded, in place; exact for every product of two bytes."""
    products += 128
    products += products >> 8
    products >>= 8
    return products


def arrange(
    rgba: Bytes | None, alpha: Pixels | None, look: Look, *, profile: bytes | None = None, last: bool = True
) -> Arranged:
    """The image that `look` asks for, from the engine's output plane (exactly one of `rgba` and `alpha`).

    profile  colour profile that the plane is in, None for sRGB; needed where colour_space is "srgb": colours are
             converted before they meet the background, which is sRGB then, as encode says in the file
    last     the planes are not needed any more; they may be changed in place, where that saves a copy
    """
    pixels: Pixels | None = alpha if rgba is None else rgba
    assert pixels is not None
    if look.content == "mask" and rgba is not None:
        pixels = _mask(rgba, look.mask_bits)
    matte = pixels if pixels.ndim == 2 else pixels[:, :, 3]
    if placement := place(matte, look):
        pixels, scale = placed(pixels, placement), placement.scale
    else:
        pixels, scale = _fitted(pixels, matte, look)
    if pixels.ndim == 2:
        return Arranged(pixels, np.asarray(pixels, np.uint8) if pixels.dtype == np.uint8 else None, max(1.0, scale))
    if look.colour_space == "srgb":
        pixels = as_srgb(np.asarray(pixels, np.uint8), profile)
    owned = pixels.flags.writeable and (last or not np.may_share_memory(pixels, rgba))
    return replace(_coloured(np.asarray(pixels, np.uint8), look, owned=owned), enlarged=max(1.0, scale))


def _mask(rgba: Bytes, bits: int) -> Pixels:
    mask = np.ascontiguousarray(rgba[:, :, 3])
    return mask * np.uint16(257) if bits == 16 else mask


def _fitted(pixels: Pixels, matte: Pixels, look: Look) -> tuple[Pixels, float]:
    """Cropped, on a canvas, or within longest_side; and the scale."""
    if look.crop:
        top, bottom, left, right = crop_box(matte, look.crop_margin)
        pixels = np.ascontiguousarray(pixels[top:bottom, left:right])  # type: ignore[assignment]
    height, width = pixels.shape[:2]
    if look.canvas:
        new_width, new_height = (int(side) for side in look.canvas.split("x"))
        return place_on_canvas(pixels, new_height, new_width), min(new_height / height, new_width / width)
    if 0 < look.longest_side < max(height, width):
        scale = look.longest_side / max(height, width)
        return _resized(pixels, max(1, round(height * scale)), max(1, round(width * scale))), scale
    return pixels, 1.0


def _coloured(rgba: Bytes, look: Look, *, owned: bool) -> Arranged:
    """The content that `look` asks for. `owned`: the plane may be changed in place."""
    if look.faint_below:
        rgba, owned = (rgba if owned else rgba.copy()), True
        faint = rgba[:, :, 3] < round(255 * look.faint_below)
        rgba[:, :, 3][faint] = 0
    alpha = rgba[:, :, 3]
    dark = None
    if look.shadow != "off" and look.content != "foreground":
        dark = shadow(alpha, look.shadow, opacity=look.shadow_opacity, size=look.shadow_size, light=look.light)
    if look.content == "foreground" and look.format == "tiff":
        return Arranged(np.asarray(Image.fromarray(rgba).convert("RGBa"), np.uint8), alpha)
    if look.flat or look.content == "foreground":
        flat = np.empty((*rgba.shape[:2], 3), np.uint8)
        colour = "000000" if look.content == "foreground" else look.background.removeprefix("#")
        flatten(rgba, bytes.fromhex(colour), flat, dark)
        return Arranged(flat, alpha)
    if dark is not None:
        return Arranged(_with_shadow(rgba, dark), alpha)
    if look.hidden_colours == "zero":
        rgba = zero_hidden(rgba, rgba if owned else np.empty_like(rgba))
    return Arranged(rgba, rgba[:, :, 3])


def _with_shadow(rgba: Bytes, dark: Bytes) -> Bytes:
    """The cutout over black of the opacity `dark`; hidden colours are zero."""
    shaded = zero_hidden(rgba, np.empty_like(rgba))
    for rows in bands(rgba):
        columns = np.flatnonzero(dark[rows].any(axis=0))
        if not columns.size:
            continue
        part = rows, slice(columns[0], columns[-1] + 1)
        alpha = rgba[part][:, :, 3].astype(np.float32)
        both = alpha + (255 - alpha) * dark[part] / np.float32(255)
        share = alpha / np.maximum(both, np.float32(1))
        for channel in range(3):
            shaded[part][:, :, channel] = np.rint(rgba[part][:, :, channel] * share)
        shaded[part][:, :, 3] = np.rint(both)
    return shaded


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
