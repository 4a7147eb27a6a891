"""Modulated deformable convolution, and deformable atrous spatial pyramid pooling (ASPP). Inference only.

Papers: Zhu et al., "Deformable ConvNets v2", CVPR 2019 (1); Zheng et al., "Bilateral Reference for High-Resolution
Dichotomous Image Segmentation", CAAI AIR 2024.

Bilinear sampling with zeros outside is a weighted sum of four rows of the channels-last map: exactly what
`embedding_bag` computes, and its kernels are vectorised over channels. The samples of a whole map (k² times its size)
never exist at once: pixels are processed in chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmbgd.models.layers import Conv2d, KernelLayer, linear, rows_per_chunk


def offset_channels(kernel: int) -> int:
    """3k², in whole eights: for other counts of half numbers a GPU's rows are misaligned and its matrix units idle."""
    return -(-3 * kernel**2 // 8) * 8


class DeformableConv(nn.Module):
    """y(p) = Σ_k w_k x(p + p_k + Δp_k) m_k + bias (1): stride 1, same size, kernel k x k.

    `offset` predicts, for each pixel, 2k² offsets (dy, dx per tap, taps row-major) and k² logits of the modulation
    mask m = 2 sigmoid(logit); channels beyond them mean nothing. `weight` is [c_out, k*k*c_in], taps before channels.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.offset = Conv2d(c_in, offset_channels(kernel), kernel, padding=kernel // 2)
        self.weight = nn.Parameter(torch.empty(c_out, kernel**2 * c_in))
        self.bias = nn.Parameter(torch.empty(c_out))

    def forward(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Map [B,c_in,H,W] -> chunks of y: which rows of [B*H*W, c_out] they are, and the rows."""
        batch, channels, height, width = x.shape
        # A margin of zeros around each image makes a bounds check for each sample unnecessary.
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 2, 1, 2)).view(-1, channels)
        offset_mask = self.offset(x).permute(0, 2, 3, 1).reshape(batch * height * width, -1)
        step = rows_per_chunk(max(self.weight.shape), x)
        for first in range(0, len(offset_mask), step):
            chunk = slice(first, first + step)
            samples = self.sample(padded, offset_mask[chunk], first, (height, width))
            yield chunk, linear(samples, self.weight, self.bias)

    def sample(self, padded: Tensor, offset_mask: Tensor, first: int, size: tuple[int, int]) -> Tensor:
        """padded: the batch's pixels with their margins [B*(H+3)*(W+3), C]; offset_mask: output of `offset` [n, 3k²..]
        for the n pixels from `first` on; size: (H, W). -> modulated bilinear samples [n, k²*C], taps before channels"""
        height, width = size
        pitch = width + 3
        taps, reach = self.kernel**2, self.kernel // 2
        offset_mask = offset_mask.to(torch.promote_types(offset_mask.dtype, torch.float32))
        pixel = torch.arange(first, first + len(offset_mask), device=padded.device).unsqueeze(1)
        tap = torch.arange(taps, device=padded.device)
        y = pixel // width % height + tap // self.kernel - reach + offset_mask[:, 0 : 2 * taps : 2]
        x = pixel % width + tap % self.kernel - reach + offset_mask[:, 1 : 2 * taps : 2]
        # One pixel outside everything is zero already: clamping changes no sample and keeps them inside the margin.
        top, left = y.clamp_(-1, height).floor(), x.clamp_(-1, width).floor()
        # In integers: float32 counts to 16 million pixels only. The last clamp is for offsets that are NaN.
        corner = (top.int() * pitch).add_(left.int()).add_(pitch + 1).clamp_(0, (height + 2) * pitch - 2)
        corner += (pixel // (height * width) * (height + 3) * pitch).int()
        corners = corner.new_empty(*corner.shape, 4)
        weights = padded.new_empty(corners.shape)  # bilinear weights times modulation
        for i, step in enumerate((0, 1, pitch, pitch + 1)):
            torch.add(corner, step, out=corners[..., i])
        modulation = 2 * offset_mask[:, 2 * taps : 3 * taps].sigmoid()
        below = modulation * y.sub_(top)
        above = modulation - below
        right = x.sub_(left)
        torch.mul(above, right, out=weights[..., 1])
        torch.sub(above, weights[..., 1], out=weights[..., 0])
        torch.mul(below, right, out=weights[..., 3])
        torch.sub(below, weights[..., 3], out=weights[..., 2])
        samples = F.embedding_bag(corners.view(-1, 4), padded, per_sample_weights=weights.view(-1, 4), mode="sum")
        return samples.view(len(offset_mask), -1)


class DeformableAspp(KernelLayer):
    """Deformable atrous spatial pyramid pooling: four deformable convolutions (k = 1, 1, 3, 7) and the map's mean,
    each through ReLU, then a 1x1 convolution of all of them and ReLU. [B,64,H,W] -> [B,64,H,W]

    The branches are never concatenated: `projections` holds the 1x1 convolution by branch, and its products with the
    chunks of each branch are summed.
    """

    def __init__(self, width: int = 64, branch: int = 256, kernels: tuple[int, ...] = (1, 1, 3, 7)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(DeformableConv(width, branch, k) for k in kernels)
        self.projections = nn.ParameterList(torch.empty(width, branch) for _ in kernels)
        self.pooled = nn.Linear(width, branch)
        self.pooled_projection = nn.Linear(branch, width)
        self.triton = False

    def use_kernels(self, *, triton: bool) -> None:
        self.triton = triton

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        mean = x.mean(dim=(2, 3), dtype=wide).to(x.dtype)
        base = self.pooled_projection(F.relu(self.pooled(mean))).to(wide)
        branches = zip(cast("Iterable[DeformableConv]", self.branches), self.projections, strict=True)
        if self.triton:
            from rmbgd.models.kernels.aspp import pyramid

            return pyramid(x, base, [(b.kernel, b.offset(x), b.weight, b.bias, p) for b, p in branches])
        total = base.repeat_interleave(height * width, dim=0)
        for branch, projection in branches:
            for chunk, features in branch(x):
                total[chunk] += linear(F.relu(features, inplace=True), projection)
        return F.relu(total, inplace=True).to(x.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
