"""LayerNorm with a sum before it and another type after it, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn


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


def test_a_stream_with_gaps_is_a_bug(device):
    from rmbgd.models.kernels.norm import layer_norm

    with pytest.raises(ValueError, match="gaps"):
        layer_norm(stream(device, 4, 32)[:, :16], drawn(16, device), torch.float32)
