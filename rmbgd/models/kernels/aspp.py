"""Deformable atrous spatial pyramid pooling in one launch: four deformable convolutions, ReLU, and their projection.

A program owns a small rectangle of pixels and all channels. For each tap it reads four rows of the channels-last map
per pixel, blends them by their bilinear weights, and feeds them to a matrix product with that tap's weights: neither
the samples of a map nor the branches' 4 x 256 channels ever exist in memory. Positions are float32 whatever the map's
type, and so are sums. Corners outside the map are read from inside it with weight zero: no branch, no margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """The accumulator is pixels x channels float32 in registers, the next tap's weights wait in shared memory."""

    height: int  # in pixels
    width: int
    channels: int  # of a branch, that one pass over the taps computes
    warps: int
    stages: int


# Chosen from what the compiler reports (registers, spills, shared memory) for capabilities 8.0, 8.6, 8.9 and 9.0.
LARGE = Tile(8, 16, 256, 8, 2)  # 147 kB of shared memory: A100, H100 and later
SMALL = Tile(8, 8, 256, 8, 2)  # 74 kB: cards with 100 kB (RTX, Orin)
WIDE = Tile(4, 8, 64, 4, 1)  # float32: a product is three of TF32, so samples are read four times instead
LARGE_NEEDS = 150_000  # bytes of shared memory that a program may have
NO_GPU = {"max_shared_mem": LARGE_NEEDS, "multiprocessor_count": 64}  # assumed where there is none to ask


def tile_for(x: Tensor) -> Tile:
    """For a map [B, C, H, W]. One of few pixels takes the smaller tile, so that more processors have one."""
    if x.element_size() > 2:
        return WIDE
    found = triton.runtime.driver.active.utils.get_device_properties(x.device.index) if x.is_cuda else NO_GPU
    small = found["max_shared_mem"] < LARGE_NEEDS or tiles(x, LARGE) < found["multiprocessor_count"]
    return SMALL if small else LARGE


def tiles(x: Tensor, tile: Tile) -> int:
    batch, _, height, width = x.shape
    return batch * int(triton.cdiv(height, tile.height) * triton.cdiv(width, tile.width))


@triton.jit
def _corner(rows, y, x, weight, height, width, channel):
    """One corner's rows [pixels, channels] times its weight [pixels]; zero where it lies outside."""
    there = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    at = tl.minimum(tl.maximum(y, 0), height - 1) * width + tl.minimum(tl.maximum(x, 0), width - 1)
    values = tl.load(rows + at[:, None] * channel.shape[0] + channel[None, :]).to(tl.float32)
    return values * tl.where(there, weight, 0.0 * weight)[:, None]  # NaN stays NaN


