"""Which GPUs CUDA_VISIBLE_DEVICES leaves visible: the rules of the CUDA Programming Guide, and torch's reading."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.engine.visible_devices import Card, hides_all, visible

CARDS = [
    Card("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"),
    Card("GPU-8932aaaa-0000-4106-c12f-20bd9faed9f6", ("MIG-1111-a", "MIG-2222-b")),
    Card("GPU-77770000-d72c-4106-c12f-20bd9faed9f6"),
]


@pytest.mark.parametrize(
    ("variable", "cards"),
    [
        (None, [0, 1, 2]),
        ("2,1", [2, 1]),  # both examples of the guide
        ("0,2,-1,1", [0, 2]),
        (" 1 , 0", [1, 0]),
        ("1gpu,2ampere", [1, 2]),  # read like C's strtoul
        ("0,3,1", [0]),  # an index beyond the last card is invalid, too
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
        ("all", []),
        ("0,0", []),
        (CARDS[1].uuid, [1]),
        ("GPU-8932f937", [0]),
        ("GPU-8932", []),  # two cards begin so
        ("GPU-7777,GPU-8932f", [2, 0]),
        ("GPU-7777,GPU-0000,GPU-8932f", [2]),
        ("GPU-7777,GPU-77770000", []),  # one card twice
        ("0,GPU-7777", [0]),
        ("GPU-7777,0", [2]),
        ("MIG-2222-b", [1]),
        ("MIG-1111-a,MIG-2222-b", [1]),  # a process sees one instance
        ("MIG-9999", []),
        ("MIG-GPU-8932aaaa-0000-4106-c12f-20bd9faed9f6/1/0", [1]),
    ],
)
def test_what_cuda_counts(variable, cards):
    assert visible(variable, CARDS) == cards


@pytest.mark.parametrize(
    ("variable", "hidden"), [(None, False), ("", True), ("-1", True), ("0", False), ("GPU-1", False)]
)
def test_some_values_hide_every_gpu_whatever_there_is(variable, hidden):
    assert hides_all(variable) is hidden


ENTRIES = st.sampled_from(
    ["0", "1", "2", "3", "-1", "", "x", "GPU-8932f937", "GPU-8932", "GPU-7777", "MIG-1111-a", "MIG-x"]
)


@given(st.lists(ENTRIES, max_size=5).map(",".join))
def test_no_card_is_counted_twice_and_none_that_is_not_there(variable):
    found = visible(variable, CARDS)
    assert len(set(found)) == len(found)
    assert set(found) <= set(range(len(CARDS)))
    assert not (hides_all(variable) and found)


INDICES = st.lists(st.sampled_from(["0", "1", "2", "-1", "1x", "+2", "x"]), min_size=1, max_size=5).map(",".join)


@given(INDICES)
def test_torch_reads_indices_alike(variable):
    cuda = pytest.importorskip("torch.cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", variable)
        assert visible(variable, CARDS) == cuda._parse_visible_devices()
