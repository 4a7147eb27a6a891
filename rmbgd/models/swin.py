"""Swin v1, the backbone: attention in windows that shift by half a window from block to block. Inference only.

Does not know the decoder, checkpoints or picture sizes: any map whose sides are positive passes.

Paper: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021; the numbers in
brackets are its equations. Parameter names are those of the published checkpoints.

Exact savings, against the paper's code: tokens that pad the map to whole windows never pass through qkv and proj
(LayerNorm comes before the padding, so their query, key and value are the bias); which token sits in which window is
computed once per shape; only the windows that the shift cuts carry a mask, and it has three patterns.

In half precision the stream between the blocks, the norms' parameters and the patch embedding stay in float32: products
are in the type of their weights. Measured in bfloat16, the three made half of the error, and they cost next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmbgd.models.linear import Linear
from rmbgd.models.published import Backbone

# The working set of one piece of a block, in bytes. On a CPU: small enough that the allocator gives the same warm
# pages again instead of fresh ones from the kernel (glibc's limit is 32 MiB). Elsewhere: few, large kernels.
_PIECE_BYTES = {"cpu": 24 << 20}
_PIECE_BYTES_ELSEWHERE = 512 << 20


def rows_per_piece(row_elements: int, like: Tensor) -> int:
    """How many rows of `row_elements` elements in the type of `like` make one piece of work on its device."""
    budget = _PIECE_BYTES.get(like.device.type, _PIECE_BYTES_ELSEWHERE)
    return max(1, budget // (row_elements * like.element_size()))


@dataclass(frozen=True)
class Piece:
    """Some windows with one mask pattern. Slots are the places of the windows' tokens, window by window."""

    tokens: Tensor  # [slots] index of the token in each slot; any index where the slot is padding
    padding: Tensor  # [<= slots] the slots that hold no token
    pattern: int  # index into WindowPlan.masks


@dataclass(frozen=True)
class WindowPlan:
    """Which token goes into which window: all of attention that depends on shapes and not on weights."""

    pieces: tuple[Piece, ...]
    slots: Tensor  # [batch*height*width] where each token's answer stands in the pieces' answers, end to end
    masks: tuple[Tensor | None, ...]  # [window², window²] True where two tokens may see each other


@lru_cache(maxsize=64)
def window_plan(
    batch: int, height: int, width: int, window: int, shift: int, windows_per_piece: int, device: torch.device
) -> WindowPlan:
    """The plan for maps of this shape. Cached: a service sees few shapes, each many times."""
    tokens = torch.arange(batch * height * width).view(batch, height, width)
    tokens = F.pad(tokens, (0, -width % window, 0, -height % window), value=-1).roll((-shift, -shift), dims=(1, 2))
    rows, columns = tokens.shape[1] // window, tokens.shape[2] // window
    windows = tokens.view(batch, rows, window, columns, window).transpose(2, 3).reshape(-1, window * window)
    # The roll brings the map's far side next to its near side in the last row and in the last column of windows.
    last_row = torch.arange(rows).eq(rows - 1).view(1, rows, 1)
    last_column = torch.arange(columns).eq(columns - 1).view(1, 1, columns)
    pattern = (2 * last_row + 1 * last_column).expand(batch, -1, -1).reshape(-1) * bool(shift)
    order = pattern.argsort(stable=True)
    pieces, start = [], 0
    for kind, members in groupby(pattern[order].tolist()):
        count = len(list(members))
        for piece in torch.split(windows[order[start : start + count]], windows_per_piece):
            slots = piece.flatten()
            padding = slots.lt(0).nonzero().flatten()
            pieces.append(Piece(slots.clamp_min(0).to(device), padding.to(device), kind))
        start += count
    placed = windows[order].flatten()
    position = torch.empty(batch * height * width, dtype=torch.long)
    position[placed[placed >= 0]] = placed.ge(0).nonzero().flatten()
    masks = tuple(
        None if kind == 0 else _neighbours(window, shift, cut_rows=kind >= 2, cut_columns=kind % 2 == 1).to(device)
        for kind in range(4)
    )
    return WindowPlan(tuple(pieces), position.to(device), masks)


