"""Modulated deformable convolution and the pyramid of them that BiRefNet's decoder is made of. Inference only.

Does not know the decoder. Plain torch: runs, and means the same, on every device and in every floating type. Once
`use_kernels` has chosen it, the pyramid runs as one kernel (`rmbgd.models.kernels.aspp`).

Papers: Zhu et al., "Deformable ConvNets v2", CVPR 2019 (1); Zheng et al., "Bilateral Reference for High-Resolution
Dichotomous Image Segmentation", CAAI AIR 2024. Sampling, bilinear with zeros outside, is a weighted sum of four rows of
the pixel-major map: exactly what `embedding_bag` computes, and its kernels are vectorised over channels. The samples of
a whole map (k² times its size) never exist at once: pixels pass through in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmbgd.models.layers import Conv2d, linear, rows_per_piece


class DeformableConv(nn.Module):
    """y(p) = Σ_k w_k x(p + p_k + Δp_k) m_k + bias (1): stride 1, same size, kernel k x k.

    `offset` predicts, for each pixel, 2k² offsets (dy, dx per tap, taps row-major) and k² logits of the modulation
    m = 2 sigmoid(logit). `weight` is [c_out, k*k*c_in], taps before channels.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.offset = Conv2d(c_in, 3 * kernel**2, kernel, padding=kernel // 2)
        self.weight = nn.Parameter(torch.empty(c_out, kernel**2 * c_in))
        self.bias = nn.Parameter(torch.empty(c_out))

    def forward(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Map [B,c_in,H,W] -> pieces of y: which rows of [B*H*W, c_out] they are, and the rows."""
        batch, channels, height, width = x.shape
        # With a margin of zeros around each image no sample needs to be told that it lies outside.
        table = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 2, 1, 2)).view(-1, channels)
        moves = self.offset(x).permute(0, 2, 3, 1).reshape(batch * height * width, -1)
        step = rows_per_piece(max(self.weight.shape), x)
        for first in range(0, len(moves), step):
            piece = slice(first, first + step)
            samples = self.sample(table, moves[piece], first, (height, width))
            yield piece, linear(samples, self.weight, self.bias)

    def sample(self, table: Tensor, moves: Tensor, first: int, size: tuple[int, int]) -> Tensor:
        """Modulated samples of some pixels.

        table: the batch's pixels with their margins [B*(H+3)*(W+3), C]; moves: `offset`'s answer [n, 3k²] for the n
        pixels from `first` on; size: (H, W). -> [n, k²*C], taps before channels.
        """
        height, width = size
        pitch = width + 3
        taps, reach = self.kernel**2, self.kernel // 2
        moves = moves.to(torch.promote_types(moves.dtype, torch.float32))
        pixel = torch.arange(first, first + len(moves), device=table.device).unsqueeze(1)
        tap = torch.arange(taps, device=table.device)
        y = pixel // width % height + tap // self.kernel - reach + moves[:, 0 : 2 * taps : 2]
        x = pixel % width + tap % self.kernel - reach + moves[:, 1 : 2 * taps : 2]
        # One pixel outside everything is zero already: clamping changes no sample and keeps them inside the margin.
        top, left = y.clamp_(-1, height).floor(), x.clamp_(-1, width).floor()
        # In integers: float32 counts to 16 million pixels only. The last clamp is for offsets that are no numbers.
        corner = (top.int() * pitch).add_(left.int()).add_(pitch + 1).clamp_(0, (height + 2) * pitch - 2)
        corner += (pixel // (height * width) * (height + 3) * pitch).int()
        index = corner.new_empty(*corner.shape, 4)
        share = table.new_empty(index.shape)
        for i, step in enumerate((0, 1, pitch, pitch + 1)):
            torch.add(corner, step, out=index[..., i])
        modulation = 2 * moves[:, 2 * taps :].sigmoid()
        below = modulation * y.sub_(top)
        above = modulation - below
        right = x.sub_(left)
        torch.mul(above, right, out=share[..., 1])
        torch.sub(above, share[..., 1], out=share[..., 0])
        torch.mul(below, right, out=share[..., 3])
        torch.sub(below, share[..., 3], out=share[..., 2])
        samples = F.embedding_bag(index.view(-1, 4), table, per_sample_weights=share.view(-1, 4), mode="sum")
        return samples.view(len(moves), -1)


class DeformableAspp(nn.Module):
    """Deformable atrous spatial pyramid pooling: four deformable convolutions (k = 1, 1, 3, 7) and the map's mean,
    each through ReLU, joined by a 1x1 convolution and ReLU. [B,64,H,W] -> [B,64,H,W]

    BatchNorm is folded into the convolutions. The branches are never joined: `join` is applied branch by branch to the
    pixels of one piece, and the sum is kept.
    """

    def __init__(self, width: int = 64, branch: int = 256, kernels: tuple[int, ...] = (1, 1, 3, 7)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(DeformableConv(width, branch, k) for k in kernels)
        self.join = nn.ParameterList(torch.empty(width, branch) for _ in kernels)
        self.mean = nn.Linear(width, branch)
        self.join_mean = nn.Linear(branch, width)
        self.triton = False

    def use_kernels(self, *, triton: bool) -> None:
        self.triton = triton

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        mean = x.mean(dim=(2, 3), dtype=wide).to(x.dtype)
        base = self.join_mean(F.relu(self.mean(mean))).to(wide)
        if self.triton:
            return self.in_one(x, base)
        total = base.repeat_interleave(height * width, dim=0)
        for branch, join in zip(self.branches, self.join, strict=True):
            for piece, answer in branch(x):
                total[piece] += linear(F.relu(answer, inplace=True), join)
        return F.relu(total, inplace=True).to(x.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)

    def in_one(self, x: Tensor, base: Tensor) -> Tensor:
        """All branches in one kernel. `base` [B,64]: the mean's, joined."""
        from rmbgd.models.kernels.aspp import Branch, pyramid

        given = []
        for layer, join in zip(self.branches, self.join, strict=True):
            assert isinstance(layer, DeformableConv)
            given.append(Branch(layer.kernel, layer.offset(x), layer.weight, layer.bias, join))
        return pyramid(x, base, given)
