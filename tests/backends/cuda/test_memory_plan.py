"""How a GPU's memory and a batch are divided."""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.backends.cuda.memory_plan import SIZES, NetworkNeed, Plan, plan, split
from rmbgd.engine.types import Options

MEBI = 1 << 20
GIBI = 1 << 30

# BiRefNet with Swin-L at 1024 x 1024 in float16, as computed from its layers: input in float32, alpha in float32.
LARGE = NetworkNeed(fixed=200 * MEBI, each=200 * MEBI, static=16 * MEBI)


def asked(largest: int, staging: int, pinned: int, spare: int) -> Options:
    return Options({}, Path(), batch_maximum=largest, staging_bytes=staging, pinned_bytes=pinned, spare_bytes=spare)


OPTIONS = asked(16, 128 * MEBI, 256 * MEBI, GIBI)


def planned(
    free: int,
    *,
    networks=(LARGE,),
    options: Options = OPTIONS,
    host_free: int = 64 * GIBI,
    arena: int = 512 * MEBI,
) -> Plan:
    return plan(free=free, total=8 * GIBI, host_free=host_free, arena=arena, networks=networks, options=options)


@pytest.mark.parametrize(
    ("free", "changes", "sizes", "staging", "pinned", "told"),
    [
        pytest.param(6.4, {}, SIZES, 128, 256, [], id="a card of 8 GB"),
        pytest.param(3.5, {}, SIZES[:4], 128, 256, ["batch"], id="a card of 8 GB shared with others"),
        pytest.param(0.7, {}, (1,), 32, 256, ["memory_low", "batch"], id="little free: one image is tried"),
        pytest.param(6, {"host_free": GIBI}, SIZES, 128, 128, ["pinned"], id="an eighth of a small host is locked"),
        pytest.param(6, {"options": asked(16, 128 * MEBI, 4 * GIBI, GIBI)}, SIZES, 128, 512, [], id="all the arena"),
    ],
)
def test_memory_is_divided(free, changes, sizes, staging, pinned, told):
    found = planned(int(free * GIBI), **changes)
    limits = {limit.what: limit.detail for limit in found.limits}
    assert (found.sizes, list(limits)) == (sizes, told)
    assert (found.staging, found.pinned) == (staging * MEBI, pinned * MEBI)
    assert "batch" not in limits or f"at most {sizes[-1]} images at once, not 16" in limits["batch"]


needs = st.builds(NetworkNeed, st.integers(0, GIBI), st.integers(0, GIBI), st.integers(1, 128 * MEBI))


@given(
    st.integers(0, 200 * GIBI),
    st.lists(needs, min_size=1, max_size=3),
    st.sampled_from(SIZES),
    st.integers(32 * MEBI, GIBI),
    st.integers(0, 4 * GIBI),
)
def test_what_is_spared_stays_free(free, networks, largest, staging, spare):
    """Graphs and warm-ups take the networks' working memory one after the other, and each network its own planes."""
    found = planned(free, networks=networks, options=asked(largest, staging, 0, spare))
    assert found.sizes[0] == 1
    assert found.sizes[-1] <= largest
    if (batch := found.sizes[-1]) > 1:
        planes = batch * sum(need.static for need in networks)
        assert found.network == max(need.batch(batch) for need in networks)
        assert found.network + planes + found.staging + found.working <= free - spare


@given(st.lists(st.integers(0, 16 * GIBI), min_size=2, max_size=2).map(sorted), st.lists(needs, min_size=1, max_size=2))
def test_more_memory_never_means_smaller_batches(frees, networks):
    less, more = (planned(free, networks=networks) for free in frees)
    assert set(less.sizes) <= set(more.sizes)


@given(st.integers(0, GIBI), st.integers(0, GIBI), st.integers(0, 16 * GIBI))
def test_whole_pages_are_locked_and_no_more_than_is_asked_for_or_free(arena, pinned, host_free):
    options = asked(16, 128 * MEBI, pinned, GIBI)
    found = planned(8 * GIBI, options=options, host_free=host_free, arena=arena).pinned
    assert found % mmap.PAGESIZE == 0
    assert 0 <= found <= min(arena, pinned, host_free // 8)
    assert found > min(arena, pinned, host_free // 8) - mmap.PAGESIZE


def test_images_go_as_measured_and_in_full_batches_without_measurements():
    assert split(5, SIZES, {1: 7.0, 2: 12.0, 4: 22.0, 8: 42.0, 16: 80.0}) == [(4, 4), (1, 1)]
    assert split(5, SIZES, {1: 7.0, 2: 12.0, 4: 22.0, 8: 25.0, 16: 80.0}) == [(5, 8)]
    assert split(7, (1, 2, 4), {}) == [(4, 4), (2, 2), (1, 1)]
    assert split(11, (1, 2, 4, 8), {1: 1.0}) == [(8, 8), (2, 2), (1, 1)]


@given(
    st.integers(1, 8),
    st.integers(1, len(SIZES)),
    st.lists(st.floats(0.001, 10), min_size=len(SIZES), max_size=len(SIZES)),
)
def test_no_other_division_is_quicker(count, kinds, seconds):
    """Compared with every way to divide so many images among the sizes, by brute force."""
    sizes = SIZES[:kinds]
    times = dict(zip(sizes, seconds, strict=False))
    found = split(count, sizes, times)

    def cost(division):
        return sum(min(times[size] for size in sizes if size >= part) for part in division)

    assert sum(images for images, _ in found) == count
    assert all(images <= size for images, size in found)
    ways = (
        way
        for length in range(1, count + 1)
        for way in itertools.combinations_with_replacement(range(1, min(count, sizes[-1]) + 1), length)
        if sum(way) == count
    )
    assert sum(times[size] for _, size in found) <= min(cost(way) for way in ways) + 1e-6
