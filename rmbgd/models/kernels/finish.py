"""From mattes to finished output planes: edges refined, their colours, alpha quantised and packed, a group at a time.

A table on the device describes the images: one launch serves images of any sizes, and its grid is that of the largest.
Images and outputs lie in one buffer of bytes, mattes are read where the network wrote them, small levels lie in one
buffer of floats; nothing of an image's size is written but its output plane.

A tile of a level takes all steps of relaxation in registers, with so many pixels around it that what enters from its
border does not reach what it stores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmbgd.models.finish import FinishJob, Method

HALO = 12  # pixels around a tile, and the most steps of relaxation
TILE, SMALL_TILE = 64, 32  # pixels of a level on each side, halo included; of levels of at most so many pixels
SHRINK_TILE, SHRINK_STEP = 16, 32  # output pixels on each side, and matte pixels per step
BLOCK = 512  # pixels of an image to a program; of a level half of it
INTERPRETED_BLOCK, INTERPRETED_TILE = 1 << 16, 256  # likewise in Triton's interpreter: programs cost, not pixels
COLUMNS: tl.constexpr = tl.constexpr(16)  # of the table


@triton.jit
def _round(value):
    """To the nearest whole number, halves to even; below 2**22."""
    return (value + 12582912.0) - 12582912.0


@triton.jit
def _between(at, inner, outer):
    """Where pixels `at` of `outer` lie among `inner`: the two beside them, and how far between. Half-pixel centres."""
    twice = tl.maximum((2 * at + 1) * inner - outer, 0)
    low = tl.minimum(twice // (2 * outer), inner - 1)
    part = (twice - 2 * outer * low).to(tl.float32) / (2 * outer).to(tl.float32)
    return low, tl.minimum(low + 1, inner - 1), part


@triton.jit
def _bilinear(plane, top, bottom, down, left, right, across, width, mask):
    a = tl.load(plane + top * width + left, mask=mask, other=0)
    b = tl.load(plane + top * width + right, mask=mask, other=0)
    c = tl.load(plane + bottom * width + left, mask=mask, other=0)
    d = tl.load(plane + bottom * width + right, mask=mask, other=0)
    upper = a + (b - a) * across
    lower = c + (d - c) * across
    return upper + (lower - upper) * down


@triton.jit
def _overlap(inner, outer, inner_size, outer_size):
    """Share of pixel `outer` that pixel `inner` of a larger grid makes up, along one axis."""
    low = tl.maximum(inner * outer_size, outer * inner_size)
    high = tl.minimum((inner + 1) * outer_size, (outer + 1) * inner_size)
    return tl.maximum(high - low, 0).to(tl.float32) / inner_size.to(tl.float32)


@triton.jit
def _alpha(row, mattes, fitted, work, red, green, blue, y, x, height, width, mask):
    """Alpha at pixels of the image, 0..1, from the network's matte, or from one that was made smaller, and refined."""
    inner_height, inner_width = tl.load(row + 8).to(tl.int32), tl.load(row + 9).to(tl.int32)
    plane = mattes + tl.load(row + 7)
    if tl.load(row + 10) > 0:
        plane = work + tl.load(row + 7)
    top, bottom, down = _between(y, inner_height, height)
    left, right, across = _between(x, inner_width, width)
    alpha = _bilinear(plane, top, bottom, down, left, right, across, inner_width, mask)
    if tl.load(row + 15) >= 0:
        fit, step = fitted + tl.load(row + 15), inner_height * inner_width
        gain = _bilinear(fit, top, bottom, down, left, right, across, inner_width, mask)
        alpha = _bilinear(fit + 3 * step, top, bottom, down, left, right, across, inner_width, mask) + gain * red
        gain = _bilinear(fit + step, top, bottom, down, left, right, across, inner_width, mask)
        alpha += gain * green
        gain = _bilinear(fit + 2 * step, top, bottom, down, left, right, across, inner_width, mask)
        alpha += gain * blue
        least = _bilinear(fit + 4 * step, top, bottom, down, left, right, across, inner_width, mask)
        greatest = _bilinear(fit + 5 * step, top, bottom, down, left, right, across, inner_width, mask)
        alpha = tl.minimum(tl.maximum(alpha, least), greatest)
    return tl.clamp(alpha, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _level(row, level):
    """Where a level lies among the floats, and its size."""
    at = tl.load(row + 11)
    height, width = tl.load(row + 12).to(tl.int32), tl.load(row + 13).to(tl.int32)
    # `while`, not `range`: bounds that only the device knows are no range for the interpreter beside NumPy 2.4.
    above = 0
    while above < level:
        at += 10 * height.to(tl.int64) * width
        height, width = (height + 1) // 2, (width + 1) // 2
        above += 1
    return at, height, width


@triton.jit
def _triangle(inner, outer, inner_size, outer_size):
    """Weights [inner, outer], not normalised, of a triangle as wide as the step between outputs; for reductions."""
    apart = (2 * inner[:, None] + 1) * outer_size - (2 * outer[None, :] + 1) * inner_size
    reach = 2 * tl.maximum(inner_size, outer_size)
    weight = tl.maximum(1.0 - tl.abs(apart).to(tl.float32) / reach.to(tl.float32), 0.0)
    return tl.where((inner < inner_size)[:, None], weight, 0.0)


@triton.jit
def _first(outer, inner_size, outer_size):
    """A pixel of the larger grid before all that output `outer` is made of."""
    reach = tl.maximum(tl.cdiv(inner_size, outer_size), 1) + 1
    return tl.maximum((2 * outer + 1) * inner_size // (2 * outer_size) - reach, 0), reach


@triton.jit(do_not_specialize=["height", "width"])
def _shrink(table, mattes, work, height, width, TILE: tl.constexpr, STEP: tl.constexpr):
    """Mattes that are larger than their images, at most as large: a product of matrices with the triangle's weights."""
    row = table + COLUMNS * tl.program_id(2)
    small_height, small_width = tl.load(row + 8).to(tl.int32), tl.load(row + 9).to(tl.int32)
    first_y, first_x = tl.program_id(1) * TILE, tl.program_id(0) * TILE
    if (tl.load(row + 10) == 0) | (first_y >= small_height) | (first_x >= small_width):
        return
    source = mattes + tl.load(row + 14)
    y, x = first_y + tl.arange(0, TILE), first_x + tl.arange(0, TILE)
    at_y, _ = _first(first_y, height, small_height)
    last_y, reach = _first(first_y + TILE - 1, height, small_height)
    end_y = tl.minimum(last_y + 2 * reach + 1, height)
    low_x, _ = _first(first_x, width, small_width)
    last_x, reach = _first(first_x + TILE - 1, width, small_width)
    end_x = tl.minimum(last_x + 2 * reach + 1, width)
    total = tl.zeros([TILE, TILE], tl.float32)
    sum_y = tl.zeros([TILE], tl.float32)
    while at_y < end_y:
        in_y = at_y + tl.arange(0, STEP)
        rows = tl.zeros([STEP, TILE], tl.float32)
        sum_x = tl.zeros([TILE], tl.float32)
        at_x = low_x
        while at_x < end_x:
            in_x = at_x + tl.arange(0, STEP)
            valid = (in_y < height)[:, None] & (in_x < width)[None, :]
            values = tl.load(source + in_y[:, None] * width + in_x[None, :], mask=valid, other=0)
            weight = _triangle(in_x, x, width, small_width)
            sum_x += tl.sum(weight, axis=0)
            rows = tl.dot(values, weight, rows, input_precision="ieee")
            at_x += STEP
        weight = _triangle(in_y, y, height, small_height)
        sum_y += tl.sum(weight, axis=0)
        rows = rows / tl.maximum(sum_x, 0.1)[None, :]  # 0 only beyond the image, where nothing is stored
        total = tl.dot(tl.trans(weight), rows, total, input_precision="ieee")
        at_y += STEP
    inside = (y < small_height)[:, None] & (x < small_width)[None, :]
    target = work + tl.load(row + 7) + y[:, None] * small_width + x[None, :]
    tl.store(target, total / tl.maximum(sum_y, 0.1)[:, None], mask=inside)


@triton.jit
def _colour(inputs, scale, shift, inside):
    """Levels of one colour that the network saw, less 128."""
    return _round((tl.load(inputs, mask=inside, other=0).to(tl.float32) - shift) / scale) - 128.0


@triton.jit(do_not_specialize=["height", "width", "stride_b", "stride_c", "stride_y", "stride_x", "radius"])
def _fit(
    table, inputs, mattes, fitted, height, width, stride_b, stride_c, stride_y, stride_x,
    scale_red, shift_red, scale_green, shift_green, scale_blue, shift_blue,
    radius, flatness, faint, explained, BLOCK: tl.constexpr,
):  # fmt: skip
    """Alpha as a function of colour around each pixel of a matte, and its bounds: planes of floats."""
    row = table + COLUMNS * tl.program_id(1)
    if tl.load(row + 15) < 0:
        return
    pixels = height * width
    source = tl.load(row + 14)
    seen = inputs + source // pixels * stride_b
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    y, x = pixel // width, pixel % width
    own = tl.load(mattes + source + pixel, mask=inside, other=0)
    least, greatest = own, own
    zero = tl.zeros([BLOCK], tl.float32)
    r, g, b, a = zero, zero, zero, zero
    rr, rg, rb, gg, gb, bb = zero, zero, zero, zero, zero, zero
    ra, ga, ba, aa = zero, zero, zero, zero
    down = -radius
    while down <= radius:
        in_y = tl.minimum(tl.maximum(y + down, 0), height - 1)
        across = -radius
        while across <= radius:
            in_x = tl.minimum(tl.maximum(x + across, 0), width - 1)
            alpha = tl.load(mattes + source + in_y * width + in_x, mask=inside, other=0)
            place = seen + in_y * stride_y + in_x * stride_x
            red = _colour(place, scale_red, shift_red, inside)
            green = _colour(place + stride_c, scale_green, shift_green, inside)
            blue = _colour(place + 2 * stride_c, scale_blue, shift_blue, inside)
            r, g, b, a = r + red, g + green, b + blue, a + alpha
            rr, rg, rb = rr + red * red, rg + red * green, rb + red * blue
            gg, gb, bb = gg + green * green, gb + green * blue, bb + blue * blue
            ra, ga, ba, aa = ra + red * alpha, ga + green * alpha, ba + blue * alpha, aa + alpha * alpha
            near = (down * down <= 1) & (across * across <= 1)
            least = tl.where(near, tl.minimum(least, alpha), least)
            greatest = tl.where(near, tl.maximum(greatest, alpha), greatest)
            across += 1
        down += 1
    count = (2 * radius + 1) * (2 * radius + 1)
    square = count * count
    rr, rg, rb = (count * rr - r * r) / square, (count * rg - r * g) / square, (count * rb - r * b) / square
    gg, gb, bb = (count * gg - g * g) / square, (count * gb - g * b) / square, (count * bb - b * b) / square
    ra, ga, ba = (count * ra - r * a) / square, (count * ga - g * a) / square, (count * ba - b * a) / square
    aa = (count * aa - a * a) / square
    # Solved by L D L', as on the host.
    d0 = rr + flatness
    l1, l2 = rg / d0, rb / d0
    d1 = gg + flatness - l1 * l1 * d0
    l3 = (gb - l1 * l2 * d0) / d1
    d2 = bb + flatness - l2 * l2 * d0 - l3 * l3 * d1
    y1 = ga - l1 * ra
    blue = (ba - l2 * ra - l3 * y1) / d2
    green = y1 / d1 - l3 * blue
    red = ra / d0 - l1 * green - l2 * blue
    share = (red * ra + green * ga + blue * ba) / (aa + faint)
    counts = tl.minimum(tl.maximum((share - explained) / (1.0 - explained), 0.0), 1.0)
    offset = (a - red * r - green * g - blue * b) / count - 128.0 * (red + green + blue)
    out = fitted + tl.load(row + 15) + pixel
    tl.store(out, counts * red, mask=inside)
    tl.store(out + pixels, counts * green, mask=inside)
    tl.store(out + 2 * pixels, counts * blue, mask=inside)
    tl.store(out + 3 * pixels, own + counts * (offset - own), mask=inside)
    tl.store(out + 4 * pixels, least, mask=inside)
    tl.store(out + 5 * pixels, greatest, mask=inside)


@triton.jit
def _coarse(table, images, mattes, fitted, work, BLOCK: tl.constexpr):
    """The finest level: means of the image's whole levels, rounded as OpenCV rounds them, and of alpha at full size."""
    row = table + COLUMNS * tl.program_id(1)
    at, coarse_height, coarse_width = _level(row, 0)
    pixels = coarse_height * coarse_width
    if tl.program_id(0) * BLOCK >= pixels:
        return
    height, width = tl.load(row + 1).to(tl.int32), tl.load(row + 2).to(tl.int32)
    rgb = images + tl.load(row)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    y, x = pixel // coarse_width, pixel % coarse_width
    first_y, first_x = y * height // coarse_height, x * width // coarse_width
    red, green, blue = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    alpha = tl.zeros([BLOCK], tl.float32)
    down = 0
    while down <= tl.cdiv(height, coarse_height):
        of_row = _overlap(first_y + down, y, height, coarse_height)
        in_y = tl.minimum(first_y + down, height - 1)
        across = 0
        while across <= tl.cdiv(width, coarse_width):
            share = of_row * _overlap(first_x + across, x, width, coarse_width)
            in_x = tl.minimum(first_x + across, width - 1)
            used = inside & (share > 0)
            place = rgb + 3 * (in_y.to(tl.int64) * width + in_x)
            r = tl.load(place, mask=used, other=0).to(tl.float32)
            g = tl.load(place + 1, mask=used, other=0).to(tl.float32)
            b = tl.load(place + 2, mask=used, other=0).to(tl.float32)
            alpha += share * _alpha(row, mattes, fitted, work, r, g, b, in_y, in_x, height, width, used)
            red, green, blue = red + share * r, green + share * g, blue + share * b
            across += 1
        down += 1
    # OpenCV rounds means of four upwards, others to even.
    halves = (2 * coarse_height == height) & (2 * coarse_width == width)
    out = work + at + pixel
    tl.store(out, tl.where(halves, tl.floor(red + 0.5), _round(red)), mask=inside)
    tl.store(out + pixels, tl.where(halves, tl.floor(green + 0.5), _round(green)), mask=inside)
    tl.store(out + 2 * pixels, tl.where(halves, tl.floor(blue + 0.5), _round(blue)), mask=inside)
    tl.store(out + 3 * pixels, alpha, mask=inside)


@triton.jit(do_not_specialize=["level"])
def _halve(table, work, level, BLOCK: tl.constexpr):
    """A level from the next finer one: means over what its pixels cover."""
    row = table + COLUMNS * tl.program_id(1)
    if level >= tl.load(row + 6):
        return
    finer, fine_height, fine_width = _level(row, level - 1)
    at, height, width = _level(row, level)
    pixels, fine_pixels = height * width, fine_height * fine_width
    if tl.program_id(0) * BLOCK >= pixels:
        return
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    y, x = pixel // width, pixel % width
    first_y, first_x = y * fine_height // height, x * fine_width // width
    for plane in tl.static_range(4):
        total = tl.zeros([BLOCK], tl.float32)
        for down in tl.static_range(3):
            for across in tl.static_range(3):
                in_y, in_x = first_y + down, first_x + across
                share = _overlap(in_y, y, fine_height, height) * _overlap(in_x, x, fine_width, width)
                place = work + finer + plane * fine_pixels + in_y * fine_width + in_x
                total += share * tl.load(place, mask=inside & (share > 0), other=0)
        tl.store(work + at + plane * pixels + pixel, total, mask=inside)


@triton.jit(do_not_specialize=["level", "iterations"])
def _relax(table, work, level, iterations, stiffness, TILE: tl.constexpr, HALO: tl.constexpr):
    """Fore- and background of one colour on one tile of a level, from the next coarser one."""
    row = table + COLUMNS * (tl.program_id(1) // 3)
    colour = tl.program_id(1) % 3
    levels = tl.load(row + 6)
    at, height, width = _level(row, level)
    if level >= levels:
        return
    halo = tl.where(tl.maximum(height, width) > TILE, HALO, 0)  # none around what a tile holds whole
    inner = TILE - 2 * halo
    tiles_x = tl.cdiv(width, inner)
    first_y, first_x = tl.program_id(0) // tiles_x * inner - halo, tl.program_id(0) % tiles_x * inner - halo
    if first_y + halo >= height:
        return
    pixels = height * width
    tile_y, tile_x = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    y, x = first_y + tile_y, first_x + tile_x
    in_y, in_x = tl.minimum(tl.maximum(y, 0), height - 1), tl.minimum(tl.maximum(x, 0), width - 1)
    image = work + at + colour * pixels
    values = tl.load(image + in_y * width + in_x)
    alpha = tl.load(work + at + 3 * pixels + in_y * width + in_x)
    if level == levels - 1:  # at most 2 x 2 pixels: their weighted means
        few = tl.arange(0, 4)
        value = tl.load(image + few, mask=few < pixels, other=0)
        share = tl.load(work + at + 3 * pixels + few, mask=few < pixels, other=0)
        rest = tl.where(few < pixels, 1.0 - share, 0.0)
        fore = tl.zeros([TILE, TILE], tl.float32) + tl.sum(value * share) / tl.maximum(tl.sum(share), 1e-6)
        back = tl.zeros([TILE, TILE], tl.float32) + tl.sum(value * rest) / tl.maximum(tl.sum(rest), 1e-6)
    else:
        coarser, inner_height, inner_width = _level(row, level + 1)
        top, bottom, down = _between(in_y, inner_height, height)
        left, right, across = _between(in_x, inner_width, width)
        source = work + coarser + (4 + 2 * colour) * inner_height * inner_width
        everywhere = (in_y >= 0) & (in_x >= 0)
        fore = _bilinear(source, top, bottom, down, left, right, across, inner_width, everywhere)
        source += inner_height * inner_width
        back = _bilinear(source, top, bottom, down, left, right, across, inner_width, everywhere)
    # F' = F (1 - a a w) - B a b w + I a w, and likewise for B, where F and B are their neighbours' means
    beta = 1.0 - alpha
    weight = 1.0 / (alpha * alpha + beta * beta + stiffness)
    crossed = alpha * beta * weight
    fore_kept, back_kept = 1.0 - alpha * alpha * weight, 1.0 - beta * beta * weight
    to_fore, to_back = values * alpha * weight, values * beta * weight
    # At the image's border, and at the tile's, a pixel is its own neighbour.
    above = tl.broadcast_to(tl.where((tile_y > 0) & (y > 0), tile_y - 1, tile_y), [TILE, TILE])
    below = tl.broadcast_to(tl.where((tile_y < TILE - 1) & (y < height - 1), tile_y + 1, tile_y), [TILE, TILE])
    before = tl.broadcast_to(tl.where((tile_x > 0) & (x > 0), tile_x - 1, tile_x), [TILE, TILE])
    behind = tl.broadcast_to(tl.where((tile_x < TILE - 1) & (x < width - 1), tile_x + 1, tile_x), [TILE, TILE])
    step = 0
    while step < iterations:
        fore = (tl.gather(fore, above, 0) + tl.gather(fore, below, 0)) + (
            tl.gather(fore, before, 1) + tl.gather(fore, behind, 1)
        )
        back = (tl.gather(back, above, 0) + tl.gather(back, below, 0)) + (
            tl.gather(back, before, 1) + tl.gather(back, behind, 1)
        )
        fore, back = fore * 0.25, back * 0.25
        fore, back = to_fore + fore_kept * fore - crossed * back, to_back + back_kept * back - crossed * fore
        step += 1
    stored = (tile_y >= halo) & (tile_y < TILE - halo) & (tile_x >= halo) & (tile_x < TILE - halo)
    stored = stored & (y < height) & (x < width)
    out = work + at + (4 + 2 * colour) * pixels + y * width + x
    tl.store(out, tl.clamp(fore, 0.0, 255.0, propagate_nan=tl.PropagateNan.ALL), mask=stored)
    tl.store(out + pixels, tl.clamp(back, 0.0, 255.0, propagate_nan=tl.PropagateNan.ALL), mask=stored)


@triton.jit
def _pack(table, images, mattes, fitted, work, softest, hardest, BLOCK: tl.constexpr):
    """Output planes: alpha at full size, colours corrected where it is soft, the image's own alpha multiplied in."""
    row = table + COLUMNS * tl.program_id(1)
    height, width = tl.load(row + 1).to(tl.int32), tl.load(row + 2).to(tl.int32)
    pixels = height * width
    if tl.program_id(0) * BLOCK >= pixels:
        return
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    y, x = pixel // width, pixel % width
    kind = tl.load(row + 5)
    wanted = inside & ((kind == 4) | (tl.load(row + 15) >= 0))
    rgb = images + tl.load(row) + 3 * pixel.to(tl.int64)
    red = tl.load(rgb, mask=wanted, other=0).to(tl.float32)
    green = tl.load(rgb + 1, mask=wanted, other=0).to(tl.float32)
    blue = tl.load(rgb + 2, mask=wanted, other=0).to(tl.float32)
    alpha = _alpha(row, mattes, fitted, work, red, green, blue, y, x, height, width, inside)
    owned = inside & (tl.load(row + 3) >= 0)
    own = tl.load(images + tl.load(row + 3) + pixel, mask=owned, other=255).to(tl.float32)
    out = images + tl.load(row + 4)
    if kind == 2:
        wide = _round(alpha * 65535.0 * (own / 255.0)).to(tl.uint16)
        tl.store(out.to(tl.pointer_type(tl.uint16)) + pixel, wide, mask=inside)
    else:
        levels = _round(alpha * own).to(tl.uint32)
        if kind == 1:
            tl.store(out + pixel, levels.to(tl.uint8), mask=inside)
        else:
            if tl.load(row + 6) > 0:
                soft = inside & (alpha >= softest) & (alpha <= hardest)
                at, coarse_height, coarse_width = _level(row, 0)
                plane = coarse_height * coarse_width
                colours = work + at + 4 * plane
                top, bottom, down = _between(y, coarse_height, height)
                left, right, across = _between(x, coarse_width, width)
                beta = 1.0 - alpha
                gain = alpha / (alpha * alpha + beta * beta)
                fore = _bilinear(colours, top, bottom, down, left, right, across, coarse_width, soft)
                back = _bilinear(colours + plane, top, bottom, down, left, right, across, coarse_width, soft)
                red = tl.where(soft, fore + (red - (back + (fore - back) * alpha)) * gain, red)
                fore = _bilinear(colours + 2 * plane, top, bottom, down, left, right, across, coarse_width, soft)
                back = _bilinear(colours + 3 * plane, top, bottom, down, left, right, across, coarse_width, soft)
                green = tl.where(soft, fore + (green - (back + (fore - back) * alpha)) * gain, green)
                fore = _bilinear(colours + 4 * plane, top, bottom, down, left, right, across, coarse_width, soft)
                back = _bilinear(colours + 5 * plane, top, bottom, down, left, right, across, coarse_width, soft)
                blue = tl.where(soft, fore + (blue - (back + (fore - back) * alpha)) * gain, blue)
            rgba = _level_of(red) | (_level_of(green) << 8) | (_level_of(blue) << 16) | (levels << 24)
            tl.store(out.to(tl.pointer_type(tl.uint32)) + pixel, rgba, mask=inside)


@triton.jit
def _level_of(value):
    """0..255"""
    return _round(tl.minimum(tl.maximum(value, 0.0), 255.0)).to(tl.uint32)


def finish_images(images: Tensor, mattes: Tensor, inputs: Tensor, jobs: Sequence[FinishJob], method: Method) -> None:
    """See models.finish.finish_images. Allocates what `FinishJob.working_bytes` says. Raises ValueError for more steps
    than HALO."""
    if method.iterations > HALO:
        raise ValueError(f"{method.iterations} steps on a tile that bears {HALO}; a bug")
    if any(job.refined and job.reduced(mattes.shape[1:]) for job in jobs):
        raise ValueError("a matte is both refined and made smaller; a bug")
    size, count = mattes.shape[1:], len(jobs)
    host, floats = _table(jobs, size)
    # From page-locked memory, which torch keeps for reuse, so that the copy waits for nothing.
    table = host.pin_memory().to(images.device, non_blocking=True) if images.is_cuda else host.to(images.device)
    work = torch.empty(floats, device=images.device)
    if reduced := [small for job in jobs if (small := job.reduced(size))]:
        down, across = (triton.cdiv(max(sides), SHRINK_TILE) for sides in zip(*reduced, strict=True))
        _shrink[(across, down, count)](table, mattes, work, *size, TILE=SHRINK_TILE, STEP=SHRINK_STEP, num_warps=4)
    block, tile = (INTERPRETED_BLOCK, INTERPRETED_TILE) if triton.knobs.runtime.interpret else (BLOCK, TILE)
    half = block // 2
    fitted = work
    if refined := sum(job.fitted(size) for job in jobs):
        fitted = torch.empty(refined, device=images.device)
        fitting = method.fitting
        levels_of = [each for pair in zip(fitting.scale, fitting.shift, strict=True) for each in pair]
        _fit[(triton.cdiv(size[0] * size[1], half), count)](
            table, inputs, mattes, fitted, *size, *inputs.stride(), *levels_of,
            fitting.radius, fitting.flatness, fitting.faint, fitting.explained, BLOCK=half, num_warps=4,
        )  # fmt: skip
    deepest = max(len(job.levels) for job in jobs)
    levels = [[job.levels[level] for job in jobs if level < len(job.levels)] for level in range(deepest)]
    blocks = [triton.cdiv(max(height * width for height, width in sizes), half) for sizes in levels]
    if levels:
        _coarse[(blocks[0], count)](table, images, mattes, fitted, work, BLOCK=half, num_warps=4)
    for level in range(1, deepest):
        _halve[(blocks[level], count)](table, work, level, BLOCK=half, num_warps=4)
    for level in reversed(range(deepest)):
        side = SMALL_TILE if max(map(max, levels[level])) <= SMALL_TILE else tile
        _relax[(max(_tiles(*sides, side) for sides in levels[level]), 3 * count)](
            table, work, level, method.iterations, method.stiffness,
            TILE=side, HALO=HALO, num_warps=4 if side == SMALL_TILE else 16,
        )  # fmt: skip
    most = triton.cdiv(max(job.height * job.width for job in jobs), block)
    _pack[(most, count)](table, images, mattes, fitted, work, method.softest, method.hardest, BLOCK=block, num_warps=4)


def _tiles(height: int, width: int, tile: int) -> int:
    inner = tile if max(height, width) <= tile else tile - 2 * HALO
    return int(triton.cdiv(height, inner) * triton.cdiv(width, inner))


def _table(jobs: Sequence[FinishJob], size: Sequence[int]) -> tuple[Tensor, int]:
    """int64 [n, COLUMNS] on the host, in the order in which the kernels read it; and how many floats they work in."""
    rows, at, fitted = [], 0, 0
    for job in jobs:
        small, source = job.reduced(size), job.matte * size[0] * size[1]
        levels_at = at + (small[0] * small[1] if small else 0)
        rows.append((
            job.rgb, job.height, job.width, job.source_alpha, job.output, job.pixel_bytes, len(job.levels),
            at if small else source, *(small or size), int(small is not None), levels_at, *job.coarse, source,
            fitted if job.refined else -1,
        ))  # fmt: skip
        at += job.working_bytes(size) // 4 - job.fitted(size)
        fitted += job.fitted(size)
    return torch.tensor(rows, dtype=torch.int64), at
