"""Rows and columns of tensors change their number: the two separable passes of `taps.py`, on any device.

Does not know what the samples mean. Sums run tap by tap in the same order everywhere, so an answer does not depend on
what else is computed, nor on a library's choice of algorithm.
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

# --- POLICY: which samples make an output sample, and with what weight, when a row of samples changes its length.


@dataclass(frozen=True, slots=True)
class Taps:
    """output[o] = sum over t of weight[t, o] * input[index[t, o]].

    index   int64 [taps, outputs], within the input
    weight  float32 [taps, outputs], sums to 1 for each output; 0 where an output needs fewer taps
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float32]

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The half-open range of inputs that the outputs first..last-1 are made of."""
        part, used = self.index[:, first:last], self.weight[:, first:last] > 0
        return int(part[used].min()), int(part[used].max()) + 1


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


def area(inputs: int, outputs: int) -> Taps:
    """The mean over the span of an output, as OpenCV's INTER_AREA has it; not for enlarging."""
    step = inputs / outputs
    begin = np.arange(outputs) * step
    index = np.floor(begin).astype(np.int64) + np.arange(int(np.ceil(step)) + 1)[:, None]
    weight = np.minimum(index + 1, begin + step) - np.maximum(index, begin)
    return _packed(index, np.where((weight > 1e-3) & (index < inputs), weight, 0.0))  # OpenCV's own threshold


def _packed(index: NDArray[np.int64], weight: NDArray[np.float64]) -> Taps:
    """Normalised, without taps that nobody uses; unused ones point at the sample beside them."""
    weight = weight / weight.sum(axis=0)
    order = np.argsort(weight == 0, axis=0, kind="stable")
    index, weight = np.take_along_axis(index, order, 0), np.take_along_axis(weight, order, 0)
    count = int((weight > 0).sum(axis=0).max())
    index, weight = index[:count], weight[:count]
    return Taps(np.where(weight > 0, index, index[:1]), weight.astype(np.float32))


# --- Rows and columns of tensors change their number: the two separable passes of `taps.py`, on any device.


@lru_cache(maxsize=128)
def taps_of(kind: Callable[[int, int], Taps], inputs: int, outputs: int) -> Taps:
    return kind(inputs, outputs)


@lru_cache(maxsize=256)
def table(kind: Callable[[int, int], Taps], inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(index int64 [taps, outputs], weight float32 [taps, outputs]) on the device. A service sees few lengths."""
    taps = taps_of(kind, inputs, outputs)
    return torch.from_numpy(taps.index).to(device), torch.from_numpy(taps.weight).to(device)


def resample(x: Tensor, dim: int, index: Tensor, weight: Tensor) -> Tensor:
    """Of any real type -> float32, with len(index[0]) samples along `dim`."""
    shape = [1] * x.dim()
    shape[dim] = -1
    total = x.index_select(dim, index[0]).to(torch.float32) * weight[0].view(shape)
    for samples, share in zip(index[1:], weight[1:], strict=True):
        total.addcmul_(x.index_select(dim, samples).to(torch.float32), share.view(shape))
    return total


def rows_of(
    x: Tensor, dim: int, kind: Callable[[int, int], Taps], outputs: int, rows: tuple[int, int] | None = None
) -> Tensor:
    """`x` with `outputs` samples along `dim`, or those first..last-1 of them, float32."""
    if x.shape[dim] == outputs:
        return (x if rows is None else x.narrow(dim, rows[0], rows[1] - rows[0])).to(torch.float32)
    index, weight = table(kind, x.shape[dim], outputs, x.device)
    if rows is not None:
        index, weight = index[:, rows[0] : rows[1]], weight[:, rows[0] : rows[1]]
    return resample(x, dim, index, weight)


def bands(outputs: int, pixels_per_output: float) -> list[tuple[int, int]]:
    """Half-open ranges of output rows, each made of about BAND_PIXELS pixels."""
    count = max(1, int(BAND_PIXELS / max(1.0, pixels_per_output)))
    return [(first, min(first + count, outputs)) for first in range(0, outputs, count)]


def resize_to_network(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [H, W, 3] -> float32 [h, w, 3] in 0..255, in bands, not rounded; within one level of Pillow's BILINEAR."""
    height, width = image.shape[:2]
    answer = torch.empty((*size, 3), device=image.device)
    taps = taps_of(triangle, height, size[0])
    for first, last in bands(size[0], height * width / size[0]):
        top, bottom = taps.span(first, last)
        narrow = rows_of(image[top:bottom], 1, triangle, size[1])
        if height == size[0]:
            answer[first:last] = narrow
            continue
        index, weight = table(triangle, height, size[0], image.device)
        answer[first:last] = resample(narrow, 0, index[:, first:last].sub(top).clamp_(min=0), weight[:, first:last])
    return answer


class FullSize:
    """A network's answer seen at its image's size, band by band; imaging.resize.matte_to_image in one is the same."""

    def __init__(self, matte: Tensor, height: int, width: int) -> None:
        """matte: float32 [h, w]"""
        self.height, self.width = height, width
        self._matte = matte

    def rows(self, first: int, last: int) -> Tensor:
        """Alpha of rows first..last-1, float32 [last - first, width]."""
        taps = taps_of(triangle, self._matte.shape[0], self.height)
        if self._matte.shape[0] == self.height:
            return rows_of(self._matte[first:last], 1, triangle, self.width)
        top, bottom = taps.span(first, last)
        wide = rows_of(self._matte[top:bottom], 1, triangle, self.width)
        index, weight = table(triangle, self._matte.shape[0], self.height, self._matte.device)
        return resample(wide, 0, index[:, first:last].sub(top).clamp_(min=0), weight[:, first:last])
