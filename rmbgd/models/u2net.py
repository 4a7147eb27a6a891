"""U²-Net-p, the embedded network: nested U-shaped blocks, 1.1 million parameters.

Paper: Qin et al., "U²-Net: Going Deeper with Nested U-Structure for Salient Object Detection", Pattern Recognition 106
(2020), figure 5 with the small variant's channels. The public file has BatchNorm folded into the convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rmbgd.models.store import EMBEDDED


def _conv3x3(c_in: int, c_out: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=dilation, dilation=dilation)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def _resize_like(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class ResidualUBlock(nn.Module):
    """RSU-L of the paper: a small U-Net of `depth` levels plus its first convolution. [B,c_in,H,W] -> [B,c_out,H,W]

    With `dilated` (RSU-4F, for maps that are small already) the levels are dilated by 1, 2, 4, 8 instead of halved.
    """

    def __init__(self, c_in: int, c_mid: int, c_out: int, depth: int, *, dilated: bool = False) -> None:
        super().__init__()
        dilations = [2**level for level in range(depth)] if dilated else [1] * (depth - 1) + [2]
        widths = [c_out] + [c_mid] * (depth - 1)
        self.dilated = dilated
        self.conv_in = _conv3x3(c_in, c_out)
        self.encoder = nn.ModuleList(_conv3x3(w, c_mid, d) for w, d in zip(widths, dilations[:-1], strict=False))
        self.bottom = _conv3x3(c_mid, c_mid, dilations[-1])
        self.decoder = nn.ModuleList(
            _conv3x3(2 * c_mid, w, d) for w, d in zip(widths[-2::-1], dilations[-2::-1], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = residual = F.relu(self.conv_in(x), inplace=True)
        skips: list[Tensor] = []
        for conv in self.encoder:
            x = F.relu(conv(_halve(x) if skips and not self.dilated else x), inplace=True)
            skips.append(x)
        x = F.relu(self.bottom(x), inplace=True)
        for conv in self.decoder:
            skip = skips.pop()
            if x.shape != skip.shape:
                x = _resize_like(x, skip)
            x = F.relu(conv(torch.cat((x, skip), dim=1)), inplace=True)
        return x.add_(residual)


class U2NetP(nn.Module):
    """Normalised image [B,3,H,W] (the weights are meant for 320x320) -> logits [B,1,H,W]; alpha = sigmoid(logits)."""

    def __init__(self) -> None:
        super().__init__()
        depths = (7, 6, 5, 4)
        self.encoder = nn.ModuleList(ResidualUBlock(3 if i == 0 else 64, 16, 64, d) for i, d in enumerate(depths))
        self.encoder.extend(ResidualUBlock(64, 16, 64, 4, dilated=True) for _ in range(2))
        self.decoder = nn.ModuleList([ResidualUBlock(128, 16, 64, 4, dilated=True)])
        self.decoder.extend(ResidualUBlock(128, 16, 64, d) for d in reversed(depths))
        self.side = nn.ModuleList(_conv3x3(64, 1) for _ in range(6))
        self.fuse = nn.Conv2d(6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(_halve(x) if skips else x)
            skips.append(x)
        maps = [skips.pop()]
        for stage in self.decoder:
            skip = skips.pop()
            maps.append(stage(torch.cat((_resize_like(maps[-1], skip), skip), dim=1)))
        finest, *coarser = (side(m) for side, m in zip(self.side, reversed(maps), strict=True))
        logits: Tensor = self.fuse(torch.cat([finest, *(_resize_like(m, finest) for m in coarser)], dim=1))
        return logits


def build_u2netp(*, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """The network with the package's weights, ready for inference. Raises RuntimeError when the file's tensors are not
    exactly the network's, FileNotFoundError when the installation lacks it."""
    with torch.device("meta"):
        network = U2NetP()
    network.load_state_dict(load_file(EMBEDDED), strict=True, assign=True)
    # Channels-last layout: 0.6 times the time on a CPU, and what tensor cores want.
    network.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.requires_grad_(requires_grad=False).eval()