def _neighbours(window: int, shift: int, *, cut_rows: bool, cut_columns: bool) -> Tensor:
    """[window², window²]: True for two tokens on the same side of the cuts that the roll made through a window."""
    beyond = torch.arange(window) >= window - shift
    side = 2 * (beyond & cut_rows).view(-1, 1) + 1 * (beyond & cut_columns)
    return side.view(-1, 1) == side.view(1, -1)


@lru_cache(maxsize=8)
def relative_position_index(window: int, device: torch.device) -> Tensor:
    """[window⁴]: for each pair of tokens of a window, the row of the position bias table."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    dy = y.reshape(-1, 1) - y.reshape(1, -1) + window - 1
    dx = x.reshape(-1, 1) - x.reshape(1, -1) + window - 1
    return (dy * (2 * window - 1) + dx).flatten().to(device)


class WindowAttention(nn.Module):
    """softmax(q kᵀ / sqrt(d) + position bias) v within each window (4), for all heads."""

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def position_bias(self) -> Tensor:
        """[1, heads, window², window²]"""
        index = relative_position_index(self.window, self.relative_position_bias_table.device)
        bias = self.relative_position_bias_table.t().index_select(1, index)
        return bias.view(1, self.heads, self.window**2, self.window**2)

    def forward(self, x: Tensor) -> Tensor:
        """[B,H,W,C] -> [B,H,W,C]"""
        batch, height, width, dim = x.shape
        in_window = self.window**2
        qkv = self.qkv(x).view(-1, 3 * dim)
        pieces = rows_per_piece(in_window * 3 * dim, qkv)
        plan = window_plan(batch, height, width, self.window, self.shift, pieces, x.device)
        bias = self.position_bias()
        biases = [bias if seen is None else bias.masked_fill(~seen, float("-inf")) for seen in plan.masks]
        answers = []
        for piece in plan.pieces:
            windows = qkv.index_select(0, piece.tokens)
            windows[piece.padding] = self.qkv.bias
            q, k, v = windows.view(-1, in_window, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
            answer = F.scaled_dot_product_attention(q, k, v, attn_mask=biases[piece.pattern])
            answers.append(answer.transpose(1, 2).reshape(-1, dim))
        tokens = torch.cat(answers).index_select(0, plan.slots)
        projected: Tensor = self.proj(tokens.view(batch, height, width, dim))
        return projected


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 4 * dim)
        self.fc2 = Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return answer


class SwinBlock(nn.Module):
    """x + attention(LN(x)), then x + mlp(LN(x)) (3). Works in place on its input."""

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, shift)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x += self.attn(self.norm1(x))
        tokens = x.view(-1, x.shape[-1])
        for part in torch.split(tokens, rows_per_piece(4 * x.shape[-1], x)):
            part.add_(self.mlp(self.norm2(part)))
        return x


class PatchMerging(nn.Module):
    """[B,H,W,C] -> [B,ceil(H/2),ceil(W/2),2C]: four neighbours into one token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        neighbours = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        merged: Tensor = self.reduction(self.norm(torch.cat(neighbours, dim=-1)))
        return merged.to(x.dtype)


class Stage(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, window: int, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(dim, heads, window, window // 2 * (i % 2)) for i in range(depth))
        self.downsample = nn.Identity() if last else PatchMerging(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map of this stage, and the input of the next."""
        for block in self.blocks:
            x = block(x)
        return x, self.downsample(x)


class PatchEmbed(nn.Module):
    """[B,3,H,W] -> [B,H/4,W/4,C]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1))
        return tokens


class Swin(nn.Module):
    """Normalised image [B,3,H,W] -> four maps [B, embed*2^i, H/2^(i+2), W/2^(i+2)], i = 0..3, pixel-major."""

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
            answer, x = stage(x)
            maps.append(self.get_submodule(f"norm{i}")(answer).permute(0, 3, 1, 2))
        return maps
