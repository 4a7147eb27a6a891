"""Window attention on a whole map: shift, padding and masks are arithmetic on positions.

Reads the map's own tokens in the order of its pixels, and writes attention in that order. Tokens that pad the map to
whole windows have the bias of qkv, for LayerNorm comes before the padding; their outputs are never computed.

A program takes some of a window's queries of one head and goes from window to window, so that this head's relative
position bias stays in the nearest cache. Softmax is in float32 over blocks of keys, with a running maximum (Milakov and
Gimelshein, 2018). A masked pair of tokens, brought together by the roll, scores -1e30 in float32: minus infinity
without its special cases.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64  # queries, and keys, at once: a window of 12 x 12 is three blocks, the last one a quarter full
PER_PROCESSOR = 16  # programs for each multiprocessor, where there are so many windows: neighbours share the bias
RESIDENT = 3  # programs that share a multiprocessor
REGISTERS = 168  # for a thread in half precision: so many programs fit, and the compiler spills none
PROCESSORS = 64  # assumed where there is no GPU to ask


@triton.jit
def _token(slot, window_row, window_column, rows, columns, height, width, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    """For slots of a window: the token's index in its image, whether there is one, its side of the shift's cuts."""
    row, column = slot // WINDOW, slot % WINDOW
    y = window_row * WINDOW + row + SHIFT
    x = window_column * WINDOW + column + SHIFT
    y = tl.where(y >= rows * WINDOW, y - rows * WINDOW, y)
    x = tl.where(x >= columns * WINDOW, x - columns * WINDOW, x)
    side = tl.zeros_like(slot)
    if SHIFT > 0:
        beyond_row = (row >= WINDOW - SHIFT) & (window_row == rows - 1)
        beyond_column = (column >= WINDOW - SHIFT) & (window_column == columns - 1)
        side = 2 * beyond_row.to(tl.int32) + beyond_column.to(tl.int32)
    return y * width + x, (y < height) & (x < width) & (slot < WINDOW * WINDOW), side


@triton.jit
def _rows(base, token, there, feature, real, pitch, filler):
    """[BLOCK, D]: the tokens' rows, `filler` [D] where there is none."""
    values = tl.load(base + token[:, None] * pitch + feature[None, :], mask=there[:, None] & real[None, :], other=0)
    return tl.where(there[:, None], values, filler[None, :])


