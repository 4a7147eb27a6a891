"""Modulated deformable convolution and the pyramid of them that BiRefNet's decoder is made of. Inference only.

Does not know the decoder. Plain torch: runs, and means the same, on every device and in every floating type.

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

from rmbgd.models.linear import linear

# Bytes of samples alive at once. On a CPU they should stay in the last-level cache until the product has read them.
_PIECE_BYTES = {"cpu": 16 << 20}
_PIECE_BYTES_ELSEWHERE = 512 << 20


class DeformableConv(nn.Module):
    """y(p) = Σ_k w_k x(p + p_k + Δp_k) m_k + bias (1): stride 1, same size, kernel k x k.

    `offset` predicts, for each pixel, 2k² offsets (dy, dx per tap, taps row-major) and k² logits of the modulation
    m = 2 sigmoid(logit). `weight` is [c_out, k*k*c_in], taps before channels.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.offset = nn.Conv2d(c_in, 3 * kernel**2, kernel, padding=kernel // 2)
        self.weight = nn.Parameter(torch.empty(c_out, kernel**2 * c_in))
        self.bias = nn.Parameter(torch.empty(c_out))

    def forward(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Map [B,c_in,H,W] -> pieces of y: which rows of [B*H*W, c_out] they are, and the rows."""
        channels, height, width = x.shape[1:]
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
        moves = self.offset(x).permute(0, 2, 3, 1).reshape(len(rows), -1)
        budget = _PIECE_BYTES.get(x.device.type, _PIECE_BYTES_ELSEWHERE)
        step = max(1, budget // (self.weight.shape[1] * x.element_size()))
        for first in range(0, len(rows), step):
            piece = slice(first, first + step)
            samples = self.sample(rows, moves[piece], first, (height, width))
            yield piece, linear(samples, self.weight, self.bias)

    def sample(self, rows: Tensor, moves: Tensor, first: int, size: tuple[int, int]) -> Tensor:
        """Modulated samples of some pixels.

        rows: all pixels of the batch [B*H*W, C]; moves: `offset`'s answer [n, 3k²] for the n pixels from `first` on;
        size: (H, W). -> [n, k²*C], taps before channels.
        """
        height, width = size
        taps = self.kernel**2
        moves = moves.float() if moves.dtype is not torch.float64 else moves
        pixel = torch.arange(first, first + len(moves), device=rows.device).unsqueeze(1)
        tap = torch.arange(taps, device=rows.device)
        reach = self.kernel // 2
        # Beyond one pixel outside, a sample is zero wherever it lies: clamping keeps the integers small.
        y = pixel // width % height + tap // self.kernel - reach + moves[:, 0 : 2 * taps : 2]
        x = pixel % width + tap % self.kernel - reach + moves[:, 1 : 2 * taps : 2]
        row, row_share = _corners(y, height)
        column, column_share = _corners(x, width)
        start = pixel // (height * width) * (height * width)
        index = (start.view(-1, 1, 1, 1) + row.unsqueeze(-1) * width) + column.unsqueeze(-2)
        modulation = 2 * moves[:, 2 * taps :].sigmoid()
        share = (row_share * modulation.unsqueeze(-1)).unsqueeze(-1) * column_share.unsqueeze(-2)
        samples = F.embedding_bag(
            index.view(-1, 4), rows, per_sample_weights=share.view(-1, 4).to(rows.dtype), mode="sum"
        )
        return samples.view(len(moves), -1)


def _corners(position: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The two pixels around each position on one axis, [..., 2] each: index clamped to the map, share 0 outside it."""
    position = position.clamp(-1, length)
    lower = position.floor()
    upper_share = position - lower
    pixel = torch.stack((lower, lower + 1), dim=-1)
    share = torch.stack((1 - upper_share, upper_share), dim=-1)
    share = share * ((pixel >= 0) & (pixel < length))
    return pixel.long().clamp(0, length - 1), share


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

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        mean = x.mean(dim=(2, 3), dtype=wide).to(x.dtype)
        total = self.join_mean(F.relu(self.mean(mean))).to(wide).repeat_interleave(height * width, dim=0)
        for branch, join in zip(self.branches, self.join, strict=True):
            for piece, answer in branch(x):
                total[piece] += linear(F.relu(answer, inplace=True), join)
        return F.relu(total, inplace=True).to(x.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
