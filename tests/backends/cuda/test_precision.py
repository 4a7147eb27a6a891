"""In which type a network computes, and the gate that judges quicker ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from rmbgd.backends.cuda.network import PrecisionGate, precision_of, wider
from rmbgd.backends.cuda.runtime import compute_exactly


def test_a_gate_lets_near_answers_through_and_says_what_is_wrong_with_others():
    gate = PrecisionGate(mean=1 / 255, far=8 / 255, fraction=0.01)
    expected = np.zeros((100, 100), np.float32)
    spotted, broken = expected.copy(), expected.copy()
    spotted[:2] = 9 / 255
    broken[0, 0] = np.nan
    assert gate.refusal(expected + np.float32(0.9 / 255), expected) == ""
    shifted = gate.refusal(expected + np.float32(1.1 / 255), expected)
    assert "off by 1.10 levels on average (1.00 are let through)" in shifted
    assert "by more than 8 in 2.00 % of it" in gate.refusal(spotted, expected)
    assert "not finite" in gate.refusal(broken, expected)


@pytest.mark.parametrize(
    ("asked", "capability", "used", "told"),
    [
        ("auto", None, "float32", []),
        ("auto", (7, 5), "float16", []),
        ("float32", (9, 0), "float32", []),
        ("bfloat16", (8, 7), "bfloat16", []),
        ("bfloat16", (7, 5), "float16", ["bfloat16"]),
        ("bfloat16", None, "bfloat16", []),
    ],
)
def test_the_type_follows_from_what_is_asked_and_what_there_is(asked, capability, used, told):
    found, limits = precision_of(asked, capability)
    assert (found, [limit.what for limit in limits]) == (used, told)


@pytest.mark.parametrize(
    ("precision", "capability", "used"),
    [
        ("float16", (8, 0), "bfloat16"),
        ("float16", (7, 5), "float32"),
        ("bfloat16", (9, 0), "float32"),
        ("float16", None, "float32"),
    ],
)
def test_what_overflows_goes_to_the_type_with_a_wider_range(precision, capability, used):
    assert wider(precision, capability) == used


@pytest.fixture
def flags() -> Iterator[Callable[[], list[object]]]:
    """torch's own, which a build without CUDA keeps as well; set to the least exact."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    flags = [
        (products, "fp32_precision", "tf32"),
        (convolutions, "fp32_precision", "tf32"),
        (products, "allow_fp16_reduced_precision_reduction", True),
        (products, "allow_bf16_reduced_precision_reduction", True),
    ]
    before = [getattr(place, name) for place, name, _ in flags]
    for place, name, value in flags:
        setattr(place, name, value)
    yield lambda: [getattr(place, name) for place, name, _ in flags]
    for (place, name, _), value in zip(flags, before, strict=True):
        setattr(place, name, value)


def test_no_product_is_summed_in_less_than_its_factors_have(flags):
    compute_exactly()
    assert flags() == ["ieee", "ieee", False, False]
