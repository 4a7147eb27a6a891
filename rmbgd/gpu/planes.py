"""A band of a picture becomes bytes of its output plane, on any device: imaging/compose.py in torch.

Does not resize, estimate colours or copy anything to the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rmbgd.engine.base import OutputPlane

SUMMARY = 5  # numbers per answer
FINITE = 4  # of them the one that says whether all of the answer is finite


def pack(output: OutputPlane, rgb: Tensor | None, alpha: Tensor, source_alpha: Tensor | None, out: Tensor) -> None:
    """Write a band into `out`, uint8 [h * W * bytes of a pixel], as the plane has it (16 bits in the host's order).

    rgb           uint8 [h, W, 3], cleaned or not; only for RGBA
    alpha         float32 [h, W]
    source_alpha  uint8 [h, W] or None: alpha that the picture came with, multiplied in before rounding
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
