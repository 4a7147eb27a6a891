"""The backbone against the plain one, in float64, at sizes that leave windows and pairs incomplete."""

from __future__ import annotations

import pytest
import torch

from rmbgd.models import swin
from rmbgd.models.checkpoint import Backbone
from tests.models import oracle, stress
from tests.models.stress import noise

TINY = stress.TINY
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def pair(window: int = 3) -> tuple[swin.Swin, oracle.Swin]:
    """The backbone and the plain one, with the same drawn weights."""
    shape = Backbone(TINY.embed, TINY.depths, TINY.heads, window, "tiny")
    plain = oracle.Swin(shape.embed, shape.depths, shape.heads, shape.window).double()
    plain.load_state_dict(stress.drawn(plain))
    network = swin.Swin(shape).double()
    network.load_state_dict(plain.state_dict())
    return network.requires_grad_(requires_grad=False).eval(), plain.requires_grad_(requires_grad=False).eval()


@pytest.mark.parametrize("window", [2, 3, 4, 7])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (80, 36)])
def test_four_maps_are_exact(window, height, width):
    """All four maps equal the plain backbone's, for even and odd windows, maps smaller than a window, odd maps."""
    network, plain = pair(window)
    x = noise(2, 3, height, width)

    for ours, theirs in zip(network(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("height", "width"), [(9, 9), (7, 11), (2, 2), (3, 10)])
def test_attention_without_padded_tokens_is_exact(height, width, shift):
    """Padding that never passes through qkv and proj gives what padding before them gives."""
    plain = oracle.SwinBlock(16, 2, 3, shift).double()
    plain.load_state_dict(stress.drawn(plain))
    network = swin.SwinBlock(16, 2, 3, shift).double()
    network.load_state_dict(plain.state_dict())
    x = noise(2, height, width, 16)
    with torch.inference_mode():
        expected = plain(x)

        torch.testing.assert_close(network(x.clone()), expected, **EXACT)


@pytest.mark.parametrize("windows_per_chunk", [1, 2, 5, 1000])
def test_plan_places_every_token_once(windows_per_chunk):
    """Each token has one slot, each other slot is named as padding, whatever the size of a chunk."""
    plan = swin.window_plan(2, 7, 10, 4, 2, windows_per_chunk, torch.device("cpu"))

    assert sum(chunk.windows for chunk in plan.chunks) == 2 * 2 * 3
    assert torch.equal(torch.cat([chunk.tokens for chunk in plan.chunks]).sort().values, torch.arange(2 * 7 * 10))
    for chunk in plan.chunks:
        filled = torch.arange(len(chunk.tokens)) if chunk.slots is None else chunk.slots
        assert chunk.windows <= windows_per_chunk
        assert torch.equal(torch.cat((filled, chunk.padding)).sort().values, torch.arange(chunk.windows * 16))


def test_only_cut_windows_carry_a_mask():
    """Without a shift nothing is masked; with one, only the last row and column of windows are."""
    still = swin.window_plan(1, 12, 12, 4, 0, 99, torch.device("cpu"))
    shifted = swin.window_plan(1, 12, 12, 4, 2, 99, torch.device("cpu"))

    assert [(p.pattern, p.windows) for p in still.chunks] == [(0, 9)]
    assert [(p.pattern, p.windows) for p in shifted.chunks] == [(0, 4), (1, 2), (2, 2), (3, 1)]
    assert shifted.masks[0] is None


def test_plan_is_made_once_per_shape():
    """The second image of a shape finds the plan ready."""
    plans = [swin.window_plan(1, 12, 20, 3, 1, 9, torch.device("cpu")) for _ in range(2)]

    assert plans[0] is plans[1]


def test_image_in_a_batch_is_as_alone():
    """An image gives the same maps alone and beside others."""
    network, _ = pair()
    x = noise(3, 3, 64, 32)
    together = network(x)

    for i in range(3):
        for alone, map_ in zip(network(x[i : i + 1]), together, strict=True):
            torch.testing.assert_close(alone[0], map_[i], **EXACT)
