"""Products in float8: near the product they replace, and only where they are wide; and the gates that judge them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rmbgd.backends.cuda import network as float8
from rmbgd.backends.cuda.network import PrecisionGate, precision_of
from rmbgd.models.layers import Linear


def linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    layer = Linear(in_features, out_features, bias=bias)
    layer.weight.data.normal_(generator=torch.Generator().manual_seed(in_features))
    return layer.half().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_product_in_float8_is_near_float64s(bias, dtype):
    """Within 5 % of the norm, the rounding of three bits; rows of very different sizes are scaled each for itself."""
    layer = linear(384, 768, bias=bias)
    sizes = torch.logspace(-3, 2, 30).view(1, 30, 1)
    x = (torch.randn(2, 30, 384, generator=torch.Generator().manual_seed(1)) * sizes).to(dtype)
    found = float8.Float8Linear(layer)(x).double()
    expected = layer.double()(x.double())
    rows = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert found.shape == (2, 30, 768)
    assert rows.max() <= 0.05


@given(st.floats(-6e4, 6e4, width=16), st.integers(0, 15))
def test_a_row_with_one_large_number_stays_finite(value, place):
    """Nothing goes beyond float8's range, whose overflow is NaN; an empty row stays zero."""
    rows = torch.zeros(2, 16, dtype=torch.float16)
    rows[0, place] = value
    scale = float8.row_scales(rows)
    back = float8.to_float8(rows, scale).float() * scale
    assert back.isfinite().all()
    assert back[0, place] == pytest.approx(value, rel=1e-3, abs=1e-6)
    assert not back[1].any()


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow = linear(192, 576)
        self.wide = nn.Sequential(linear(384, 1536), linear(1536, 384))
        self.odd = linear(384, 396)
        self.conv = nn.Conv2d(3, 3, 1)


def test_only_wide_products_change_and_all_of_them_change_back():
    network = Tiny()
    layers = dict(network.named_modules())
    before = float8.convert(network)
    assert set(before) == {"wide.0", "wide.1"}
    assert [name for name, layer in network.named_modules() if isinstance(layer, float8.Float8Linear)] == [*before]
    float8.restore(network, before)
    assert dict(network.named_modules()) == layers


def test_a_network_in_float8_can_be_widened():
    network = Tiny()
    float8.convert(network)
    packed = network.wide[0]
    x = torch.randn(4, 384)
    wide = float8.widened(network).float()
    assert not any(isinstance(layer, float8.Float8Linear) for layer in wide.modules())
    expected = x @ (packed.weight.float() * packed.scale.t()).t() + packed.bias.float()
    torch.testing.assert_close(wide.wide[0](x), expected)


def test_a_gate_lets_near_answers_through_and_says_what_is_wrong_with_others():
    gate = PrecisionGate(mean=1 / 255, far=8 / 255, fraction=0.01)
    expected = np.zeros((100, 100), np.float32)
    spotted, broken = expected.copy(), expected.copy()
    spotted[:2] = 9 / 255
    broken[0, 0] = np.nan
    assert gate.refusal(expected + np.float32(0.9 / 255), expected) == ""
    shifted = gate.refusal(expected + np.float32(1.1 / 255), expected)
    assert "off by 1.10 levels on average (1.00 are let through)" in shifted
    assert "by more than 8 in 2.00 % of it" in gate.refusal(spotted, expected)
    assert "not finite" in gate.refusal(broken, expected)


@pytest.mark.parametrize(
    ("asked", "capability", "storage", "in_float8", "told"),
    [
        ("auto", None, "float32", False, []),
        ("auto", (7, 5), "float16", False, []),
        ("float32", (9, 0), "float32", False, []),
        ("bfloat16", (8, 7), "bfloat16", False, []),
        ("bfloat16", (7, 5), "float16", False, ["bfloat16"]),
        ("bfloat16", None, "bfloat16", False, []),
        ("float8", (9, 0), "float16", True, []),
        ("float8", (8, 9), "float16", True, []),
        ("float8", (8, 7), "float16", False, ["float8"]),
        ("float8", None, "float32", False, ["float8"]),
    ],
)
def test_the_type_follows_from_what_is_asked_and_what_there_is(asked, capability, storage, in_float8, told):
    found = precision_of(asked, capability)
    assert (found.storage, found.float8) == (storage, in_float8)
    assert [limit.what for limit in found.limits] == told
