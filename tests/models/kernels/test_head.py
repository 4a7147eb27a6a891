"""From logits to alpha and the flag of each image, and the kernel that does it together with the head."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rmbgd.models.birefnet import BiRefNet, Head
from rmbgd.models.inference import mattes
from rmbgd.models.kernels.runtime import use_kernels
from tests.models.stress import randomised


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_flags_its_image_alone(bad):
    x = torch.zeros(3, 1, 4, 4)
    x[1, 0, 2, 2] = bad
    assert mattes(nn.Identity(), x, triton=False)[1].tolist() == [True, False, True]


def test_alpha_is_computed_in_float32():
    x = torch.tensor([[[[9.0, 10.0]]]])
    alpha, _ = mattes(nn.Identity(), x.bfloat16(), triton=False)
    torch.testing.assert_close(alpha, x[:, 0].sigmoid(), rtol=0, atol=1e-7)


class Ending(BiRefNet):
    """A head alone: its input's first channel makes the last block's map."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.head = Head()
        randomised(self.head)
        inner, outer = self.head.border_in, self.head.border_out
        both = F.conv2d(inner.weight.transpose(0, 1), outer.weight.flip(2, 3), padding=2).transpose(0, 1)
        self.head.stencil.weight.copy_(both)
        self.head.stencil.bias.copy_(outer.bias + outer.weight.sum((2, 3)) @ inner.bias)

    def head_inputs(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image[:, :1, ::4, ::4] * torch.linspace(-1, 1, 64).to(image).view(-1, 1, 1), image


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(memory_format=torch.channels_last)


@pytest.fixture
def ending(device) -> Ending:
    network = Ending().to(device)
    assert use_kernels(network, triton=True) == 1
    return network


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "height", "width"), [(2, 12, 8), (1, 20, 132)])
def test_kernel_is_the_head_at_every_pixel(ending, device, batch, height, width):
    x = noise(batch, 3, height, width).to(device)
    alpha, finite = mattes(ending, x, triton=True)
    exact = ending.double()(x.double())[:, 0].sigmoid()
    torch.testing.assert_close(alpha.double(), exact, rtol=0, atol=1e-6)
    assert finite.all()


@pytest.mark.slow
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_kernel_flags_one_image_alone(ending, device, bad):
    x = noise(3, 3, 12, 8).to(device)
    x[1, 2, 11, 7] = bad
    x[2] = 50
    alpha, finite = mattes(ending, x, triton=True)
    alone, _ = mattes(ending, x[:1], triton=True)
    assert finite.tolist() == [True, False, True]
    torch.testing.assert_close(alpha[0], alone[0], rtol=0, atol=1e-6)


def test_head_without_stencils_is_a_bug(device):
    with pytest.raises(ValueError, match="use_kernels"):
        mattes(Ending().to(device), noise(1, 3, 12, 8).to(device), triton=True)
