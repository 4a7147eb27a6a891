"""BiRefNet on a CUDA device against the reference's logits, in the three types that it runs in there."""

from __future__ import annotations

import pytest
import torch

from rmbgd.models.checkpoint import BACKBONES
from rmbgd.models.convert import assemble
from rmbgd.models.registry import PatchOrder
from tests.models import stress
from tests.models.stress import golden
from tests.support.shared_data import shared

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

GOLDENS = [
    ("swin_v1_t-512x512", PatchOrder.CHANNEL_FIRST),
    ("swin_v1_t-2x256x384", PatchOrder.CHANNEL_FIRST),
    ("swin_v1_l-512x512", PatchOrder.CHANNEL_FIRST),
    ("rmbg2-512x512", PatchOrder.TILE_FIRST),
]


@torch.inference_mode()
def logits(name: str, order: PatchOrder, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network answers on the device, and the reference's answer."""
    x, expected = golden(name)
    backbone = "swin_v1_t" if name.startswith("swin_v1_t") else "swin_v1_l"
    weights = stress.recipe_tensors(stress.recipe(shared("birefnet")), backbone)
    network = assemble(BACKBONES[backbone], order, weights, device=device, dtype=dtype)
    return network(x.to(device)).cpu(), expected


@pytest.mark.parametrize(("name", "order"), GOLDENS)
def test_float32_equals_the_reference(cuda, name, order):
    """In float32 the logits agree with the reference to 1e-3."""
    answer, expected = logits(name, order, cuda, torch.float32)
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "distance", "steps"), [(torch.float16, 1e-2, 0.3), (torch.bfloat16, 6e-2, 1.5)], ids=["half", "bfloat16"]
)
@pytest.mark.parametrize(("name", "order"), GOLDENS)
def test_half_precision_is_near_the_reference(cuda, name, order, dtype, distance, steps):
    """In half precision the logits are near the reference's (relative, L2), and so is alpha (mean, steps of 1/255)."""
    answer, expected = logits(name, order, cuda, dtype)
    assert answer.isfinite().all()
    assert (answer - expected).norm() / expected.norm() <= distance
    assert (answer.sigmoid() - expected.sigmoid()).abs().mean() * 255 <= steps
