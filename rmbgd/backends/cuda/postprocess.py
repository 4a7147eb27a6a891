"""Edge colours and output planes on the device: imaging/edges.py and imaging/compose.py in torch.

The same method with the same coefficients; imaging/edges.py says what it is and what was measured. Here nothing depends
on what the image shows, so that the host never waits for the device: at full size every pixel is corrected, the soft
ones are selected. Images of one size go through the small levels together, which are many short steps.

Differs from the host where OpenCV rounds: it upsamples colour estimates at 1/32 of a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rmbgd.backends.cuda.resample import apply_taps, area, band_of, bands, resize_band, resize_dim, table
from rmbgd.engine.types import OutputPlane
from rmbgd.imaging.edges import HARDEST, ITERATIONS, LEVEL_SIDE, SOFTEST, STIFFNESS

SUMMARY = 5  # numbers per matte
FINITE = 4  # of them the one that says whether all of the matte is finite


def coarse_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the finest level that is worked on whole."""
    step = 2 if max(height, width) <= LEVEL_SIDE else 4
    while max(height, width) > step * LEVEL_SIDE:
        step *= 2
    return -(-height // step), -(-width // step)


def coarse(rgb: Tensor, matte: Tensor) -> Tensor:
    """An image, uint8 [H, W, 3], and its matte at `coarse_size`: float32 [4, h, w], whole levels 0..255, then alpha.

    matte  float32, at the network's size: upsampled first, as colours are corrected at full size
    """
    height, width = rgb.shape[:2]
    size = coarse_size(height, width)
    result = torch.empty((4, *size), device=rgb.device)
    halves = (2 * size[0], 2 * size[1]) == (height, width)  # OpenCV rounds means of four upwards, others to even
    taps, tables = area(height, size[0]), table(area, height, size[0], rgb.device)
    for first, last in bands(size[0], height * width / size[0]):
        top, bottom = taps.span(first, last)
        index, weight = band_of(tables, (first, last), top)
        colours = apply_taps(resize_dim(rgb[top:bottom], 1, area, size[1]), 0, index, weight)
        whole = colours.add_(0.5).floor_() if halves else colours.round_()
        result[:3, first:last] = whole.permute(2, 0, 1)
        alpha = resize_band(matte, (height, width), (top, bottom))
        result[3, first:last] = apply_taps(resize_dim(alpha, 1, area, size[1]), 0, index, weight)
    return result


def estimate(images: Sequence[Tensor]) -> Tensor:
    """Colours of fore- and background of images of one size, from `coarse`: float32 [n, 6, h, w] in 0..255.

    Channels are (red fore, red back, green fore, ...): each colour's two beside each other.
    """
    levels = [torch.stack(tuple(images))]
    while max(levels[-1].shape[2:]) > 2:
        rows, columns = (-(-side // 2) for side in levels[-1].shape[2:])
        levels.append(resize_dim(resize_dim(levels[-1], 3, area, columns), 2, area, rows))
    image, matte = levels[-1][:, :3], levels[-1][:, 3:]
    both = torch.stack((_weighted_mean(image, matte), _weighted_mean(image, 1.0 - matte)), dim=2).flatten(1, 2)
    for level in reversed(levels):
        if both.shape[2:] != level.shape[2:]:
            both = F.interpolate(both, level.shape[2:], mode="bilinear", align_corners=False)
        both = _relax(level[:, :3], level[:, 3:], both.expand(-1, -1, *level.shape[2:]))
    return both


def _relax(image: Tensor, matte: Tensor, both: Tensor) -> Tensor:
    """ITERATIONS times: each pixel takes its neighbours' mean, then what it lacks to explain the image.

    Means are taken as (fore, back, fore) for each colour, so that each has the other beside it in memory; the step
    after is then two multiplications and additions: F' = F (1 - a a w) - B a b w + I a w, and likewise for B.
    """
    alpha, beta = matte[:, :, None], 1.0 - matte[:, :, None]  # [n, 1, 1, h, w]
    weight = 1.0 / (alpha * alpha + beta * beta + STIFFNESS)
    of_both = torch.cat((alpha, beta), dim=2) * weight
    constant = image[:, :, None] * of_both  # [n, 3, 2, h, w]
    kept = 1.0 - of_both * torch.cat((alpha, beta), dim=2)
    crossed = -alpha * beta * weight
    means = _neighbours(both.device)
    for _ in range(ITERATIONS):
        mean = F.conv2d(F.pad(both, (1, 1, 1, 1), mode="replicate"), means, groups=3)
        mean = mean.view(-1, 3, 3, *mean.shape[2:])
        step = torch.addcmul(constant, kept, mean[:, :, :2])
        both = torch.addcmul(step, crossed, mean[:, :, 1:]).flatten(1, 2)
    return both.clamp_(0.0, 255.0)


@lru_cache(maxsize=8)
def _neighbours(device: torch.device) -> Tensor:
    """[9, 2, 3, 3]: for each colour the means of (fore, back, fore) over the four neighbours."""
    mean = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]) / 4
    kernel = torch.zeros(3, 2, 3, 3)
    for output, source in enumerate((0, 1, 0)):
        kernel[output, source] = mean
    return kernel.repeat(3, 1, 1, 1).to(device)


def corrected(rgb: Tensor, alpha: Tensor, both: Tensor, rows: tuple[int, int], height: int) -> Tensor:
    """The colours of a band of the image, cleaned where alpha is soft: uint8 [h, W, 3].

    rgb, alpha  uint8 [h, W, 3] and float32 [h, W], the band
    both        float32 [6, ...], the image's estimate
    rows        first and one past the last row of the band, in an image of `height` rows
    """
    wide = resize_band(both, (height, rgb.shape[1]), rows, dim=1)
    fore, back = wide[0::2], wide[1::2]
    beta = 1.0 - alpha
    gain = alpha / (alpha * alpha + beta * beta)
    explained = torch.addcmul(back, fore - back, alpha)  # alpha F + (1 - alpha) B
    planes = rgb.permute(2, 0, 1).to(torch.float32)
    cleaned = torch.addcmul(fore, planes.sub_(explained), gain).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
    soft = (alpha >= SOFTEST) & (alpha <= HARDEST)
    return torch.where(soft[:, :, None], cleaned, rgb)


def _weighted_mean(image: Tensor, weight: Tensor) -> Tensor:
    """[n, 3, 1, 1]"""
    return (image * weight).sum(dim=(2, 3), keepdim=True) / weight.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)


