"""LayerNorm of a float32 residual stream, with a sum before it and a change of type after it, in one pass.

Also of four neighbouring tokens that become one. Statistics are float32, the variance of differences from the mean.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def _normalised(values, real, at, dim, weight, bias, epsilon):
    mean = tl.sum(values, axis=0) / dim
    apart = tl.where(real, values - mean, 0.0)
    variance = tl.sum(apart * apart, axis=0) / dim
    scale = tl.load(weight + at, mask=real, other=0).to(tl.float32)
    shift = tl.load(bias + at, mask=real, other=0).to(tl.float32)
    return apart * tl.rsqrt(variance + epsilon) * scale + shift


@triton.jit
def _norm(x, addend, total, weight, bias, y, dim, epsilon, ADD: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    real = at < dim
    row = tl.program_id(0).to(tl.int64) * dim + at
    values = tl.load(x + row, mask=real, other=0).to(tl.float32)
    if ADD:
        values += tl.load(addend + row, mask=real, other=0).to(tl.float32)
        tl.store(total + row, values, mask=real)
    output = _normalised(values, real, at, dim, weight, bias, epsilon)
    tl.store(y + row, output.to(y.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["height", "width"])
def _merged(x, weight, bias, y, height, width, dim, epsilon, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    real = at < 4 * dim
    neighbour, channel = at // dim, at % dim
    rows, columns = (height + 1) // 2, (width + 1) // 2
    token = tl.program_id(0)
    row = token // columns % rows * 2 + neighbour % 2
    column = token % columns * 2 + neighbour // 2
    pixel = (token // (rows * columns)).to(tl.int64) * height * width + row * width + column
    there = real & (row < height) & (column < width)
    values = tl.load(x + pixel * dim + channel, mask=there, other=0).to(tl.float32)
    output = _normalised(values, real, at, 4 * dim, weight, bias, epsilon)
    tl.store(y + token.to(tl.int64) * 4 * dim + at, output.to(y.dtype.element_ty), mask=real)


def layer_norm(
    x: Tensor,
    norm: nn.LayerNorm,
    dtype: torch.dtype,
    *,
    add: Tensor | None = None,
    total: Tensor | None = None,
    output: Tensor | None = None,
) -> Tensor:
    """norm(x) in `dtype`, x [..., C] contiguous of any float type: into `output` if there is one.

    With `add`, of the same shape, x + add is normalised, and kept in `total`, which is x itself if not given.
    Synchronises nothing.
    """
    dim = x.shape[-1]
    total = None if add is None else x if total is None else total
    output = torch.empty_like(x, dtype=dtype) if output is None else output
    if not all(tensor is None or tensor.is_contiguous() for tensor in (x, total, output)):
        raise ValueError("the stream has gaps, and would be written in a copy; a bug")
    addend = None if add is None else add.contiguous()
    block = triton.next_power_of_2(dim)
    _norm[(x.numel() // dim,)](
        x, addend, total, norm.weight, norm.bias, output, dim, norm.eps,
        ADD=add is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return output


def merged_norm(x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """LayerNorm of four neighbours in one token: [B,H,W,C] -> [B,ceil(H/2),ceil(W/2),4C] in `dtype`.

    Neighbours are in the order (0,0), (1,0), (0,1), (1,1) of (row, column); beyond the map they are zero.
    """
    batch, height, width, dim = x.shape
    output = torch.empty((batch, -(-height // 2), -(-width // 2), 4 * dim), dtype=dtype, device=x.device)
    block = triton.next_power_of_2(4 * dim)
    _merged[(output.numel() // (4 * dim),)](
        x.contiguous(), norm.weight, norm.bias, output, height, width, dim, norm.eps,
        BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return output


def _warps(block: int) -> int:
    return min(8, max(1, block // 256))
