"""Staging: whole planes between arena and device, in the order of marks; nobody's bytes are given away too early."""

from __future__ import annotations

import mmap
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.backends.cuda.memory_plan import NetworkNeed, plan
from rmbgd.backends.cuda.staging import ALIGNMENT, Ring, Staging
from rmbgd.engine.types import OUTPUT_BYTES, Options, OutputPlane, Region, aligned, region_bytes, view
from rmbgd.testing.device import HostDevice

BLOCK = 1 << 20
SIZE = 16 * ALIGNMENT  # of the ring
NEED = NetworkNeed(0, 0, 1)


class Streams(HostDevice):
    def __init__(self) -> None:
        super().__init__()
        self.here = "compute"
        self.said: list[tuple[str, str]] = []

    @contextmanager
    def on(self, name: str):
        before, self.here = self.here, name
        yield
        self.here = before

    upload_stream = partialmethod(on, "upload")
    download_stream = partialmethod(on, "download")

    def record_event(self) -> str:
        return f"{self.here} {len(self.said)}"

    def wait_event(self, event: object) -> None:
        self.said.append((self.here, str(event)))


@pytest.fixture
def block() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, BLOCK, np.uint8)


def memory(byte_count: int) -> torch.Tensor:
    return torch.empty(byte_count, dtype=torch.uint8)


def region(offset: int, *, source_alpha: bool = True) -> Region:
    return Region(offset, 57, 91, source_alpha, OutputPlane.RGBA8)


@pytest.mark.parametrize("source_alpha", [True, False])
def test_planes_lie_on_the_device_as_in_the_arena(block, source_alpha):
    staging = Staging(HostDevice(), block, memory(1 << 18), BLOCK)
    staging.upload(region(0))
    place = region(640, source_alpha=source_alpha)
    chunk = staging.upload(place)
    read = place.output_offset - place.offset
    assert np.array_equal(staging.rgb(place, chunk).numpy(), view(block, place).rgb)
    assert np.array_equal(staging.memory[chunk.start : chunk.start + read].numpy(), block[640 : 640 + read])


regions = st.builds(
    Region,
    st.integers(0, 8 * mmap.PAGESIZE).map(aligned),
    st.integers(1, 64),
    st.integers(1, 64),
    st.booleans(),
    st.sampled_from(OutputPlane),
)


@given(st.lists(regions, min_size=1, max_size=4), st.integers(0, 1 << 17), st.integers(0, 1 << 20), st.integers(1, 8))
def test_no_copy_reaches_across_the_end_of_page_locked_memory(places, pinned, host_free, kibi):
    """Whatever is to be locked of an arena of any size, and wherever images lie: the device refuses no copy."""
    block = np.random.default_rng(0).integers(0, 256, (1 << 17) + 512 * kibi, np.uint8)
    options = Options({}, Path(), pinned_bytes=pinned)
    locked = plan(free=0, total=0, host_free=host_free, arena=len(block), networks=[NEED], options=options).pinned
    device = HostDevice()
    device.pin(block, locked)
    staging = Staging(device, block, memory(1 << 17), locked)
    assert device.pinned == locked
    for place in places:
        chunk = staging.upload(place)
        assert np.array_equal(staging.rgb(place, chunk).numpy(), view(block, place).rgb)
        staging.download(place, chunk, object())


def test_the_device_refuses_a_copy_across_the_end_of_page_locked_memory(block):
    """As the property above needs it to."""
    device = HostDevice()
    device.pin(block, 3 * mmap.PAGESIZE)
    staging = Staging(device, block, memory(1 << 18), 3 * mmap.PAGESIZE + 1)
    with pytest.raises(torch.AcceleratorError, match="invalid argument"):
        staging.upload(Region(3 * mmap.PAGESIZE - 64, 57, 91, False, OutputPlane.RGBA8))


