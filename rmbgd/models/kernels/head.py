"""BiRefNet's head as one kernel: upsampled coarse map, image stencil, sigmoid, finite check.

Computes in float32 whatever it reads, and writes no map of logits. The two 3x3 convolutions of the image are one 5x5
stencil but for the outermost pixels, where the map between them ends: nine stencils make the fold exact everywhere.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

TILE_Y, TILE_X = 8, 64
REACH = 2  # pixels that the stencil reads on each side


@triton.jit
def _logits(
    coarse, x, stencils, image, y, x_, height, width, low, narrow, sx_b, sx_c, sx_y, sx_x, variant, REACH: tl.constexpr
):
    """Logits, float32 [TILE_Y, TILE_X], at pixels y, x_. variant: which of the nine stencils, for all or per pixel."""
    side: tl.constexpr = 2 * REACH + 1
    taps: tl.constexpr = 3 * side * side
    inside = (y < height)[:, None] & (x_ < width)[None, :]
    # Corners aligned: position y (low-1) / (height-1), whole part and rest from integers.
    above = (y * (low - 1)) // (height - 1)
    left = (x_ * (narrow - 1)) // (width - 1)
    fall = ((y * (low - 1)) % (height - 1)).to(tl.float32) / (height - 1).to(tl.float32)
    lean = ((x_ * (narrow - 1)) % (width - 1)).to(tl.float32) / (width - 1).to(tl.float32)
    below, right = tl.minimum(above + 1, low - 1), tl.minimum(left + 1, narrow - 1)
    base = coarse + image.to(tl.int64) * low * narrow
    a = tl.load(base + above[:, None] * narrow + left[None, :], mask=inside, other=0).to(tl.float32)
    b = tl.load(base + above[:, None] * narrow + right[None, :], mask=inside, other=0).to(tl.float32)
    c = tl.load(base + below[:, None] * narrow + left[None, :], mask=inside, other=0).to(tl.float32)
    d = tl.load(base + below[:, None] * narrow + right[None, :], mask=inside, other=0).to(tl.float32)
    upper = a + (b - a) * lean[None, :]
    lower = c + (d - c) * lean[None, :]
    total = upper + (lower - upper) * fall[:, None]
    total += tl.load(stencils + variant * (taps + 1) + taps)
    pixels = x + image.to(tl.int64) * sx_b
    for dy in range(side):
        at_y = y + dy - REACH
        there_y = (at_y >= 0) & (at_y < height)
        for dx in tl.static_range(side):
            at_x = x_ + dx - REACH
            there = there_y[:, None] & ((at_x >= 0) & (at_x < width))[None, :]
            pixel = pixels + at_y[:, None] * sx_y + at_x[None, :] * sx_x
            for channel in tl.static_range(3):
                weight = tl.load(stencils + variant * (taps + 1) + (channel * side + dy) * side + dx)
                total += weight * tl.load(pixel + channel * sx_c, mask=there, other=0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["height", "low", "narrow"])
def _head(
    coarse, x, stencils, alpha, nonfinite, height, width, low, narrow, sx_b, sx_c, sx_y, sx_x,
    REACH: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2)
    first_y, first_x = tl.program_id(1) * TILE_Y, tl.program_id(0) * TILE_X
    y, x_ = first_y + tl.arange(0, TILE_Y), first_x + tl.arange(0, TILE_X)
    inside = (y < height)[:, None] & (x_ < width)[None, :]
    if (first_y > 0) & (first_x > 0) & (first_y + TILE_Y < height) & (first_x + TILE_X < width):
        inner = tl.full([1, 1], 4, tl.int32)
        logits = _logits(
            coarse, x, stencils, image, y, x_, height, width, low, narrow, sx_b, sx_c, sx_y, sx_x, inner, REACH
        )
    else:
        row = tl.where(y == 0, 0, tl.where(y == height - 1, 2, 1))
        column = tl.where(x_ == 0, 0, tl.where(x_ == width - 1, 2, 1))
        each = 3 * row[:, None] + column[None, :]
        logits = _logits(
            coarse, x, stencils, image, y, x_, height, width, low, narrow, sx_b, sx_c, sx_y, sx_x, each, REACH
        )
    finite = tl.abs(logits) < float("inf")  # false for NaN, too
    wrong = tl.sum(tl.sum((inside & (finite == 0)).to(tl.int32), axis=1), axis=0)
    if wrong > 0:
        tl.atomic_add(nonfinite + image, wrong)
    at = image.to(tl.int64) * height * width + y[:, None] * width + x_[None, :]
    tl.store(alpha + at, tl.sigmoid(logits), mask=inside)


def head_alpha(coarse: Tensor, x: Tensor, stencils: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(upsample(coarse) + stencil(x)), and which images are finite.

    coarse    [B, 1, h, w] contiguous, `Head.coarse` of the last block's map
    x         normalised image [B, 3, H, W], H and W at least 2, any floating type
    stencils  float32 [9, 76]

    -> alpha float32 [B, H, W], and bool [B]: all logits of this image are finite. Synchronises nothing.
    """
    batch, _, height, width = x.shape
    alpha = x.new_empty((batch, height, width), dtype=torch.float32)
    nonfinite = torch.zeros(batch, dtype=torch.int32, device=x.device)
    grid = (triton.cdiv(width, TILE_X), triton.cdiv(height, TILE_Y), batch)
    _head[grid](
        coarse, x, stencils, alpha, nonfinite, height, width, *coarse.shape[2:], *x.stride(),
        REACH=REACH, TILE_Y=TILE_Y, TILE_X=TILE_X, num_warps=4,
    )  # fmt: skip
    return alpha, nonfinite == 0


def stencils(inner: nn.Conv2d, outer: nn.Conv2d) -> Tensor:
    """Two 3x3 convolutions 3 -> c -> 1, zero-padded each, as nine stencils [9, 3*5*5 + 1], the bias last.

    Stencil 3 * row + column, where row is 0 for the map's first row, 2 for its last, 1 between, and column likewise:
    the taps of the outer convolution that would read beyond the map are left out. In float32, or the weights' float64.
    """
    assert inner.bias is not None
    assert outer.bias is not None
    wide = torch.promote_types(inner.weight.dtype, torch.float32)
    first, first_bias, last, last_bias = (t.to(wide) for t in (inner.weight, inner.bias, outer.weight, outer.bias))
    folded = []
    for row, column in itertools.product(range(3), repeat=2):
        kept = last.clone()
        if row != 1:
            kept[:, :, row] = 0
        if column != 1:
            kept[:, :, :, column] = 0
        both = F.conv2d(first.transpose(0, 1), kept.flip(2, 3), padding=REACH).transpose(0, 1)
        folded.append(torch.cat((both.flatten(), last_bias + kept.sum((2, 3)) @ first_bias)))
    return torch.stack(folded)
