"""The arena: leases never overlap, all memory comes back, and who asked first is served first."""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rmbgd.engine.arena import TRIM_SECONDS, Arena, ArenaClosed, Lease
from rmbgd.engine.types import ALIGNMENT
from tests.engine.processes import PATIENCE, SpyHeartbeat


def asked(arena: Arena, byte_count: int, *, urgent: bool = False) -> Future:
    """A lease asked for in a thread of its own; returns when it is known to be waiting."""
    heartbeat = SpyHeartbeat()
    pool = ThreadPoolExecutor(1)
    future = pool.submit(arena.lease, byte_count, heartbeat, urgent=urgent)
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


def test_an_urgent_lease_goes_before_all_others_and_into_what_is_reserved():
    with Arena(8 * ALIGNMENT, reserved=2 * ALIGNMENT) as arena:
        held = arena.lease(6 * ALIGNMENT)
        ordinary = asked(arena, ALIGNMENT)
        first = arena.lease(ALIGNMENT, urgent=True)
        second = arena.lease(ALIGNMENT, urgent=True)
        urgent = asked(arena, 6 * ALIGNMENT, urgent=True)
        held.release()
        taken = urgent.result(PATIENCE)
        assert not ordinary.done()
        for lease in (first, second, taken):
            lease.release()
        ordinary.result(PATIENCE).release()


def test_what_fits_nowhere_else_may_use_what_is_reserved():
    with Arena(8 * ALIGNMENT, reserved=2 * ALIGNMENT) as arena, arena.lease(ALIGNMENT):
        arena.lease(7 * ALIGNMENT).release()


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


MEBI = 1 << 20


def filled(arena: Arena, *sizes: int) -> list[Lease]:
    leases = [arena.lease(size) for size in sizes]
    for number, lease in enumerate(leases):
        lease.block[lease.offset :][: lease.byte_count] = 7 + number
    return leases


def resident(arena: Arena) -> int:
    return arena.statistics().resident_bytes


