"""LayerNorm of a float32 stream, written in the type of the products that follow; before it, if asked, a sum.

Does not know the stream. Plain torch reads and writes the stream once for the sum, twice for the norm and once more for
the change of type; here all of that is one pass. Statistics are float32, the variance of differences from the mean.
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
    answer = apart * tl.rsqrt(variance + epsilon) * scale + shift
    tl.store(y + row, answer.to(y.dtype.element_ty), mask=real)


def normalise(x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype, *, add: Tensor | None = None) -> Tensor:
    """norm(x) in `dtype`; with `add`, x += add comes first, in place.

    x [..., C] without gaps, of any float type; add: of the same shape. -> [..., C]. Synchronises nothing.
    """
    dim = x.shape[-1]
    if not x.is_contiguous():
        raise ValueError("the stream has gaps, and would be added to in a copy; a bug")
    answer = torch.empty_like(x, dtype=dtype)
    block = triton.next_power_of_2(dim)
    _norm[(x.numel() // dim,)](
        x, x if add is None else add.contiguous(), norm.weight, norm.bias, answer, dim, norm.eps,
        ADD=add is not None, BLOCK=block, num_warps=min(8, max(1, block // 256)),
    )  # fmt: skip
    return answer
