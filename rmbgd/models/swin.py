"""Swin Transformer v1, the backbone: attention in shifted windows. Inference only.

Paper: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021; the numbers in
brackets are its equations. Parameter names are those of the published checkpoints.

Exact savings, against the paper's code: tokens that pad the map to whole windows never pass through qkv and proj
(LayerNorm comes before the padding, so their query, key and value are the bias); which token belongs to which window is
computed once per shape; only the windows that the shift cuts carry a mask, and it has three patterns. A block works on
chunks of its map, in place, so that no map of queries, scores or hidden units exists as a whole. After `use_kernels`
attention runs as one Triton kernel on whole maps (`kernels/window.py`), without a plan, and every sum on the residual
stream is part of the norm that follows it (`kernels/norm.py`).

In half precision the residual stream, the norms' parameters and the patch embedding stay in float32: products are in
the type of their weights. Measured in bfloat16, the three made half of the error, and they cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmbgd.models.checkpoint import Backbone
from rmbgd.models.layers import HALF, Conv2d, KernelLayer, Linear, rows_per_chunk


@dataclass(frozen=True)
class WindowChunk:
    """Some windows with one mask pattern. A slot is a token's position in them, counted window by window."""

    tokens: Tensor  # [tokens] which tokens of the batch belong to these windows, in the order of their slots
    slots: Tensor | None  # [tokens] the slot of each; None where no slot is empty
    padding: Tensor  # the empty slots
    windows: int
    pattern: int  # index into WindowPlan.masks


@dataclass(frozen=True)
class WindowPlan:
    """Which token belongs to which window: all of window attention that depends on shapes and not on weights."""

    chunks: tuple[WindowChunk, ...]
    masks: tuple[Tensor | None, ...]  # [window², window²] True where a token attends to another; None: everywhere


