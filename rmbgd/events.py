"""The event vocabulary: the name, the level and the keys of every JSON line that rmbgd writes.

Standard library only, so that the report tool can read logs where nothing else is installed. Does not write anything:
logs.py does, and adds to every line `event`, `level`, `time` (RFC 3339, UTC), `monotonic` (s), `boot_id`, `pid`, `version`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class EventKind:
    """One kind of event. `keys` maps each key to its meaning; a key that ends in '?' may be absent."""

    level: str
    meaning: str
    keys: dict[str, str]


class Emit(Protocol):
    """How a part of the service says that something happened. Injected, never global; safe to call from any thread."""

    def __call__(self, event: str, /, **keys: object) -> None: ...


SAFE_MODE_OVER = "safe mode is over"
"""The cause of a planned stop that is followed, in the same process, by a start with everything."""

_IMAGE = {
    "job": "number of the job in the ledger",
    "folder": "name of the drop folder",
    "path": "path below the drop folder; bytes that are no UTF-8 as \\udcXX escapes",
    "attempt": "1 for the first try; raised by crashes only",
    "milliseconds": "time per stage: wait, decode, queue, engine, encode, sync, total",
}
_ENDED = _IMAGE | {
    "recovered?": "true when the run that ended the job was killed about then and the next start tells it; may repeat an event, of the same job",
}

EVENTS: dict[str, EventKind] = {
    # --- life of the service
    "service.start": EventKind(
        "info", "the process began; nothing is watched yet",
        {"config": "file it was read from", "folders": "names", "device": "as configured", "python": "version", "host?": "name of the machine", "heartbeat?": "s between two health events"},
    ),
    "service.ready": EventKind(
        "info", "folders are watched and an engine answered", {"seconds": "since service.start", "device": "in use", "recovered": "jobs taken up again"},
    ),
    "service.stopping": EventKind("info", "asked to stop; nothing new is claimed", {"cause": "SIGTERM, SIGINT, safe mode is over, or the failed stage", "in_flight": "jobs"}),
    "service.stop": EventKind(
        "info", "the end of an orderly stop", {"exit_code": "0 when asked to stop", "seconds": "since service.stopping", "returned": "jobs put back into their folders"},
    ),
    "service.failed": EventKind("critical", "a part broke and the process ends; systemd starts it again", {"stage": "which thread", "error": "type and text", "traceback": "where"}),
    "service.exit": EventKind(
        "info", "written after the process is gone, by the exit recorder: the only trace of SIGKILL, a segfault or the watchdog",
        {"result": "systemd's SERVICE_RESULT", "code": "exited, killed, dumped", "status": "exit status or signal name", "uptime?": "seconds", "ended_pid?": "process that ended"},
    ),
    "service.safe_mode": EventKind(
        "error", "the last starts died soon: this one runs on the CPU with the embedded model, one image at a time, and holds back those that were in work",
        {
            "causes": "how those starts ended", "window": "s in which they began", "seconds": "quiet time after which everything is tried again", "device": "", "model": "",
            "waits": "true with health.require_gpu: nothing is claimed meanwhile",
        },
    ),
    "service.reload": EventKind("info", "SIGHUP: folders are compared with the ledger at once", {}),
    "health": EventKind(
        "info", "heartbeat, once per health interval",
        {
            "uptime": "s", "device": "in use", "done": "images published since start", "failed": "refused since start", "postponed": "put back since start",
            "waiting": "files seen and not yet claimed", "in_flight": "jobs", "oldest_waiting": "s", "rss_bytes": "of the service", "descriptors": "open",
            "threads": "alive", "arena_bytes": "leased", "channels": "per channel: depth, seconds its producers and its consumers waited",
            "paused": "reason or null", "engine": "state, restarts; `devices`: per device its state, temperature where known, trips", "ledger_rows": "jobs remembered",
            "unwritten?": "lines and status files lost to a full disk or a reader that hangs, by place",
        },
    ),
    "service.stalled": EventKind("error", "a thread neither waits nor progresses; the watchdog is no longer fed", {"threads": "names; `line`: all of them wait, and images stand still", "seconds": "without progress, at least"}),
    "service.stall_ended": EventKind("info", "every thread moves again", {"seconds": "stalled"}),
    # --- folders and arrivals
    "folder.watching": EventKind("info", "a drop folder is watched", {"folder": "name", "mode": "events or poll", "file_system": "type", "watches": "armed"}),
    "folder.waiting": EventKind("warning", "a drop folder is not there; nothing is written below its path", {"folder": "name", "cause": "missing, not_mounted, denied"}),
    "folder.replaced": EventKind("warning", "another directory stands where the drop folder was; watched anew and compared", {"folder": "name"}),
    "watch.overflow": EventKind("warning", "the kernel dropped events; folders are compared at once", {"folder?": "name"}),
    "watch.degraded": EventKind("warning", "events cannot be relied on here; polling", {"folder": "name", "cause": "watch_limit, silent, dead", "wanted?": "watches", "armed?": "watches"}),
    "watch.restored": EventKind("info", "events can be relied on again", {"folder": "name"}),
    "intake.incomplete": EventKind("info", "a closed file lacks its end; waited for", {"folder": "name", "path": "below it", "gate": "which check holds it"}),
    "intake.stuck_upload": EventKind("warning", "still open or changing after a long time; told once", {"folder": "name", "path": "below it", "seconds": "since first seen"}),
    "intake.blocked": EventKind("warning", "a file cannot be read or claimed; stays in place, tried again", {"folder": "name", "path": "below it", "cause": "permission, busy, ..."}),
    "intake.recovered": EventKind("info", "what the last run left unfinished was taken up", {"jobs": "claimed again", "published": "found complete", "temporaries": "removed", "set_aside": "for crashing the service", "told": "outcomes whose events may be missing, told with `recovered`"}),
    # --- images: one of these per job
    "image.done": EventKind(
        "info", "a cutout is published",
        _ENDED | {
            "output": "path below the output folder", "device": "that computed it", "model": "that computed it", "width": "px", "height": "px", "format": "of the input",
            "bytes_in": "", "bytes_out": "", "coverage": "mean alpha, 0..1", "soft": "share of soft-edge pixels", "verdict": "ok, empty, full", "batch": "images it was computed with",
            "reused": "true when copied from an equal image's result", "sha256_in": "", "sha256_out": "", "notes?": "oddities of the input that were mended", "engine_tries?": "more than one after an engine fault",
        },
    ),
    "image.failed": EventKind(
        "warning", "an image is refused; its original stands in the failed folder with a .error.json",
        _ENDED | {"reason": "from the list of reasons", "detail": "what exactly", "stage": "intake, decode, engine, finish", "quarantine?": "path below the failed folder", "sha256_in?": ""},
    ),
    "image.postponed": EventKind("info", "an image went back to waiting; attempts unchanged", _IMAGE | {"why": "incomplete, storage, memory, changed, stopping, vanished", "detail": ""}),
    # --- storage
    "storage.paused": EventKind("error", "the disk refuses; results are held and nothing new is claimed", {"kind": "disk_full, quota, read_only, io_error, denied, missing", "path": "", "detail": ""}),
    "storage.resumed": EventKind("info", "the disk takes data again", {"kind": "of the refusal that is over", "seconds": "paused"}),
    "storage.retire_failed": EventKind("warning", "an original could not be moved or deleted after success; tried again later, never processed again", {"folder": "name", "path": "", "detail": ""}),
    # --- engine
    "engine.chosen": EventKind(
        "info", "which device computes, and what stands in for it; once, at start",
        {"device": "", "why": "", "standby?": "on the CPU while the GPU is away: model asked for -> model that computes", "start?": "whether those stay loaded, and why"},
    ),
    "engine.started": EventKind("info", "an engine is ready", {"device": "", "models": "facts per model", "batch_sizes": "it takes", "seconds": "to start", "detail?": ""}),
    "engine.batching": EventKind(
        "info", "how images are batched on a device; at its start, and when its measured times change that",
        {"device": "", "milliseconds": "that a batch takes, by its size, where measured", "folders": "per folder: its latency_target, and how many go when 1, 2, 3 ... wait"},
    ),
    "engine.limited": EventKind("warning", "an engine does with less than it was made for; no image is worse for it", {"device": "", "what": "memory_low, batch, pinned, graphs, kernels, bfloat16, float8, not_finite", "detail": "what exactly, and why"}),
    "engine.fault": EventKind("error", "a batch was not answered; its images run again", {"device": "", "kind": "lost, memory, nonsense", "detail": "", "images": "jobs concerned", "restarts": "since start"}),
    "engine.restarted": EventKind("info", "a fresh engine process is ready after a fault", {"device": "", "seconds": "since the fault", "restarts": "since start"}),
    "engine.output": EventKind("debug", "a line the engine's process or a C library wrote", {"source": "engine, service", "line": ""}),
    "engine.failover": EventKind("error", "work moved to another device", {"from": "device", "to": "device", "reason": "", "reading?": "", "threshold?": "", "images": "jobs concerned", "model": "now in use", "operator_action?": "what only a person can do"}),
    "engine.failback": EventKind("info", "work moved back after the device proved itself", {"from": "device", "to": "device", "seconds": "away", "model": "now in use"}),
    "engine.degraded": EventKind("warning", "a device is suspect, a lesser model answers, or nothing stands by", {"device": "", "reason": "", "reading?": "", "threshold?": "", "model?": "", "operator_action?": "what only a person can do"}),
    "engine.sensor": EventKind("info", "where the health of a device is read from", {"device": "", "source": "nvml, sysfs, none", "why": ""}),
    "engine.state": EventKind(
        "info", "the health of a device changed; images go to it in ok and suspect only",
        {
            "device": "", "from": "absent, probing, ok, suspect, cooling, quarantined, lost", "to": "likewise", "reason": "", "trips": "since it was last well for long",
            "reading?": "", "threshold?": "", "until?": "monotonic time of the next probe, at the earliest", "operator_action?": "what only a person can do",
        },
    ),
    # --- one-shot runs
    "run.summary": EventKind("info", "end of `rmbgd once`", {"done": "", "failed": "", "skipped": "output was there already", "seconds": ""}),
}  # fmt: skip

ENVELOPE = ("event", "level", "time", "monotonic", "boot_id", "pid", "version")
"""Keys that every line carries."""


def problems_with(event: str, keys: dict[str, object]) -> list[str]:
    """What the vocabulary has against this event: unknown name, missing or unknown keys. Empty when it fits."""
    kind = EVENTS.get(event)
    if kind is None:
        return [f"unknown event '{event}'"]
    required = {key for key in kind.keys if not key.endswith("?")}
    allowed = {key.rstrip("?") for key in kind.keys}
    missing = [f"{event}: key '{key}' is missing" for key in sorted(required - keys.keys())]
    unknown = [f"{event}: unknown key '{key}'" for key in sorted(keys.keys() - allowed)]
    return missing + unknown


def devices_of(health: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What a health event says of each device: name -> state, temperature, ... as far as it is there.

    Its key `engine` holds a table `devices`; where it does not, it speaks of the one device in use.
    """
    engine = health.get("engine")
    if not isinstance(engine, Mapping):
        return {}
    devices = engine.get("devices")
    if isinstance(devices, Mapping):
        return {str(name): facts for name, facts in devices.items() if isinstance(facts, Mapping)}
    return {str(health["device"]): engine} if health.get("device") else {}


class RecordedEvents:
    """An Emit that keeps what it was told, and refuses what the vocabulary does not know. For tests."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []  # appended by any thread; list.append is atomic

    def __call__(self, event: str, /, **keys: object) -> None:
        problems = problems_with(event, keys)
        if problems:
            raise ValueError("; ".join(problems))
        self.events.append((event, keys))

    def named(self, event: str) -> list[dict[str, object]]:
        return [keys for name, keys in self.events if name == event]
