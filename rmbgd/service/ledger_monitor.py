"""Ledger thread: says when the ledger refuses, tries it again with new connections, and copies it once a day.

Damage is not waited for: it ends this life of the service in good order, and the next one replaces the ledger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from rmbgd.clock import Clock, backoff
from rmbgd.errors import LedgerFault
from rmbgd.events import Emit
from rmbgd.store import copies
from rmbgd.store.database import Database
from rmbgd.store.opening import Check
from rmbgd.store.refusals import ledger_faults

LOOK_EVERY = 2.0  # s between two looks whether the file is still there, and between two tries while it refuses ...
TRY_MAXIMUM, SETTLED = 600.0, 60.0  # ... unless it took a try and refused again within SETTLED: then ever more rarely
COPY_RETRY = 3600.0  # s
DAMAGE_FIRST, DAMAGE_MAXIMUM = 60.0, 3600.0  # s until damage is acted on that comes again within a day


class LedgerOutage:
    """One incident, from storage.paused to storage.resumed, over several lives of the service in one process.

    By one thread at a time: the main thread's between two lives, the ledger thread's within one.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.emit: Emit = lambda _event, /, **_keys: None  # each life has its own
        self._since: float | None = None
        self._ended = float("-inf")
        self._relapses = 0  # pauses in a row that followed soon upon a resumption
        self._keys: dict[str, str] = {}  # kind and cause, the same in both events
        self._damages: deque[float] = deque(maxlen=64)  # when damage was met
        self._fruitless = 0  # checks in a row that found none

    def begin(self, fault: LedgerFault) -> None:
        """Say so, unless that was said already."""
        if self._since is None:
            self._since = self._clock.monotonic()
            self._relapses = self._relapses + 1 if self._since - self._ended < SETTLED else 0
            self._keys = {"kind": fault.kind} | ({"cause": fault.cause} if fault.kind == "ledger" else {})
            self.emit("storage.paused", **self._keys, path=fault.path, detail=fault.detail)

    def end(self, detail: str = "") -> None:
        if self._since is not None:
            told = {"detail": detail} if detail else {}
            self.emit("storage.resumed", **self._keys, seconds=round(self._clock.monotonic() - self._since, 3), **told)
            self._since, self._ended = None, self._clock.monotonic()

    def may_try(self) -> bool:
        """Is it time to try the ledger again?"""
        waits = backoff(self._relapses, LOOK_EVERY, TRY_MAXIMUM)
        return self._since is None or self._clock.monotonic() - self._since >= waits

    def damaged(self) -> float:
        """Damage was met: seconds until it is acted on, the longer the more often that happened within a day."""
        now = self._clock.monotonic()
        while self._damages and self._damages[0] < now - copies.DAY:
            self._damages.popleft()
        self._damages.append(now)
        return backoff(len(self._damages) - 1, DAMAGE_FIRST, DAMAGE_MAXIMUM)

    def check(self) -> Check:
        """How the next opening is to look at the file."""
        if self._since is None or not self._damages:
            return Check.QUICK
        return Check.NONE if self._fruitless and len(self._damages) > 1 else Check.WHOLE

    def opened(self, *, replaced: bool) -> None:
        self._fruitless = 0 if replaced or self._since is None else self._fruitless + 1


class LedgerMonitor:
    """`run` is the ledger thread's, which alone changes connections and makes copies; the rest the main thread's.

    on_damage    called once: nothing can be done in this life
    on_writable  called when the ledger can be used again
    """

    def __init__(
        self,
        database: Database,
        outage: LedgerOutage,
        emit: Emit,
        clock: Clock,
        on_damage: Callable[[], None],
        on_writable: Callable[[], None],
    ) -> None:
        self._database, self._outage, self._emit, self._clock = database, outage, emit, clock
        self._on_damage, self._on_writable = on_damage, on_writable
        self._act_at: float | None = None  # when damage is to be acted on; infinite when it was
        self._copy_failed = False
        self._next_copy: float | None = None  # None: not before `ready`, where the main thread sets it once
        self._closing = False

    def ready(self) -> None:
        """Copies are due from now on: at once where the last is older than a day, or is of the ledger before."""
        path = self._database.path
        newest = next((each.time for each in copies.copies(path) if copies.is_daily(each)), 0.0)
        age = self._clock.wall().timestamp() - newest  # below 0: of a clock that ran ahead, nobody knows when
        is_of_this = self._database.replacement is None and newest > copies.last_set_aside(path) and age >= 0
        self._next_copy = self._clock.monotonic() + (max(0.0, copies.DAY - age) if is_of_this else 0.0)
        self._database.attention.set()

    def close(self) -> None:
        self._closing = True
        self._database.attention.set()

    def run(self) -> None:
        while not self._closing:
            self.tick()
            self._database.attention.wait(LOOK_EVERY)
            self._database.attention.clear()

    def tick(self) -> None:
        now = self._clock.monotonic()
        self._database.notice_removal()
        if (fault := self._database.refused) is not None:
            self._outage.begin(fault)
            if fault.damaged:
                self._damaged(now)
            elif self._outage.may_try():
                self._renew()
        elif self._next_copy is not None and now >= self._next_copy:
            self._next_copy = now + (copies.DAY if self._copy(now) else COPY_RETRY)

    def _renew(self) -> None:
        try:
            detail = self._database.renew()
        except LedgerFault as fault:
            self._database.refuse(fault)
            return
        self._outage.end(detail)
        self._on_writable()

    def _damaged(self, now: float) -> None:
        if self._act_at is None:
            self._act_at = now + self._outage.damaged()
        if now >= self._act_at:
            self._act_at = float("inf")
            self._on_damage()

    def _copy(self, now: float) -> bool:
        path = self._database.path
        try:
            with ledger_faults(path):
                made = copies.copy_of_today(path, self._clock.wall())
                size = made.stat().st_size
        except LedgerFault as fault:
            if fault.damaged:  # found by reading every row
                self._database.refuse(fault)
            if not self._copy_failed:
                self._emit("ledger.copy_failed", path=fault.path, cause=fault.cause, detail=fault.detail)
            self._copy_failed = True
            return False
        self._copy_failed = False
        seconds = round(self._clock.monotonic() - now, 3)
        self._emit("ledger.copied", path=str(made), bytes=size, seconds=seconds)
        return True