def pack(output: OutputPlane, rgb: Tensor | None, alpha: Tensor, source_alpha: Tensor | None, out: Tensor) -> None:
    """Write a band into `out`, uint8 [h * W * bytes of a pixel], as the plane has it (16 bits in the host's order).

    rgb           uint8 [h, W, 3], cleaned or not; only for RGBA
    alpha         float32 [h, W]
    source_alpha  uint8 [h, W] or None: alpha that the image came with, multiplied in before rounding
    """
    height, width = alpha.shape
    levels = alpha.clamp(0.0, 1.0)
    if output is OutputPlane.ALPHA16:
        levels = levels.mul_(65535.0)
        if source_alpha is not None:
            levels *= source_alpha * (1.0 / 255.0)
        # Through int32: a float beyond int16 has no defined value there, an int wraps to the bits that are wanted.
        out.view(torch.int16).view(height, width).copy_(levels.round_().to(torch.int32).to(torch.int16))
        return
    levels = levels.mul_(255.0 if source_alpha is None else source_alpha).round_().to(torch.uint8)
    if output is OutputPlane.ALPHA8:
        out.view(height, width).copy_(levels)
        return
    assert rgb is not None
    rgba = out.view(height, width, 4)
    rgba[..., :3] = rgb
    rgba[..., 3] = levels


def statistics(mattes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each matte, float32 [b, h, w]: mean, peak, share >= 0.5, share in 0.05..0.95; each float32 [b]."""
    flat = mattes.flatten(1)
    solid, soft = flat >= 0.5, (flat > 0.05) & (flat < 0.95)
    return flat.mean(dim=1), flat.amax(dim=1), solid.float().mean(dim=1), soft.float().mean(dim=1)


def summary(mattes: Tensor, finite: Tensor) -> Tensor:
    """The statistics of each matte, and 1 if all of it is finite: float32 [b, 5].

    mattes  float32 [b, h, w]
    finite  bool [b]
    """
    finite = finite & mattes.flatten(1).isfinite().all(dim=1)
    return torch.stack((*statistics(mattes), finite.to(torch.float32)), dim=1)
