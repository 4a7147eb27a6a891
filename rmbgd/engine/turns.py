"""One user at a time, in the order in which they asked: who computes on a device, looks at it, or starts its process.

Does not know what is used. A lock would not do: a thread that comes back at once gets it again before those that wait.
"""

from __future__ import annotations

import threading
from collections import deque

from rmbgd.heartbeat import Heartbeat, NullHeartbeat


class Turn(NullHeartbeat):
    """Is also the heartbeat of whoever has the turn: what is used reports to it, whoever the user is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # All below is guarded by the lock.
        self._queue: deque[threading.Event] = deque()  # who waits, in order; each is woken when the turn is his
        self._taken = False
        self._user: Heartbeat = NullHeartbeat()  # of him who has the turn; read without the lock by what he uses

    @property
    def asking(self) -> int:
        """Users there are, he who has the turn included. Any thread; old when it is read."""
        return len(self._queue) + self._taken

    def take(self, heartbeat: Heartbeat) -> None:
        """Wait for it, and have it until `give`. Not while having one: two users could wait for each other."""
        with self._lock:
            called = None
            if self._taken:
                called = threading.Event()
                self._queue.append(called)
            self._taken = True
        if called is not None:
            heartbeat.waiting()
            called.wait()
            heartbeat.working()
        self._user = heartbeat

    def try_take(self, heartbeat: Heartbeat) -> bool:
        """Have it if nobody has."""
        with self._lock:
            if self._taken:
                return False
            self._taken = True
        self._user = heartbeat
        return True

    def give(self) -> None:
        with self._lock:
            self._user = NullHeartbeat()
            if self._queue:
                self._queue.popleft().set()  # it stays taken, by the next
            else:
                self._taken = False

    # --- Beat

    def waiting(self) -> None:
        self._user.waiting()

    def working(self) -> None:
        self._user.working()
