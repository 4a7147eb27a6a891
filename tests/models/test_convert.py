"""The folded network is the published one, in real arithmetic: float64, small, weights that exercise every part."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from torch import nn

from rmbgd.models import birefnet
from rmbgd.models.checkpoint import BACKBONES
from rmbgd.models.convert import assemble, network_state
from rmbgd.models.registry import PatchOrder
from tests.models import oracle, stress
from tests.models.stress import noise

EXACT = {"rtol": 1e-10, "atol": 1e-10}
NEW = PatchOrder.CHANNEL_FIRST


def folded(weights: dict, order: PatchOrder = NEW, dtype: torch.dtype = torch.float64) -> birefnet.BiRefNet:
    return assemble(stress.TINY, order, weights.__getitem__, device="cpu", dtype=dtype)


@torch.inference_mode()
def both_logits(order: PatchOrder, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    network = stress.tiny_oracle(order.value)
    return folded(network.state_dict(), order)(x), network(x)


@pytest.mark.parametrize("order", list(PatchOrder))
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (160, 32)])
def test_whole_network_is_exact(order, height, width):
    ours, plain = both_logits(order, noise(2, 3, height, width))
    assert plain.std() > 0.1
    torch.testing.assert_close(ours, plain, **EXACT)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "order"), [("swin_v1_l-512x512", NEW), ("rmbg2-512x512", PatchOrder.TILE_FIRST)])
def test_large_networks_equal_the_reference(name, order):
    x, expected = stress.golden(name)
    weights = stress.recipe_tensors(stress.recipe(), "swin_v1_l")
    network = assemble(BACKBONES["swin_v1_l"], order, weights, device="cpu", dtype=torch.float32)
    torch.testing.assert_close(stress.logits(network, x), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 100), (31, 32)])
def test_sides_must_be_multiples_of_32(height, width):
    with pytest.raises(ValueError, match=f"{height} x {width}"):
        both_logits(NEW, noise(1, 3, height, width))


@torch.inference_mode()
def test_head_is_exact_up_to_the_border():
    network = stress.tiny_oracle()
    head, decoder = folded(network.state_dict()).head, network.decoder
    inside, x = noise(2, 64, 8, 12), noise(2, 3, 32, 48)
    block = decoder.decoder_block1
    upsampled = oracle.upsample(block.bn_out(block.conv_out(inside)), x.shape[-2:])
    plain = decoder.conv_out1(torch.cat((upsampled, decoder.ipt_blk1(x)), dim=1))
    alone = oracle.upsample(head.coarse(inside), x.shape[-2:]) + head.stencil(x)
    torch.testing.assert_close(head(inside, x), plain, **EXACT)
    assert (alone - plain)[..., 1:-1, 1:-1].abs().max() < 1e-10
    assert (alone - plain)[..., 0, :].abs().min() > 1e-10, "without its border the stencil alone would do"


def test_only_needed_tensors_are_read_and_untouched_ones_are_not_copied():
    """So a mapped file stays mapped."""
    weights = {name: tensor.float() for name, tensor in stress.tiny_oracle().state_dict().items()}
    get = Mock(side_effect=weights.__getitem__)
    network = assemble(stress.TINY, NEW, get, device="cpu", dtype=torch.float32)
    ours, given = network.bb.state_dict(), {n.removeprefix("bb."): t for n, t in weights.items() if n.startswith("bb.")}
    asked = {call.args[0] for call in get.call_args_list}
    assert asked == {name for name in weights if not name.endswith("num_batches_tracked")}
    assert ours.keys() == given.keys()
    copied = [name for name in ours if ours[name].data_ptr() != given[name].data_ptr()]
    assert copied == ["patch_embed.proj.weight"]  # channels-last for the convolution, a few kilobytes
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(m.training or isinstance(m, nn.BatchNorm2d | nn.Dropout) for m in network.modules())


def test_half_precision_folds_in_float32():
    weights = {n: t.half() if t.is_floating_point() else t for n, t in stress.tiny_oracle().state_dict().items()}
    wide = {name: tensor.double() for name, tensor in weights.items()}
    exact = dict(network_state(stress.TINY, NEW, wide.__getitem__))
    kept = set()
    for name, tensor in folded(weights, dtype=torch.float16).state_dict().items():
        if tensor.dtype is torch.float32:
            kept.add(name.split(".")[0])
            torch.testing.assert_close(tensor, exact[name].float(), rtol=1e-5, atol=1e-6, msg=name)
        else:
            torch.testing.assert_close(tensor, exact[name].half(), rtol=2**-10, atol=2**-20, msg=name)
    assert kept == {"bb", "head"}


def test_wrong_shape_is_an_error():
    weights = stress.tiny_oracle().state_dict() | {"bb.norm0.weight": torch.ones(9)}
    with pytest.raises(RuntimeError, match=r"bb\.norm0\.weight"):
        folded(weights, dtype=torch.float32)
