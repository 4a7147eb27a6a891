"""Takes the old background's colour out of half-transparent pixels: imaging/foreground.py in torch, for any device.

The same method with the same coefficients; that module says what it is and what was measured. Here nothing depends on
what the image shows, so that nothing waits for the device: at full size every pixel is corrected, the soft ones are
chosen. Images of one size go through the small levels together, which are many short steps.

Differs from the host where OpenCV rounds: it enlarges colour estimates at 1/32 of a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rmbgd.backends.cuda.resample import FullSize, area, bands, resample, rows_of, table, taps_of, triangle
from rmbgd.engine.types import OutputPlane
from rmbgd.imaging.edges import HARDEST, ITERATIONS, LEVEL_SIDE, SOFTEST, STIFFNESS


def coarse_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the finest level that is worked on whole."""
    step = 2
    while max(height, width) > step * LEVEL_SIDE or (step == 2 and max(height, width) > LEVEL_SIDE):
        step *= 2
    return -(-height // step), -(-width // step)


def coarse(rgb: Tensor, alpha: FullSize) -> Tensor:
    """uint8 [H, W, 3] and its alpha, both made smaller: float32 [4, h, w], whole levels 0..255, then alpha."""
    height, width = alpha.height, alpha.width
    size = coarse_size(height, width)
    answer = torch.empty((4, *size), device=rgb.device)
    halves = (2 * size[0], 2 * size[1]) == (height, width)  # OpenCV rounds means of four upwards, others to even
    taps = taps_of(area, height, size[0])
    index, weight = table(area, height, size[0], rgb.device)
    for first, last in bands(size[0], height * width / size[0]):
        top, bottom = taps.span(first, last)
        index_here, weight_here = index[:, first:last].sub(top).clamp_(min=0), weight[:, first:last]
        colours = resample(rows_of(rgb[top:bottom], 1, area, size[1]), 0, index_here, weight_here)
        whole = colours.add_(0.5).floor_() if halves else colours.round_()
        answer[:3, first:last] = whole.permute(2, 0, 1)
        matte = rows_of(alpha.rows(top, bottom), 1, area, size[1])
        answer[3, first:last] = resample(matte, 0, index_here, weight_here)
    return answer


def estimate(images: Sequence[Tensor]) -> Tensor:
    """Colours of fore- and background of images of one size, from `coarse`: float32 [n, 6, h, w] in 0..255.

    Channels are (red fore, red back, green fore, ...): each colour's two beside each other.
    """
    levels = [torch.stack(tuple(images))]
    while max(levels[-1].shape[2:]) > 2:
        levels.append(_halved(levels[-1]))
    image, matte = levels[-1][:, :3], levels[-1][:, 3:]
    both = torch.stack((_weighted_mean(image, matte), _weighted_mean(image, 1.0 - matte)), dim=2).flatten(1, 2)
    for level in reversed(levels):
        if both.shape[2:] != level.shape[2:]:
            both = F.interpolate(both, level.shape[2:], mode="bilinear", align_corners=False)
        both = _spread(level[:, :3], level[:, 3:], both.expand(-1, -1, *level.shape[2:]))
    return both


def _spread(image: Tensor, matte: Tensor, both: Tensor) -> Tensor:
    """ITERATIONS times: each pixel takes its neighbours' mean, then what it lacks to explain the image.

    Means are taken as (fore, back, fore) for each colour, so that each has the other beside it in memory; the step
    after is then two multiplications and additions: F' = F (1 - a a w) - B a b w + I a w, and likewise for B.
    """
    share, other = matte[:, :, None], 1.0 - matte[:, :, None]  # [n, 1, 1, h, w]
    weight = 1.0 / (share * share + other * other + STIFFNESS)
    of_both = torch.cat((share, other), dim=2) * weight
    constant = image[:, :, None] * of_both  # [n, 3, 2, h, w]
    kept = 1.0 - of_both * torch.cat((share, other), dim=2)
    crossed = -share * other * weight
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
    width = rgb.shape[1]
    taps = taps_of(triangle, both.shape[1], height)
    if both.shape[1] == height:
        wide = rows_of(both[:, rows[0] : rows[1]], 2, triangle, width)
    else:
        top, bottom = taps.span(*rows)
        index, weight = table(triangle, both.shape[1], height, both.device)
        index, weight = index[:, rows[0] : rows[1]].sub(top).clamp_(min=0), weight[:, rows[0] : rows[1]]
        wide = resample(rows_of(both[:, top:bottom], 2, triangle, width), 1, index, weight)
    fore, back = wide[0::2], wide[1::2]
    other = 1.0 - alpha
    pull = alpha / (alpha * alpha + other * other)
    explained = torch.addcmul(back, fore - back, alpha)  # alpha F + (1 - alpha) B
    planes = rgb.permute(2, 0, 1).to(torch.float32)
    cleaned = torch.addcmul(fore, planes.sub_(explained), pull).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
    soft = (alpha >= SOFTEST) & (alpha <= HARDEST)
    return torch.where(soft[:, :, None], cleaned, rgb)


def _halved(level: Tensor) -> Tensor:
    """[n, 4, h, w] -> [n, 4, ceil(h / 2), ceil(w / 2)]"""
    rows, columns = level.shape[2:]
    halved = rows_of(level, 3, area, -(-columns // 2))
    return rows_of(halved, 2, area, -(-rows // 2))


def _weighted_mean(image: Tensor, weight: Tensor) -> Tensor:
    """[n, 3, 1, 1]"""
    return (image * weight).sum(dim=(2, 3), keepdim=True) / weight.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)


# --- A band of an image becomes bytes of its output plane, on any device: imaging/compose.py in torch.


SUMMARY = 5  # numbers per answer
FINITE = 4  # of them the one that says whether all of the answer is finite


def pack(output: OutputPlane, rgb: Tensor | None, alpha: Tensor, source_alpha: Tensor | None, out: Tensor) -> None:
    """Write a band into `out`, uint8 [h * W * bytes of a pixel], as the plane has it (16 bits in the host's order).

    rgb           uint8 [h, W, 3], cleaned or not; only for RGBA
    alpha         float32 [h, W]
    source_alpha  uint8 [h, W] or None: alpha that the image came with, multiplied in before rounding
    """
    height, width = alpha.shape
    if output is OutputPlane.ALPHA16:
        scaled = alpha.clamp(0.0, 1.0).mul_(65535.0)
        if source_alpha is not None:
            scaled *= source_alpha * (1.0 / 255.0)
        # Through int32: a float beyond int16 has no defined value there, an int wraps to the bits that are wanted.
        out.view(torch.int16).view(height, width).copy_(scaled.round_().to(torch.int32).to(torch.int16))
        return
    levels = _levels(alpha, source_alpha)
    if output is OutputPlane.ALPHA8:
        out.view(height, width).copy_(levels)
        return
    assert rgb is not None
    rgba = out.view(height, width, 4)
    rgba[..., :3] = rgb
    rgba[..., 3] = levels


def _levels(alpha: Tensor, source_alpha: Tensor | None) -> Tensor:
    """uint8 [h, W], rounded once."""
    shares = alpha.clamp(0.0, 1.0)
    shares = shares.mul_(255.0) if source_alpha is None else shares.mul_(source_alpha)
    return shares.round_().to(torch.uint8)


def summary(mattes: Tensor, finite: Tensor) -> Tensor:
    """What is told of each answer, float32 [b, 5]: mean, peak, share >= 0.5, share in 0.05..0.95, and 1 if all finite.

    mattes  float32 [b, h, w]
    finite  bool [b]
    """
    flat = mattes.flatten(1)
    return torch.stack(
        (
            flat.mean(dim=1),
            flat.amax(dim=1),
            (flat >= 0.5).to(torch.float32).mean(dim=1),
            ((flat > 0.05) & (flat < 0.95)).to(torch.float32).mean(dim=1),
            (finite & flat.isfinite().all(dim=1)).to(torch.float32),
        ),
        dim=1,
    )
