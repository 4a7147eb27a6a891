"""The arena: leases never overlap, all memory comes back, and who asked first is served first."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rmbgd.engine.arena import Arena, ArenaClosed, Lease
from rmbgd.engine.types import ALIGNMENT
from tests.engine.processes import PATIENCE, SpyHeartbeat


def asked(arena: Arena, byte_count: int) -> Future:
    """A lease asked for in a thread of its own; returns when it is known to be waiting."""
    heartbeat = SpyHeartbeat()
    pool = ThreadPoolExecutor(1)
    future = pool.submit(arena.lease, byte_count, heartbeat)
    pool.shutdown(wait=False)
    assert heartbeat.blocked.wait(PATIENCE)
    return future


class Leases(RuleBasedStateMachine):
    """Any order of leasing what fits and giving back what is held."""

    SIZE = 64 * ALIGNMENT

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(self.SIZE)
        self.held: list[Lease] = []

    @rule(share=st.floats(0, 1))
    def lease(self, share):
        if largest := max((size for _, size in self.arena._free), default=0):
            self.held.append(self.arena.lease(int(share * largest)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        self.held.pop(data.draw(st.integers(0, len(self.held) - 1))).release()

    @invariant()
    def nothing_overlaps_and_nothing_is_lost(self):
        pieces = sorted(self.arena._free + [(lease.offset, lease.byte_count) for lease in self.held])
        assert [offset for offset, _ in pieces] + [self.SIZE] == [0, *(sum(piece) for piece in pieces)]
        assert all(offset % ALIGNMENT == 0 and size > 0 for offset, size in pieces)
        assert self.arena.statistics().leased_bytes == sum(lease.byte_count for lease in self.held)
        assert all(sum(a) < b[0] for a, b in itertools.pairwise(self.arena._free)), "free pieces are joined"

    def teardown(self):
        for lease in self.held:
            lease.release()
        assert self.arena._free == [(0, self.SIZE)]
        self.arena.close()


Leases.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLeases = Leases.TestCase


def test_a_small_image_does_not_overtake_a_large_one():
    """First asked, first served: what would fit waits behind the head that does not fit yet."""
    with Arena(4096) as arena:
        held = [arena.lease(2048), arena.lease(1024)]
        large, small = asked(arena, 4096), asked(arena, 64)
        held[1].release()
        assert not small.done()
        held[0].release()
        big = large.result(PATIENCE)
        assert not small.done()
        big.release()
        small.result(PATIENCE).release()


@given(sizes=st.lists(st.integers(2049, 4096), min_size=2, max_size=8))
@settings(max_examples=30, deadline=None)
def test_waiting_threads_are_served_in_the_order_they_asked(sizes):
    """With room for one at a time, each lease given back goes to who has waited longest."""
    with Arena(4096) as arena:
        held = arena.lease(4096)
        waiting = [asked(arena, size) for size in sizes]
        assert arena.statistics().waiting == len(sizes)
        served = []
        for future in waiting:
            held.release()
            held = future.result(PATIENCE)
            served.append([other.done() for other in waiting])
        held.release()
        assert arena.statistics().waiting == 0
        assert served == [[k <= turn for k in range(len(sizes))] for turn in range(len(sizes))]


def test_closing_wakes_who_waits():
    """And who comes later is refused, too."""
    arena = Arena(4096)
    lease = arena.lease(4096)
    waiting = [asked(arena, 64), asked(arena, 64)]
    arena.close()
    for future in waiting:
        with pytest.raises(ArenaClosed):
            future.result(PATIENCE)
    lease.release()
    with pytest.raises(ArenaClosed):
        arena.lease(64)
    arena.close()


def test_what_can_never_fit_is_refused_at_once():
    with Arena(4096) as arena, pytest.raises(ValueError, match="never fit"):
        arena.lease(4097)


def test_giving_back_twice_counts_once():
    """A second release does not free what somebody else holds by then."""
    with Arena(4096) as arena:
        first = arena.lease(4096)
        first.release()
        with arena.lease(4096):
            first.release()
            assert arena.statistics().leased_bytes == 4096
        assert arena.statistics().leased_bytes == 0


def test_a_lease_that_was_never_released_is_told():
    with Arena(4096) as arena:
        forgotten = [arena.lease(64)]
        with pytest.warns(ResourceWarning, match="64 bytes was never released"):
            forgotten.clear()


@pytest.mark.integration
def test_another_process_sees_the_same_bytes():
    """What a child writes through the descriptor stands in our block, and the reverse."""
    with Arena(4096) as arena, arena.lease(64) as lease:
        lease.block[lease.offset + 9] = 41
        program = f"from rmbgd.engine.arena import attach; block = attach({arena.fd}, 4096); block[10] = block[9] + 1"
        subprocess.run([sys.executable, "-c", program], pass_fds=(arena.fd,), check=True)
        assert lease.block[lease.offset + 10] == 42


def test_memory_becomes_real_only_when_written_and_nobody_can_shorten_it():
    """A large arena costs nothing until images lie in it; a cut would crash who reads it."""
    with Arena(1 << 30) as arena:
        assert os.fstat(arena.fd).st_blocks == 0
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, 0)
