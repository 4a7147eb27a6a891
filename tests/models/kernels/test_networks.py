"""Whole networks with their kernels against the same networks without, on small configurations."""

from __future__ import annotations

import pytest
import torch

from rmbgd.models.convert import assemble
from rmbgd.models.inference import mattes
from rmbgd.models.kernels.runtime import use_kernels
from rmbgd.models.registry import PatchOrder
from rmbgd.models.u2net import U2NetP
from tests.models import stress
from tests.models.stress import noise


@pytest.mark.slow
@pytest.mark.timeout(900)  # five pyramids of 60 taps, interpreted
@torch.inference_mode()
def test_birefnet_by_kernels_is_birefnet(device):
    state = stress.tiny_oracle().state_dict()
    network = assemble(stress.TINY, PatchOrder.CHANNEL_FIRST, state.__getitem__, device=device, dtype=torch.float32)
    x = noise(1, 3, 32, 32).float().to(device)
    expected, _ = mattes(network, x)
    assert use_kernels(network, triton=True) == 8 + 5 + 1
    alpha, finite = mattes(network, x, triton=True)
    assert finite.all()
    assert expected.std() > 0.01
    torch.testing.assert_close(alpha, expected, rtol=0, atol=1e-4)


def test_a_network_without_kernels_is_left_alone(device):
    network = U2NetP().requires_grad_(requires_grad=False).eval()
    x = noise(1, 3, 32, 32).float()
    expected, _ = mattes(network, x)
    assert use_kernels(network, triton=True) == 0
    assert torch.equal(mattes(network, x, triton=True)[0], expected)
