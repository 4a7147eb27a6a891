"""Layers and matrix products shared by the networks; how large a chunk of work is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Bytes of the largest tensor of one chunk. On a CPU it stays below the size from which glibc asks the kernel for fresh
# pages each time (32 MiB): warm pages make a product 1.5 times as fast, and the cache may still hold them. Elsewhere
# few, large kernels are better; the bound is for memory.
_CHUNK_BYTES = {"cpu": 24 << 20}
_CHUNK_BYTES_ELSEWHERE = 256 << 20
_ONEDNN = (torch.float32, torch.bfloat16)
HALF = (torch.float16, torch.bfloat16)


def rows_per_chunk(row_elements: int, like: Tensor) -> int:
    """How many rows of `row_elements` elements in the type of `like` make one chunk of work on its device."""
    budget = _CHUNK_BYTES.get(like.device.type, _CHUNK_BYTES_ELSEWHERE)
    return max(1, budget // (row_elements * like.element_size()))


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows [..., in] times weight [out, in] transposed, plus bias [out] -> [..., out].

    On a CPU the product is written as a 1x1 convolution over channels-last rows: the same sums, but run by oneDNN and
    not by the BLAS that torch was built with, which in float32 takes 1.2 to 1.5 times as long on AMD processors;
    bfloat16 gains a tenth. With one thread torch does not use oneDNN for such a convolution.
    """
    if not (rows.is_cpu and rows.dtype in _ONEDNN and torch.get_num_threads() > 1):
        return F.linear(rows, weight, bias)
    pixels = rows.reshape(1, 1, -1, rows.shape[-1]).permute(0, 3, 1, 2)
    product = F.conv2d(pixels, weight[:, :, None, None], bias)
    return product.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], -1)


# Initialising weights on the meta device does nothing, and took most of the time that building a network takes.


class Linear(nn.Linear):
    """`nn.Linear` through `linear`. Reads any floating type; computes and returns that of its weights."""

    __call__: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.to(self.weight.dtype), self.weight, self.bias)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Conv2d(nn.Conv2d):
    __call__: Callable[..., Tensor]

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class KernelLayer(ABC, nn.Module):
    """A layer that can run as a Triton kernel."""

    __call__: Callable[..., Tensor]

    @abstractmethod
    def use_kernels(self, *, triton: bool) -> None:
        """Choose, and make once what the kernel reads besides the weights. Weights must be in place."""
