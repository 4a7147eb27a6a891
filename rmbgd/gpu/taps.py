"""POLICY: which samples make an output sample, and with what weight, when a row of samples changes its length.

Pure arithmetic on lengths; both filters are separable, so a picture is two of these. Does not know pixels or devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
