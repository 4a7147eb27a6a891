"""Bounded closable queue between threads, with batches that end in finish or put_back, and wait statistics.

Each thread owns its own clone of a sender or receiver in a `with` block; closing is the only shutdown message. A
receiver iterates until the last sender has left and the queue is empty; a sender learns from NoReceivers that its items
would never be taken. There are no sentinels and no polling. How long which side waited is counted, because that names
the bottleneck without a profiler. (`queue.Queue` can neither be closed before Python 3.13 nor let its receiver choose.)
"""

from __future__ import annotations

import math
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from rmbgd.clock import Clock, SystemClock
from rmbgd.heartbeat import Heartbeat, NullHeartbeat

T = TypeVar("T")

Choice = Sequence[int] | float | None
"""What a batching policy answers: indices of the waiting items to take now (at least one), or, as a float, the moment
(seconds on the queue's clock) to ask again unless something arrives before, or None: all is left to the other
receivers, until `look_again`."""


class NoReceivers(Exception):
    """The last receiver has left: what is sent would never be taken."""


class NoSenders(Exception):
    """The last sender has left, everything was received, and no batch can come back."""


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """One queue at one moment.

    depth           items waiting, of `capacity`
    total           items ever sent; one that was put back counts once
    finished        items ever taken for good: only this and `total` are progress
    send_waited     seconds, summed over all senders, spent blocked because the queue was full: what follows is slow
    receive_waited  seconds, summed over all receivers, spent blocked because it was empty: what precedes is slow
    Waits that are still going on are counted up to now.
    """

    name: str
    depth: int
    capacity: int
    total: int
    finished: int
    send_waited: float
    receive_waited: float


class _Side:
    """The senders or the receivers of one queue: how many are open, and how they wait. Guarded by the queue's lock."""

    def __init__(self, lock: threading.Lock, clock: Clock) -> None:
        self.open = 0
        self.condition = threading.Condition(lock)
        self._clock = clock
        self._seconds = self._since = 0.0
        self._waiting = 0

    def waited(self, now: float) -> float:
        """Seconds, summed over all, unfinished waits included."""
        return self._seconds + self._waiting * (now - self._since)

    def block(self, heartbeat: Heartbeat, timeout: float | None = None) -> None:
        """Wait once, the lock held before and after; the caller looks again at what it waits for."""
        heartbeat.waiting()
        self._count_waiting(+1)
        try:
            self.condition.wait(timeout)
        finally:
            self._count_waiting(-1)

    def _count_waiting(self, by: int) -> None:
        now = self._clock.monotonic()
        self._seconds, self._since = self.waited(now), now
        self._waiting += by


class _Shared(Generic[T]):
    """What both sides share. Every field is guarded by `lock`; the conditions of both sides are built on it."""

    def __init__(self, capacity: int, name: str, clock: Clock, on_taken: Callable[[], None]) -> None:
        self.on_taken = on_taken
        self.capacity = capacity
        self.name = name
        self.clock = clock
        self.lock = threading.Lock()
        self.senders = _Side(self.lock, clock)  # wait until it is not full
        self.receivers = _Side(self.lock, clock)  # wait until it is not empty
        self.items: deque[T] = deque()
        self.taken = 0  # items in batches that may come back
        self.total = 0
        self.finished = 0
        self.choosy = False  # a receiver has left items to others: a thread that is woken alone may be the wrong one

    def wake_receiver(self) -> None:
        """Something can be taken, the lock held."""
        if self.choosy:
            self.receivers.condition.notify_all()
        else:
            self.receivers.condition.notify()


class _End(Generic[T]):
    """What senders and receivers have in common: counted while open, closed once, missed when forgotten."""

    def __init__(self, shared: _Shared[T], own: _Side, other: _Side, heartbeat: Heartbeat | None = None) -> None:
        self._shared, self._own, self._other = shared, own, other
        self._heartbeat = heartbeat or NullHeartbeat()
        self._open = True  # guarded by the queue's lock
        with shared.lock:
            own.open += 1

    def clone(self, heartbeat: Heartbeat | None = None) -> Self:
        """Another end of the same side, for another thread, whose `heartbeat` waits when this end blocks.

        Clone before the thread starts, so that the side is never empty by accident.
        """
        self._check_open()
        return type(self)(self._shared, self._own, self._other, heartbeat)

    def close(self) -> None:
        """Any thread may call it, more than once; only the first call counts."""
        with self._shared.lock:
            if self._open:
                self._open = False
                self._own.open -= 1
                if not self._own.open:
                    self._other.condition.notify_all()

    def statistics(self) -> QueueStatistics:
        """May be read from any thread, also after closing."""
        shared = self._shared
        with shared.lock:
            now, counts = shared.clock.monotonic(), (len(shared.items), shared.capacity, shared.total, shared.finished)
            return QueueStatistics(shared.name, *counts, shared.senders.waited(now), shared.receivers.waited(now))

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError(f"this {type(self).__name__} of queue '{self._shared.name}' is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Only a warning: taking the lock here could deadlock, as the collector runs wherever it likes.
        if getattr(self, "_open", False):
            text = f"a {type(self).__name__} of queue '{self._shared.name}' was never closed"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)


