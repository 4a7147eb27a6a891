"""Last step of inference at an image's size: mattes to output planes, edges refined, colours at soft ones estimated.

As plain torch, which runs on every device, and as Triton kernels. The method is that of imaging/refine.py,
imaging/edges.py and imaging/compose.py, which define it; here nothing depends on what an image shows, so that the host
never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LEVEL_PLANES = 10  # float32: red, green, blue, alpha; foreground and background of each colour
FITTED_PLANES = 6  # float32: gains of red, green and blue, offset, least and greatest alpha
MIDDLE = 128.0  # taken off levels, so that sums of their products are exact


@dataclass(frozen=True, slots=True)
class Fitting:
    """Numbers of imaging/refine.py, and how inputs of the network are levels 0..255: input = scale * level + shift."""

    radius: int
    flatness: float
    faint: float
    explained: float
    scale: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Method:
    """Numbers of imaging/edges.py: steps on each level, stiffness of the neighbours, the softest and hardest alpha; and
    how alpha is refined."""

    iterations: int
    stiffness: float
    softest: float
    hardest: float
    fitting: Fitting


@dataclass(frozen=True, slots=True)
class FinishJob:
    """One image. Places are bytes from the start of the buffer of images, multiples of 16.

    source_alpha  of a plane uint8 [height, width]; -1 if there is none
    pixel_bytes   of the output plane: 4 is RGBA, 1 is alpha of 8 bits, 2 of 16 in the host's order
    matte         index among the mattes
    coarse        (height, width) of the finest level for colours; (0, 0) if they stay as they are
    refined       alpha follows the image, which is no smaller than the matte (refine.refines)
    """

    height: int
    width: int
    rgb: int
    source_alpha: int
    output: int
    pixel_bytes: int
    matte: int
    coarse: tuple[int, int]
    refined: bool = False

    @property
    def levels(self) -> list[tuple[int, int]]:
        """(height, width) of each level, the finest first."""
        found = [self.coarse] if self.coarse[0] else []
        while found and max(found[-1]) > 2:
            found.append((-(-found[-1][0] // 2), -(-found[-1][1] // 2)))
        return found

    def reduced(self, size: Sequence[int]) -> tuple[int, int] | None:
        """(height, width) of the image's matte where it is smaller than the network's, of `size`."""
        small = min(self.height, size[0]), min(self.width, size[1])
        return small if small != tuple(size) else None

    def working_bytes(self, size: Sequence[int]) -> int:
        """That the kernels take for it, beside its planes and a matte of `size`."""
        of_levels = LEVEL_PLANES * sum(height * width for height, width in self.levels)
        small = self.reduced(size)
        return 4 * (of_levels + (small[0] * small[1] if small else 0) + self.fitted(size))

    def fitted(self, size: Sequence[int]) -> int:
        """Floats of `fit`."""
        return FITTED_PLANES * size[0] * size[1] if self.refined else 0


def finish_images(images: Tensor, mattes: Tensor, inputs: Tensor, jobs: Sequence[FinishJob], method: Method) -> None:
    """Write the output plane of every job, by plain torch; kernels/finish.py is the same for Triton.

    images  uint8 [bytes]: the buffer in which images and outputs lie
    mattes  float32 [n, h, w] contiguous; resized to an image as imaging.resize.matte_to_image does it
    inputs  [n, 3, h, w] of any floating type and strides: what the network computed the mattes from

    Synchronises nothing.
    """
    for job in jobs:
        _finish(images, mattes[job.matte], inputs[job.matte] if job.refined else None, job, method)


def _finish(images: Tensor, matte: Tensor, seen: Tensor | None, job: FinishJob, method: Method) -> None:
    height, width = job.height, job.width

    def plane(offset: int, *channels: int) -> Tensor:
        count = height * width * (channels[0] if channels else 1)
        return images[offset : offset + count].view(height, width, *channels)

    rgb = plane(job.rgb, 3)
    refined = None if seen is None else fit(matte, seen, method.fitting)
    alpha = resized(matte, (height, width), triangle) if refined is None else _applied(refined, rgb)
    alpha = alpha.clamp(0.0, 1.0)
    own = plane(job.source_alpha) if job.source_alpha >= 0 else None
    if job.pixel_bytes == 2:
        levels = alpha * 65535.0 if own is None else alpha * 65535.0 * (own / 255.0)
        # Through int32: a float beyond int16 has no defined value there, an int wraps to the bits that are wanted.
        out = images[job.output : job.output + 2 * height * width].view(torch.int16)
        out.view(height, width).copy_(levels.round_().to(torch.int32).to(torch.int16))
        return
    levels = (alpha * (255.0 if own is None else own)).round_().to(torch.uint8)
    if job.pixel_bytes == 1:
        plane(job.output).copy_(levels)
        return
    rgba = plane(job.output, 4)
    rgba[..., :3] = rgb
    rgba[..., 3] = levels
    if not job.levels:
        return
    both = estimate(coarse(rgb, alpha, job.coarse), method)
    soft = (alpha >= method.softest) & (alpha <= method.hardest)
    beta = 1.0 - alpha
    pull = alpha / (alpha * alpha + beta * beta)
    for colour in range(3):  # one after the other: working memory is a few planes
        fore, back = resized(both[2 * colour : 2 * colour + 2], (height, width), triangle)
        lacking = rgb[..., colour] - (fore * alpha + back * beta)  # of what the image shows
        cleaned = torch.addcmul(fore, lacking, pull).round_().clamp_(0, 255).to(torch.uint8)
        rgba[..., colour] = torch.where(soft, cleaned, rgb[..., colour])


def _applied(fitted: Tensor, rgb: Tensor) -> Tensor:
    """Alpha of an image, uint8 [H, W, 3], by the functions of `fit`: float32 [H, W]."""
    *gains, alpha, least, greatest = resized(fitted, rgb.shape[:2], triangle)
    for colour, gain in enumerate(gains):
        alpha = torch.addcmul(alpha, gain, rgb[..., colour].to(torch.float32))
    return torch.minimum(torch.maximum(alpha, least), greatest)


def fit(matte: Tensor, seen: Tensor, fitting: Fitting) -> Tensor:
    """Alpha as a function of colour around each pixel, and its bounds: float32 [6, h, w], as refine.fit has them.

    matte  float32 [h, w]
    seen   [3, h, w], an input of the network
    """
    scale, shift = (torch.tensor(each, device=matte.device).view(3, 1, 1) for each in (fitting.scale, fitting.shift))
    levels = ((seen.to(torch.float32) - shift) / scale).round_() - MIDDLE
    side = 2 * fitting.radius + 1
    count = side * side

    def sums(planes: Tensor, side: int = side) -> Tensor:
        wide = F.pad(planes[None], (side // 2,) * 4, mode="replicate")
        return F.avg_pool2d(wide, side, stride=1, divisor_override=1)[0]

    both = torch.cat((levels, matte[None]))
    total = sums(both)

    def covariances(one: int, others: slice) -> Tensor:
        return (count * sums(both[one] * both[others]) - total[one] * total[others]) / count**2

    # Solved by L D L', as on the host.
    d0, v01, v02, red = covariances(0, slice(0, 4))
    v11, v12, green = covariances(1, slice(1, 4))
    v22, blue = covariances(2, slice(2, 4))
    (variance,) = covariances(3, slice(3, 4))
    gains = _solved((d0, v01, v02, v11, v12, v22), (red, green, blue), fitting.flatness)
    explained = (gains[0] * red + gains[1] * green + gains[2] * blue) / (variance + fitting.faint)
    counts = ((explained - fitting.explained) / (1 - fitting.explained)).clamp_(0, 1)
    offset = (total[3] - (gains * total[:3]).sum(0)) / count - MIDDLE * gains.sum(0)
    near = F.max_pool2d(F.pad(torch.stack((-matte, matte))[None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0]
    return torch.cat((counts * gains, (matte + counts * (offset - matte))[None], -near[:1], near[1:]))


def _solved(variances: Sequence[Tensor], with_alpha: Sequence[Tensor], flatness: float) -> Tensor:
    """Gains [3, h, w] from covariances of colours (00, 01, 02, 11, 12, 22), and of each colour with alpha."""
    v00, v01, v02, v11, v12, v22 = variances
    d0 = v00 + flatness
    l1, l2 = v01 / d0, v02 / d0
    d1 = v11 + flatness - l1 * l1 * d0
    l3 = (v12 - l1 * l2 * d0) / d1
    d2 = v22 + flatness - l2 * l2 * d0 - l3 * l3 * d1
    y1 = with_alpha[1] - l1 * with_alpha[0]
    blue = (with_alpha[2] - l2 * with_alpha[0] - l3 * y1) / d2
    green = y1 / d1 - l3 * blue
    return torch.stack((with_alpha[0] / d0 - l1 * green - l2 * blue, green, blue))


def coarse(rgb: Tensor, alpha: Tensor, size: tuple[int, int]) -> Tensor:
    """An image, uint8 [H, W, 3], and its alpha, float32 [H, W], at `size`: float32 [4, h, w], colours whole levels."""
    result = torch.cat((resized(rgb.permute(2, 0, 1).to(torch.float32), size, area), resized(alpha, size, area)[None]))
    # OpenCV rounds means of four upwards, others to even.
    halves = (2 * size[0], 2 * size[1]) == alpha.shape
    result[:3] = result[:3].add_(0.5).floor_() if halves else result[:3].round_()
    return result


def estimate(finest: Tensor, method: Method) -> Tensor:
    """Colours of fore- and background from `coarse`: float32 [6, h, w] in 0..255: red fore, red back, green fore."""
    levels = [finest]
    while max(levels[-1].shape[1:]) > 2:
        height, width = levels[-1].shape[1:]
        levels.append(resized(levels[-1], (-(-height // 2), -(-width // 2)), area))
    image, matte = levels[-1][:3], levels[-1][3]
    means = [(image * w).sum((1, 2)) / w.sum().clamp(min=1e-6) for w in (matte, 1.0 - matte)]
    both = torch.stack(means, dim=1).view(6, 1, 1).expand(6, *matte.shape)
    for level in reversed(levels):
        both = _relax(level, resized(both, level.shape[1:], triangle), method)
    return both


def _relax(level: Tensor, both: Tensor, method: Method) -> Tensor:
    """Each pixel takes its neighbours' mean, then what it lacks to explain the image; so many times.

    The step after the mean is F' = F (1 - a a w) - B a b w + I a w, and likewise for B.
    """
    image, alpha = level[:3, None], level[3]
    shares = torch.stack((alpha, 1.0 - alpha))  # [2, h, w]
    of_both = shares / (shares.square().sum(0) + method.stiffness)
    for _ in range(method.iterations):
        wide = F.pad(both, (1, 1, 1, 1), mode="replicate")
        mean = (wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]) / 4
        mean = mean.view(3, 2, *alpha.shape)
        both = torch.addcmul(mean, image - (mean * shares).sum(1, keepdim=True), of_both).flatten(0, 1)
    return both.clamp(0.0, 255.0)


# --- Resizing as a product with two matrices of weights, [outputs, inputs] each.


def resized(planes: Tensor, size: Sequence[int], kind: Callable[[int, int, torch.device], Tensor]) -> Tensor:
    """float32 [..., h, w] at `size`, (height, width)."""
    for axis in (-1, -2):
        inputs, outputs = planes.shape[axis], size[axis]
        if inputs != outputs:
            weights = kind(inputs, outputs, planes.device)
            planes = weights @ planes if axis == -2 else planes @ weights.T
    return planes


def triangle(inputs: int, outputs: int, device: torch.device) -> Tensor:
    """Pillow's BILINEAR: as wide as the step between samples, cut and normalised at the border."""
    inner, outer = _positions(inputs, outputs, device)
    apart = (2 * inner + 1) * outputs - (2 * outer + 1) * inputs  # exact, as all below in which whole numbers divide
    weights = (1.0 - apart.abs() / (2 * max(inputs, outputs))).clamp_(min=0.0)
    return weights / weights.sum(1, keepdim=True)


def area(inputs: int, outputs: int, device: torch.device) -> Tensor:
    """OpenCV's INTER_AREA: the mean over the span of an output; not for enlarging."""
    inner, outer = _positions(inputs, outputs, device)
    low = torch.maximum(inner * outputs, outer * inputs)
    return (torch.minimum((inner + 1) * outputs, (outer + 1) * inputs) - low).clamp_(min=0) / inputs


def _positions(inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.arange(inputs, device=device)[None], torch.arange(outputs, device=device)[:, None]
