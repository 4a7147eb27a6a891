"""The health thread: the heartbeat event, the status file, and the watchdog fed from the progress of every thread.

Does not touch jobs, devices or folders, and waits for none of them: the daemon's snapshot tells it what to say of them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rmbgd import __version__
from rmbgd.clock import Clock
from rmbgd.config import load as config
from rmbgd.events import EVENTS, Emit
from rmbgd.heartbeat import Heartbeats
from rmbgd.service.systemd import Notifier
from rmbgd.telemetry import jsonl as lines

# --- POLICY: what the health event, the status file and systemd's STATUS line say, from facts that others gathered.


SNAPSHOT_KEYS = (
    "device",
    "waiting",
    "in_flight",
    "oldest_waiting",
    "arena_bytes",
    "channels",
    "paused",
    "engine",
    "ledger_rows",
)
"""What the daemon's snapshot must hold; anything more goes to the status file alone."""

OUTCOMES = {"done": "image.done", "failed": "image.failed", "postponed": "image.postponed"}


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What the kernel says of the service's own process (the engine's child reports for itself)."""

    rss_bytes: int
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Which run of the service a status file speaks of.

    process_start  in the kernel's clock ticks: tells the process from another that got its pid
    started        in seconds, on the monotonic clock of boot `boot_id`
    """

    pid: int
    process_start: int | None
    boot_id: str
    invocation_id: str
    version: str
    started: float
    started_at: str


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


def health_keys(
    snapshot: Mapping[str, Any],
    counts: Mapping[str, int],
    process: ProcessFacts,
    uptime: float,
    unwritten: Mapping[str, int],
) -> dict[str, Any]:
    """The keys of the `health` event. Raises KeyError when the snapshot lacks one of SNAPSHOT_KEYS."""
    keys: dict[str, Any] = {"uptime": round(uptime, 3)}
    keys |= {name: counts.get(event, 0) for name, event in OUTCOMES.items()}
    keys |= {name: snapshot[name] for name in SNAPSHOT_KEYS}
    keys |= {"rss_bytes": process.rss_bytes, "descriptors": process.descriptors, "threads": process.threads}
    if any(unwritten.values()):
        keys["unwritten"] = {place: count for place, count in unwritten.items() if count}
    return keys


def status_record(
    identity: Identity,
    phase: str,
    health: Mapping[str, Any],
    *,
    extra: Mapping[str, Any],
    rates: Mapping[str, float],
    stalled: list[str],
    last_problem: Mapping[str, Any] | None,
    written_at: str,
    monotonic: float,
    interval: float,
) -> dict[str, Any]:
    """The status file, for `rmbgd status` and the exit recorder. `interval`: seconds between two of them."""
    return {
        "phase": phase,
        "written_at": written_at,
        "monotonic": round(monotonic, 3),
        "interval": interval,
        "pid": identity.pid,
        "process_start": identity.process_start,
        "boot_id": identity.boot_id,
        "invocation_id": identity.invocation_id,
        "version": identity.version,
        "started": round(identity.started, 3),
        "started_at": identity.started_at,
        "per_minute": {name: round(rate, 2) for name, rate in rates.items()},
        "stalled": stalled,
        "last_problem": last_problem,
        "health": dict(health),
        **{key: value for key, value in extra.items() if key not in SNAPSHOT_KEYS},
    }


def status_line(
    phase: str, health: Mapping[str, Any], *, per_minute: float, stalled: list[str], safe_mode: bool = False
) -> str:
    """One line for `systemctl status`."""
    if stalled:
        return f"hung: {', '.join(stalled)}; the watchdog is not fed"
    parts = [f"{phase} on {health['device']}" + (" in safe mode" if safe_mode else "")]
    if health["paused"]:
        parts.append(f"paused ({health['paused']})")
    parts.append(f"{health['waiting']} waiting, {health['in_flight']} in flight")
    parts.append(f"{health['done']} done, {health['failed']} refused")
    parts.append(f"{per_minute:.0f} a minute")
    return "; ".join(parts)