@pytest.mark.parametrize("output", list(OutputPlane))
def test_output_comes_down_where_it_belongs(block, output):
    staging = Staging(HostDevice(), block, memory(1 << 18), 5000)
    place = Region(640, 57, 91, True, output)
    expected, chunk = block.copy(), staging.upload(place)
    staging.memory.fill_(9)
    staging.download(place, chunk, object())
    first = place.output_offset
    expected[first : first + 57 * 91 * OUTPUT_BYTES[output]] = 9
    assert np.array_equal(block, expected)
    assert not chunk.held


def test_an_upload_waits_for_whoever_used_what_lies_there(block):
    device = Streams()
    size = region_bytes(57, 91, source_alpha=True, output=OutputPlane.RGBA8)
    staging = Staging(device, block, memory(size + ALIGNMENT), BLOCK)  # room for one image
    first = staging.upload(region(0))
    first.release("computed")
    second = staging.upload(region(size))
    assert first.evicted
    assert ("upload", "computed") in device.said
    assert str(second.last_use).startswith("upload")


def test_a_download_waits_for_its_plane_to_be_ready(block):
    """On the download stream; the next user of the chunk waits for the arrival."""
    device = Streams()
    staging = Staging(device, block, memory(1 << 16), BLOCK)
    arrived = staging.download(region(0), staging.upload(region(0)), "finished")
    assert device.said == [("download", "finished")]
    assert staging.upload(region(1 << 16)).wait_for == [arrived]


def test_what_can_never_be_on_the_device_is_known_before(block):
    staging = Staging(HostDevice(), block, memory(21_000), BLOCK)
    assert not staging.fits(region(0))
    assert staging.fits(Region(0, 57, 91, False, OutputPlane.ALPHA8))


@given(st.lists(st.tuples(st.integers(1, SIZE), st.booleans()), max_size=60))
def test_live_pieces_never_overlap(requests):
    """Whatever is asked for: pieces lie inside the ring, aligned, apart from each other; held ones stay."""
    ring = Ring(SIZE)
    live = []
    for byte_count, released in requests:
        chunk = ring.take(byte_count)
        if chunk is None:
            assert any(other.held for other in live)
            for other in live:
                other.held = False
            continue
        live = [other for other in live if not other.evicted]
        assert 0 <= chunk.start < chunk.end <= SIZE
        assert chunk.start % ALIGNMENT == 0
        assert chunk.end - chunk.start >= byte_count
        assert all(other.end <= chunk.start or chunk.end <= other.start for other in live)
        live.append(chunk)
        chunk.held = not released
    assert not any(chunk.evicted and chunk.held for chunk in live)


def test_who_takes_a_place_learns_what_to_wait_for():
    """The marks of all that lay there, and of nothing else; a chunk without a mark was never used."""
    ring = Ring(4 * ALIGNMENT)
    first, second, third = (ring.take(ALIGNMENT) for _ in range(3))
    for chunk, mark in ((first, "first"), (second, None), (third, "third")):
        chunk.held, chunk.last_use = False, mark
    assert ring.take(3 * ALIGNMENT).wait_for == ["first", "third"]
    assert all(chunk.evicted for chunk in (first, second, third))


def test_a_held_piece_stops_who_comes_after():
    ring = Ring(2 * ALIGNMENT)
    first, second = ring.take(1), ring.take(1)
    first.held = False
    assert ring.take(2 * ALIGNMENT) is None
    assert not first.evicted
    second.held = False
    assert ring.take(2 * ALIGNMENT) is not None


def test_what_can_never_fit_is_a_bug_of_the_caller():
    with pytest.raises(ValueError, match="can never fit"):
        Ring(ALIGNMENT).take(ALIGNMENT + 1)


def test_a_cleared_ring_begins_anew():
    ring = Ring(2 * ALIGNMENT)
    chunk = ring.take(2 * ALIGNMENT)
    ring.clear()
    assert chunk.evicted
    assert ring.take(2 * ALIGNMENT).wait_for == []
