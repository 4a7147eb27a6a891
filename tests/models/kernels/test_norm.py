"""LayerNorm with a sum before it and another type after it, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rmbgd.models.swin import PatchMerging
from tests.models.stress import randomised


def drawn(dim: int, device: torch.device) -> nn.LayerNorm:
    norm = nn.LayerNorm(dim).requires_grad_(requires_grad=False)
    norm.weight.copy_(torch.linspace(0.5, 1.5, dim))
    norm.bias.copy_(torch.linspace(-1, 1, dim))
    return norm.to(device)


def stream(device: torch.device, *shape: int) -> torch.Tensor:
    """Far from zero, as residual streams are: a variance that is a difference of squares would be lost."""
    return (100 + torch.randn(shape, generator=torch.Generator().manual_seed(1))).to(device)


@pytest.mark.parametrize("dim", [8, 24, 192])
def test_norm_is_exact(device, dim):
    from rmbgd.models.kernels.norm import layer_norm

    norm, x = drawn(dim, device), stream(device, 2, 3, dim)
    before = x.clone()
    output = layer_norm(x, norm, torch.float32)
    torch.testing.assert_close(output.double(), norm.double()(before.double()), rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_sum_is_kept_in_the_stream(device, dtype):
    from rmbgd.models.kernels.norm import layer_norm

    norm, x = drawn(24, device), stream(device, 5, 24)
    add = torch.linspace(-2, 2, 120).view(5, 24).to(device, dtype)
    expected = x + add
    output = layer_norm(x, norm, dtype, add=add)
    assert torch.equal(x, expected)
    assert output.dtype == dtype
    exact = norm.double()(expected.double())
    assert (output.double() - exact).norm() / exact.norm() <= (1e-4 if dtype == torch.float32 else 1e-3)


def test_the_sum_may_widen_its_stream_into_another(device):
    """So a stage begins: what it reads is left alone, and the map is written where it belongs."""
    from rmbgd.models.kernels.norm import layer_norm

    norm, x = drawn(24, device), stream(device, 5, 24).half()
    add, before, total = (x / 100).half(), x.clone(), torch.zeros(5, 24, device=device)
    output = torch.zeros(7, 24, dtype=torch.float16, device=device)
    returned = layer_norm(x, norm, torch.float16, add=add, total=total, output=output[1:6])
    assert returned.data_ptr() == output[1:6].data_ptr()
    assert torch.equal(x, before)
    assert torch.equal(total, x.float() + add.float())
    torch.testing.assert_close(output[1:6].double(), norm.double()(total.double()), rtol=1e-3, atol=1e-3)
    assert not output[[0, 6]].any()


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (1, 1), (2, 7)])
def test_four_neighbours_are_merged_as_patch_merging_does(device, height, width):
    layer = PatchMerging(8)
    x = torch.randn((2, height, width, 8), generator=randomised(layer)).to(device)
    layer.to(device)
    expected = layer.double()(x.double())
    torch.testing.assert_close(layer.float().by_kernels(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_a_stream_with_gaps_is_a_bug(device):
    from rmbgd.models.kernels.norm import layer_norm

    with pytest.raises(ValueError, match="gaps"):
        layer_norm(stream(device, 4, 32)[:, :16], drawn(16, device), torch.float32)
