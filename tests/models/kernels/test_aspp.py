"""The pyramid of deformable convolutions in one launch against its plain layer, in float64 with the same offsets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rmbgd.models.deform import DeformableAspp
from rmbgd.models.kernels.runtime import use_kernels
from tests.models.stress import randomised

# Sixty taps, interpreted, on a machine that does other work.
pytestmark = pytest.mark.timeout(600)

# Of one operation against float64 on the same rounded numbers, relative, L2.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


class Given(nn.Module):
    """Replaces the convolution that predicts offsets by an output that is the same in every precision."""

    def __init__(self, offset_mask: torch.Tensor) -> None:
        super().__init__()
        self.offset_mask = offset_mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.offset_mask.to(x.dtype)


def drawn(size: tuple[int, int, int], dtype: torch.dtype, device: torch.device, *, far: bool = False) -> DeformableAspp:
    """Width 16, branches of 32, offsets of about two pixels, or of all the map and beyond; some of whole pixels."""
    layer = DeformableAspp(16, 32)
    generator = randomised(layer)
    batch, height, width = size
    for branch in layer.branches:
        draw = torch.randn((batch, 3 * branch.kernel**2, height, width), generator=generator)
        draw *= 30 if far else 2
        draw[:, :, ::3] = draw[:, :, ::3].round()
        branch.offset = Given(draw.to(device, dtype))
    return layer.to(device, dtype)


def noise(layer: DeformableAspp, *shape: int) -> torch.Tensor:
    draw = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return draw.to(layer.projections[0]).to(memory_format=torch.channels_last)


def error(layer: DeformableAspp, *shape: int) -> float:
    """Of the kernel against float64, relative, L2. The weights are the rounded ones."""
    x = noise(layer, *shape)
    use_kernels(layer, triton=True)
    got = layer(x)
    use_kernels(layer, triton=False)
    exact = layer.double()(x.double())
    assert (got.shape, got.dtype) == (exact.shape, x.dtype)
    return float((got.double() - exact).norm() / exact.norm())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's, in the interpreter
@pytest.mark.parametrize(
    ("far", "dtype", "height", "width"),
    [
        (False, torch.float32, 2, 9),
        (True, torch.float32, 4, 3),
        (False, torch.float16, 2, 17),
        (True, torch.float16, 1, 2),
    ],
)
def test_equals_the_plain_pyramid(device, dtype, far, height, width):
    layer = drawn((2, height, width), dtype, device, far=far)
    assert error(layer, 2, 16, height, width) <= TOLERANCE[dtype]


@pytest.mark.slow
def test_branches_in_parts_are_the_same(device, monkeypatch):
    """Where registers allow only some channels of a branch at once, ReLU and projection still see each of them."""
    from rmbgd.models.kernels import aspp

    monkeypatch.setattr(aspp, "tile_for", lambda _: aspp.Tile(2, 8, 16, 4, 1))
    layer = drawn((1, 1, 4), torch.float32, device)
    assert error(layer, 1, 16, 1, 4) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    ("size", "kind", "expected"),
    [
        ((1, 64, 256, 256), torch.float16, "LARGE"),
        ((1, 64, 32, 32), torch.float16, "SMALL"),  # eight tiles of the larger kind, on a card of many processors
        ((16, 64, 32, 32), torch.bfloat16, "LARGE"),
        ((1, 64, 256, 256), torch.float32, "WIDE"),
    ],
)
def test_small_maps_take_small_tiles(device, size, kind, expected):
    from rmbgd.models.kernels import aspp

    if device.type == "cuda":
        pytest.skip("as on a card of 64 processors")
    assert aspp.tile_for(torch.empty(size, dtype=kind)) is getattr(aspp, expected)


@pytest.mark.slow
def test_positions_are_float32(device):
    layer = DeformableAspp(16, 16, (1, 1, 1, 1)).requires_grad_(requires_grad=False)
    for parameter in layer.parameters():
        parameter.zero_()
    layer.projections[0].copy_(torch.eye(16))
    layer.branches[0].weight.copy_(torch.eye(16))
    x = torch.arange(144).remainder(2).view(1, 1, 1, 144).repeat(1, 16, 1, 1)  # 0 1 0 1 ...
    x = x.to(device, torch.float16).to(memory_format=torch.channels_last)
    layer.branches[0].offset.bias[1] = 1 / 16
    layer = layer.to(device, torch.float16)
    use_kernels(layer, triton=True)
    output = layer(x)[0, 0, 0, 128:-1]
    assert output[::2].eq(1 / 16).all()
    assert output[1::2].eq(15 / 16).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # NumPy's, in the interpreter
def test_nan_stays_nan(device):
    layer = drawn((2, 2, 3), torch.float32, device)
    for branch in layer.branches:
        branch.offset.offset_mask[0, :, 1, 1] = float("nan")
    use_kernels(layer, triton=True)
    output = layer(noise(layer, 2, 16, 2, 3))
    assert output[0, :, 1, 1].isnan().all()
    assert output[1].isfinite().all()
