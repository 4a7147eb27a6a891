"""From a network and its input to alpha, and whether every number of it is one. Does not know which network it is.

A network that ends in a folded head (`FoldedHead`) can have that end run as one Triton kernel: a coarse map grown by
bilinear interpolation, the image's stencil at full size, sigmoid and the check, without a map in between.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class FoldedHead(Protocol):
    """A network whose logits are up(coarse map) + stencil(image)."""

    head: nn.Module

    def before_head(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised image [B, 3, H, W] -> what `head` is called with."""
        ...


def mattes(module: nn.Module, inputs: Tensor, *, triton: bool = False) -> tuple[Tensor, Tensor]:
    """Normalised images [b, 3, h, w] -> alpha float32 [b, h, w], and bool [b]: all logits of this image are finite.

    Alpha is the sigmoid of the logits, computed in float32. An image that is not finite says nothing about the others.
    """
    if triton and isinstance(module, FoldedHead):
        from rmbgd.models.kernels.head_kernel import finish

        return finish(module.head, *module.before_head(inputs))
    return finished(module(inputs))


def finished(logits: Tensor) -> tuple[Tensor, Tensor]:
    """[b, 1, h, w] of any floating type -> alpha float32 [b, h, w], finite bool [b]."""
    wide = logits[:, 0].to(torch.float32)
    return wide.sigmoid(), wide.isfinite().flatten(1).all(dim=1)
