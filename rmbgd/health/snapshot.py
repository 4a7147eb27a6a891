"""POLICY: what the health event, the status file and systemd's STATUS line say, from facts that others gathered.

Reads no clock, no file and no counter itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
