"""From logits to alpha and the flag of each image."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rmbgd.kernels.head import mattes


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_flags_its_image_alone(bad):
    """A logit that is no number or not finite marks the image it stands in, not its neighbour."""
    x = torch.zeros(3, 1, 4, 4)
    x[1, 0, 2, 2] = bad
    _, finite = mattes(nn.Identity(), x, triton=False)

    assert finite.tolist() == [True, False, True]


def test_alpha_is_computed_in_float32():
    """In half precision the sigmoid is not: logits 9 and 10 give different alphas, to float32's accuracy."""
    x = torch.tensor([[[[9.0, 10.0]]]], dtype=torch.bfloat16)
    alpha, _ = mattes(nn.Identity(), x, triton=False)

    torch.testing.assert_close(alpha, torch.tensor([[[9.0, 10.0]]]).sigmoid(), rtol=0, atol=1e-7)
    assert alpha.dtype == torch.float32
