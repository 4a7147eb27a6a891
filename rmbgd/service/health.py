"""Health thread: the `health` event, the status file, and systemd's watchdog.

The watchdog is fed only while every thread makes progress or waits. Nothing here waits for a job, a device or a folder.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from rmbgd import __version__
from rmbgd.clock import Clock
from rmbgd.config.load import ServiceSettings
from rmbgd.events import EVENTS, Emit
from rmbgd.fs import atomic_write
from rmbgd.heartbeat import Heartbeats
from rmbgd.service.exit_recorder import STATUS_FILE
from rmbgd.service.systemd import Notifier
from rmbgd.telemetry import jsonl

# What the daemon's snapshot must hold; anything more goes to the status file alone.
SNAPSHOT_KEYS = (
    "device", "waiting", "in_flight", "oldest_waiting", "arena_bytes", "arena_resident", "channels", "paused", "engine",
    "ledger_rows", "reviews",
)  # fmt: skip
OUTCOMES = {"done": "image.done", "failed": "image.failed", "postponed": "image.postponed"}
RUNTIME_MODE = 0o750  # as systemd makes it
STATUS_MODE = 0o644  # who may enter the runtime directory may read it
RATE_WINDOWS = {"1m": 60.0, "5m": 300.0}  # s
FEEDINGS = 4  # of systemd's watchdog within its period: three may be late before it bites
PROBLEM_LEVELS = ("warning", "error", "critical")
RECENT = 8  # outcomes that the status file names


class Rate:
    """Events a minute over the last `window` seconds, from samples of a counter. One thread only."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._samples: deque[tuple[float, int]] = deque()

    def sample(self, now: float, count: int) -> None:
        self._samples.append((now, count))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window:
            self._samples.popleft()

    def per_minute(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (then, before), (now, count) = self._samples[0], self._samples[-1]
        return 60.0 * (count - before) / (now - then) if now > then else 0.0


class Counters:
    """An Emit that counts what passes, and keeps the last problem and outcomes. Wraps the real one; any thread."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()  # under the lock
        # The last event of level warning or worse, with its name, time and keys; replaced whole.
        self.last_problem: dict[str, object] | None = None
        self._recent: deque[dict[str, object]] = deque(maxlen=RECENT)  # under the lock

    def __call__(self, event: str, /, **keys: object) -> None:
        with self._lock:
            self._counts[event] += 1
            if event in (OUTCOMES["done"], OUTCOMES["failed"]):
                self._recent.appendleft(_outcome(event, keys))
        if (kind := EVENTS.get(event)) and kind.level in PROBLEM_LEVELS:
            self.last_problem = {"event": event, "time": jsonl.rfc3339(datetime.now(UTC)), **keys}
        self._emit(event, **keys)

    def counts(self) -> dict[str, int]:
        """Events so far, by name."""
        with self._lock:
            return dict(self._counts)

    def recent(self) -> list[dict[str, object]]:
        """How the last images ended, the newest first."""
        with self._lock:
            return list(self._recent)


def _outcome(event: str, keys: Mapping[str, Any]) -> dict[str, object]:
    total = (keys.get("milliseconds") or {}).get("total")
    said = {key: keys[key] for key in ("folder", "path", "verdict", "reason") if key in keys}
    seconds = None if total is None else round(total / 1000, 3)
    return {"event": event, **said, "seconds": seconds, "at": jsonl.rfc3339(datetime.now(UTC))}


def process_facts() -> dict[str, int]:
    """What the kernel says of the service's own process (the engine's child reports for itself)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return {
        "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # the listing holds one itself
        "threads": len(os.listdir("/proc/self/task")),
    }


def health_keys(
    snapshot: Mapping[str, Any],
    counts: Mapping[str, int],
    process: Mapping[str, int],
    uptime: float,
    unwritten: Mapping[str, int],
) -> dict[str, Any]:
    """The keys of the `health` event. Raises KeyError when the snapshot lacks one of SNAPSHOT_KEYS."""
    keys: dict[str, Any] = {"uptime": round(uptime, 3)}
    keys |= {name: counts.get(event, 0) for name, event in OUTCOMES.items()}
    keys |= {name: snapshot[name] for name in SNAPSHOT_KEYS}
    keys |= process
    if lost := {place: count for place, count in unwritten.items() if count}:
        keys["unwritten"] = lost
    return keys


def status_line(
    phase: str, health: Mapping[str, Any], *, per_minute: float, stalled: list[str], safe_mode: bool = False
) -> str:
    """One line for `systemctl status`."""
    if stalled:
        return f"hung: {', '.join(stalled)}; the watchdog is not fed"
    paused = f"; paused ({health['paused']})" if health["paused"] else ""
    return (
        f"{phase} on {health['device']}{' in safe mode' if safe_mode else ''}{paused}; "
        f"{health['waiting']} waiting, {health['in_flight']} in flight; "
        f"{health['done']} done, {health['failed']} rejected; {per_minute:.0f} a minute"
    )