# --- The health thread: the heartbeat event, the status file, and the watchdog fed from the progress of every thread.


STATUS_FILE = "status.json"
STATUS_MODE = 0o644  # who may enter the runtime directory may read it
RATE_WINDOWS = {"1m": 60.0, "5m": 300.0}  # s
FEEDINGS = 4  # of systemd's watchdog within its period: three may be late before it bites
PROBLEM_LEVELS = ("warning", "error", "critical")


class Counters:
    """An Emit that counts what passes through it, and keeps the last problem. Wraps the real one; any thread."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}  # under the lock
        self._last_problem: tuple[str, dict[str, object]] | None = None  # under the lock

    def __call__(self, event: str, /, **keys: object) -> None:
        with self._lock:
            self._counts[event] = self._counts.get(event, 0) + 1
            if (kind := EVENTS.get(event)) and kind.level in PROBLEM_LEVELS:
                self._last_problem = (event, keys)
        self._emit(event, **keys)

    def counts(self) -> dict[str, int]:
        """Events so far, by name."""
        with self._lock:
            return dict(self._counts)

    def last_problem(self) -> tuple[str, dict[str, object]] | None:
        """The last event of level warning or worse."""
        with self._lock:
            return self._last_problem


def process_facts() -> ProcessFacts:
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return ProcessFacts(
        rss_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        descriptors=len(os.listdir("/proc/self/fd")) - 1,  # the listing holds one itself
        threads=len(os.listdir("/proc/self/task")),
    )


class HealthMonitor:
    """Everything below belongs to the health thread, which alone calls `tick`, unless a line says otherwise.

    `describe` is the daemon's snapshot: a dict with snapshot.SNAPSHOT_KEYS and what else the status file shall show. It
    must not wait for a device, a disk or a lock that is held for long; what it raises ends the health thread and so the
    service. `on_status` is given the keys of the health event each time the status file is written (metrics);
    `on_stall` is called when a stall begins (stacks).
    """

    def __init__(
        self,
        service: config.ServiceSettings,
        *,
        heartbeats: Heartbeats,
        counters: Counters,
        describe: Callable[[], Mapping[str, Any]],
        notifier: Notifier,
        clock: Clock,
        unwritten: Callable[[], Mapping[str, int]] = dict,
        on_status: Callable[[Mapping[str, Any]], object] | None = None,
        on_stall: Callable[[], object] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self._service = service
        self._heartbeats = heartbeats
        self._counters = counters
        self._describe = describe
        self._notifier = notifier
        self._clock = clock
        self._unwritten = unwritten
        self._on_status = on_status
        self._on_stall = on_stall
        self._path = os.path.join(service.runtime_directory, STATUS_FILE)
        now = clock.monotonic()
        self._identity = Identity(
            pid=os.getpid(),
            process_start=lines.process_start(os.getpid()),
            boot_id=lines.boot_id(),
            invocation_id=environ.get("INVOCATION_ID", ""),
            version=__version__,
            started=now,
            started_at=lines.rfc3339(clock.wall()),
        )
        self._rates = {name: Rate(window) for name, window in RATE_WINDOWS.items()}
        self._problem: tuple[tuple[str, dict[str, object]], str] | None = None  # with the time it was first seen here
        self._status_lost = 0
        self._stalled_since: float | None = None
        self._facts = process_facts()
        self._awake_since = self._last_tick = now
        self._next_health: float | None = None
        self._next_status = now
        self._phase = "starting"  # written by the main thread, read here; one reference
        self._closing = threading.Event()  # set by the main thread

    @property
    def period(self) -> float:
        """Seconds between two ticks."""
        shortest = min(self._service.status_interval, self._service.health_interval)
        watchdog = self._notifier.watchdog_seconds
        return min(shortest, watchdog / FEEDINGS) if watchdog else shortest

    def phase(self, name: str) -> None:
        """Called by the main thread: starting, ready, stopping. Health events begin with ready."""
        self._phase = name

    def run(self) -> None:
        """Tick until closed. The health thread's body."""
        self.tick()
        while not self._closing.wait(self.period):
            self.tick()

    def close(self) -> None:
        """Called by the main thread: ends `run`."""
        self._closing.set()

    def finished(self) -> None:
        """The last word in the status file; call it when `run` has returned."""
        self._phase = "stopped"
        self._next_status = self._clock.monotonic()
        self.tick()

    def tick(self) -> None:
        now = self._clock.monotonic()
        if now - self._last_tick > max(2 * self.period, 5.0):  # this thread stood still too, so everybody did
            self._awake_since = now
        self._last_tick = now
        hung = self._watch(now)
        if now >= self._next_status:
            self._next_status = now + self._service.status_interval
            self._publish(now, hung)

    def _watch(self, now: float) -> list[str]:
        """Feed systemd's watchdog while everybody moves; tell once when somebody hangs, and once when it is over."""
        hung = self._heartbeats.stalled(now, self._service.stall_after, awake_since=self._awake_since)
        if hung and self._stalled_since is None:
            self._stalled_since = now
            self._counters("service.stalled", threads=hung, seconds=self._service.stall_after)
            if self._on_stall is not None:
                self._on_stall()
        elif not hung and self._stalled_since is not None:
            self._counters("service.stall_ended", seconds=round(now - self._stalled_since, 3))
            self._stalled_since = None
        if not hung:
            self._notifier.watchdog()
        return hung

    def _publish(self, now: float, hung: list[str]) -> None:
        described = self._describe()
        counts = self._counters.counts()
        for rate in self._rates.values():
            rate.sample(now, counts.get(OUTCOMES["done"], 0))
        unwritten = dict(self._unwritten()) | ({"status": self._status_lost} if self._status_lost else {})
        uptime = now - self._identity.started
        with contextlib.suppress(OSError):  # no descriptor is left to look with: no reason to end; the last word stands
            self._facts = process_facts()
        health = health_keys(described, counts, self._facts, uptime, unwritten)
        rates = {name: rate.per_minute() for name, rate in self._rates.items()}
        record = status_record(
            self._identity,
            self._phase,
            health,
            extra=described,
            rates=rates,
            stalled=hung,
            last_problem=self._last_problem(),
            written_at=lines.rfc3339(self._clock.wall()),
            monotonic=now,
            interval=self._service.status_interval,
        )
        self._write_status(lines.to_json(record))
        if self._on_status is not None:
            self._on_status(health)
        if self._phase == "ready":
            safe = bool(described.get("safe_mode"))
            line = status_line(self._phase, health, per_minute=rates["1m"], stalled=hung, safe_mode=safe)
            self._notifier.status(line)
            self._heartbeat(now, health)

    def _heartbeat(self, now: float, health: dict[str, Any]) -> None:
        if self._next_health is None:
            self._next_health = now + self._service.health_interval
        elif now >= self._next_health:
            due = self._next_health + self._service.health_interval
            self._next_health = due if due > now else now + self._service.health_interval  # after standing still
            self._counters("health", **health)

    def _last_problem(self) -> dict[str, Any] | None:
        found = self._counters.last_problem()
        if found is None:
            return None
        if self._problem is None or self._problem[0] is not found:
            self._problem = (found, lines.rfc3339(self._clock.wall()))
        (event, keys), seen = self._problem
        return {"event": event, "time": seen, **keys}

    def _write_status(self, text: str) -> None:
        temporary = self._path + ".tmp"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, STATUS_MODE)
            try:
                os.fchmod(descriptor, STATUS_MODE)  # whatever the umask says
                os.write(descriptor, text.encode() + b"\n")
            finally:
                os.close(descriptor)
            os.rename(temporary, self._path)
        except OSError:  # a full or missing runtime directory blinds `rmbgd status`, but stops no image
            self._status_lost += 1
            with contextlib.suppress(OSError):
                os.unlink(temporary)