# What depends on the batch or the map is not specialised on: one compilation serves every batch size.
@triton.jit(do_not_specialize=["windows", "rows", "columns", "height", "width"])
def _attention(
    qkv, padding, bias, out, windows, rows, columns, height, width, dim, scale,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, part = tl.program_id(0), tl.program_id(1)
    side_of_bias: tl.constexpr = BLOCKS * BLOCK
    feature = tl.arange(0, D)
    real = feature < HEAD
    queries = part * BLOCK + tl.arange(0, BLOCK)
    kind = qkv.dtype.element_ty
    pad_q = tl.load(padding + head * HEAD + feature, mask=real, other=0)
    pad_k = tl.load(padding + dim + head * HEAD + feature, mask=real, other=0)
    pad_v = tl.load(padding + 2 * dim + head * HEAD + feature, mask=real, other=0)
    bias_rows = bias + head * side_of_bias * side_of_bias + queries[:, None] * side_of_bias
    # `while`, not `range`: bounds that only the device knows are no range for the interpreter beside NumPy 2.4.
    at = tl.program_id(2)
    while at < windows:
        image = (at // (rows * columns)).to(tl.int64)
        window_row, window_column = at // columns % rows, at % columns
        base = qkv + image * height * width * 3 * dim + head * HEAD
        token, there, side = _token(queries, window_row, window_column, rows, columns, height, width, WINDOW, SHIFT)
        q = _rows(base, token, there, feature, real, 3 * dim, pad_q)
        highest = tl.full([BLOCK], -1e30, tl.float32)
        norm = tl.zeros([BLOCK], tl.float32)
        output = tl.zeros([BLOCK, D], tl.float32)
        for block in range(BLOCKS):
            keys = block * BLOCK + tl.arange(0, BLOCK)
            other, present, far = _token(keys, window_row, window_column, rows, columns, height, width, WINDOW, SHIFT)
            k = _rows(base + dim, other, present, feature, real, 3 * dim, pad_k)
            v = _rows(base + 2 * dim, other, present, feature, real, 3 * dim, pad_v)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            scores += tl.load(bias_rows + keys[None, :]).to(tl.float32)
            allowed = (keys < WINDOW * WINDOW)[None, :] & (side[:, None] == far[None, :])
            scores = tl.where(allowed, scores, -1e30)
            higher = tl.maximum(highest, tl.max(scores, axis=1))
            weight = tl.exp(scores - higher[:, None])
            fade = tl.exp(highest - higher)
            norm = norm * fade + tl.sum(weight, axis=1)
            output = tl.dot(weight.to(kind), v, output * fade[:, None], input_precision=PRECISION)
            highest = higher
        output = output / norm[:, None]
        pixels = out + (image * height * width + token)[:, None] * dim + head * HEAD + feature[None, :]
        tl.store(pixels, output.to(kind), mask=there[:, None] & real[None, :])
        at += tl.num_programs(2)


def window_attention(qkv: Tensor, padding: Tensor, bias: Tensor, window: int, shift: int, heads: int) -> Tensor:
    """softmax(q kᵀ / sqrt(d) + bias) v within the windows of a map that is rolled by -shift.

    qkv      [B, H, W, 3C] contiguous, of the map's own tokens; within 3C: queries, keys, values, then heads
    padding  [3C]: qkv of a token that pads the map, its bias
    bias     `padded_bias` of the relative position bias

    -> [B, H, W, C] in the type of qkv. Synchronises nothing.
    """
    batch, height, width, triple = qkv.shape
    dim = triple // 3
    out = qkv.new_empty((batch, height, width, dim))
    rows, columns = triton.cdiv(height, window), triton.cdiv(width, window)
    windows, blocks = batch * rows * columns, blocks_of(window)
    size = dim // heads
    wide = qkv.dtype == torch.float32
    _attention[(heads, blocks, programs_for(windows, heads * blocks, _processors(qkv.device)))](
        qkv, padding, bias, out, windows, rows, columns, height, width, dim, size**-0.5,
        WINDOW=window, SHIFT=shift, HEAD=size, D=max(16, triton.next_power_of_2(size)), BLOCK=BLOCK, BLOCKS=blocks,
        PRECISION="tf32x3" if wide else "tf32", num_warps=4, num_stages=1, maxnreg=None if wide else REGISTERS,
    )  # fmt: skip
    return out


@functools.cache
def programs_for(windows: int, parts: int, processors: int) -> int:
    """How many programs share the windows of each part, a head's block of queries.

    As many windows each as leave the processors busy, but no more than end soonest: all programs take about the same
    time, and the last of them may run while most processors idle.
    """

    def rounds(each: int) -> int:
        """Windows, one after the other, until all programs have ended."""
        return each * -(-(-(-windows // each) * parts) // (RESIDENT * processors))

    most = -(-windows // max(1, PER_PROCESSOR * processors // parts))
    each = min(range(1, most + 1), key=lambda each: (rounds(each), -each))
    return -(-windows // each)


def padded_bias(bias: Tensor) -> Tensor:
    """Relative position bias [heads, window², window²] -> [heads, n, n] with n whole blocks, for the kernel."""
    side = blocks_of(round(bias.shape[1] ** 0.5)) * BLOCK
    padded = bias.new_zeros((bias.shape[0], side, side))
    padded[:, : bias.shape[1], : bias.shape[2]] = bias
    return padded


def blocks_of(window: int) -> int:
    return int(triton.cdiv(window * window, BLOCK))


@functools.cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else PROCESSORS
