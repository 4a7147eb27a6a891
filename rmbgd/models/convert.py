"""Converts a published BiRefNet checkpoint into our network: renames and folds its tensors.

Every fold is the same function in real arithmetic:

- BatchNorm (eval mode) goes into the convolution before it, also into the deformable ones;
- the offset and the modulation convolution of a deformable convolution become one, of whole eights of channels;
- the last block's convolution, its BatchNorm, the image's last branch and the final 1x1 become the head (`Head`);
- the channels of image patches are put into one order, whichever order the checkpoint was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from rmbgd.models.birefnet import BiRefNet, stays_float32
from rmbgd.models.checkpoint import Backbone, is_optional, swin_tensors
from rmbgd.models.deform import offset_channels
from rmbgd.models.registry import PatchOrder

_BATCH_NORM_EPSILON = 1e-5
_BRANCHES = ("aspp1", "aspp_deforms.0", "aspp_deforms.1", "aspp_deforms.2")

GetTensor = Callable[[str], Tensor]
Named = Iterator[tuple[str, Tensor]]


def assemble(
    backbone: Backbone, patch_order: PatchOrder, get: GetTensor, *, device: torch.device | str, dtype: torch.dtype
) -> BiRefNet:
    """The network with a checkpoint's weights, ready for inference. Raises RuntimeError for shapes that do not fit.

    get: published name -> tensor, in any floating type; called once or twice for each name that is needed, one after
    another, so that a mapped file need never be resident as a whole. Tensors that no fold touches and that are in place
    already (a mapped float32 file, a CPU in float32) are used as they are, without a copy.
    """
    with torch.device("meta"):
        network = BiRefNet(backbone)
    wide = torch.promote_types(dtype, torch.float32)
    state = {}
    for name, tensor in network_state(backbone, patch_order, get):
        layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
        state[name] = tensor.to(device, wide if stays_float32(name) else dtype, memory_format=layout)
    network.requires_grad_(requires_grad=False)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def network_state(backbone: Backbone, patch_order: PatchOrder, get: GetTensor) -> Named:
    """Every tensor of `BiRefNet(backbone)` in turn. Folds compute in float32 or more."""
    yield from ((name, get(name)) for name, _ in swin_tensors(backbone) if not is_optional(name))
    yield from _decoder_block("squeeze", "squeeze_module.0", get)
    yield from _convolution("squeeze_out", *_batch_norm("squeeze_module.0.conv_out", "squeeze_module.0.bn_out", get))
    for level in (4, 3, 2, 1):
        yield from _decoder_block(f"block{level}", f"decoder.decoder_block{level}", get)
    for level in (5, 4, 3, 2):
        image, at = f"image{level}", f"decoder.ipt_blk{level}"
        weight = get(f"{at}.conv1.weight")
        if patch_order is PatchOrder.TILE_FIRST:  # from (tile column, tile row, c) to (c, tile row, tile column)
            tiles = weight.view(len(weight), 2**level, 2**level, 3, *weight.shape[2:])
            weight = tiles.transpose(1, 3).reshape(weight.shape)
        yield from _convolution(f"{image}.conv1", weight, get(f"{at}.conv1.bias"))
        yield from _convolution(f"{image}.conv_out", get(f"{at}.conv_out.weight"), get(f"{at}.conv_out.bias"))
    for level in (4, 3, 2):
        block, gate, lateral = f"decoder.decoder_block{level}", f"gate{level}", f"decoder.lateral_block{level}.conv"
        at, attention = f"decoder.gdt_convs_{level}", f"decoder.gdt_convs_attn_{level}.0"
        yield from _convolution(f"out{level}", *_batch_norm(f"{block}.conv_out", f"{block}.bn_out", get))
        yield from _convolution(f"{gate}.conv", *_batch_norm(f"{at}.0", f"{at}.1", get))
        yield from _convolution(f"{gate}.attention", get(f"{attention}.weight"), get(f"{attention}.bias"))
        yield from _convolution(f"lateral{level}", get(f"{lateral}.weight"), get(f"{lateral}.bias"))
    yield from _head(get)


def _decoder_block(to: str, at: str, get: GetTensor) -> Named:
    yield from _convolution(f"{to}.conv_in", *_batch_norm(f"{at}.conv_in", f"{at}.bn_in", get))
    for i, branch in enumerate(_BRANCHES):
        deform, name = f"{at}.dec_att.{branch}.atrous_conv", f"{to}.aspp.branches.{i}"
        offset, modulation = f"{deform}.offset_conv", f"{deform}.modulator_conv"
        for part in ("weight", "bias"):
            both = torch.cat((get(f"{offset}.{part}"), get(f"{modulation}.{part}")))
            beyond = offset_channels(round((len(both) / 3) ** 0.5)) - len(both)
            yield f"{name}.offset.{part}", torch.cat((both, both.new_zeros(beyond, *both.shape[1:])))
        weight, bias = _batch_norm(f"{deform}.regular_conv", f"{at}.dec_att.{branch}.bn", get, has_bias=False)
        yield from _convolution(name, weight.permute(0, 2, 3, 1).flatten(1), bias)
    pooled = f"{at}.dec_att.global_avg_pool"
    weight, bias = _batch_norm(f"{pooled}.1", f"{pooled}.2", get, has_bias=False)
    yield from _convolution(f"{to}.aspp.pooled", weight.flatten(1), bias)
    weight, bias = _batch_norm(f"{at}.dec_att.conv1", f"{at}.dec_att.bn1", get, has_bias=False)
    *branches, pooled_branch = weight.flatten(1).chunk(len(_BRANCHES) + 1, dim=1)
    for i, projection in enumerate(branches):
        yield f"{to}.aspp.projections.{i}", projection.contiguous()
    yield from _convolution(f"{to}.aspp.pooled_projection", pooled_branch.contiguous(), bias)


def _head(get: GetTensor) -> Named:
    block, image, out = "decoder.decoder_block1", "decoder.ipt_blk1", "decoder.conv_out1.0"
    weight, bias = _batch_norm(f"{block}.conv_out", f"{block}.bn_out", get)
    mix = _wide(get(f"{out}.weight")).flatten(1)
    out_block, out_image = mix[:, : len(bias)], mix[:, len(bias) :]
    yield from _convolution("head.coarse", _mixed(out_block, weight), out_block @ bias + _wide(get(f"{out}.bias")))
    inner, inner_bias = _wide(get(f"{image}.conv1.weight")), _wide(get(f"{image}.conv1.bias"))
    outer = _mixed(out_image, _wide(get(f"{image}.conv_out.weight")))
    outer_bias = out_image @ _wide(get(f"{image}.conv_out.bias"))
    yield from _convolution("head.border_in", inner, inner_bias)
    yield from _convolution("head.border_out", outer, outer_bias)
    # outer * (inner * x + b) = (outer * inner) * x + sum(outer) b: as a convolution of kernels, the inner one flipped.
    stencil = F.conv2d(inner.transpose(0, 1), outer.flip(2, 3), padding=2).transpose(0, 1)
    yield from _convolution("head.stencil", stencil, outer_bias + outer.sum((2, 3)) @ inner_bias)


def _convolution(name: str, weight: Tensor, bias: Tensor) -> Named:
    yield f"{name}.weight", weight
    yield f"{name}.bias", bias


def _batch_norm(conv: str, norm: str, get: GetTensor, *, has_bias: bool = True) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the BatchNorm that follows it."""
    scale = _wide(get(f"{norm}.weight")) * (_wide(get(f"{norm}.running_var")) + _BATCH_NORM_EPSILON).rsqrt()
    shift = _wide(get(f"{norm}.bias")) - scale * _wide(get(f"{norm}.running_mean"))
    weight = _wide(get(f"{conv}.weight"))
    folded = torch.empty_like(weight, memory_format=torch.channels_last)  # channels-last at once: one pass, one tensor
    torch.mul(weight, scale.view(-1, 1, 1, 1), out=folded)
    return folded, shift + scale * _wide(get(f"{conv}.bias")) if has_bias else shift


def _mixed(mix: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution [o, c] after a convolution [c, i, k, k], as one."""
    return torch.einsum("oc,cikl->oikl", mix, weight)


def _wide(tensor: Tensor) -> Tensor:
    """At least float32, so that a checkpoint in half precision loses nothing more by folding."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
