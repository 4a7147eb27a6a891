"""Pictures in the network's input, against Pillow's resize and in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from rmbgd.kernels.pictures import put_pictures

SIZE = (24, 40)
SIZES = [(24, 40), (11, 13), (100, 37), (1, 1), (170, 330), (24, 300), (25, 39)]
PLAIN = torch.ones(3), torch.zeros(3)


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def places(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((count, 3, *SIZE), 7.0, dtype=dtype).to(memory_format=torch.channels_last)


def pillow(rgb: torch.Tensor) -> torch.Tensor:
    """[3, h, w] as Pillow resizes it, in bytes."""
    resized = Image.fromarray(rgb.numpy()).resize(SIZE[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resize_is_pillows(height, width):
    """Larger, smaller, very thin and equal pictures come within one step of what Pillow makes of them."""
    rgb, inputs = picture(height, width), places(1)
    put_pictures([rgb], inputs, *PLAIN, triton=False)

    torch.testing.assert_close(inputs[0], pillow(rgb), rtol=0, atol=1.001)


def test_each_picture_has_its_place_and_the_rest_is_left_alone():
    """Of four places two are filled, in order; the others keep what they had."""
    first, second, inputs = picture(30, 30), picture(50, 20, seed=1), places(4)
    put_pictures([first, second], inputs, *PLAIN, triton=False)

    torch.testing.assert_close(inputs[0], pillow(first), rtol=0, atol=1.001)
    torch.testing.assert_close(inputs[1], pillow(second), rtol=0, atol=1.001)
    assert inputs[2:].eq(7).all()


def test_channels_are_scaled_each():
    """Every channel has its own scale and shift, after the resize."""
    rgb, inputs = picture(*SIZE), places(1)
    scale, shift = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, -5.0, 10.0])
    put_pictures([rgb], inputs, scale, shift, triton=False)
    expected = rgb.permute(2, 0, 1) * scale.view(3, 1, 1) + shift.view(3, 1, 1)

    torch.testing.assert_close(inputs[0], expected, rtol=0, atol=1e-4)


def test_more_pictures_than_places_are_refused():
    """Nothing is dropped silently."""
    with pytest.raises(ValueError, match="3 pictures for 2 places"):
        put_pictures([picture(2, 2)] * 3, places(2), *PLAIN, triton=False)
