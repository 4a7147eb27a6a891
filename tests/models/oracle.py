"""BiRefNet in the plainest way that is faithful to the published network: the measure of everything in `rmbgd/models`.

Parameter names are those of the published checkpoints. Nothing is folded, shared, tiled or reused: BatchNorm runs as
BatchNorm, every shifted block makes its own mask, scores are whole tensors, the deformable convolution builds its
column tensor, the decoder keeps full-width maps. Works in float64 for the proofs and in float32 for the measurements.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmbgd.models.checkpoint import BACKBONES, Backbone


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def to_windows(x: Tensor, window: int) -> Tensor:
    """[B,H,W,C] -> [B*windows, window*window, C], windows in row-major order."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    x = x.view(-1, height // window, width // window, window, window, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(x.shape[0], height, width, x.shape[-1])


def relative_position_index(window: int) -> Tensor:
    """[window², window²]: which row of the bias table belongs to a pair of tokens."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    dy = rows[:, None] - rows[None, :] + window - 1
    dx = columns[:, None] - columns[None, :] + window - 1
    return dy * (2 * window - 1) + dx


def shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """[windows, window², window²]: 0 where two tokens of a window were neighbours before the roll, else -inf."""
    regions = torch.zeros(1, height, width, 1, dtype=like.dtype, device=like.device)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(cuts):
        for j, columns in enumerate(cuts):
            regions[:, rows, columns] = 3 * i + j
    region = to_windows(regions, window).squeeze(-1)
    different = region[:, None, :] != region[:, :, None]
    return torch.zeros_like(different, dtype=like.dtype).masked_fill(different, float("-inf"))


class WindowAttention(nn.Module):
    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, tokens, dim = x.shape
        qkv = self.qkv(x).view(windows, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        scores = scores + bias.view(tokens, tokens, self.heads).permute(2, 0, 1)
        if mask is not None:
            scores = scores.view(-1, mask.shape[0], self.heads, tokens, tokens) + mask[:, None]
            scores = scores.view(windows, self.heads, tokens, tokens)
        out = scores.softmax(dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(windows, tokens, dim))


class SwinBlock(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = chain(fc1=nn.Linear(dim, 4 * dim), gelu=nn.GELU(), fc2=nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        window, shift = self.window, self.shift
        y = F.pad(self.norm1(x), (0, 0, 0, -width % window, 0, -height % window))
        padded_height, padded_width = y.shape[1:3]
        mask = None
        if shift:
            y = y.roll((-shift, -shift), dims=(1, 2))
            mask = shift_mask(padded_height, padded_width, window, shift, y)
        y = self.attn(to_windows(y, window), mask)
        y = from_windows(y, window, padded_height, padded_width).view(batch, padded_height, padded_width, dim)
        if shift:
            y = y.roll((shift, shift), dims=(1, 2))
        x = x + y[:, :height, :width]
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        quarters = x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]
        return self.reduction(self.norm(torch.cat(quarters, dim=-1)))


def stage(dim: int, depth: int, heads: int, window: int, *, last: bool) -> nn.Sequential:
    blocks = nn.Sequential(*(SwinBlock(dim, heads, window, window // 2 * (i % 2)) for i in range(depth)))
    return chain(blocks=blocks) if last else chain(blocks=blocks, downsample=PatchMerging(dim))


class PatchEmbed(nn.Module):
    def __init__(self, embed: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed, 4, stride=4)
        self.norm = nn.LayerNorm(embed)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """[B,3,H,W] -> four maps [B, embed*2^i, H/2^(i+2), W/2^(i+2)]."""

    def __init__(self, shape: Backbone) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(shape.embed)
        self.layers = nn.ModuleList(
            stage(shape.embed * 2**i, depth, heads, shape.window, last=i == 3)
            for i, (depth, heads) in enumerate(zip(shape.depths, shape.heads, strict=True))
        )
        for i in range(4):
            self.add_module(f"norm{i}", nn.LayerNorm(shape.embed * 2**i))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.patch_embed(image)
        maps = []
        for i, stage in enumerate(self.layers):
            x = stage.blocks(x)
            maps.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
            if i < len(self.layers) - 1:
                x = stage.downsample(x)
        return maps


class DeformableConv(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.offset_conv = nn.Conv2d(c_in, 2 * kernel**2, kernel, padding=kernel // 2)
        self.modulator_conv = nn.Conv2d(c_in, kernel**2, kernel, padding=kernel // 2)
        self.regular_conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)

    def columns(self, x: Tensor) -> Tensor:
        """[B, C, k², H*W]: for each tap and pixel, x sampled bilinearly at the offset tap, times modulation."""
        batch, channels, height, width = x.shape
        k = self.kernel
        offset = self.offset_conv(x).view(batch, k * k, 2, height, width)
        modulation = 2 * self.modulator_conv(x).sigmoid()
        tap_y, tap_x = torch.meshgrid(*2 * [torch.arange(k, dtype=x.dtype) - k // 2], indexing="ij")
        ys = offset[:, :, 0] + tap_y.reshape(1, -1, 1, 1) + torch.arange(height, dtype=x.dtype).view(-1, 1)
        xs = offset[:, :, 1] + tap_x.reshape(1, -1, 1, 1) + torch.arange(width, dtype=x.dtype)
        top, left = ys.floor(), xs.floor()
        flat = x.flatten(2)
        columns = x.new_zeros(batch, channels, k * k * height * width)
        for dy in (0, 1):
            for dx in (0, 1):
                row, column = top + dy, left + dx
                weight = (1 - (ys - row).abs()) * (1 - (xs - column).abs()) * modulation
                weight = weight * ((row >= 0) & (row < height) & (column >= 0) & (column < width))
                index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
                corner = flat.gather(2, index.view(batch, 1, -1).expand(-1, channels, -1))
                columns += corner * weight.view(batch, 1, -1)
        return columns.view(batch, channels, k * k, height * width)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.regular_conv.weight.flatten(1)
        return (weight @ self.columns(x).flatten(1, 2)).unflatten(-1, x.shape[-2:])


def deformable_branch(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    return chain(atrous_conv=DeformableConv(c_in, c_out, kernel), bn=nn.BatchNorm2d(c_out), relu=nn.ReLU())


class DeformableAspp(nn.Module):
    def __init__(self, width: int = 64, branch: int = 256) -> None:
        super().__init__()
        self.aspp1 = deformable_branch(width, branch, 1)
        self.aspp_deforms = nn.ModuleList(deformable_branch(width, branch, k) for k in (1, 3, 7))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, branch, 1, bias=False), nn.BatchNorm2d(branch), nn.ReLU()
        )
        self.conv1 = nn.Conv2d(5 * branch, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.aspp1(x), *(branch(x) for branch in self.aspp_deforms)]
        branches.append(upsample(self.global_avg_pool(x), x.shape[-2:]))
        return F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1))))


def conv3x3(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def decoder_block(c_in: int, c_out: int) -> nn.Sequential:
    first = {"conv_in": conv3x3(c_in, 64), "bn_in": nn.BatchNorm2d(64), "relu": nn.ReLU()}
    return chain(**first, dec_att=DeformableAspp(), conv_out=conv3x3(64, c_out), bn_out=nn.BatchNorm2d(c_out))


class Decoder(nn.Module):
    def __init__(self, channels: Sequence[int], patch_order: str) -> None:
        super().__init__()
        c1, c2, c3, c4 = channels
        self.patch_order = patch_order
        for level, c_image in ((5, c4), (4, c4), (3, c3), (2, c2), (1, c1)):
            grid = 2**level if level > 1 else 1
            branch = chain(conv1=conv3x3(3 * grid * grid, 64), conv_out=conv3x3(64, c_image // 8))
            self.add_module(f"ipt_blk{level}", branch)
        self.decoder_block4 = decoder_block(c4 + c4 // 8, c3)
        self.decoder_block3 = decoder_block(c3 + c4 // 8, c2)
        self.decoder_block2 = decoder_block(c2 + c3 // 8, c1)
        self.decoder_block1 = decoder_block(c1 + c2 // 8, c1 // 2)
        for level, c in ((4, c3), (3, c2), (2, c1)):
            self.add_module(f"lateral_block{level}", chain(conv=nn.Conv2d(c, c, 1)))
            self.add_module(f"gdt_convs_{level}", nn.Sequential(conv3x3(c, 16), nn.BatchNorm2d(16), nn.ReLU()))
            self.add_module(f"gdt_convs_attn_{level}", nn.Sequential(nn.Conv2d(16, 1, 1)))
        self.conv_out1 = nn.Sequential(nn.Conv2d(c1 // 2 + c1 // 8, 1, 1))

    def patches(self, image: Tensor, grid: int) -> Tensor:
        """[B,3,grid*h,grid*w] -> [B,3*grid*grid,h,w]."""
        tiles = image.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))  # B, c, tile row, h, tile column, w
        if self.patch_order == "channel_first":
            return tiles.permute(0, 1, 2, 4, 3, 5).flatten(1, 3)
        return tiles.permute(0, 4, 2, 1, 3, 5).flatten(1, 3)

    def gated(self, level: int, p: Tensor) -> Tensor:
        gate = getattr(self, f"gdt_convs_attn_{level}")(getattr(self, f"gdt_convs_{level}")(p))
        return p * gate.sigmoid()

    def forward(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        x1, x2, x3, x4 = maps
        p = torch.cat((x4, self.ipt_blk5(self.patches(image, 32))), dim=1)
        for level, x in ((4, x3), (3, x2), (2, x1)):
            p = self.gated(level, getattr(self, f"decoder_block{level}")(p))
            p = upsample(p, x.shape[-2:]) + getattr(self, f"lateral_block{level}")(x)
            p = torch.cat((p, getattr(self, f"ipt_blk{level}")(self.patches(image, 2**level))), dim=1)
        p = upsample(self.decoder_block1(p), image.shape[-2:])
        return self.conv_out1(torch.cat((p, self.ipt_blk1(image)), dim=1))


class BiRefNet(nn.Module):
    """Normalised image [B,3,H,W], H and W multiples of 32 -> logits [B,1,H,W]."""

    def __init__(self, shape: Backbone, patch_order: str = "channel_first") -> None:
        super().__init__()
        channels = [2 * shape.embed * 2**i for i in range(4)]
        self.bb = Swin(shape)
        self.squeeze_module = nn.Sequential(decoder_block(sum(channels), channels[-1]))
        self.decoder = Decoder(channels, patch_order)

    def forward(self, image: Tensor) -> Tensor:
        half = upsample(image, (image.shape[2] // 2, image.shape[3] // 2))
        x1, x2, x3, x4 = (
            torch.cat((full, upsample(small, full.shape[-2:])), dim=1)
            for full, small in zip(self.bb(image), self.bb(half), strict=True)
        )
        x4 = torch.cat([*(upsample(x, x4.shape[-2:]) for x in (x1, x2, x3)), x4], dim=1)
        return self.decoder(image, (x1, x2, x3, self.squeeze_module(x4)))


def build(backbone: str, patch_order: str = "channel_first") -> BiRefNet:
    """The oracle at a published size, in eval mode, with weights still to be loaded."""
    return BiRefNet(BACKBONES[backbone], patch_order).requires_grad_(requires_grad=False).eval()
