"""LayerNorm of a float32 residual stream, with a sum before it and a change of type after it, in one pass.

Statistics are float32, the variance of differences from the mean.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def _norm(x, addend, weight, bias, y, dim, epsilon, ADD: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    real = at < dim
    row = tl.program_id(0).to(tl.int64) * dim + at
    values = tl.load(x + row, mask=real, other=0).to(tl.float32)
    if ADD:
        values += tl.load(addend + row, mask=real, other=0).to(tl.float32)
        tl.store(x + row, values, mask=real)
    mean = tl.sum(values, axis=0) / dim
    apart = tl.where(real, values - mean, 0.0)
    variance = tl.sum(apart * apart, axis=0) / dim
    scale = tl.load(weight + at, mask=real, other=0).to(tl.float32)
    shift = tl.load(bias + at, mask=real, other=0).to(tl.float32)
    output = apart * tl.rsqrt(variance + epsilon) * scale + shift
    tl.store(y + row, output.to(y.dtype.element_ty), mask=real)


def layer_norm(x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype, *, add: Tensor | None = None) -> Tensor:
    """norm(x) in `dtype`, x [..., C] contiguous of any float type; with `add`, of the same shape, x += add comes first,
    in place. Synchronises nothing."""
    dim = x.shape[-1]
    if not x.is_contiguous():
        raise ValueError("the stream has gaps, and would be added to in a copy; a bug")
    output = torch.empty_like(x, dtype=dtype)
    block = triton.next_power_of_2(dim)
    _norm[(x.numel() // dim,)](
        x, x if add is None else add.contiguous(), norm.weight, norm.bias, output, dim, norm.eps,
        ADD=add is not None, BLOCK=block, num_warps=min(8, max(1, block // 256)),
    )  # fmt: skip
    return output