# A captured CUDA graph keeps the addresses of its plans: none may be dropped while a few batch sizes of a few networks
# are in use (16 plans for each).
@lru_cache(maxsize=512)
def window_plan(
    batch: int, height: int, width: int, window: int, shift: int, windows_per_chunk: int, device: torch.device
) -> WindowPlan:
    tokens = torch.arange(batch * height * width).view(batch, height, width)
    tokens = F.pad(tokens, (0, -width % window, 0, -height % window), value=-1).roll((-shift, -shift), dims=(1, 2))
    rows, columns = tokens.shape[1] // window, tokens.shape[2] // window
    windows = tokens.view(batch, rows, window, columns, window).transpose(2, 3).reshape(-1, window * window)
    # The roll brings the map's far side next to its near side in the last row and in the last column of windows.
    last_row = torch.arange(rows).eq(rows - 1).view(1, rows, 1)
    last_column = torch.arange(columns).eq(columns - 1).view(1, 1, columns)
    pattern = (2 * last_row + 1 * last_column).expand(batch, -1, -1).flatten() * bool(shift)
    kinds = 2 * pattern + 1 * windows.lt(0).any(dim=1)
    chunks = tuple(
        _chunk(some, kind // 2, device)
        for kind in sorted(set(kinds.tolist()))
        for some in torch.split(windows[kinds == kind], windows_per_chunk)
    )
    cuts = ((False, True), (True, False), (True, True)) if shift else ()
    masks = tuple(_mask(window, shift, cut_rows=r, cut_columns=c).to(device) for r, c in cuts)
    return WindowPlan(chunks, (None, *masks))


def _chunk(windows: Tensor, pattern: int, device: torch.device) -> WindowChunk:
    """From [windows, window²] token indices, -1 where a slot is empty."""
    slots = windows.flatten()
    filled = slots.ge(0).nonzero().flatten()
    padding = slots.lt(0).nonzero().flatten()
    index = filled.to(device) if len(padding) else None
    return WindowChunk(slots[filled].to(device), index, padding.to(device), len(windows), pattern)


def _mask(window: int, shift: int, *, cut_rows: bool, cut_columns: bool) -> Tensor:
    """[window², window²]: True for two tokens on the same side of the cuts that the roll made through a window."""
    beyond = torch.arange(window) >= window - shift
    side = 2 * (beyond & cut_rows).view(-1, 1) + 1 * (beyond & cut_columns)
    return side.view(-1, 1) == side.view(1, -1)


@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)  # kept for later callers, whose parameters may want a gradient
def relative_position_index(window: int, device: torch.device) -> Tensor:
    """[window⁴]: for each pair of tokens of a window, the row of the relative position bias table."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    dy = y.reshape(-1, 1) - y.reshape(1, -1) + window - 1
    dx = x.reshape(-1, 1) - x.reshape(1, -1) + window - 1
    return (dy * (2 * window - 1) + dx).flatten().to(device)


class WindowAttention(KernelLayer):
    """softmax(q kᵀ / sqrt(d) + relative position bias) v within each window (4), for all heads: [n, C] -> [n, C]"""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        # [heads, n, n], the window's slots in whole blocks; None: plain. Half precision, Swin-L: 42 MB for all layers.
        self.register_buffer("kernel_bias", None, persistent=False)
        self.kernel_bias: Tensor | None

    def use_kernels(self, *, triton: bool) -> None:
        self.kernel_bias = None
        if triton:
            from rmbgd.models.kernels.window import padded_bias

            self.kernel_bias = padded_bias(self.position_bias().detach())

    def position_bias(self) -> Tensor:
        """[heads, window², window²]"""
        index = relative_position_index(self.window, self.relative_position_bias_table.device)
        bias = self.relative_position_bias_table.t().index_select(1, index)
        return bias.view(self.heads, self.window**2, self.window**2)

    def by_kernel(self, x: Tensor, shift: int) -> Tensor:
        """Attention on whole maps [B,H,W,C] -> [B,H,W,C]."""
        from rmbgd.models.kernels.window import window_attention

        assert self.kernel_bias is not None
        qkv, bias = self.qkv(x), self.qkv.bias
        return self.proj(window_attention(qkv, bias, self.kernel_bias, self.window, shift, self.heads))

    def forward(self, tokens: Tensor, chunk: WindowChunk, bias: Tensor) -> Tensor:
        in_window, dim = self.window**2, tokens.shape[1]
        qkv = self.qkv(tokens)
        if chunk.slots is not None:
            windows = qkv.new_empty(chunk.windows * in_window, 3 * dim).index_copy_(0, chunk.slots, qkv)
            windows[chunk.padding] = self.qkv.bias
            qkv = windows
        q, k, v = qkv.view(-1, in_window, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        values = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(-1, dim)
        if chunk.slots is not None:
            values = values.index_select(0, chunk.slots)
        return self.proj(values)


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 4 * dim)
        self.fc2 = Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cpu or x.dtype not in HALF:
            return self.fc2(F.gelu(self.fc1(x)))
        # One product, whose hidden units are written once and never before GELU, where they could overflow. cuBLASLt
        # has GELU in its tanh form: at most 4.7e-4 off, as much as rounding hidden units to float16 is.
        rows, weight = x.view(-1, x.shape[-1]), self.fc1.weight
        hidden = torch._addmm_activation(self.fc1.bias, rows, weight.t(), use_gelu=True)  # noqa: SLF001
        return self.fc2(hidden).view(x.shape)


class SwinBlock(nn.Module):
    """x + attention(LN(x)), then x + mlp(LN(x)) (3). Works in place on its input."""

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        self.attend(x)
        dim = x.shape[-1]
        for tokens in torch.split(x.view(-1, dim), rows_per_chunk(4 * dim, x)):
            tokens.add_(self.mlp(self.norm2(tokens)))
        return x

    def attend(self, x: Tensor) -> None:
        batch, height, width, dim = x.shape
        in_chunk = rows_per_chunk(self.window**2 * 3 * dim, x)
        plan = window_plan(batch, height, width, self.window, self.shift, in_chunk, x.device)
        # Made anew each time: 0.4 % of a forward on a CPU, where kept it would be 120 MB with Swin-L.
        bias = self.attn.position_bias().unsqueeze(0)
        biases = [bias if mask is None else bias.masked_fill(~mask, float("-inf")) for mask in plan.masks]
        tokens = x.view(-1, dim)
        for chunk in plan.chunks:
            rows = self.norm1(tokens.index_select(0, chunk.tokens))
            tokens.index_add_(0, chunk.tokens, self.attn(rows, chunk, biases[chunk.pattern]).to(x.dtype))

    def by_kernels(self, x: Tensor, total: Tensor, term: Tensor | None) -> Tensor:
        """`forward` of x + `term`, but for the last sum: that is `total`, float32, plus the returned term of x's shape.

        x is written if there is a term; `total` may be x.
        """
        from rmbgd.models.kernels.norm import layer_norm

        dtype = self.attn.qkv.weight.dtype
        attention = self.attn.by_kernel(layer_norm(x, self.norm1, dtype, add=term), self.shift)
        output: Tensor = self.mlp(layer_norm(x, self.norm2, dtype, add=attention, total=total))
        return output


class PatchMerging(nn.Module):
    """[B,H,W,C] -> [B,ceil(H/2),ceil(W/2),2C]: four neighbouring tokens into one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        neighbours = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1))).to(x.dtype)

    def by_kernels(self, x: Tensor) -> Tensor:
        """In the type of the weights: the first norm of the next stage reads it, the second one widens it."""
        from rmbgd.models.kernels.norm import merged_norm

        return self.reduction(merged_norm(x, self.norm, self.reduction.weight.dtype))


