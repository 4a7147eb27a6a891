"""Matrix products on rows, where they run fastest. Knows nothing of networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows [..., in] times weight [out, in] transposed, plus bias [out] -> [..., out].

    On a CPU in float32 the product is written as a 1x1 convolution over pixel-major rows: the same sums, but run by
    oneDNN and not by the BLAS that torch was built with, which takes 1.2 to 1.5 times as long on AMD processors.
    """
    if not (rows.is_cpu and rows.dtype is torch.float32):
        return F.linear(rows, weight, bias)
    pixels = rows.reshape(1, 1, -1, rows.shape[-1]).permute(0, 3, 1, 2)
    product = F.conv2d(pixels, weight[:, :, None, None], bias)
    return product.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` through `linear`. Reads any floating type; computes and answers in that of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.to(self.weight.dtype), self.weight, self.bias)
