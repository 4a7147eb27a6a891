"""Launches, bytes and memory that BiRefNet takes on a GPU, with its kernels: counted on `meta`.

A kernel is charged with all that it is given, once. That holds but for what neighbours read again, which caches bear.
"""

from __future__ import annotations

import functools

import pytest
import torch

from rmbgd.models.birefnet import BiRefNet, stays_float32
from rmbgd.models.checkpoint import BACKBONES
from rmbgd.models.inference import mattes
from rmbgd.models.kernels.runtime import use_kernels
from tests.support.meta import Count, Kernel

# Of the large network in float16 on images of 1024 x 1024.
MOST_BYTES = 10.3e9  # for each image of a batch of eight
MOST_MEMORY = {1: 300 << 20, 8: 1350 << 20}  # by batch size, the batch itself included, weights left out
MOST_LAUNCHES = {1: 490, 8: 550}


def network(backbone: str, dtype: torch.dtype = torch.float16) -> BiRefNet:
    """As `assemble` makes it on a GPU, without numbers."""
    with torch.device("meta"):
        module = BiRefNet(BACKBONES[backbone]).requires_grad_(requires_grad=False)
    state = {}
    for name, tensor in module.state_dict().items():
        layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
        state[name] = tensor.to(torch.float32 if stays_float32(name) else dtype, memory_format=layout)
    module.load_state_dict(state, assign=True)
    return module


@functools.cache
@torch.inference_mode()
def counted(batch: int, backbone: str = "swin_v1_l", dtype: torch.dtype = torch.float16) -> Count:
    from rmbgd.models.kernels import aspp, head, norm, window

    module, jitted = network(backbone, dtype), type(norm._norm)
    use_kernels(module, triton=True)
    with pytest.MonkeyPatch.context() as patch, Count() as count:
        for kernels in (aspp, head, norm, window):
            for name in [name for name, value in vars(kernels).items() if isinstance(value, jitted)]:
                patch.setattr(kernels, name, Kernel(name, count.note))
        images = torch.empty((batch, 3, 1024, 1024), device="meta", memory_format=torch.channels_last)
        mattes(module, images, triton=True)
    return count


@pytest.mark.usefixtures("device")
def test_a_batch_moves_few_bytes():
    assert counted(8).bytes.total() / 8 <= MOST_BYTES


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("batch", [1, 8])
def test_a_batch_takes_little_memory(batch):
    assert counted(batch).peak <= MOST_MEMORY[batch]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("batch", [1, 8])
def test_a_batch_takes_few_launches(batch):
    assert counted(batch).launches.total() <= MOST_LAUNCHES[batch]


@pytest.mark.usefixtures("device")
def test_nothing_is_padded_or_brought_into_another_layout():
    assert not {"aten::pad", "aten::constant_pad_nd", "aten::contiguous", "aten::clone"} & counted(8).launches.keys()


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gelu_is_in_the_product_in_half_precision_alone(dtype):
    """There a product has its tanh form, which would be the largest error of a network in float32."""
    launches = counted(1, "swin_v1_t", dtype).launches
    mlps = 2 * sum(BACKBONES["swin_v1_t"].depths)
    fused, apart = (0, mlps) if dtype is torch.float32 else (mlps, 0)
    assert (launches["aten::_addmm_activation"], launches["aten::gelu"]) == (fused, apart)