class HealthMonitor:
    """Belongs to the health thread, which alone calls `tick`, unless a method says otherwise.

    `describe` is the daemon's snapshot: a dict with SNAPSHOT_KEYS and what else the status file shall show. It must not
    wait for a device, a disk or a lock that is held for long; what it raises ends the health thread and so the service.
    `unwritten` counts lines that were lost, by place. `on_status` gets the keys of the health event, and `folders`,
    with each status file (metrics); `on_stall` is called when a stall begins (stacks).
    """

    def __init__(
        self,
        service: ServiceSettings,
        *,
        heartbeats: Heartbeats,
        counters: Counters,
        describe: Callable[[], Mapping[str, Any]],
        notifier: Notifier,
        clock: Clock,
        unwritten: Callable[[], Mapping[str, int]] = dict,
        on_status: Callable[[Mapping[str, Any]], object] = lambda _: None,
        on_stall: Callable[[], object] = lambda: None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._service, self._heartbeats, self._counters = service, heartbeats, counters
        self._describe, self._notifier, self._clock = describe, notifier, clock
        self._unwritten, self._on_status, self._on_stall = unwritten, on_status, on_stall
        self._began = self._awake_since = self._last_tick = self._next_status = clock.monotonic()
        self._identity = {
            "pid": os.getpid(),
            "process_start": jsonl.process_start(os.getpid()),  # tells the process from another that got its pid
            "boot_id": jsonl.boot_id(),
            "invocation_id": environ.get("INVOCATION_ID", ""),
            "version": __version__,
            "started": round(self._began, 3),  # on the monotonic clock of this boot
            "started_at": jsonl.rfc3339(clock.wall()),
        }
        self._rates = {name: Rate(window) for name, window in RATE_WINDOWS.items()}
        self._status_lost = 0
        self._blind_since: float | None = None  # the status file could not be written since then
        self._stalled_since: float | None = None
        self._facts = process_facts()
        self._next_health: float | None = None
        self.phase = "starting"  # set by the main thread: starting, ready, stopping; health events begin with ready
        self._closing = threading.Event()  # set by the main thread

    @property
    def period(self) -> float:
        """Seconds between two ticks."""
        shortest = min(self._service.status_interval, self._service.health_interval)
        watchdog = self._notifier.watchdog_seconds
        return min(shortest, watchdog / FEEDINGS) if watchdog else shortest

    def run(self) -> None:
        """The health thread's body, until closed."""
        self.tick()
        while not self._closing.wait(self.period):
            self.tick()

    def close(self) -> None:
        """Called by the main thread: ends `run`."""
        self._closing.set()

    def finished(self) -> None:
        """Write the last status file, with phase `stopped`; call it when `run` has returned."""
        self.phase = "stopped"
        self._next_status = self._clock.monotonic()
        self.tick()

    def tick(self) -> None:
        now = self._clock.monotonic()
        if now - self._last_tick > max(2 * self.period, 5.0):  # this thread stood still too, so all of them did
            self._awake_since = now
        self._last_tick = now
        stalled = self._feed_watchdog(now)
        if now >= self._next_status:
            self._next_status = now + self._service.status_interval
            self._publish(now, stalled)

    def _feed_watchdog(self, now: float) -> list[str]:
        """Feed systemd's watchdog unless a thread is stalled; one event when a stall begins, and one when it ends."""
        stalled = self._heartbeats.stalled(now, self._service.stall_after, awake_since=self._awake_since)
        if stalled and self._stalled_since is None:
            self._stalled_since = now
            self._counters("service.stalled", threads=stalled, seconds=self._service.stall_after)
            self._on_stall()
        elif not stalled and self._stalled_since is not None:
            self._counters("service.stall_ended", seconds=round(now - self._stalled_since, 3))
            self._stalled_since = None
        if not stalled:
            self._notifier.watchdog()
        return stalled

    def _publish(self, now: float, stalled: list[str]) -> None:
        snapshot, counts = self._describe(), self._counters.counts()
        for rate in self._rates.values():
            rate.sample(now, counts.get(OUTCOMES["done"], 0))
        rates = {name: rate.per_minute() for name, rate in self._rates.items()}
        unwritten = dict(self._unwritten()) | ({"status": self._status_lost} if self._status_lost else {})
        with contextlib.suppress(OSError):  # no descriptor is left to look with: no reason to end; the last facts stand
            self._facts = process_facts()
        health = health_keys(snapshot, counts, self._facts, now - self._began, unwritten)
        record = {
            "phase": self.phase,
            "written_at": jsonl.rfc3339(self._clock.wall()),
            "monotonic": round(now, 3),
            "interval": self._service.status_interval,
            **self._identity,
            "per_minute": {name: round(rate, 2) for name, rate in rates.items()},
            "stalled": stalled,
            "last_problem": self._counters.last_problem,
            "recent": self._counters.recent(),
            "health": health,
            **{key: value for key, value in snapshot.items() if key not in SNAPSHOT_KEYS},
        }
        self._write_status(now, f"{jsonl.to_json(record)}\n".encode())
        self._on_status(health | {"folders": snapshot.get("folders", {})})
        if self.phase == "ready":
            safe = bool(snapshot.get("safe_mode"))
            line = status_line(self.phase, health, per_minute=rates["1m"], stalled=stalled, safe_mode=safe)
            self._notifier.status(line)
            self._emit_health(now, health)

    def _write_status(self, now: float, text: bytes) -> None:
        """A full or missing runtime directory blinds `rmbgd status`, but stops no image; it is made again."""
        path = self._service.runtime_directory / STATUS_FILE
        try:
            path.parent.mkdir(mode=RUNTIME_MODE, parents=True, exist_ok=True)
            atomic_write(path, text, mode=STATUS_MODE)
        except OSError as error:
            self._status_lost += 1
            if self._blind_since is None:
                self._blind_since = now
                self._counters("status.lost", path=str(path), cause=f"{error.filename or path}: {error.strerror}")
        else:
            if self._blind_since is not None:
                self._counters("status.written", path=str(path), seconds=round(now - self._blind_since, 3))
                self._blind_since = None

    def _emit_health(self, now: float, health: Mapping[str, Any]) -> None:
        interval = self._service.health_interval
        if self._next_health is None:
            self._next_health = now + interval
        elif now >= self._next_health:
            due = self._next_health + interval
            self._next_health = due if due > now else now + interval  # after standing still
            self._counters("health", **health)
