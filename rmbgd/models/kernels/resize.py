"""Resizes, scales and shifts a batch of images of any sizes in one launch.

The table of images lies on the device, so a captured launch stays the same while others are written into it. A tile of
the output is a product W_y P W_xᵀ of the pixels under it with two bands of the filter's weights, made on the fly from
exact integer positions: every byte is read once per tile, whatever the reduction. Products are in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rmbgd.resampling import Filter

TILE = 32  # output pixels on each side
STEP = 16  # input pixels per step on each side: the narrowest that a matrix product takes


@triton.jit
def _weights(inner, outer, inner_size, outer_size, BOX: tl.constexpr):
    """Weights [inner, outer], not normalised: of input positions in output pixels, along one axis."""
    # Distance of the centres in input pixels, as an exact fraction: float32 alone would be off by 0.002 at 20,000.
    apart = (2 * inner[:, None] + 1) * outer_size - (2 * outer[None, :] + 1) * inner_size
    reach = 2 * tl.maximum(inner_size, outer_size)  # twice the filter's half width, in the same fraction
    weight = tl.maximum(1.0 - tl.abs(apart).to(tl.float32) / reach.to(tl.float32), 0.0)
    if BOX:  # the bounds of resampling.box_bound, where the axis shrinks
        first = (2 * outer * inner_size + outer_size) // (2 * outer_size)
        last = (2 * (outer + 1) * inner_size + outer_size) // (2 * outer_size)
        whole = (inner[:, None] >= first[None, :]) & (inner[:, None] < last[None, :])
        weight = tl.where(inner_size > outer_size, tl.where(whole, 1.0, 0.0), weight)
    return tl.where((inner < inner_size)[:, None], weight, 0.0)


@triton.jit
def _range(first, inner_size, outer_size, TILE: tl.constexpr):
    """Input positions that the tile of output pixels from `first` on reads, ends rounded outwards."""
    reach = tl.maximum(tl.cdiv(inner_size, outer_size), 1) + 1
    low = (2 * first + 1) * inner_size // (2 * outer_size) - reach
    high = (2 * (first + TILE) - 1) * inner_size // (2 * outer_size) + reach + 1
    return tl.maximum(low, 0), tl.minimum(high, inner_size)


@triton.jit
def _resize(
    table, inputs, scale, shift, height, width, stride_b, stride_c, stride_y, stride_x,
    TILE: tl.constexpr, STEP: tl.constexpr, BOX: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(2)
    row = table + 4 * index
    pixels = tl.load(row).to(tl.pointer_type(tl.uint8))
    in_height = tl.load(row + 1).to(tl.int32)
    in_width = tl.load(row + 2).to(tl.int32)
    pitch = tl.load(row + 3)
    if in_height == 0:
        return
    first_y, first_x = tl.program_id(1) * TILE, tl.program_id(0) * TILE
    y, x = first_y + tl.arange(0, TILE), first_x + tl.arange(0, TILE)
    low_y, high_y = _range(first_y, in_height, height, TILE)
    low_x, high_x = _range(first_x, in_width, width, TILE)
    red = tl.zeros([TILE, TILE], tl.float32)
    green = tl.zeros([TILE, TILE], tl.float32)
    blue = tl.zeros([TILE, TILE], tl.float32)
    sum_y = tl.zeros([TILE], tl.float32)
    # `while`, not `range`: bounds that only the device knows are no range for the interpreter beside NumPy 2.4.
    at_y = low_y
    while at_y < high_y:
        in_y = at_y + tl.arange(0, STEP)
        red_rows = tl.zeros([STEP, TILE], tl.float32)
        green_rows = tl.zeros([STEP, TILE], tl.float32)
        blue_rows = tl.zeros([STEP, TILE], tl.float32)
        sum_x = tl.zeros([TILE], tl.float32)
        at_x = low_x
        while at_x < high_x:
            in_x = at_x + tl.arange(0, STEP)
            valid = (in_y < in_height)[:, None] & (in_x < in_width)[None, :]
            pixel = pixels + in_y.to(tl.int64)[:, None] * pitch + 3 * in_x[None, :]
            band = _weights(in_x, x, in_width, width, BOX)
            sum_x += tl.sum(band, axis=0)
            r = tl.load(pixel, mask=valid, other=0).to(tl.float32)
            g = tl.load(pixel + 1, mask=valid, other=0).to(tl.float32)
            b = tl.load(pixel + 2, mask=valid, other=0).to(tl.float32)
            red_rows = tl.dot(r, band, red_rows, input_precision="ieee")
            green_rows = tl.dot(g, band, green_rows, input_precision="ieee")
            blue_rows = tl.dot(b, band, blue_rows, input_precision="ieee")
            at_x += STEP
        sum_x = tl.maximum(sum_x, 0.1)[None, :]  # 0 only beyond the network's input, where nothing is stored
        band = _weights(in_y, y, in_height, height, BOX)
        sum_y += tl.sum(band, axis=0)
        band = tl.trans(band)
        red = tl.dot(band, red_rows / sum_x, red, input_precision="ieee")
        green = tl.dot(band, green_rows / sum_x, green, input_precision="ieee")
        blue = tl.dot(band, blue_rows / sum_x, blue, input_precision="ieee")
        at_y += STEP
    out = inputs + index.to(tl.int64) * stride_b + y[:, None] * stride_y + x[None, :] * stride_x
    inside = (y < height)[:, None] & (x < width)[None, :]
    kind = inputs.dtype.element_ty
    sum_y = tl.maximum(sum_y, 0.1)[:, None]
    red, green, blue = red / sum_y, green / sum_y, blue / sum_y
    if BOX:  # whole levels, as on the host
        red, green, blue = tl.floor(red + 0.5), tl.floor(green + 0.5), tl.floor(blue + 0.5)
    red = red * tl.load(scale) + tl.load(shift)
    green = green * tl.load(scale + 1) + tl.load(shift + 1)
    blue = blue * tl.load(scale + 2) + tl.load(shift + 2)
    tl.store(out, red.to(kind), mask=inside)
    tl.store(out + stride_c, green.to(kind), mask=inside)
    tl.store(out + 2 * stride_c, blue.to(kind), mask=inside)


def resize_images(table: Tensor, inputs: Tensor, scale: Tensor, shift: Tensor, filter: Filter) -> None:  # noqa: A002
    """Fill inputs[i] from the image that row i of the table describes; a row of height 0 leaves inputs[i] alone.

    table: `inference.image_table` on the device of `inputs`, at most B rows; the rest as in `inference.put_images`.
    Synchronises nothing and allocates nothing: it can be captured. The images must stay where they are until it ran.
    """
    height, width = inputs.shape[2:]
    box = filter is Filter.BOX
    grid = (triton.cdiv(width, TILE), triton.cdiv(height, TILE), len(table))
    how = {"TILE": TILE, "STEP": STEP, "BOX": box, "num_warps": 4}
    _resize[grid](table, inputs, scale, shift, height, width, *inputs.stride(), **how)
