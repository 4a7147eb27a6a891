"""The backbone against the plain one, in float64, at sizes that leave windows and pairs incomplete."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rmbgd.models import swin
from tests.models import oracle, stress
from tests.models.stress import noise

TINY = stress.TINY
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def weighted(network: torch.nn.Module, plain: torch.nn.Module) -> None:
    """The same drawn weights for both, in float64."""
    plain.double().load_state_dict(stress.drawn(plain))
    network.double().load_state_dict(plain.state_dict())


def pair(window: int) -> tuple[swin.Swin, oracle.Swin]:
    shape = dataclasses.replace(TINY, window=window)
    network, plain = swin.Swin(shape), oracle.Swin(shape)
    weighted(network, plain)
    return network.requires_grad_(requires_grad=False), plain.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("window", [2, 3, 4, 7])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (80, 36)])
def test_four_maps_are_exact(window, height, width):
    network, plain = pair(window)
    x = noise(2, 3, height, width)
    for ours, theirs in zip(network(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("height", "width"), [(9, 9), (7, 11), (2, 2), (3, 10)])
@torch.inference_mode()
def test_attention_without_padded_tokens_is_exact(height, width, shift):
    network, plain = swin.SwinBlock(16, 2, 3, shift), oracle.SwinBlock(16, 2, 3, shift)
    weighted(network, plain)
    x = noise(2, height, width, 16)
    expected = plain(x)
    torch.testing.assert_close(network(x.clone()), expected, **EXACT)


@pytest.mark.parametrize("windows_per_chunk", [1, 2, 5, 1000])
def test_plan_places_every_token_once(windows_per_chunk):
    plan = swin.window_plan(2, 7, 10, 4, 2, windows_per_chunk, torch.device("cpu"))
    assert sum(chunk.windows for chunk in plan.chunks) == 2 * 2 * 3
    assert torch.equal(torch.cat([chunk.tokens for chunk in plan.chunks]).sort().values, torch.arange(2 * 7 * 10))
    for chunk in plan.chunks:
        filled = torch.arange(len(chunk.tokens)) if chunk.slots is None else chunk.slots
        assert chunk.windows <= windows_per_chunk
        assert torch.equal(torch.cat((filled, chunk.padding)).sort().values, torch.arange(chunk.windows * 16))


def test_only_cut_windows_carry_a_mask():
    still = swin.window_plan(1, 12, 12, 4, 0, 99, torch.device("cpu"))
    shifted = swin.window_plan(1, 12, 12, 4, 2, 99, torch.device("cpu"))
    assert [(p.pattern, p.windows) for p in still.chunks] == [(0, 9)]
    assert [(p.pattern, p.windows) for p in shifted.chunks] == [(0, 4), (1, 2), (2, 2), (3, 1)]
    assert shifted.masks[0] is None


def test_plan_is_made_once_per_shape():
    plans = [swin.window_plan(1, 12, 20, 3, 1, 9, torch.device("cpu")) for _ in range(2)]
    assert plans[0] is plans[1]
