"""BiRefNet and RMBG-2.0: a Swin backbone at two scales, and the bilateral reference decoder. Inference only.

Paper: Zheng et al., "Bilateral Reference for High-Resolution Dichotomous Image Segmentation", CAAI AIR 2024. BatchNorm
is folded into the convolutions (`convert.py`), heads that only training uses are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmbgd.models.checkpoint import Backbone
from rmbgd.models.deform import DeformableAspp
from rmbgd.models.layers import Conv2d, KernelLayer
from rmbgd.models.swin import Swin

WIDTH = 64  # channels inside the decoder


def stays_float32(name: str) -> bool:
    """Whether a parameter stays in float32 when the network runs in half precision: few are, and they matter most."""
    return name.startswith(("bb.patch_embed.", "head.")) or (name.startswith("bb.") and ".norm" in name)


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def add_lateral(p: Tensor, lateral: Tensor) -> Tensor:
    """upsample(p) + lateral, in the lateral's memory."""
    return lateral.add_(upsample(p, lateral.shape[-2:]))


def image_patches(x: Tensor, grid: int) -> Tensor:
    """[B,3,grid*h,grid*w] -> [B,3*grid*grid,h,w]: patches of h x w on channels, as (c, patch row, patch column)."""
    batch, channels, height, width = x.shape
    patches = x.view(batch, channels, grid, height // grid, grid, width // grid)
    return patches.transpose(3, 4).reshape(batch, -1, height // grid, width // grid)


def conv3x3(c_in: int, c_out: int) -> Conv2d:
    return Conv2d(c_in, c_out, 3, padding=1)


class DecoderBlock(nn.Module):
    """The paper's decoder block without its output convolution. [B,c_in,H,W] -> [B,64,H,W] in two steps, `concat` and
    `aspp`, so that the wide map is freed before the second."""

    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.conv_in = conv3x3(c_in, WIDTH)
        self.aspp = DeformableAspp(WIDTH)

    def concat(self, *maps: Tensor) -> Tensor:
        return F.relu(self.conv_in(torch.cat(maps, dim=1)), inplace=True)


class Gate(nn.Module):
    """Attention from gradient supervision (outward reference): each pixel times a number in 0..1. In place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, 16)
        self.attention = Conv2d(16, 1, 1)

    def forward(self, p: Tensor) -> Tensor:
        return p.mul_(self.attention(F.relu(self.conv(p), inplace=True)).sigmoid_())


class ImageBranch(nn.Module):
    """The image again at one level of the decoder (inward reference): two convolutions of its patches."""

    def __init__(self, grid: int, c_out: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv1 = conv3x3(3 * grid * grid, WIDTH)
        self.conv_out = conv3x3(WIDTH, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv1(image_patches(x, self.grid)))


class Head(KernelLayer):
    """Everything after the last ReLU is linear, so it is one map at the size of the last block plus a stencil on x.

    The last block's convolution and the final 1x1 commute with the interpolation: 64 channels become one before they
    are upsampled. The image's two 3x3 convolutions are one 5x5 of three channels, but for the outermost pixels, where
    the map between them ends: those are computed by the two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coarse = conv3x3(WIDTH, 1)
        self.stencil = Conv2d(3, 1, 5, padding=2)
        self.border_in = conv3x3(3, WIDTH)
        self.border_out = conv3x3(WIDTH, 1)
        # float32 [9, 76]: the stencil at each corner and side and inside, for the kernel of head and sigmoid in one.
        self.register_buffer("stencils", None, persistent=False)
        self.stencils: Tensor | None

    def use_kernels(self, *, triton: bool) -> None:
        self.stencils = None
        if triton:
            from rmbgd.models.kernels.head import stencils

            self.stencils = stencils(self.border_in, self.border_out).float()

    def forward(self, p: Tensor, x: Tensor) -> Tensor:
        fine = self.stencil(x)
        fine[..., :1, :] = self.border(x[..., :3, :])[..., :1, :]
        fine[..., -1:, :] = self.border(x[..., -3:, :])[..., -1:, :]
        fine[..., :1] = self.border(x[..., :3])[..., :1]
        fine[..., -1:] = self.border(x[..., -3:])[..., -1:]
        return fine.add_(upsample(self.coarse(p.to(x.dtype)), x.shape[-2:]))

    def border(self, x: Tensor) -> Tensor:
        return self.border_out(self.border_in(x))


class BiRefNet(nn.Module):
    """Normalised image [B,3,H,W] of any floating type -> logits [B,1,H,W], float32 (float64 in a float64 network);
    alpha = sigmoid(logits). Raises ValueError for sides that are no multiples of 32."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        c1, c2, c3, c4 = (2 * backbone.embed * 2**i for i in range(4))
        self.bb = Swin(backbone)
        self.squeeze = DecoderBlock(c1 + c2 + c3 + c4)
        self.squeeze_out = conv3x3(WIDTH, c4)
        self.image5, self.image4 = ImageBranch(32, c4 // 8), ImageBranch(16, c4 // 8)
        self.image3, self.image2 = ImageBranch(8, c3 // 8), ImageBranch(4, c2 // 8)
        self.block4, self.block3 = DecoderBlock(c4 + c4 // 8), DecoderBlock(c3 + c4 // 8)
        self.block2, self.block1 = DecoderBlock(c2 + c3 // 8), DecoderBlock(c1 + c2 // 8)
        self.out4, self.out3, self.out2 = conv3x3(WIDTH, c3), conv3x3(WIDTH, c2), conv3x3(WIDTH, c1)
        self.gate4, self.gate3, self.gate2 = Gate(c3), Gate(c2), Gate(c1)
        self.lateral4, self.lateral3, self.lateral2 = Conv2d(c3, c3, 1), Conv2d(c2, c2, 1), Conv2d(c1, c1, 1)
        self.head = Head()

    def encode(self, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """x1..x4: each scale's map beside that of the half-size image, channels 2*embed*2^i at H/4..H/32."""
        full = [t.to(dtype) for t in self.bb(x)]
        half = [t.to(dtype) for t in self.bb(upsample(x, (x.shape[-2] // 2, x.shape[-1] // 2)))]
        maps = []
        while full:  # each is freed as soon as it has been read
            wide = full.pop(0)
            maps.append(torch.cat((wide, upsample(half.pop(0), wide.shape[-2:])), dim=1))
        return maps

    def forward(self, image: Tensor) -> Tensor:
        return self.head(*self.head_inputs(image))

    def head_inputs(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The last block's map [B,64,H/4,W/4], and the image in the head's type."""
        height, width = image.shape[-2:]
        if height % 32 or width % 32:
            raise ValueError(f"the image is {height} x {width} (height x width); both sides must be multiples of 32")
        # Names are used again and maps popped so that what has been read is freed: the decoder holds one level's maps.
        wide = image.to(self.head.stencil.weight.dtype)
        x = image.to(self.squeeze_out.weight.dtype)
        maps = self.encode(wide, x.dtype)
        x4 = maps.pop()
        t = self.squeeze.concat(*(upsample(m, x4.shape[-2:]) for m in maps), x4)
        del x4
        t = self.squeeze_out(self.squeeze.aspp(t))
        t = self.block4.concat(t, self.image5(x))
        t = self.gate4(self.out4(self.block4.aspp(t)))
        t = add_lateral(t, self.lateral4(maps.pop()))
        t = self.block3.concat(t, self.image4(x))
        t = self.gate3(self.out3(self.block3.aspp(t)))
        t = add_lateral(t, self.lateral3(maps.pop()))
        t = self.block2.concat(t, self.image3(x))
        t = self.gate2(self.out2(self.block2.aspp(t)))
        t = add_lateral(t, self.lateral2(maps.pop()))
        t = self.block1.concat(t, self.image2(x))
        return self.block1.aspp(t), wide
