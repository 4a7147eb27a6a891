"""U²-Net-p as an OpenVINO model, from the same weights as u2net.py, without torch.

One layer is centred: BatchNorm was folded into the published weights, and there it left a bias of 228, which the next
layer's bias of -1361 takes away again. In bfloat16 nothing of the signal between them survives: overlap with float32
0.970 on photographs; with the constant taken out of both, which is the same function, 0.999.

Written with OpenVINO's own operators: a file in between would have to be shipped and kept in step with the weights.
Pixels go in as they are, and alpha comes out: scaling, layout and sigmoid are part of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

CENTRED = "decoder.3.decoder.3"  # its output is carried without its bias
DEPTHS = (7, 6, 5, 4)  # of the blocks that are not dilated, from the finest map on


def build(weights: Path, size: tuple[int, int], scale: Sequence[float], shift: Sequence[float]) -> Any:
    """An openvino.Model: uint8 [1, h, w, 3] -> alpha float32 [1, 1, h, w]. Raises ImportError without OpenVINO.

    size          (h, w)
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
            depth = DEPTHS[stage] if stage < len(DEPTHS) else 4
            x = self.block(self.halve(x) if skips else x, f"encoder.{stage}", depth, dilated=stage >= len(DEPTHS))
            skips.append(x)
        maps = [skips.pop()]
        for stage in range(5):
            skip = skips.pop()
            depth = 4 if stage == 0 else DEPTHS[len(DEPTHS) - stage]
            joined = self._ops.concat([self.like(maps[-1], skip), skip], 1)
            maps.append(self.block(joined, f"decoder.{stage}", depth, dilated=stage == 0))
        sides = [self.conv(each, f"side.{index}") for index, each in enumerate(reversed(maps))]
        joined = self._ops.concat([sides[0], *(self.like(side, sides[0]) for side in sides[1:])], 1)
        return self.conv(joined, "fuse")

    def block(self, x: Any, name: str, depth: int, *, dilated: bool) -> Any:
        """RSU-`depth` of the paper."""
        dilations = [2**level for level in range(depth)] if dilated else [1] * (depth - 1) + [2]
        x = residual = self.relu(self.conv(x, f"{name}.conv_in"))
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
        """At the size of `other`: bilinear, as torch does it without align_corners."""
        size = list(other.get_output_shape(0))[2:]
        if list(x.get_output_shape(0))[2:] == size:
            return x
        sizes, axes = np.array(size), np.array([2, 3])
        return self._ops.interpolate(
            x, sizes, "linear_onnx", "sizes", [0, 0, 0, 0], [0, 0, 0, 0], "half_pixel", axes=axes
        )
