"""The whole network against the reference's logits, at the published sizes, on the recipe's weights."""

from __future__ import annotations

import pytest
import torch

from rmbgd.models import birefnet
from rmbgd.models.checkpoint import BACKBONES
from rmbgd.models.convert import assemble
from rmbgd.models.registry import PatchOrder
from tests.models.stress import golden, logits, recipe, recipe_tensors

pytestmark = pytest.mark.slow  # whole networks


def network(backbone: str, order: PatchOrder, dtype: torch.dtype = torch.float32) -> birefnet.BiRefNet:
    return assemble(BACKBONES[backbone], order, recipe_tensors(recipe(), backbone), device="cpu", dtype=dtype)


@pytest.fixture(scope="module")
def lite() -> birefnet.BiRefNet:
    return network("swin_v1_t", PatchOrder.CHANNEL_FIRST)


def test_lite_equals_the_reference(lite):
    """With the backbone Swin-T the logits of two images that are not square agree with the reference to 1e-3; the
    network works in place on its own maps, never on the caller's image."""
    x, expected = golden("swin_v1_t-2x256x384")
    before = x.clone()

    torch.testing.assert_close(logits(lite, x), expected, rtol=0, atol=1e-3)
    assert torch.equal(x, before)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "order"),
    [("swin_v1_l-512x512", PatchOrder.CHANNEL_FIRST), ("rmbg2-512x512", PatchOrder.TILE_FIRST)],
)
def test_large_equals_the_reference(name, order):
    """With the backbone Swin-L, on a square image, the logits agree to 1e-3 in both orders of the image patches."""
    x, expected = golden(name)

    torch.testing.assert_close(logits(network("swin_v1_l", order), x), expected, rtol=0, atol=1e-3)


def test_image_in_a_batch_is_as_alone(lite):
    """In float32 an image gives the logits that it gives alone, to 1e-3, although the sums run in another order."""
    x = torch.from_numpy(recipe().image("company", 2, 96, 160))
    alone = torch.cat([logits(lite, x[i : i + 1]) for i in range(2)])

    torch.testing.assert_close(alone, logits(lite, x), rtol=0, atol=1e-3)


def test_bfloat16_alpha_is_near_float32():
    """In bfloat16 the alpha is within 1.5 steps of 255 of the reference's on average."""
    x, expected = golden("swin_v1_t-2x256x384")
    half = network("swin_v1_t", PatchOrder.CHANNEL_FIRST, torch.bfloat16)
    alpha = logits(half, x.bfloat16()).float().sigmoid()

    assert (alpha - expected.sigmoid()).abs().mean() <= 1.5 / 255


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 100), (31, 32)])
def test_sides_must_be_multiples_of_32(lite, height, width):
    """An image that the network cannot halve five times is refused with its size, height first."""
    with pytest.raises(ValueError, match=f"{height} x {width}"):
        lite(torch.zeros(1, 3, height, width))
