"""U²-Net-p as an OpenVINO model, from the same weights as u2net.py, without torch.

One layer is centred: BatchNorm was folded into the published weights, and there it left a bias of 228, which the next
layer's bias of -1361 takes away again. In bfloat16 nothing of the signal between them survives: overlap with float32
0.970 on photographs; with the constant taken out of both, which is the same function, 0.999.

Two things take fewer products than u2net.py takes for the same function: `joined` and `fused` say which.

Written with OpenVINO's own operators: a file in between would have to be shipped and kept in step with the weights.
Pixels go in as they are, and alpha comes out: scaling, layout and sigmoid are part of the graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

CENTRED = "decoder.3.decoder.3"  # its output is carried without its bias
DEPTHS = (7, 6, 5, 4)  # of the blocks that are not dilated, from the finest map on
# Makes of pixels with zeros between them what bilinear enlarging makes of the pixels.
DOUBLING = np.outer((0.25, 0.75, 0.75, 0.25), (0.25, 0.75, 0.75, 0.25))


def build(weights: Path, size: tuple[int, int], scale: Sequence[float], shift: Sequence[float]) -> Any:
    """An openvino.Model: uint8 [1, h, w, 3] -> alpha float32 [1, 1, h, w]. Raises ImportError without OpenVINO.

    size          (h, w), multiples of 32
    scale, shift  per channel: scale * x + shift is what the network was trained with
    """
    import openvino
    from openvino import opset13

    graph = _Graph(opset13, load_file(weights))
    pixels = opset13.parameter([1, *size, 3], openvino.Type.u8)
    x = opset13.convert(pixels, openvino.Type.f32)
    x = opset13.add(opset13.multiply(x, _channels(scale)), _channels(shift))
    x = opset13.transpose(x, np.array([0, 3, 1, 2]))
    alpha = opset13.sigmoid(graph.network(x))
    return openvino.Model([opset13.result(alpha)], [pixels], "u2netp")


def _enlarging(size: int, larger: int) -> NDArray[np.float32]:
    """[larger, size]: bilinear along one side, as torch does it without align_corners."""
    at = (np.arange(larger) + 0.5) * size / larger - 0.5
    return np.stack([np.interp(at, np.arange(size), one) for one in np.eye(size)], 1).astype(np.float32)


def _channels(values: Sequence[float]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(1, 1, 1, 3)


class _Graph:
    """Nodes with the weights of a checkpoint; names and structure are those of u2net.U2NetP."""

    def __init__(self, operators: Any, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self._ops, self._weights = operators, weights

    def network(self, x: Any) -> Any:
        """Normalised image -> logits."""
        skips: list[Any] = []
        for stage in range(6):
            name, depth = f"encoder.{stage}", DEPTHS[stage] if stage < len(DEPTHS) else 4
            x = self.relu(self.conv(self.halve(x) if skips else x, f"{name}.conv_in"))
            x = self.block(x, name, depth, dilated=stage >= len(DEPTHS))
            skips.append(x)
        maps = [skips.pop()]
        for stage in range(5):
            name, depth = f"decoder.{stage}", 4 if stage == 0 else DEPTHS[len(DEPTHS) - stage]
            x = self.relu(self.joined(maps[-1], skips.pop(), f"{name}.conv_in"))
            maps.append(self.block(x, name, depth, dilated=stage == 0))
        return self.fused(maps[::-1])

    def joined(self, x: Any, skip: Any, name: str) -> Any:
        """A 3x3 convolution of x, doubled, beside `skip`: by its two halves, that of x with a quarter of the products.

        Doubling is zeros between the pixels of x, then the filter DOUBLING on each channel. Filters commute, so the
        convolution may go first, and leaves the zeros out: it is a transposed one. Beyond its edges x goes on as it
        ends, where the convolution should meet zeros: `beyond` is taken away.
        """
        weight = self._weights[f"{name}.weight"]
        c_out, c_in = len(weight), x.get_output_shape(0)[1]
        of_x = weight[:, :c_in]
        transposed = np.ascontiguousarray(of_x[:, :, ::-1, ::-1].swapaxes(0, 1))
        twos, ones, none = [2, 2], [1, 1], [0, 0]
        around = np.array([0, 0, 1, 1])
        wide = self._ops.pad(x, around, around, "edge")
        sparse = self._ops.convolution_backprop_data(wide, transposed, twos, None, ones, ones, ones)
        doubling = np.tile(DOUBLING.astype(np.float32), (c_out, 1, 1, 1, 1))
        dense = self._ops.group_convolution(sparse, doubling, ones, none, none, ones)
        dense = self._ops.add(dense, self.beyond(x, -of_x))
        bias = self._weights[f"{name}.bias"].reshape(1, -1, 1, 1)
        beside = self._ops.convolution(skip, weight[:, c_in:], ones, ones, ones, ones)
        return self._ops.add(self._ops.add(beside, bias), dense)

    def beyond(self, x: Any, weight: NDArray[np.float32]) -> Any:
        """What a 3x3 convolution of x, doubled, makes of the row or column beyond each edge, where x goes on as it
        ends: [1, c_out, 2 h, 2 w], zeros but for the outermost pixels."""
        shape = list(x.get_output_shape(0))
        found: Any = None
        for axis, end in itertools.product((3, 2), (0, 1)):
            along = 5 - axis
            at = end * (shape[axis] - 1)  # a slice, as a gather changes the layout of all of x
            line = self._ops.slice(x, *(np.array([each]) for each in (at, at + 1, 1, axis)))
            line = self.enlarged(line, [2 * shape[along]], [along])
            pads = [1, 0]
            if axis == 2:  # with the corners, which are the rows' alone
                corner, pads = np.array([0, 0, 0, 1]), [0, 0]
                line = self._ops.pad(line, corner, corner, "edge")
            outer = np.ascontiguousarray(np.take(weight, [2 * end], axis))
            sums = self._ops.convolution(line, outer, [1, 1], pads, pads, [1, 1])
            place = np.zeros(2 * shape[axis], np.float32)
            place[-end] = 1
            part = self._ops.multiply(sums, place.reshape((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)))
            found = part if found is None else self._ops.add(found, part)
        return found

    def fused(self, maps: Sequence[Any]) -> Any:
        """Logits: side outputs of all maps, the finest first, at its size, in the sum that the last layer weighs.

        A convolution with one output takes the time of one with sixteen. Here each of its nine taps is an output, and
        what they give is shifted and added. Coarse sums are enlarged by two small matrix products for all of them.
        """
        shares = self._weights["fuse.weight"].ravel()
        constant = self._weights["fuse.bias"].copy()
        shift = np.eye(9, dtype=np.float32).reshape(1, 9, 3, 3)
        sums: list[Any] = []
        for index, (x, share) in enumerate(zip(maps, shares, strict=True)):
            weight = share * self._weights[f"side.{index}.weight"][0]
            constant += share * self._weights[f"side.{index}.bias"]
            taps = np.ascontiguousarray(weight.reshape(len(weight), 9).T)[:, :, None, None]
            found = self._ops.convolution(x, taps, [1, 1], [0, 0], [0, 0], [1, 1])
            sums.append(self._ops.convolution(found, shift, [1, 1], [1, 1], [1, 1], [1, 1]))
        (_, _, height, width), *coarser = [list(each.get_output_shape(0)) for each in sums]
        across = [
            self._ops.matmul(each, _enlarging(shape[3], width), False, True)
            for each, shape in zip(sums[1:], coarser, strict=True)
        ]
        down = np.concatenate([_enlarging(shape[2], height) for shape in coarser], 1)
        enlarged = self._ops.matmul(down[None, None], self._ops.concat(across, 2), False, False)
        return self._ops.add(self._ops.add(sums[0], enlarged), constant.reshape(1, 1, 1, 1))

    def block(self, x: Any, name: str, depth: int, *, dilated: bool) -> Any:
        """RSU-`depth` of the paper behind its first convolution, of which x is the result."""
        dilations = [2**level for level in range(depth)] if dilated else [1] * (depth - 1) + [2]
        residual = x
        skips: list[Any] = []
        for level in range(depth - 1):
            x = self.halve(x) if skips and not dilated else x
            x = self.relu(self.conv(x, f"{name}.encoder.{level}", dilations[level]))
            skips.append(x)
        x = self.relu(self.conv(x, f"{name}.bottom", dilations[-1]))
        missing: NDArray[np.float32] | None = None  # per channel of x, where it is carried without its bias
        for level in range(depth - 1):
            skip = skips.pop()
            joined = self._ops.concat([self.like(x, skip), skip], 1)
            layer = f"{name}.decoder.{level}"
            dilation = dilations[-2 - level]
            if layer == CENTRED:
                x, missing = self.centred(joined, layer)
            else:
                x, missing = self.relu(self.conv(joined, layer, dilation, missing)), None
        return self._ops.add(x, residual)

    def conv(self, x: Any, name: str, dilation: int = 1, missing: NDArray[np.float32] | None = None) -> Any:
        """`missing` [c]: what the first channels of x lack; they are none of a dilated convolution's."""
        bias = self._weights[f"{name}.bias"].reshape(1, -1, 1, 1)
        if missing is not None:
            bias = bias + self.padded_sums(name, missing, list(x.get_output_shape(0))[2:])
        return self._ops.add(self.product(x, name, dilation), bias)

    def centred(self, x: Any, name: str) -> tuple[Any, NDArray[np.float32]]:
        """relu(z + b) - b = max(z, -b), and b."""
        bias = self._weights[f"{name}.bias"]
        return self._ops.maximum(self.product(x, name), -bias.reshape(1, -1, 1, 1)), bias

    def product(self, x: Any, name: str, dilation: int = 1) -> Any:
        weight = self._weights[f"{name}.weight"]
        pads = [dilation * (side // 2) for side in weight.shape[2:]]
        return self._ops.convolution(x, weight, [1, 1], pads, pads, [dilation, dilation])

    def padded_sums(self, name: str, values: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.float32]:
        """What a 3x3 convolution makes of constant channels with zeros around them: [1, c_out, h, w], in float64."""
        weight = self._weights[f"{name}.weight"][:, : len(values)].astype(np.float64)
        taps = np.einsum("ocyx,c->oyx", weight, values.astype(np.float64))
        inside = np.pad(np.ones(size), 1)
        found = np.zeros((len(weight), *size))
        for y, x in np.ndindex(3, 3):
            found += taps[:, y, x, None, None] * inside[y : y + size[0], x : x + size[1]]
        return found[None].astype(np.float32)

    def relu(self, x: Any) -> Any:
        return self._ops.relu(x)

    def halve(self, x: Any) -> Any:
        twos, none = [2, 2], [0, 0]
        return self._ops.max_pool(x, twos, [1, 1], none, none, twos, rounding_type="ceil").output(0)

    def like(self, x: Any, other: Any) -> Any:
        """At the size of `other`."""
        size = list(other.get_output_shape(0))[2:]
        return x if list(x.get_output_shape(0))[2:] == size else self.enlarged(x, size, [2, 3])

    def enlarged(self, x: Any, sizes: Sequence[int], axes: Sequence[int]) -> Any:
        """Bilinear, as torch does it without align_corners."""
        none = [0, 0, 0, 0]
        return self._ops.interpolate(
            x, np.array(sizes), "linear_onnx", "sizes", none, none, "half_pixel", axes=np.array(axes)
        )
