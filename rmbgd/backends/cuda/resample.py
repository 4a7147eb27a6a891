"""Separable resampling on any device: filters as tables of taps, applied to one dimension after the other.

Sums run tap by tap in the same order everywhere, so a result does not depend on what else is computed, nor on a
library's choice of algorithm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.backends.cuda.memory_plan import BAND_PIXELS


@dataclass(frozen=True, slots=True)
class Taps:
    """A filter for one dimension: output[o] = sum over t of weight[t, o] * input[index[t, o]].

    index   int64 [taps, outputs], within the input
    weight  float32 [taps, outputs], sums to 1 for each output; 0 where an output needs fewer taps
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float32]

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The half-open range of inputs that the outputs first..last-1 are made of."""
        part, used = self.index[:, first:last], self.weight[:, first:last] > 0
        return int(part[used].min()), int(part[used].max()) + 1


@lru_cache(maxsize=128)
def triangle(inputs: int, outputs: int) -> Taps:
    """The antialiased bilinear filter as Pillow's BILINEAR has it: a triangle as wide as the step between samples, cut
    at the border and normalised there. When enlarging it is plain bilinear on half-pixel centres.
    """
    step = inputs / outputs
    support = max(step, 1.0)
    centres = (np.arange(outputs) + 0.5) * step
    first = np.maximum(np.floor(centres - support + 0.5), 0).astype(np.int64)
    last = np.minimum(np.floor(centres + support + 0.5), inputs).astype(np.int64)
    index = first + np.arange(int((last - first).max()))[:, None]
    weight = np.maximum(1.0 - np.abs((index - centres + 0.5) / support), 0.0)
    return _packed(index, np.where(index < last, weight, 0.0))


@lru_cache(maxsize=128)
def area(inputs: int, outputs: int) -> Taps:
    """The mean over the span of an output, as OpenCV's INTER_AREA has it; not for enlarging."""
    step = inputs / outputs
    begin = np.arange(outputs) * step
    index = np.floor(begin).astype(np.int64) + np.arange(int(np.ceil(step)) + 1)[:, None]
    weight = np.minimum(index + 1, begin + step) - np.maximum(index, begin)
    return _packed(index, np.where((weight > 1e-3) & (index < inputs), weight, 0.0))  # OpenCV's own threshold


def _packed(index: NDArray[np.int64], weight: NDArray[np.float64]) -> Taps:
    """Normalised, without taps that no output uses; unused ones point at the sample beside them."""
    weight = weight / weight.sum(axis=0)
    order = np.argsort(weight == 0, axis=0, kind="stable")
    index, weight = np.take_along_axis(index, order, 0), np.take_along_axis(weight, order, 0)
    count = int((weight > 0).sum(axis=0).max())
    index, weight = index[:count], weight[:count]
    return Taps(np.where(weight > 0, index, index[:1]), weight.astype(np.float32))


Filter = Callable[[int, int], Taps]
"""triangle or area: from the number of inputs and of outputs."""


@lru_cache(maxsize=256)
def table(kind: Filter, inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(index int64 [taps, outputs], weight float32 [taps, outputs]) on the device. A service sees few lengths."""
    taps = kind(inputs, outputs)
    return torch.from_numpy(taps.index).to(device), torch.from_numpy(taps.weight).to(device)


def apply_taps(x: Tensor, dim: int, index: Tensor, weight: Tensor) -> Tensor:
    """`x` of any real type -> float32, with len(index[0]) samples along `dim`."""
    shape = [1] * x.dim()
    shape[dim] = -1
    total = x.index_select(dim, index[0]).to(torch.float32) * weight[0].view(shape)
    for samples, factor in zip(index[1:], weight[1:], strict=True):
        total.addcmul_(x.index_select(dim, samples).to(torch.float32), factor.view(shape))
    return total


def resize_dim(x: Tensor, dim: int, kind: Filter, outputs: int) -> Tensor:
    """`x` with `outputs` samples along `dim`, float32."""
    if x.shape[dim] == outputs:
        return x.to(torch.float32)
    return apply_taps(x, dim, *table(kind, x.shape[dim], outputs, x.device))


def band_of(tables: tuple[Tensor, Tensor], band: tuple[int, int], top: int) -> tuple[Tensor, Tensor]:
    """The (index, weight) of outputs first..last-1, counted from input `top`, the first that they are made of."""
    index, weight = (part[:, band[0] : band[1]] for part in tables)
    return index.sub(top).clamp_(min=0), weight


def resize_band(x: Tensor, size: tuple[int, int], band: tuple[int, int], dim: int = 0) -> Tensor:
    """Rows first..last-1 of `x` [h, w, ...] resized to `size`, (height, width), by the triangle: float32.

    Only the rows that they are made of are read. `dim`: the one of the rows; the columns are the next one.
    imaging.resize.matte_to_image is the same for a whole matte.
    """
    inputs, (height, width) = x.shape[dim], size
    if inputs == height:
        return resize_dim(x.narrow(dim, band[0], band[1] - band[0]), dim + 1, triangle, width)
    top, bottom = triangle(inputs, height).span(*band)
    wide = resize_dim(x.narrow(dim, top, bottom - top), dim + 1, triangle, width)
    return apply_taps(wide, dim, *band_of(table(triangle, inputs, height, x.device), band, top))


def bands(outputs: int, pixels_per_output: float) -> list[tuple[int, int]]:
    """Half-open ranges of output rows, each made of about BAND_PIXELS pixels."""
    count = max(1, int(BAND_PIXELS / max(1.0, pixels_per_output)))
    return [(first, min(first + count, outputs)) for first in range(0, outputs, count)]


def resize_to_network(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [H, W, 3] -> float32 [h, w, 3] in 0..255, in bands, not rounded; within one level of Pillow's BILINEAR."""
    height, width = image.shape[:2]
    result = torch.empty((*size, 3), device=image.device)
    for first, last in bands(size[0], height * width / size[0]):
        result[first:last] = resize_band(image, size, (first, last))
    return result