class Ticks:
    """Looks of the health thread, every 10 s."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.now = arena, 1000.0
        arena.trim(self.now)

    def idle(self, seconds: float = 2 * TRIM_SECONDS) -> None:
        """The first window ends with what was lent in it, the second is idle."""
        for _ in range(int(seconds // 10)):
            self.now += 10
            self.arena.trim(self.now)


def test_what_no_image_needs_any_more_goes_back_to_the_system() -> None:
    with Arena(100 * MEBI) as arena:
        ticks = Ticks(arena)
        for lease in filled(arena, 70 * MEBI, 3 * MEBI):
            lease.release()
        assert resident(arena) == 73 * MEBI
        ticks.idle(TRIM_SECONDS - 10)
        assert resident(arena) == 73 * MEBI, "not at once: the next image would pay for it"
        ticks.idle()
        assert resident(arena) == 0
        with filled(arena, 5 * MEBI)[0] as lease:
            assert (lease.block[lease.offset :][: lease.byte_count] == 7).all()
            assert resident(arena) == 5 * MEBI


def test_what_is_lent_stays_and_what_images_use_again_and_again() -> None:
    """Also on pages that a lease shares with free memory."""
    with Arena(100 * MEBI) as arena:
        ticks = Ticks(arena)
        small, burst, odd, top = filled(arena, MEBI, 60 * MEBI, 5 * MEBI + 64, MEBI)
        burst.release()
        top.release()
        ticks.idle()
        assert (odd.block[odd.offset :][: odd.byte_count] == 9).all()
        assert resident(arena) == 67 * MEBI + mmap.PAGESIZE - MEBI, "only what lies behind the last image goes"
        odd.release()
        small.release()
        for _ in range(12):  # a trickle: never idle for long, and never high
            filled(arena, 2 * MEBI)[0].release()
            ticks.idle(10)
        assert resident(arena) == 2 * MEBI


def test_what_a_device_has_locked_stays_until_its_process_is_gone() -> None:
    with Arena(64 * MEBI) as arena:
        ticks = Ticks(arena)
        first, second = object(), object()
        arena.keep(first, 10 * MEBI)
        arena.keep(second, 4 * MEBI + 1)
        for lease in filled(arena, 20 * MEBI):
            lease.release()
        ticks.idle()
        assert (resident(arena), arena.statistics().kept_bytes) == (10 * MEBI, 10 * MEBI)
        assert (arena.block[: 10 * MEBI] == 7).all()
        arena.keep(first, 0)
        ticks.idle()
        assert resident(arena) == 4 * MEBI + mmap.PAGESIZE
        arena.keep(second, 0)
        ticks.idle()
        assert resident(arena) == 0


def test_what_a_dying_process_may_still_write_to_is_not_lent_before_it_is_gone() -> None:
    """Whoever waits for memory gets it then. With another process it has nothing to do."""
    with Arena(2 * MEBI) as arena:
        dying, stuck, well = object(), object(), object()
        first, second = arena.lease(MEBI), arena.lease(MEBI)
        arena.withhold(dying, [first.offset])
        arena.withhold(stuck, [second.offset])
        first.release()
        second.release()
        arena.keep(well, 0)
        assert arena.statistics().leased_bytes == 2 * MEBI
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(arena.lease, MEBI)
            arena.keep(dying, 0)
            waits.result(30).release()
        assert arena.statistics().leased_bytes == MEBI, "never, while the process stays"


def test_a_part_of_a_lease_keeps_the_whole_and_is_known() -> None:
    """Who parts a lease among images asks before a part is used again."""
    with Arena(2 * MEBI) as arena:
        dying, lease = object(), arena.lease(2 * MEBI)
        part = lease.offset + MEBI
        arena.withhold(dying, [part])
        assert (arena.is_withheld(part), arena.is_withheld(lease.offset)) == (True, False)
        lease.release()
        assert arena.statistics().leased_bytes == 2 * MEBI
        arena.keep(dying, 0)
        assert (arena.is_withheld(part), arena.statistics().leased_bytes) == (False, 0)


def test_a_closed_arena_is_trimmed_no_more() -> None:
    arena = Arena(MEBI)
    filled(arena, MEBI)[0].release()
    ticks = Ticks(arena)
    arena.close()
    ticks.idle()
    assert resident(arena) == 0


@pytest.mark.integration
def test_memory_goes_back_for_every_process_that_maps_it() -> None:
    """And what one writes later, the other reads."""
    program = """
import re, sys
from rmbgd.engine.arena import attach
def mapped():
    found = re.findall(r"memfd:rmbgd-arena.*?Rss: +([0-9]+) kB", open("/proc/self/smaps").read(), re.DOTALL)
    return sum(map(int, found)) << 10
block = attach(int(sys.argv[1]), int(sys.argv[2]))
for line in sys.stdin:
    found = mapped(), int(block[:8 << 20].sum(dtype="int64"))
    block[3] = 4
    print(*found, flush=True)
"""
    with Arena(32 * MEBI) as arena:
        ticks = Ticks(arena)
        command = [sys.executable, "-c", program, str(arena.fd), str(arena.byte_count)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, pass_fds=(arena.fd,), **pipes) as child:
            (lease,) = filled(arena, 8 * MEBI)

            def ask() -> tuple[int, ...]:
                """Bytes that the child has mapped, and then the sum of what it reads."""
                child.stdin.write("\n")
                child.stdin.flush()
                return tuple(map(int, child.stdout.readline().split()))

            whole = 7 * 8 * MEBI
            assert [ask(), ask()] == [(0, whole), (8 * MEBI, whole - 3)]
            lease.release()
            ticks.idle()
            assert resident(arena) == 0
            with filled(arena, MEBI)[0] as lease:
                assert ask() == (0, 7 * MEBI)
                assert lease.block[lease.offset + 3] == 4
            child.stdin.close()


def test_memory_becomes_real_only_when_written_and_nobody_can_shorten_it():
    """A large arena costs nothing until images lie in it; a cut would crash who reads it."""
    with Arena(1 << 30) as arena:
        assert os.fstat(arena.fd).st_blocks == 0
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, 0)
