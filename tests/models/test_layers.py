"""Matrix products on rows: the same whichever library computes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from rmbgd.models.layers import Linear, linear, rows_per_chunk
from tests.models.stress import noise


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (2, 5, 3), (20000,)])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_product_is_the_usual_one(dtype, within, shape, bias):
    rows, weight = noise(*shape, 96).to(dtype), noise(40, 96).to(dtype)
    offset = noise(40).to(dtype) if bias else None
    expected = F.linear(rows.double(), weight.double(), offset.double() if bias else None)
    product = linear(rows, weight, offset)
    assert product.dtype is dtype
    assert product.is_contiguous()
    torch.testing.assert_close(product.double(), expected, rtol=within, atol=10 * within)


def test_layer_computes_in_the_type_of_its_weights():
    assert Linear(8, 4).bfloat16()(torch.zeros(3, 8)).dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chunk_stays_below_what_the_allocator_keeps(dtype):
    like = torch.zeros(1, dtype=dtype)
    rows = rows_per_chunk(3000, like)
    assert 16 << 20 < rows * 3000 * like.element_size() < 32 << 20
    assert rows_per_chunk(1 << 40, like) == 1
