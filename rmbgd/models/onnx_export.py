"""Exports a network as ONNX, for inference engines other than torch: ONNX Runtime, TensorRT, OpenVINO.

The same function in few, whole operators: window attention as reshapes of padded maps, and deformable convolution as
ONNX's own DeformConv (opset 19 and later). Shapes are fixed, as those engines want them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx.symbolic_helper import parse_args
from torch.onnx.utils import register_custom_op_symbolic

from rmbgd.models.birefnet import Head, upsample
from rmbgd.models.deform import DeformableAspp, DeformableConv
from rmbgd.models.layers import Linear
from rmbgd.models.load import load_model
from rmbgd.models.registry import PatchOrder
from rmbgd.models.swin import SwinBlock

OPSET = 20  # the last that torch's tracing exporter knows
INPUT, OUTPUT = "image", "logits"


def export_onnx(
    source: str | os.PathLike[str],
    models: Path,
    out: Path,
    *,
    batch: int = 1,
    size: tuple[int, int] | None = None,
    patch_order: PatchOrder | str | None = None,
) -> tuple[int, int]:
    """Write `out`: INPUT float32 [batch, 3, h, w], normalised -> OUTPUT float32 [batch, 1, h, w]. Returns (h, w).

    source, models, patch_order  as `load_model` takes them; size  (h, w) in pixels, by default the model's own
    Raises ModelError as `load_model` does, OSError when `out` cannot be written.
    """
    loaded = load_model(source, device="cpu", dtype=torch.float32, models=models, patch_order=patch_order)
    size = size or loaded.input_size
    write_onnx(loaded.module, out, batch, size)
    assert loaded.provenance  # raises for weights of another digest
    return size


def write_onnx(network: nn.Module, out: Path, batch: int, size: tuple[int, int]) -> None:
    """`export_onnx` of a loaded network in float32, which is then good for nothing else: its layers are rewritten."""
    _register_deform_conv()
    for layer in network.modules():
        if rewritten := WHOLE.get(type(layer)):
            vars(layer)["forward"] = partial(rewritten, layer)
    with torch.inference_mode(mode=False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that shapes become constants, as they should
        # By tracing: the newer exporter needs another package, and writes the same operators.
        names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
        torch.onnx.export(network, (torch.zeros(batch, 3, *size),), out, dynamo=False, opset_version=OPSET, **names)


def _linear(layer: Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _block(block: SwinBlock, x: Tensor) -> Tensor:
    """As in the paper's code. The norm comes before the padding: a padding token's query, key and value are biases."""
    attention, window, shift = block.attn, block.window, block.shift
    batch, height, width, dim = _sizes(x)
    padded = F.pad(block.norm1(x), (0, 0, 0, -width % window, 0, -height % window))
    if shift:
        padded = padded.roll((-shift, -shift), dims=(1, 2))
    rows, columns = -(-height // window), -(-width // window)
    windows = padded.view(batch, rows, window, columns, window, dim).transpose(2, 3).reshape(-1, window**2, dim)
    split = (-1, window**2, 3, attention.heads, dim // attention.heads)
    q, k, v = attention.qkv(windows).view(split).permute(2, 0, 3, 1, 4)
    scores = (q * (dim // attention.heads) ** -0.5) @ k.transpose(-2, -1) + attention.position_bias()
    if shift:
        by_window = scores.view(batch, rows * columns, attention.heads, window**2, window**2)
        scores = (by_window + _mask(rows, columns, window, shift)).view(-1, attention.heads, window**2, window**2)
    values = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, window**2, dim))
    whole = values.view(batch, rows, columns, window, window, dim).transpose(2, 3)
    whole = whole.reshape(batch, rows * window, columns * window, dim)
    if shift:
        whole = whole.roll((shift, shift), dims=(1, 2))
    x = x + whole[:, :height, :width]
    result: Tensor = x + block.mlp(block.norm2(x))
    return result


def _mask(rows: int, columns: int, window: int, shift: int) -> Tensor:
    """[rows * columns, 1, window², window²]: 0 for two tokens on one side of the cuts of the roll, else -inf."""

    def side(count: int) -> Tensor:
        position = torch.arange(count * window)
        return 1 * (position >= (count - 1) * window) + 1 * (position >= count * window - shift)

    sides = 3 * side(rows).view(-1, 1) + side(columns)
    by_window = sides.view(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, 1, window**2)
    apart = by_window.unsqueeze(-1) != by_window.unsqueeze(-2)
    return torch.zeros(apart.shape).masked_fill(apart, float("-inf"))


def _pyramid(aspp: DeformableAspp, x: Tensor) -> Tensor:
    total = aspp.pooled_projection(F.relu(aspp.pooled(x.mean(dim=(2, 3)))))[:, :, None, None]
    for branch, projection in zip(aspp.branches, aspp.projections, strict=True):
        assert isinstance(branch, DeformableConv)
        total = total + F.conv2d(F.relu(_deformed(branch, x)), projection[:, :, None, None])
    return F.relu(total)


def _deformed(layer: DeformableConv, x: Tensor) -> Tensor:
    taps, side = layer.kernel**2, layer.kernel
    batch, _, height, width = _sizes(x)
    offset_mask = layer.offset(x)
    weight = layer.weight.view(len(layer.weight), side, side, -1).permute(0, 3, 1, 2).contiguous()
    shape = [batch, len(layer.weight), height, width]
    mask = 2 * offset_mask[:, 2 * taps : 3 * taps].sigmoid()
    result: Tensor = torch.ops.rmbgd.deform_conv(x, weight, offset_mask[:, : 2 * taps], layer.bias, mask, side, shape)
    return result


def _head(head: Head, p: Tensor, x: Tensor) -> Tensor:
    top, bottom = head.border(x[:, :, :3])[:, :, :1], head.border(x[:, :, -3:])[:, :, -1:]
    left, right = head.border(x[..., :3])[..., :1], head.border(x[..., -3:])[..., -1:]
    inside = head.stencil(x)[:, :, 1:-1, 1:-1]
    middle = torch.cat((top[..., 1:-1], inside, bottom[..., 1:-1]), dim=2)
    return torch.cat((left, middle, right), dim=3) + upsample(head.coarse(p), _sizes(x)[-2:])


def _sizes(x: Tensor) -> list[int]:
    """Also while tracing plain numbers."""
    return [int(side) for side in x.shape]


WHOLE: dict[type[nn.Module], Callable[..., Tensor]]
WHOLE = {Linear: _linear, SwinBlock: _block, DeformableAspp: _pyramid, Head: _head}


@cache
def _register_deform_conv() -> None:
    """An operator whose result is zeros: tracing wants no more than its shape."""

    def zeros(x: Tensor, *rest: Any) -> Tensor:
        return x.new_zeros(rest[-1])

    @parse_args("v", "v", "v", "v", "v", "i", "is")
    def symbolic(
        graph: Any, x: Any, weight: Any, offset: Any, bias: Any, mask: Any, side: int, shape: list[int]
    ) -> Any:
        inputs = x, weight, offset, bias, mask
        result = graph.op("DeformConv", *inputs, kernel_shape_i=2 * [side], pads_i=4 * [side // 2])
        return result.setType(inputs[0].type().with_sizes(shape))

    arguments = "(Tensor x, Tensor weight, Tensor offset, Tensor bias, Tensor mask, int kernel, int[] shape) -> Tensor"
    torch.library.define("rmbgd::deform_conv", arguments)
    torch.library.impl("rmbgd::deform_conv", "default", zeros)
    register_custom_op_symbolic("rmbgd::deform_conv", symbolic, OPSET)
