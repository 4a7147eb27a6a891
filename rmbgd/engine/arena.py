"""Preallocated shared memory for all images in flight, leased in pieces and bounded in bytes.

The block is an anonymous memory file, so that the engine's process maps the same pages: pixels cross to it without a
copy. Pages become real when first written, and go back to the system when no image has needed them for a while, but for
those that a device has page-locked: it would go on writing to the old ones.

Leases are given in the order in which they were asked for: a large image at the head waits for its room and is not
overtaken, so it cannot starve. Only decoding leases and everything later only gives back, so waiting always ends.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import mmap
import os
import threading
import time
import warnings
from bisect import bisect
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmbgd.engine.types import ALIGNMENT, aligned
from rmbgd.heartbeat import Heartbeat, NullHeartbeat

OVERTAKEN_SECONDS = 60.0  # an ordinary lease that waits for longer is not overtaken any more, so it cannot starve
TRIM_SECONDS = 60.0
"""How long memory stays that no image needs. A page that is needed again costs its fault and its zeroing: 0.9 ms a
MiB, and 0.1 in the engine's process, beside 0.2 for giving it back (on a virtual machine, where faults are dear). The
default arena, given back and taken again whole every minute, would take 1 % of one core."""
TRIM_BYTES = 32 << 20  # given back while nobody can lease, some 8 ms


class ArenaClosed(Exception):
    """The service is stopping: no more memory is lent."""


@dataclass(frozen=True, slots=True)
class ArenaStatistics:
    """Bytes as lent, that is rounded up; `waiting` counts threads that ask and must wait.

    resident_bytes  in memory now
    kept_bytes      from the start, that devices have page-locked or are about to
    """

    leased_bytes: int
    waiting: int
    resident_bytes: int
    kept_bytes: int


class Lease(AbstractContextManager["Lease"]):
    """A piece of the arena. Give it back from any thread, once or more often."""

    def __init__(self, arena: Arena, offset: int, byte_count: int) -> None:
        self.offset, self.byte_count, self._arena = offset, byte_count, arena
        self.block = arena.block  # the whole shared block, uint8 [bytes]; engine.types.view finds the planes in it
        self.released = False  # guarded by the arena's lock

    def release(self) -> None:
        self._arena.take_back(self)

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        if not getattr(self, "released", True):
            warnings.warn(f"a lease of {self.byte_count} bytes was never released", ResourceWarning, 2, source=self)


class Arena(AbstractContextManager["Arena"]):
    """`byte_count` bytes of shared memory, of which `reserved` are for urgent leases. `fd` is for the engine's process:
    see attach."""

    def __init__(self, byte_count: int, reserved: int = 0) -> None:
        self.byte_count, self._reserved = byte_count, reserved
        self.fd = os.memfd_create("rmbgd-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, byte_count)
        # Not even a misbehaving child can shorten the file under our mapping.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._mapping = mmap.mmap(self.fd, byte_count)
        self.block = np.frombuffer(self._mapping, np.uint8)
        self._lock = threading.Lock()
        # All below is guarded by the lock.
        self._free: list[tuple[int, int]] = [(0, byte_count)]  # (offset, bytes), by offset, never adjacent
        self._queue: deque[threading.Condition] = deque()  # who waits, in order; each is woken when it is the head
        self._since: dict[threading.Condition, float] = {}  # of each
        self._urgent = 0  # of them, the first so many
        self._leased = 0
        self._closed = False
        self._kept: dict[object, int] = {}  # page-locked bytes from the start, by the worker whose device did it
        self._withheld: dict[object, frozenset[int]] = {}  # offsets by worker, see withhold
        self._given_back: list[Lease] = []  # of these
        self._reached = 0  # the highest address that was lent since the last trim
        self._next_trim: float | None = None

    def lease(self, byte_count: int, heartbeat: Heartbeat | None = None, *, urgent: bool = False) -> Lease:
        """`byte_count` bytes, rounded up to ALIGNMENT; blocks until they fit and everybody who asked before is served.

        An urgent one goes before all others, into what is reserved, too; so does what fits nowhere else.

        Raises ValueError when the arena could never hold them, ArenaClosed when it is closed, also while waiting.
        """
        wanted = max(ALIGNMENT, aligned(byte_count))
        if byte_count < 0 or wanted > self.byte_count:
            raise ValueError(f"{byte_count} bytes can never fit into an arena of {self.byte_count}")
        heartbeat = heartbeat or NullHeartbeat()
        with self._lock:
            lease = Lease(self, self._wait_for(wanted, heartbeat, urgent=urgent), wanted)
        heartbeat.working()
        return lease

    def statistics(self) -> ArenaStatistics:
        with self._lock:
            resident = 0 if self._closed else os.fstat(self.fd).st_blocks * 512
            return ArenaStatistics(self._leased, len(self._queue), resident, self._kept_bytes())

    def keep(self, worker: object, byte_count: int) -> None:
        """The device of `worker` has page-locked that many bytes from the start, or may from now on; 0: it has not, or
        its process is gone."""
        with self._lock:
            self._kept = {other: size for other, size in self._kept.items() if other is not worker}
            if byte_count:
                self._kept[worker] = byte_count
            elif self._withheld.pop(worker, None):
                late, self._given_back = self._given_back, []
                for lease in late:
                    self._take(lease)

    def withhold(self, worker: object, offsets: Iterable[int]) -> None:
        """The process of `worker` was killed and is not gone: its device may still write into these leases. They are
        not lent again before it is, and never if it stays."""
        with self._lock:
            self._withheld[worker] = self._withheld.get(worker, frozenset()).union(offsets)

    def waits_since(self) -> float | None:
        """Since when the lease waits that is next, in monotonic seconds; None where none does."""
        with self._lock:
            return self._since[self._queue[0]] if self._queue else None

    def is_withheld(self, offset: int) -> bool:
        """May a process that was killed still write there? For who lends a part of a lease again."""
        with self._lock:
            return self._is_withheld(offset, 1)

    def _is_withheld(self, offset: int, byte_count: int) -> bool:
        return any(offset <= each < offset + byte_count for offsets in self._withheld.values() for each in offsets)

    def trim(self, now: float) -> None:
        """Give back what no image has needed for TRIM_SECONDS: all free memory behind the highest address lent since.

        `now` in monotonic seconds. Call it now and then, from one thread.
        """
        with self._lock:
            if self._next_trim is not None and now < self._next_trim:
                return
            is_first, self._next_trim = self._next_trim is None, now + TRIM_SECONDS
            begin, self._reached = max(self._reached, self._kept_bytes()), self._top()
        if is_first:
            return
        begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        for start in range(begin, self.byte_count, TRIM_BYTES):
            with self._lock:
                self._punch(start, min(start + TRIM_BYTES, self.byte_count))

    def close(self) -> None:
        """Lend no more. What is lent stays valid until it is given back; the memory goes with its last user."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for turn in self._queue:
                turn.notify()
        os.close(self.fd)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kept_bytes(self) -> int:
        return min(max(self._kept.values(), default=0), self.byte_count)

    def _top(self) -> int:
        """The end of the last piece that is lent."""
        offset, size = self._free[-1] if self._free else (self.byte_count, 0)
        return offset if offset + size == self.byte_count else self.byte_count

    def _punch(self, start: int, end: int) -> None:
        """What is free and may go between these addresses becomes a hole in the file, for every process."""
        for offset, size in self._free:
            first = -(-max(offset, start, self._kept_bytes()) // mmap.PAGESIZE) * mmap.PAGESIZE
            last = min(offset + size, end) // mmap.PAGESIZE * mmap.PAGESIZE
            if first < last:
                self._mapping.madvise(mmap.MADV_REMOVE, first, last - first)

    def _wait_for(self, wanted: int, heartbeat: Heartbeat, *, urgent: bool) -> int:
        turn = threading.Condition(self._lock)
        begun = time.monotonic()
        if urgent and begun < self._ordinary_since() + OVERTAKEN_SECONDS:
            self._queue.insert(self._urgent, turn)
            self._urgent += 1
        else:
            urgent = False
            self._queue.append(turn)
        self._since[turn] = begun
        most = (
            self.byte_count if urgent or wanted > self.byte_count - self._reserved else self.byte_count - self._reserved
        )
        try:
            while not self._closed:
                fits = self._queue[0] is turn and self._leased + wanted <= most
                if fits and (offset := self._cut(wanted)) is not None:
                    return offset
                heartbeat.waiting()
                turn.wait()
            raise ArenaClosed
        finally:
            self._queue.remove(turn)
            del self._since[turn]
            self._urgent -= urgent
            if self._queue:
                self._queue[0].notify()

    def _ordinary_since(self) -> float:
        """When the ordinary lease that waits longest was asked for."""
        waiting = itertools.islice(self._queue, self._urgent, None)
        return next((self._since[turn] for turn in waiting), math.inf)

    def _cut(self, wanted: int) -> int | None:
        """The lowest free piece that is large enough: low addresses are used again and again, high ones stay unreal."""
        for index, (offset, size) in enumerate(self._free):
            if size >= wanted:
                self._free[index : index + 1] = [(offset + wanted, size - wanted)] if size > wanted else []
                self._leased += wanted
                self._reached = max(self._reached, offset + wanted)
                return offset
        return None

    def take_back(self, lease: Lease) -> None:
        with self._lock:
            if lease.released:
                return
            lease.released = True
            self._take(lease)

    def _take(self, lease: Lease) -> None:
        if self._is_withheld(lease.offset, lease.byte_count):
            self._given_back.append(lease)
            return
        start, end = lease.offset, lease.offset + lease.byte_count
        index = bisect(self._free, (start, 0))
        first = last = index
        if index > 0 and sum(self._free[index - 1]) == start:
            first, start = index - 1, self._free[index - 1][0]
        if index < len(self._free) and self._free[index][0] == end:
            last, end = index + 1, sum(self._free[index])
        self._free[first:last] = [(start, end - start)]
        self._leased -= lease.byte_count
        if self._queue:
            self._queue[0].notify()


def attach(fd: int, byte_count: int) -> NDArray[np.uint8]:
    """The block behind `fd`, uint8 [byte_count], shared and writable, in this process."""
    return np.frombuffer(mmap.mmap(fd, byte_count), np.uint8)