@triton.jit
def _branch(
    total, x, offset_mask, weight, bias, projection, first, pixel, y, x_, there, height, width,
    K: tl.constexpr, PITCH: tl.constexpr, WIDTH: tl.constexpr, BRANCH: tl.constexpr, AT_ONCE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum: total [pixels, WIDTH] + projection relu(deformable convolution + bias)."""
    taps: tl.constexpr = K * K
    pixels: tl.constexpr = total.shape[0]
    channel = tl.arange(0, WIDTH)
    rows = x + first * WIDTH
    offset = offset_mask + (first + pixel) * PITCH
    for some in range(0, BRANCH, AT_ONCE):
        unit = some + tl.arange(0, AT_ONCE)
        features = tl.zeros([pixels, AT_ONCE], tl.float32)
        for tap in range(taps):
            down = tl.load(offset + 2 * tap, mask=there, other=0).to(tl.float32)
            across = tl.load(offset + 2 * tap + 1, mask=there, other=0).to(tl.float32)
            modulation = 2.0 * tl.sigmoid(tl.load(offset + 2 * taps + tap, mask=there, other=0).to(tl.float32))
            at_y = (y + tap // K - K // 2).to(tl.float32) + down
            at_x = (x_ + tap % K - K // 2).to(tl.float32) + across
            # One pixel outside everything is zero already. NaN stays NaN.
            at_y = tl.clamp(at_y, -1.0, height.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
            at_x = tl.clamp(at_x, -1.0, width.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
            top, left = tl.floor(at_y), tl.floor(at_x)
            below = modulation * (at_y - top)
            above = modulation - below
            right = at_x - left
            above_right, below_right = above * right, below * right
            row, column = top.to(tl.int32), left.to(tl.int32)
            sample = _corner(rows, row, column, above - above_right, height, width, channel)
            sample += _corner(rows, row, column + 1, above_right, height, width, channel)
            sample += _corner(rows, row + 1, column, below - below_right, height, width, channel)
            sample += _corner(rows, row + 1, column + 1, below_right, height, width, channel)
            part = tl.load(weight + unit[None, :] * (taps * WIDTH) + (tap * WIDTH + channel)[:, None])
            features = tl.dot(sample.to(part.dtype), part, features, input_precision=PRECISION)
        features += tl.load(bias + unit)[None, :].to(tl.float32)
        features = tl.where(features < 0, 0.0, features)  # ReLU that keeps NaN
        columns = tl.load(projection + channel[None, :] * BRANCH + unit[:, None])
        total = tl.dot(features.to(columns.dtype), columns, total, input_precision=PRECISION)
    return total


# One compilation serves every map.
@triton.jit(do_not_specialize=["height", "width", "tiles_x"])
def _pyramid(
    x, y, base, height, width, tiles_x,
    offset_mask0, weight0, bias0, projection0, offset_mask1, weight1, bias1, projection1,
    offset_mask2, weight2, bias2, projection2, offset_mask3, weight3, bias3, projection3,
    K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr,
    PITCH0: tl.constexpr, PITCH1: tl.constexpr, PITCH2: tl.constexpr, PITCH3: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, WIDTH: tl.constexpr, BRANCH: tl.constexpr, AT_ONCE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tile, image = tl.program_id(0), tl.program_id(1)
    slot = tl.arange(0, TILE_Y * TILE_X)
    row = tile // tiles_x * TILE_Y + slot // TILE_X
    column = tile % tiles_x * TILE_X + slot % TILE_X
    there = (row < height) & (column < width)
    pixel = row * width + column
    first = image.to(tl.int64) * height * width
    channel = tl.arange(0, WIDTH)
    total = tl.zeros([TILE_Y * TILE_X, WIDTH], tl.float32) + tl.load(base + image * WIDTH + channel)[None, :]
    total = _branch(
        total, x, offset_mask0, weight0, bias0, projection0, first, pixel, row, column, there, height, width,
        K0, PITCH0, WIDTH, BRANCH, AT_ONCE, PRECISION,
    )  # fmt: skip
    total = _branch(
        total, x, offset_mask1, weight1, bias1, projection1, first, pixel, row, column, there, height, width,
        K1, PITCH1, WIDTH, BRANCH, AT_ONCE, PRECISION,
    )  # fmt: skip
    total = _branch(
        total, x, offset_mask2, weight2, bias2, projection2, first, pixel, row, column, there, height, width,
        K2, PITCH2, WIDTH, BRANCH, AT_ONCE, PRECISION,
    )  # fmt: skip
    total = _branch(
        total, x, offset_mask3, weight3, bias3, projection3, first, pixel, row, column, there, height, width,
        K3, PITCH3, WIDTH, BRANCH, AT_ONCE, PRECISION,
    )  # fmt: skip
    total = tl.where(total < 0, 0.0, total).to(y.dtype.element_ty)
    tl.store(y + (first + pixel)[:, None] * WIDTH + channel[None, :], total, mask=there[:, None])


def pyramid(x: Tensor, base: Tensor, branches: Sequence[tuple[int, Tensor, Tensor, Tensor, Tensor]]) -> Tensor:
    """relu(base + Σ projection relu(deformable convolution of x)), in float32 sums.

    x         [B, C, H, W], C a power of two of at least 16, in any layout (channels-last costs nothing)
    base      float32 [B, C]: the pooled branch, to which the others are added
    branches  four: kernel side k, output of `DeformableConv.offset` [B, 3k².., H, W], weight [N, k*k*C], bias [N],
              projection [C, N]; N a power of two

    -> [B, C, H, W] channels-last, in the type of x. Synchronises nothing.
    """
    batch, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    tile = tile_for(x)
    tensors: list[Tensor] = []
    for _, offset_mask, *weights in branches:
        tensors += (offset_mask.contiguous(memory_format=torch.channels_last), *(w.contiguous() for w in weights))
    units = len(branches[0][3])
    _pyramid[(tiles(x, tile) // batch, batch)](
        x, y, base, height, width, triton.cdiv(width, tile.width), *tensors,
        *(kernel for kernel, *_ in branches), *(offset_mask.shape[1] for _, offset_mask, *_ in branches),
        TILE_Y=tile.height, TILE_X=tile.width, WIDTH=channels, BRANCH=units, AT_ONCE=min(units, tile.channels),
        PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32", num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y