class Sender(_End[T]):
    def send(self, item: T, *, urgent: bool = False) -> None:
        """Put `item` behind the others; blocks while the queue is full, but for an urgent one. Raises NoReceivers."""
        shared = self._shared
        with shared.lock:
            self._check_open()
            while shared.receivers.open and len(shared.items) >= shared.capacity and not urgent:
                shared.senders.block(self._heartbeat)
            if not shared.receivers.open:
                raise NoReceivers(shared.name)
            shared.items.append(item)
            shared.total += 1
            shared.wake_receiver()
        self._heartbeat.working()

    def free(self) -> int:
        """Places free at this moment. A sole sender can rely on them; with several it is a hint."""
        with self._shared.lock:
            return max(self._shared.capacity - len(self._shared.items), 0)


class Taken(Generic[T]):
    """A batch in the hands of one thread, which ends it once: by `finish` or by `put_back`.

    As a context manager it puts the items back, as they were, when the block ends with neither.
    """

    def __init__(self, shared: _Shared[T], items: list[T]) -> None:
        self.items = items
        self._shared = shared
        self._open = True  # guarded by the queue's lock

    def finish(self, back: Sequence[T] = ()) -> None:
        """Every item has its outcome, but for those in `back`, which go to the head of the queue as by `put_back`."""
        self._end(back, len(self.items) - len(back))

    def put_back(self, items: Sequence[T]) -> None:
        """`items`, one for each that was taken, go to the head of the queue, beyond its capacity. Never blocks."""
        if len(items) != len(self.items):
            raise ValueError(f"{len(items)} items put back of {len(self.items)}; a bug")
        self._end(items, 0)

    def _end(self, back: Sequence[T], finished: int) -> None:
        shared = self._shared
        with shared.lock:
            if not self._open:
                raise RuntimeError(f"a batch of queue '{shared.name}' was ended twice; a bug")
            self._open = False
            shared.taken -= len(self.items)
            shared.finished += finished
            shared.items.extendleft(reversed(back))
            shared.receivers.condition.notify_all()  # for those that waited for it to come back, or for the last one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            self.put_back(self.items)


class Receiver(_End[T]):
    def receive(self) -> T:
        """The oldest item, for good; blocks while there is none. Raises NoSenders when there never will be one."""
        return self.receive_chosen(lambda _items, _now: (0,))[0]

    def __iter__(self) -> Iterator[T]:
        with suppress(NoSenders):
            while True:
                yield self.receive()

    def receive_chosen(self, choose: Callable[[Sequence[T], float], Choice]) -> list[T]:
        """Like `take`, for good."""
        with self.take(choose) as taken:
            taken.finish()
            return taken.items

    def take(self, choose: Callable[[Sequence[T], float], Choice]) -> Taken[T]:
        """The items that `choose` picks among those that wait, in the order picked; blocks until there are any.

        `choose(items, now)` is a pure function: it is called with the lock held, at least one item, oldest first, and
        `now` in seconds on the queue's clock. It answers as Choice says. When nothing can be sent any more, `now` is
        infinite: there is no point in waiting for company. Raises NoSenders when nothing is left that could come.
        """
        shared = self._shared
        with shared.lock:
            self._check_open()
            while True:
                while not shared.items:
                    if not shared.senders.open and not shared.taken:
                        raise NoSenders(shared.name)
                    shared.receivers.block(self._heartbeat)
                now = shared.clock.monotonic() if shared.senders.open else math.inf
                choice = choose(shared.items, now)
                if choice is None:
                    if not shared.choosy:
                        shared.choosy = True
                        shared.receivers.condition.notify_all()  # this wake-up may have been meant for another
                    self._heartbeat.waiting()
                    shared.receivers.condition.wait()
                    continue
                if not isinstance(choice, float):
                    break
                if choice <= now:
                    raise RuntimeError(f"queue '{shared.name}': asked to wait for a moment that has passed; a bug")
                shared.receivers.block(self._heartbeat, choice - now)
            taken = self._take(choice)
        self._heartbeat.working()
        shared.on_taken()
        return taken

    def look_again(self) -> None:
        """Something that `choose` knows has changed. From any thread, also after closing; does not wait for items."""
        with self._shared.lock:
            self._shared.receivers.condition.notify_all()

    def _take(self, indices: Sequence[int]) -> Taken[T]:
        shared = self._shared
        if not indices or len(set(indices)) < len(indices) or min(indices) < 0:
            raise RuntimeError(f"queue '{shared.name}': cannot take {list(indices)}; a bug in the policy")
        taken = [shared.items[index] for index in indices]
        for index in sorted(indices, reverse=True):
            del shared.items[index]
        shared.taken += len(taken)
        shared.senders.condition.notify(len(taken))
        if shared.items:  # the wake-up meant for another receiver may have been ours
            shared.wake_receiver()
        return Taken(shared, taken)


def queue(
    capacity: int, name: str, clock: Clock | None = None, on_taken: Callable[[], None] = lambda: None
) -> tuple[Sender[T], Receiver[T]]:
    """The first two ends of a new queue that holds at most `capacity` items. Close both, like their clones.

    `on_taken` is called, without the lock, after items were taken: for a producer that waits for other things too.
    """
    if capacity < 1:
        raise ValueError(f"queue '{name}': capacity {capacity} is below 1")
    shared: _Shared[T] = _Shared(capacity, name, clock or SystemClock(), on_taken)
    return Sender(shared, shared.senders, shared.receivers), Receiver(shared, shared.receivers, shared.senders)
