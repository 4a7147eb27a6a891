"""The folded network is the published one, in real arithmetic: float64, small, weights that exercise every part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rmbgd.models import birefnet
from rmbgd.models.checkpoint import published
from rmbgd.models.convert import BiRefNetConfig, assemble, network_state
from rmbgd.models.registry import PatchOrder
from tests.models import oracle, stress

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def folded(network: oracle.BiRefNet, order: PatchOrder = PatchOrder.CHANNEL_FIRST) -> birefnet.BiRefNet:
    state = network.state_dict()
    return assemble(BiRefNetConfig(stress.TINY, order), state.__getitem__, device="cpu", dtype=torch.float64)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@torch.inference_mode()
def both_logits(order: PatchOrder, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    network = stress.tiny_oracle(order.value)
    return folded(network, order)(x), network(x)


@pytest.mark.parametrize("order", list(PatchOrder))
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (160, 32)])
def test_whole_network_is_exact(order, height, width):
    """For both patch orders and any sides that are multiples of 32 the logits equal the plain network's."""
    mine, plain = both_logits(order, noise(2, 3, height, width))

    assert plain.std() > 0.1
    torch.testing.assert_close(mine, plain, **EXACT)


def test_patch_orders_differ():
    """The two patch orders are two different functions of the same weights, so a mistaken one would be seen."""
    x = noise(1, 3, 64, 64)
    old, new = (both_logits(order, x)[0] for order in (PatchOrder.TILE_FIRST, PatchOrder.CHANNEL_FIRST))

    assert (old - new).abs().mean() > 1e-3


@torch.inference_mode()
def test_head_is_exact_up_to_the_border():
    """The head equals conv_out, BatchNorm, both image convolutions and the 1x1, on inner pixels, edges and corners."""
    network = stress.tiny_oracle()
    head, decoder = folded(network).head, network.decoder
    inside, x = noise(2, 64, 8, 12), noise(2, 3, 32, 48)
    block = decoder.decoder_block1
    grown = oracle.upsample(block.bn_out(block.conv_out(inside)), x.shape[-2:])
    plain = decoder.conv_out1(torch.cat((grown, decoder.ipt_blk1(x)), dim=1))
    alone = oracle.upsample(head.coarse(inside), x.shape[-2:]) + head.stencil(x)

    torch.testing.assert_close(head(inside, x), plain, **EXACT)
    assert (alone - plain)[..., 1:-1, 1:-1].abs().max() < 1e-10
    assert (alone - plain)[..., 0, :].abs().min() > 1e-10, "without its border the stencil alone would do"


@torch.inference_mode()
def test_decoder_block_is_exact():
    """BatchNorm folded into plain and deformable convolutions, and the branches' sum, equal the plain pyramid."""
    network = stress.tiny_oracle()
    block = network.decoder.decoder_block1
    mine = folded(network)
    x = noise(2, block.conv_in.in_channels, 9, 14)
    plain = block.dec_att(torch.relu(block.bn_in(block.conv_in(x))))

    torch.testing.assert_close(mine.block1.aspp(mine.block1.enter(x)), plain, **EXACT)


def test_training_heads_are_never_asked_for():
    """Assembling asks for the published tensors that inference needs, and for no training head or counter."""
    weights = stress.tiny_oracle().state_dict()
    asked = set()

    def get(name: str) -> torch.Tensor:
        asked.add(name)
        return weights[name]

    assemble(BiRefNetConfig(stress.TINY, PatchOrder.CHANNEL_FIRST), get, device="cpu", dtype=torch.float32)

    assert asked == {name for name in weights if not name.endswith("num_batches_tracked")}


def test_published_names_are_the_oracles():
    """The names that a checkpoint must have are those of the plain network, at both sizes."""
    from rmbgd.models.checkpoint import is_optional

    for backbone in ("swin_v1_l", "swin_v1_t"):
        with torch.device("meta"):
            plain = oracle.build(backbone).state_dict()
        needed = {name: info.shape for name, info in published(backbone).items() if not is_optional(name)}

        assert needed == {n: tuple(t.shape) for n, t in plain.items() if not n.endswith("num_batches_tracked")}


def test_untouched_tensors_are_not_copied():
    """A backbone tensor that lies where it is wanted is used as it is: a mapped file stays mapped."""
    weights = {name: tensor.float() for name, tensor in stress.tiny_oracle().state_dict().items()}
    config = BiRefNetConfig(stress.TINY, PatchOrder.CHANNEL_FIRST)
    network = assemble(config, weights.__getitem__, device="cpu", dtype=torch.float32)
    mine, given = network.bb.state_dict(), {n.removeprefix("bb."): t for n, t in weights.items() if n.startswith("bb.")}

    assert mine.keys() == given.keys()
    moved = [name for name in mine if mine[name].data_ptr() != given[name].data_ptr()]
    assert moved == ["patch_embed.proj.weight"]  # pixel-major for the convolution, a few kilobytes


def test_half_precision_folds_in_float32():
    """From a float16 checkpoint the folds are made in float32 and rounded once; norms and head are not rounded."""
    weights = {n: t.half() if t.is_floating_point() else t for n, t in stress.tiny_oracle().state_dict().items()}
    wide = {name: tensor.double() for name, tensor in weights.items()}
    config = BiRefNetConfig(stress.TINY, PatchOrder.CHANNEL_FIRST)
    exact = dict(network_state(config, wide.__getitem__))
    network = assemble(config, weights.__getitem__, device="cpu", dtype=torch.float16)

    kept = set()
    for name, tensor in network.state_dict().items():
        if tensor.dtype is torch.float32:
            kept.add(name.split(".")[0])
            torch.testing.assert_close(tensor, exact[name].float(), rtol=1e-5, atol=1e-6, msg=name)
        else:
            torch.testing.assert_close(tensor, exact[name].half(), rtol=2**-10, atol=2**-20, msg=name)
    assert kept == {"bb", "head"}


def test_wrong_shape_is_an_error():
    """A tensor of another shape than the backbone's stops the assembly, with its name."""
    weights = dict(stress.tiny_oracle().state_dict())
    weights["bb.norm0.weight"] = torch.ones(9)
    config = BiRefNetConfig(stress.TINY, PatchOrder.CHANNEL_FIRST)

    with pytest.raises(RuntimeError, match=r"bb\.norm0\.weight"):
        assemble(config, weights.__getitem__, device="cpu", dtype=torch.float32)


def test_network_needs_no_gradient_and_is_in_eval_mode():
    """What comes out is ready for inference: no parameter asks for gradients, no module is in training mode."""
    network = folded(stress.tiny_oracle())

    assert not any(p.requires_grad for p in network.parameters())
    assert not any(m.training for m in network.modules())
    assert not any(isinstance(m, nn.BatchNorm2d | nn.Dropout) for m in network.modules())
