"""Staging: whole planes between arena and device, in the order of marks; nobody's bytes are given away too early."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partialmethod
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmbgd.backends.cuda.staging import ALIGNMENT, Ring, Staging
from rmbgd.engine.types import OutputPlane, Region, region_bytes, view
from rmbgd.testing.device import HostDevice

BLOCK = 1 << 20
SIZE = 16 * ALIGNMENT  # of the ring


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


def region(offset: int, *, source_alpha: bool = True) -> Region:
    return Region(offset, 57, 91, source_alpha, OutputPlane.RGBA8)


@pytest.mark.parametrize("source_alpha", [True, False])
def test_planes_arrive_whole(block, source_alpha):
    staging = Staging(HostDevice(), block, 1 << 18, 1 << 18, BLOCK)
    place = region(640, source_alpha=source_alpha)
    source = staging.upload(place)
    slot = view(block, place)
    assert np.array_equal(source.rgb.numpy(), slot.rgb)
    assert np.array_equal(source.source_alpha, slot.source_alpha)  # None equals None


@pytest.mark.parametrize("edge", [0, 100, 640, 10_000, BLOCK])
def test_a_copy_is_cut_where_page_locked_memory_ends(block, edge):
    staging = Staging(HostDevice(), block, 1 << 18, 1 << 18, edge)
    parts = staging._parts(640, 9000)
    assert [parts[0][0], parts[-1][1]] == [0, 9000]
    assert all(first[1] == second[0] for first, second in pairwise(parts))
    assert all((640 + last <= edge) or (640 + first >= edge) for first, last in parts)


def test_output_comes_down_where_it_belongs(block):
    staging = Staging(HostDevice(), block, 1 << 18, 1 << 18, 5000)
    before = block.copy()
    band = staging.take_band(4000, 3000)
    band.memory.fill_(9)
    staging.download(band, object())
    before[4000:7000] = 9
    assert np.array_equal(block, before)
    assert not band.chunk.held


def test_an_upload_waits_for_whoever_read_what_lies_there(block):
    device = Streams()
    size = region_bytes(57, 91, source_alpha=True, output=OutputPlane.RGBA8)
    staging = Staging(device, block, size, 1 << 18, BLOCK)  # room for one image
    first = staging.upload(region(0))
    first.chunk.last_use, first.chunk.held = "computed", False
    second = staging.upload(region(size))
    assert first.chunk.evicted
    assert ("upload", "computed") in device.said
    assert str(second.chunk.last_use).startswith("upload")


def test_a_download_waits_for_its_band_to_be_ready(block):
    """On the download stream; the next user of the piece waits for the arrival."""
    device = Streams()
    staging = Staging(device, block, 1 << 18, 512, BLOCK)
    band = staging.take_band(0, 512)
    arrived = staging.download(band, "packed")
    again = staging.take_band(512, 512)
    assert device.said == [("download", "packed")]
    assert again.chunk.wait_for == [arrived]


def test_what_can_never_be_on_the_device_is_known_before(block):
    staging = Staging(HostDevice(), block, 20_000, 1 << 18, BLOCK)
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
