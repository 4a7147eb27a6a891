"""Images in the network's input, by plain torch and by the kernel, against Pillow's resize and in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rmbgd.imaging.resize import image_to_network
from rmbgd.models import inference
from rmbgd.models.inference import image_table, put_images, resized
from rmbgd.resampling import Filter

SIZE = (24, 40)
SIZES = [(24, 40), (11, 13), (100, 37), (1, 1), (170, 330), (24, 300), (25, 39)]
PLAIN = torch.ones(3), torch.zeros(3)
BOTH = pytest.mark.parametrize("triton", [False, True])


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def places(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((count, 3, *SIZE), 7.0, dtype=dtype).to(memory_format=torch.channels_last)


def pillow(rgb: torch.Tensor) -> torch.Tensor:
    """[3, h, w] as Pillow resizes it, in bytes."""
    small = Image.fromarray(rgb.numpy()).resize(SIZE[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float()


def put(
    images: list[torch.Tensor],
    inputs: torch.Tensor,
    device: torch.device,
    triton: bool,
    levels=PLAIN,
    kind=Filter.BILINEAR,
) -> None:
    """Into `inputs` on the CPU, computed on the device."""
    there = inputs.to(device)
    put_images([p.to(device) for p in images], there, *(t.to(device) for t in levels), filter=kind, triton=triton)
    inputs.copy_(there)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resize_is_pillows(device, triton, height, width):
    """Within one step; the kernel does not round in between: it is within 1e-3 of a level of the float64 resize."""
    rgb, inputs = image(height, width), places(1)
    put([rgb], inputs, device, triton)
    torch.testing.assert_close(inputs[0], pillow(rgb), rtol=0, atol=1.001)
    if triton:
        exact = F.interpolate(rgb.permute(2, 0, 1)[None].double(), SIZE, mode="bilinear", antialias=True)
        torch.testing.assert_close(inputs.double(), exact, rtol=0, atol=1e-3)


# Shrinking, enlarging, either on one axis only, hardly, by much, single pixels and lines.
EXTREMES = [*SIZES, (1, 500), (700, 1), (1, 40), (24, 1), (23, 41), (1200, 30), (48, 80)]


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(("height", "width"), EXTREMES)
def test_boxes_are_the_hosts(device, triton, height, width):
    """To the level, whatever the reduction, but for a few that lie on the edge between two."""
    rgb, inputs = image(height, width, seed=height), places(1)
    put([rgb], inputs, device, triton, kind=Filter.BOX)
    host = image_to_network(rgb.numpy(), SIZE, Filter.BOX)
    apart = (inputs[0] - torch.from_numpy(host).permute(2, 0, 1)).abs()
    assert apart.max() <= 1
    assert apart.gt(0).float().mean() < 0.02


def test_boxes_do_not_depend_on_bands(monkeypatch):
    """A large image is widened a band at a time: to the bit the same."""
    rgb = image(300, 170)
    whole = resized(rgb, SIZE, Filter.BOX)
    monkeypatch.setattr(inference, "BAND_BYTES", 4 * 170 * 3 * 7)
    assert torch.equal(resized(rgb, SIZE, Filter.BOX), whole)


@BOTH
def test_images_fill_the_first_rows_and_the_rest_is_left_alone(device, triton):
    first, second, inputs = image(30, 30), image(50, 20, seed=1), places(4)
    put([first, second], inputs, device, triton)
    torch.testing.assert_close(inputs[0], pillow(first), rtol=0, atol=1.001)
    torch.testing.assert_close(inputs[1], pillow(second), rtol=0, atol=1.001)
    assert inputs[2:].eq(7).all()


@BOTH
def test_channels_are_scaled_each(device, triton):
    rgb, inputs = image(*SIZE), places(1)
    scale, shift = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, -5.0, 10.0])
    put([rgb], inputs, device, triton, (scale, shift))
    expected = rgb.permute(2, 0, 1) * scale.view(3, 1, 1) + shift.view(3, 1, 1)
    torch.testing.assert_close(inputs[0], expected, rtol=0, atol=1e-4)


def test_more_images_than_places_are_refused():
    with pytest.raises(ValueError, match="3 images for 2 places"):
        put_images([image(2, 2)] * 3, places(2), *PLAIN, triton=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernel_writes_half_precision(device, dtype):
    """Into half precision the kernel writes what float32 rounds to; the interpreter cuts bfloat16 off instead."""
    rgb, inputs, wide = image(31, 57), places(1, dtype), places(1)
    levels = torch.full((3,), 1 / 128), torch.full((3,), -1.0)
    put([rgb], inputs, device, triton=True, levels=levels)
    put([rgb], wide, device, triton=True, levels=levels)
    step = torch.finfo(dtype).eps if dtype == torch.bfloat16 and device.type == "cpu" else 0
    torch.testing.assert_close(inputs, wide.to(dtype), rtol=step, atol=0)


def test_rows_may_lie_apart(device):
    rgb, inputs, alone = image(30, 60).to(device), places(1), places(1)
    part = rgb[2:29, 5:50]
    put([part], inputs, device, triton=True)
    put([part.contiguous()], alone, device, triton=True)
    assert torch.equal(inputs, alone)


def test_a_row_of_height_zero_leaves_its_input_alone(device):
    """A captured launch has a fixed number of rows: those that describe no image write nothing."""
    from rmbgd.models.kernels.resize import resize_images

    rgb, inputs = image(*SIZE).to(device), places(2).to(device)
    table = torch.zeros(2, 4, dtype=torch.int64)
    table[1] = image_table([rgb])[0]
    resize_images(table.to(device), inputs, *(t.to(device) for t in PLAIN), Filter.BILINEAR)
    assert inputs[0].eq(7).all()
    assert torch.equal(inputs[1], rgb.permute(2, 0, 1).float())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(4, 4, 3), "not uint8"),
        (torch.zeros(4, 4, dtype=torch.uint8), "not uint8"),
        (torch.zeros(0, 4, 3, dtype=torch.uint8), "not uint8"),
        (torch.zeros(4, 8, 3, dtype=torch.uint8)[:, ::2], "apart"),
    ],
    ids=["float", "grey", "empty", "every second pixel"],
)
def test_what_is_no_image_is_refused(wrong, said):
    """The kernel reads addresses and could not tell."""
    with pytest.raises(ValueError, match=said):
        image_table([wrong])
