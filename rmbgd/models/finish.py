"""Last step of inference at an image's size: mattes to output planes, with colours at soft edges estimated.

As plain torch, which runs on every device, and as Triton kernels. The method is that of imaging/edges.py and
imaging/compose.py, which define it; here nothing depends on what an image shows, so that the host never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LEVEL_PLANES = 10  # float32: red, green, blue, alpha; foreground and background of each colour


@dataclass(frozen=True, slots=True)
class Method:
    """Numbers of imaging/edges.py: steps on each level, stiffness of the neighbours, the softest and hardest alpha."""

    iterations: int
    stiffness: float
    softest: float
    hardest: float


@dataclass(frozen=True, slots=True)
class FinishJob:
    """One image. Places are bytes from the start of the buffer of images, multiples of 16.

    source_alpha  of a plane uint8 [height, width]; -1 if there is none
    pixel_bytes   of the output plane: 4 is RGBA, 1 is alpha of 8 bits, 2 of 16 in the host's order
    matte         index among the mattes
    coarse        (height, width) of the finest level for colours; (0, 0) if they stay as they are
    """

    height: int
    width: int
    rgb: int
    source_alpha: int
    output: int
    pixel_bytes: int
    matte: int
    coarse: tuple[int, int]

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
        return 4 * (of_levels + (small[0] * small[1] if small else 0))


def finish_images(
    images: Tensor, mattes: Tensor, jobs: Sequence[FinishJob], method: Method, *, triton: bool = False
) -> None:
    """Write the output plane of every job. Synchronises nothing.

    images  uint8 [bytes]: the buffer in which images and outputs lie
    mattes  float32 [n, h, w] contiguous, 0..1; resized to an image as imaging.resize.matte_to_image does it
    """
    if triton:
        from rmbgd.models.kernels.finish import launch

        launch(images, mattes, jobs, method)
        return
    for job in jobs:
        _finish(images, mattes[job.matte], job, method)


def _finish(images: Tensor, matte: Tensor, job: FinishJob, method: Method) -> None:
    height, width = job.height, job.width

    def plane(offset: int, *channels: int) -> Tensor:
        count = height * width * (channels[0] if channels else 1)
        return images[offset : offset + count].view(height, width, *channels)

    alpha = resized(matte, (height, width), triangle).clamp(0.0, 1.0)
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
    rgb, rgba = plane(job.rgb, 3), plane(job.output, 4)
    rgba[..., :3] = rgb
    rgba[..., 3] = levels
    if not job.levels:
        return
    both = estimate(coarse(rgb, alpha, job.coarse), method)
    soft = (alpha >= method.softest) & (alpha <= method.hardest)
    beta = 1.0 - alpha
    gain = alpha / (alpha * alpha + beta * beta)
    for colour in range(3):  # one after the other: working memory is a few planes
        fore, back = resized(both[2 * colour : 2 * colour + 2], (height, width), triangle)
        lacking = rgb[..., colour] - (fore * alpha + back * beta)  # of what the image shows
        cleaned = torch.addcmul(fore, lacking, gain).round_().clamp_(0, 255).to(torch.uint8)
        rgba[..., colour] = torch.where(soft, cleaned, rgb[..., colour])


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
    for axis in (-2, -1):
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
