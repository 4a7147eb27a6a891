"""Window attention on whole maps against attention in windows that were cut out, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rmbgd.models import layers
from rmbgd.models.kernels.runtime import use_kernels
from rmbgd.models.swin import Stage, WindowAttention
from tests.models import oracle
from tests.models.stress import randomised

# relative to the float64 output (L2), with the same half-precision queries, keys, values and bias
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def drawn(window: int, heads: int, size: int, dtype: torch.dtype, device: torch.device) -> WindowAttention:
    """Attention with biases large enough that position, padding and mask all matter."""
    layer = WindowAttention(heads * size, heads, window).requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(window)
    layer.relative_position_bias_table.normal_(0, 2, generator=generator)
    layer.qkv.bias.normal_(generator=generator)
    layer = layer.to(device, dtype)
    use_kernels(layer, triton=True)
    return layer


def definition(layer: WindowAttention, qkv: torch.Tensor, shift: int) -> torch.Tensor:
    """Softmax over each window cut from the padded, rolled map; pairs from different regions masked. float64"""
    batch, height, width, triple = qkv.shape
    w, dim, size = layer.window, triple // 3, triple // 3 // layer.heads
    rows, columns = -(-height // w), -(-width // w)
    whole = layer.qkv.bias.double().expand(batch, rows * w, columns * w, triple).clone()
    whole[:, :height, :width] = qkv.double()
    windows = oracle.to_windows(whole.roll((-shift, -shift), (1, 2)), w)
    q, k, v = windows.view(-1, w * w, 3, layer.heads, size).permute(2, 0, 3, 1, 4)
    index = oracle.relative_position_index(w).to(qkv.device)
    bias = layer.relative_position_bias_table.double()[index].permute(2, 0, 1)
    scores = q @ k.transpose(-1, -2) / size**0.5 + bias
    if shift:
        scores += oracle.shift_mask(rows * w, columns * w, w, shift, scores).repeat(batch, 1, 1)[:, None]
    output = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, dim)
    output = oracle.from_windows(output, w, rows * w, columns * w).roll((shift, shift), (1, 2))
    return output[:, :height, :width]


def computed(layer: WindowAttention, qkv: torch.Tensor, shift: int) -> torch.Tensor:
    from rmbgd.models.kernels.window import window_attention

    assert layer.kernel_bias is not None
    return window_attention(qkv, layer.qkv.bias, layer.kernel_bias, layer.window, shift, layer.heads)


def maps(layer: WindowAttention, *shape: int) -> torch.Tensor:
    draw = torch.randn((*shape, 3 * layer.proj.in_features), generator=torch.Generator().manual_seed(1))
    return (1.5 * draw).to(layer.qkv.weight)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("window", "shift", "heads", "size", "batch", "height", "width"),
    [
        (3, 0, 2, 4, 2, 6, 6),
        (3, 1, 2, 4, 2, 7, 8),
        (3, 1, 1, 16, 1, 2, 1),
        (4, 2, 2, 8, 1, 9, 4),
        (7, 3, 3, 32, 1, 9, 16),
        (12, 6, 2, 32, 1, 13, 26),
    ],
)
def test_equals_attention_in_cut_windows(device, dtype, window, shift, heads, size, batch, height, width):
    layer = drawn(window, heads, size, dtype, device)
    qkv = maps(layer, batch, height, width)
    expected = definition(layer, qkv, shift)
    error = (computed(layer, qkv, shift).double() - expected).norm() / expected.norm()
    assert error <= TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("programs", [1, 5])
def test_programs_go_from_window_to_window(device, monkeypatch, programs):
    from rmbgd.models.kernels import window

    layer = drawn(3, 2, 4, torch.float32, device)
    qkv = maps(layer, 2, 9, 8)
    expected = computed(layer, qkv, 1)
    monkeypatch.setattr(window, "programs_for", lambda *_: programs)
    assert torch.equal(computed(layer, qkv, 1), expected)


def test_a_bad_token_spoils_its_window_alone(device):
    layer = drawn(3, 2, 4, torch.float32, device)
    qkv = maps(layer, 2, 6, 6)
    qkv[0, 1, 1, 0] = float("nan")
    bad = computed(layer, qkv, 0).isnan().any(dim=-1)
    assert bad[0, 1, 1]
    assert not bad[1].any()
    assert not bad[0, 3:].any()
    assert not bad[0, :, 3:].any()


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_stage_by_kernels_is_the_plain_stage(device, monkeypatch, last, budget):
    """With and without a shift, on a map that leaves windows and pairs incomplete; the last sum is in it, too."""
    stage, norm = Stage(16, 3, 2, 3, last=last), nn.LayerNorm(16)
    x = torch.randn((2, 7, 8, 16), generator=randomised(stage)).to(device)
    stage.to(device), norm.to(device)
    expected = stage.double()(x.double(), norm.double())
    stage.float(), norm.float()
    use_kernels(stage, triton=True)
    monkeypatch.setitem(layers._CHUNK_BYTES, device.type, budget)
    for found, exact in zip(stage(x.clone(), norm), expected, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_stage_in_half_keeps_its_stream_in_float32(device):
    """What it reads comes from the stage before in half precision; its own map is rounded once."""
    stage, norm = Stage(16, 2, 2, 3, last=True).requires_grad_(requires_grad=False), nn.LayerNorm(16).to(device)
    x = torch.randn((1, 4, 5, 16), generator=randomised(stage)).to(device).half()
    stage.to(device).half()
    for block in stage.blocks:
        block.norm1.float(), block.norm2.float()
    before = x.clone()
    use_kernels(stage, triton=True)
    found, stream = stage(x, norm)
    use_kernels(stage, triton=False)
    exact, total = stage.double()(x.double(), norm.double())
    assert (found.dtype, stream.dtype) == (torch.float16, torch.float32)
    assert torch.equal(x, before)
    for half, whole in ((found, exact), (stream, total)):
        assert (half.double() - whole).norm() / whole.norm() <= TOLERANCE[torch.float16]


@given(st.integers(1, 8000), st.sampled_from([3, 9, 18, 36, 72, 144]), st.sampled_from([8, 58, 132]))
def test_programs_that_share_windows_end_together(device, windows, parts, processors):
    """No later than with a program for each window, and with few enough where windows are many."""
    from rmbgd.models.kernels.window import PER_PROCESSOR, RESIDENT, programs_for

    def rounds(programs: int) -> int:
        return -(-windows // programs) * -(-programs * parts // (RESIDENT * processors))

    programs = programs_for(windows, parts, processors)
    assert 1 <= programs <= windows
    assert rounds(programs) <= rounds(windows)
    assert programs == windows or -(-windows // programs) <= -(-windows // max(1, PER_PROCESSOR * processors // parts))


def test_kernels_can_be_chosen_after_an_inference(device):
    """What one network computed in inference mode and others share is an ordinary tensor: the order does not matter."""
    with torch.inference_mode():
        WindowAttention(8, 2, 5).position_bias()
    use_kernels(WindowAttention(8, 2, 5), triton=True)


def test_kernels_own_tensors_are_not_saved(device):
    layer = WindowAttention(8, 2, 3)
    names = layer.state_dict().keys()
    use_kernels(layer, triton=True)
    assert layer.kernel_bias is not None
    assert layer.state_dict().keys() == names
    use_kernels(layer, triton=False)
    assert layer.kernel_bias is None
