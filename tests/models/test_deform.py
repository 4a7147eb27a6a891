"""Modulated deformable convolution against the plain one, in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from rmbgd.models import layers
from rmbgd.models.deform import DeformableConv
from tests.models import oracle
from tests.models.stress import noise

HEIGHT, WIDTH = 5, 7


def drawn(kernel: int, dtype: torch.dtype = torch.float64, *, far: bool = False) -> DeformableConv:
    """A layer of 3 -> 4 channels whose offsets reach about two pixels, or all of the map and beyond it."""
    layer = DeformableConv(3, 4, kernel).requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(kernel)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    taps = kernel**2
    layer.offset.bias[: 2 * taps] *= 20 if far else 1
    return layer.to(dtype)


def copying(dtype: torch.dtype) -> DeformableConv:
    """One channel, one tap, offsets of nothing; modulation is 2 sigmoid(0) = 1."""
    layer = DeformableConv(1, 1, 1).to(dtype).requires_grad_(requires_grad=False)
    for parameter in layer.parameters():
        parameter.zero_()
    layer.weight.fill_(1)
    return layer


def output(layer: DeformableConv, x: torch.Tensor) -> torch.Tensor:
    """The chunks concatenated, as [B,c_out,H,W]."""
    rows = torch.cat([chunk for _, chunk in layer(x)])
    return rows.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def definition(layer: DeformableConv, x: torch.Tensor) -> torch.Tensor:
    """y(p) = Σ_k w_k x(p + p_k + Δp_k) m_k + bias, from the oracle's columns; x is zero outside the map."""
    taps = layer.kernel**2
    moves, masks = layer.offset(x)[:, : 3 * taps].split((2 * taps, taps), dim=1)
    plain = SimpleNamespace(kernel=layer.kernel, offset_conv=lambda _: moves, modulator_conv=lambda _: masks)
    columns = oracle.DeformableConv.columns(plain, x).transpose(1, 2).flatten(1, 2)
    return (layer.weight.flatten(1) @ columns + layer.bias[:, None]).unflatten(-1, x.shape[-2:])


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_equals_the_definition(kernel, far):
    layer, x = drawn(kernel, far=far), noise(2, 3, HEIGHT, WIDTH)
    torch.testing.assert_close(output(layer, x), definition(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0, 3.0, -40.0, 1e9, -1e30])
def test_whole_steps_shift_the_map(shift):
    layer = copying(torch.float64)
    layer.offset.bias[1] = shift  # dx
    x = noise(1, 1, 2, WIDTH)
    expected = torch.zeros_like(x)
    for column in range(WIDTH):
        if 0 <= column + shift < WIDTH:
            expected[..., column] = x[..., int(column + shift)]
    torch.testing.assert_close(output(layer, x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("budget", [1, 3000, 1 << 30])
def test_chunks_do_not_change_the_output(monkeypatch, budget):
    layer, x = drawn(3), noise(2, 3, HEIGHT, WIDTH)
    expected = definition(layer, x)
    monkeypatch.setitem(layers._CHUNK_BYTES, "cpu", budget)
    torch.testing.assert_close(output(layer, x), expected, rtol=1e-12, atol=1e-12)


def test_samples_never_exist_at_once(monkeypatch):
    layer, x = drawn(7), noise(1, 3, 32, 32)
    taken, sample = [], layer.sample

    def watched(*arguments):
        samples = sample(*arguments)
        taken.append(samples.untyped_storage().nbytes())
        return samples

    monkeypatch.setattr(layer, "sample", watched)
    monkeypatch.setitem(layers._CHUNK_BYTES, "cpu", 64 << 10)
    output(layer, x)
    assert sum(taken) == 32 * 32 * 49 * 3 * 8
    assert max(taken) <= 64 << 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coordinates_are_float32_in_half_precision(dtype):
    layer = copying(dtype)
    x = torch.arange(1200).remainder(2).view(1, 1, 1, 1200).to(dtype)  # 0 1 0 1 ...
    torch.testing.assert_close(output(layer, x), x, rtol=0, atol=0)
    layer.offset.bias[1] = 0.5
    halfway = output(layer, x)[..., :-1]
    torch.testing.assert_close(halfway, torch.full_like(halfway, 0.5), rtol=0, atol=0)


def test_nan_offsets_stay_nan():
    layer = drawn(1, torch.float32)
    x = torch.zeros(1, 3, 2, 2)
    x[0, :, 0, 0] = math.nan
    y = output(layer, x)
    assert y[0, :, 0, 0].isnan().all()
    assert output(layer, torch.full_like(x, math.inf)).isfinite().logical_not().any()
