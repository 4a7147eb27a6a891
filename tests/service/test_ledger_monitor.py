"""The ledger thread: pauses and resumptions that pair, copies that are made in time, and damage that comes again."""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from rmbgd.errors import LedgerFault
from rmbgd.events import RecordedEvents
from rmbgd.service.ledger_monitor import LedgerMonitor, LedgerOutage
from rmbgd.store import copies
from rmbgd.store.database import Database
from rmbgd.store.opening import Check
from rmbgd.testing.clock import FakeClock
from tests.support.damage import grow, spoil

DAY = 86_400


class Watched:
    """One life of the service after another, as the daemon has them, around a real ledger."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock, self.events = path, FakeClock(), RecordedEvents()
        self.outage = LedgerOutage(self.clock)
        self.outage.emit = self.events
        self.damages = 0
        self.woken: list[float] = []
        self.begin()

    def begin(self) -> None:
        self.database = Database(str(self.path), self.clock, self.outage.check())
        self.outage.opened(replaced=self.database.replacement is not None)
        self.outage.end()
        self.ended = False
        self.monitor = LedgerMonitor(
            self.database, self.outage, self.events, self.clock, self._damaged, lambda: self.woken.append(0)
        )

    def _damaged(self) -> None:
        self.ended = True

    def refuse(self, cause: str) -> None:
        self.database.refuse(LedgerFault(cause, "told by a test", path=str(self.path)))

    def tick(self, seconds: float = 2.0) -> None:
        self.clock.advance(seconds)
        self.monitor.tick()


@pytest.fixture
def watched() -> Iterator[Watched]:
    with tempfile.TemporaryDirectory() as base:  # which others may enter
        Path(base).chmod(0o755)
        state = Path(base) / "state"
        state.mkdir()
        found = Watched(state / "ledger.sqlite")
        yield found
        found.database.close()


@pytest.mark.parametrize("cause", ["read_only", "denied", "io_error", "descriptors", "disk_full", "quota"])
def test_a_resumption_has_the_kind_and_cause_of_its_pause(watched: Watched, cause: str) -> None:
    """A full disk keeps its own kind; everything else is of kind ledger."""
    watched.refuse(cause)
    watched.tick()
    keys = {"kind": cause} if cause in ("disk_full", "quota") else {"kind": "ledger", "cause": cause}
    (paused,), (resumed,) = (watched.events.named(f"storage.{name}") for name in ("paused", "resumed"))
    assert paused == keys | {"path": str(watched.path), "detail": "told by a test"}
    assert resumed == keys | {"seconds": 0.0}
    assert (watched.database.refused, watched.woken) == (None, [0])


def test_rights_that_come_back_heal_without_a_restart(watched: Watched) -> None:
    """A connection that was opened without them stays without: each try has a new one."""
    state = watched.path.parent
    os.chown(state, 65534, 65534)
    with as_nobody():
        watched.refuse("io_error")
        for _ in range(3):
            watched.tick()
        assert watched.database.refused is not None
    for file in state.iterdir():
        os.chown(file, 65534, 65534)
    with as_nobody():
        watched.tick()
    assert watched.database.refused is None
    assert [len(watched.events.named(f"storage.{name}")) for name in ("paused", "resumed")] == [1, 1]


def test_descriptors_that_come_back_heal_without_a_restart(watched: Watched) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        watched.refuse("io_error")
        for _ in range(3):
            watched.tick()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert watched.database.refused is not None
    watched.tick()
    assert watched.database.refused is None
    assert [len(watched.events.named(f"storage.{name}")) for name in ("paused", "resumed")] == [1, 1]


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_damage_without_end_is_told_a_few_times_an_hour(watched: Watched) -> None:
    """Each life ends by it at once; it is acted on ever more rarely, and the file is not trusted for ever."""
    checks = []
    for _ in range(DAY // 2):
        watched.refuse("damaged")
        watched.tick()
        if watched.ended:
            watched.database.close()
            checks.append(watched.outage.check())
            watched.begin()
    told = [len(watched.events.named(f"storage.{name}")) for name in ("paused", "resumed")]
    assert max(told) <= 30
    assert told[0] - told[1] in (0, 1)
    assert checks[:3] == [Check.WHOLE, Check.NONE, Check.WHOLE]


def test_a_ledger_that_takes_a_try_and_refuses_again_is_tried_ever_more_rarely(watched: Watched) -> None:
    """Such as a disk with room for a probe and no more: a day of it is some hundred lines."""
    for _ in range(DAY // 2):
        if watched.database.refused is None:
            watched.refuse("disk_full")
        watched.tick()
    assert len(watched.events.named("storage.paused")) < 200
    watched.tick(600)
    assert len(watched.events.named("storage.resumed")) == len(watched.events.named("storage.paused"))
    watched.tick(100)
    watched.refuse("disk_full")
    watched.tick()
    assert watched.events.named("storage.resumed")[-1]["seconds"] == 0.0


def test_copies_come_once_a_day_and_after_a_replacement(watched: Watched) -> None:
    watched.tick()
    assert copies.copies(str(watched.path)) == []
    watched.monitor.ready()
    for _ in range(5):
        watched.tick()
        watched.tick(DAY / 2)
        watched.tick(DAY / 2)
    made = [Path(str(keys["path"])).name for keys in watched.events.named("ledger.copied")]
    assert len(set(made)) == len(made) == 6
    assert len(copies.copies(str(watched.path))) == copies.KEPT
    watched.database.close()
    watched.path.write_bytes(b"garbage")
    watched.begin()
    watched.monitor.ready()
    watched.tick()
    assert len(watched.events.named("ledger.copied")) == 7


@pytest.mark.parametrize(("days", "made"), [(-1, 0), (1, 1)])
def test_a_copy_of_the_ledger_before_is_renewed_by_the_next_start(watched: Watched, days: int, made: int) -> None:
    """A process may end before the copy is made that is due after a replacement."""
    copy = copies.copy_of_today(str(watched.path), watched.clock.wall())
    now = watched.clock.wall().timestamp()
    os.utime(copy, (now - 60, now - 60))
    stamp = f"{watched.clock.wall() + timedelta(days=days):{copies.STAMP}}"
    watched.path.with_name(f"{watched.path.name}.damaged-{stamp}").touch()
    watched.monitor.ready()
    watched.tick()
    assert len(watched.events.named("ledger.copied")) == made


def test_a_copy_is_made_and_preferred_where_those_before_lie_in_the_future(watched: Watched) -> None:
    """Of a clock that ran ahead. They go as others do: the oldest first."""
    path, now = str(watched.path), watched.clock.wall()
    for day in range(10, 10 + copies.KEPT):
        copies.copy_of_today(path, now + timedelta(days=day))
    watched.monitor.ready()
    watched.tick()
    (copied,) = watched.events.named("ledger.copied")
    left = copies.copies(path)
    days = [now + timedelta(days=day) for day in (0, 12, 11)]
    assert [each.path.name for each in left] == [f"ledger-{day:%Y-%m-%d}.sqlite" for day in days]
    assert str(left[0].path) == copied["path"]
    assert copies.newest_good(path) == left[0]


def test_a_copy_that_fails_is_told_once_and_tried_again(watched: Watched) -> None:
    copies.folder(str(watched.path)).write_text("in the way")
    watched.monitor.ready()
    for _ in range(5):
        watched.tick(3600)
    (failed,) = watched.events.named("ledger.copy_failed")
    assert failed["path"] == str(watched.path)
    copies.folder(str(watched.path)).unlink()
    watched.tick(3600)
    assert len(watched.events.named("ledger.copied")) == 1
    assert watched.database.refused is None


def test_damage_that_a_copy_meets_is_acted_on(watched: Watched) -> None:
    watched.database.close()
    grow(watched.path)
    spoil(watched.path, "job_by_path", "flip")
    watched.begin()
    watched.database.close()
    grow(watched.path)
    watched.begin()
    spoil(watched.path, "job", "zero")
    watched.monitor.ready()
    watched.tick()
    assert watched.events.named("ledger.copy_failed")[0]["cause"] == "damaged"
    watched.tick()
    assert watched.ended