class Stage(nn.Module):
    """[B,H,W,C] -> the map of this stage, normalised, and the input of the next."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(SwinBlock(dim, heads, window, window // 2 * (i % 2)) for i in range(depth)))
        self.downsample = nn.Identity() if last else PatchMerging(dim)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        blocks = cast("Sequence[SwinBlock]", self.blocks)
        if blocks[0].attn.kernel_bias is not None:
            return self.by_kernels(x, norm, blocks)
        x = self.blocks(x)
        return norm(x), self.downsample(x)

    def by_kernels(self, x: Tensor, norm: nn.LayerNorm, blocks: Sequence[SwinBlock]) -> tuple[Tensor, Tensor]:
        """`forward`, some images at a time, from one end of the stage to the other; the map has the weights' type."""
        from rmbgd.models.kernels.norm import layer_norm

        _, height, width, dim = x.shape
        hidden = blocks[0].mlp.fc1.weight  # of the type of hidden units
        stream = x if x.dtype == torch.float32 else torch.empty_like(x, dtype=torch.float32)
        features = torch.empty_like(x, dtype=hidden.dtype)
        chunks = -(-len(x) // rows_per_chunk(height * width * 4 * dim, hidden))  # about equal: none is a small rest
        for images, total, output in zip(*(t.chunk(chunks) for t in (x, stream, features)), strict=True):
            source, term = images, None
            for block in blocks:
                term = block.by_kernels(source, total, term)
                source = total
            layer_norm(total, norm, hidden.dtype, add=term, output=output)
        return features, self.downsample.by_kernels(stream) if isinstance(self.downsample, PatchMerging) else stream


class PatchEmbed(nn.Module):
    """[B,3,H,W] -> [B,H/4,W/4,C]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = Conv2d(3, dim, 4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1))
        return tokens


class Swin(nn.Module):
    """Normalised image [B,3,H,W] -> four maps [B, embed*2^i, H/2^(i+2), W/2^(i+2)], i = 0..3, channels-last."""

    def __init__(self, shape: Backbone) -> None:
        super().__init__()
        dims = [shape.embed * 2**i for i in range(len(shape.depths))]
        stages = zip(dims, shape.depths, shape.heads, strict=True)
        self.patch_embed = PatchEmbed(shape.embed)
        self.layers = nn.ModuleList(
            Stage(dim, depth, heads, shape.window, last=dim == dims[-1]) for dim, depth, heads in stages
        )
        for i, dim in enumerate(dims):
            self.add_module(f"norm{i}", nn.LayerNorm(dim))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.patch_embed(image)
        maps = []
        for i, stage in enumerate(self.layers):
            features, x = stage(x, self.get_submodule(f"norm{i}"))
            maps.append(features.permute(0, 3, 1, 2))
        return maps
