"""Prometheus metrics in a text file for node_exporter.

Every event is counted: `image.done` becomes `rmbgd_image_done_total`. The gauges come from the `health` event. No label
is a path or anything else that outsiders choose, so that the number of series stays small. Series whose labels are
known exist from the start, with 0: increase() does not see the first failure of a series that begins with it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmbgd import __version__
from rmbgd.config.load import Config
from rmbgd.errors import Reason, missing_extra
from rmbgd.events import EVENTS, Emit, devices_of
from rmbgd.fs import STORAGE_KINDS, atomic_write

FILE_MODE = 0o644  # the exporter runs as another user, and the service's umask lets others read nothing

# Keys of an event that become labels; an event that is not here is counted without any.
LABELS: dict[str, tuple[str, ...]] = {
    "service.failed": ("stage",),
    "service.exit": ("result",),
    "folder.watching": ("folder", "mode"),
    "folder.waiting": ("folder", "cause"),
    "folder.replaced": ("folder",),
    "watch.degraded": ("folder", "cause"),
    "watch.restored": ("folder",),
    "intake.incomplete": ("folder",),
    "intake.stuck_upload": ("folder",),
    "intake.blocked": ("folder", "cause"),
    "image.done": ("folder", "device", "model", "verdict"),
    "image.failed": ("folder", "reason"),
    "image.postponed": ("folder", "why"),
    "review.decided": ("folder", "decision", "how"),
    "storage.paused": ("kind",),
    "storage.retire_failed": ("folder",),
    "engine.started": ("device",),
    "engine.fault": ("device", "kind"),
    "engine.restarted": ("device",),
    "engine.failover": ("from", "to", "reason"),
    "engine.failback": ("from", "to"),
    "engine.degraded": ("device", "reason"),
    "engine.state": ("device", "to"),
    "engine.sensor": ("device", "source"),
    "hook.failed": ("hook",),
}
# Values of labels that are known beforehand, besides folders, devices and models.
FINDINGS = (
    "temperature", "no_temperature", "throttled", "xid", "ecc_uncorrected", "row_remap_failed", "recovery_pending",
    "memory_errors", "golden_mismatch", "probe_timeout", "replan", "sticky_fault", "no_device", "unkillable",
)  # fmt: skip
VALUES: dict[tuple[str, str], tuple[str, ...]] = {
    ("folder.watching", "mode"): ("events", "poll"),
    ("folder.waiting", "cause"): ("missing", "not_mounted", "denied", "in_use"),
    ("watch.degraded", "cause"): ("watch_limit", "silent", "dead"),
    ("image.done", "verdict"): ("ok", "review", "empty", "full"),
    ("image.failed", "reason"): tuple(Reason),
    ("image.postponed", "why"): ("incomplete", "storage", "memory", "changed", "stopping", "vanished", "review"),
    ("review.decided", "decision"): ("approved", "rejected"),
    ("review.decided", "how"): ("command", "moved", "gone"),
    ("storage.paused", "kind"): (*sorted({*STORAGE_KINDS.values()}), "io_error", "ledger"),
    ("engine.fault", "kind"): ("lost", "memory", "nonsense"),
    ("engine.failover", "reason"): FINDINGS,
    ("engine.degraded", "reason"): (*FINDINGS, "no_standby", "waiting_for_gpu", "gpu_not_ready"),
    ("engine.state", "to"): ("absent", "probing", "ok", "suspect", "cooling", "quarantined", "short_of_memory", "lost"),
    ("hook.failed", "hook"): ("on_failed", "on_idle", "on_failover"),
}
SERIES_MAXIMUM = 2000  # of one event that are made beforehand; with more folders than that they come as they happen
NOT_COUNTED = frozenset({"health", "engine.output", "run.summary"})
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
GAUGES = {  # key of the health event: name and meaning of the gauge
    "uptime": ("uptime_seconds", "since the service started"),
    "waiting": ("waiting_files", "seen and not yet claimed"),
    "in_flight": ("in_flight_images", "claimed and not yet concluded"),
    "oldest_waiting": ("oldest_waiting_seconds", "age of the file that waits longest"),
    "rss_bytes": ("resident_memory_bytes", "of the service's own process"),
    "descriptors": ("open_descriptors", "of the service's own process"),
    "threads": ("threads", "of the service's own process"),
    "arena_bytes": ("arena_bytes", "leased for images in flight"),
    "arena_resident": ("arena_resident_bytes", "of the arena in memory"),
    "ledger_rows": ("ledger_rows", "jobs remembered"),
    "reviews": ("waiting_reviews", "images that wait for review"),
}


def open_metrics(config: Config, emit: Emit) -> Metrics | None:
    """What counts for health.metrics_file; None without one. Raises ConfigError where the library is missing."""
    return None if config.health.metrics_file is None else Metrics(emit, config)


class Metrics:
    """An Emit that counts what passes through it and hands it on. Safe from any thread."""

    def __init__(self, emit: Emit, config: Config) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
        except ImportError as error:
            raise missing_extra("prometheus_client", "metrics", "health.metrics_file") from error
        disable_created_metrics()  # type: ignore[no-untyped-call] # this text format would show them as one more gauge per counter
        self._emit = emit
        self._gauge_type: Any = Gauge
        self._registry = registry = CollectorRegistry()
        self._counters = {
            event: Counter(f"rmbgd_{event.replace('.', '_')}", kind.meaning, LABELS.get(event, ()), registry=registry)
            for event, kind in EVENTS.items()
            if event not in NOT_COUNTED
        }
        models = {config.recipe_of(folder).model for folder in config.folder} | {"u2netp", config.health.fallback_model}
        self._known = {"folder": tuple(folder.name for folder in config.folder), "model": tuple(models - {"auto"})}
        self._devices: tuple[str, ...] = ("cpu",)  # replaced whole when an engine reports another
        self._begin_with_zero()
        self._bytes = Counter("rmbgd_image_bytes", "of images read and written", ["direction"], registry=registry)
        meaning = "time of one image in each stage"
        self._seconds = Histogram("rmbgd_image_seconds", meaning, ["stage"], registry=registry, buckets=SECONDS)
        self._gauges = {key: self._gauge(name, meaning) for key, (name, meaning) in GAUGES.items()}
        for gauge in self._gauges.values():
            gauge.set(math.nan)  # unknown until the first health event
        self._paused = self._gauge("paused", "1 while nothing new is claimed")
        self._temperature = self._gauge("device_temperature_celsius", "where it is known", "device")
        self._state = self._gauge("device_state", "1 for the state it is in", "device", "state")
        self._in_use = self._gauge("device_in_use", "1 for the device in use", "device")
        self._unwritten = self._gauge("unwritten_lines", "log lines and status files that were lost", "place")
        meaning = "on the queue of a fleet and not leased, as the broker told this worker in the last minute"
        self._queues = self._gauge("waiting_messages", meaning, "folder", "queue")
        self._gauge("build_info", "always 1", "version").labels(version=__version__).set(1)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Any:
        return self._gauge_type(f"rmbgd_{name}", meaning, labels, registry=self._registry)

    def _begin_with_zero(self) -> None:
        devices = dict.fromkeys(("device", "from", "to"), self._devices)
        for event, labels in LABELS.items():
            known = [VALUES.get((event, label), self._known.get(label, devices.get(label, ()))) for label in labels]
            if math.prod(map(len, known)) <= SERIES_MAXIMUM:
                for values in itertools.product(*known):
                    if "from" not in labels or values[0] != values[1]:
                        self._counters[event].labels(*values)

    def __call__(self, event: str, /, **keys: Any) -> None:
        if event == "engine.started" and (device := str(keys.get("device"))) not in self._devices:
            self._devices = (*self._devices, device)
            self._begin_with_zero()
        if event == "health":
            self.health(keys)
        elif counter := self._counters.get(event):
            labels = {name: str(keys.get(name, "")) for name in LABELS.get(event, ())}
            (counter.labels(**labels) if labels else counter).inc()
        if event == "image.done":
            for direction in ("in", "out"):
                self._bytes.labels(direction=direction).inc(max(float(keys.get(f"bytes_{direction}") or 0), 0.0))
            for stage, milliseconds in (keys.get("milliseconds") or {}).items():
                self._seconds.labels(stage=str(stage)).observe(float(milliseconds) / 1000.0)
        self._emit(event, **keys)

    def health(self, keys: Mapping[str, Any]) -> None:
        """Take the gauges from the keys of a health event; what is not known is left out rather than shown as 0."""
        for key, gauge in self._gauges.items():
            value = keys.get(key)
            gauge.set(value if isinstance(value, (int, float)) else math.nan)
        self._paused.set(bool(keys.get("paused")))
        for table in (self._temperature, self._state, self._in_use, self._unwritten):
            table.clear()
        if (folders := keys.get("folders")) is not None:  # the status file has them, the event has not
            self._queues.clear()
            for folder, facts in folders.items():
                for queue, count in (facts.get("waiting") or {}).items():
                    self._queues.labels(folder=folder, queue=queue).set(count)
        for place, count in (keys.get("unwritten") or {}).items():
            self._unwritten.labels(place=str(place)).set(count)
        for device in filter(None, str(keys.get("device") or "").split(", ")):
            self._in_use.labels(device=device).set(1)
        for device, facts in devices_of(keys).items():
            temperature, state = facts.get("temperature"), facts.get("state")
            if isinstance(temperature, (int, float)):
                self._temperature.labels(device=device).set(temperature)
            if state is not None:
                self._state.labels(device=device, state=str(state)).set(1)

    def write(self, path: Path) -> None:
        """Replace the file whole, readable by all, where the disk lets it: no image depends on it.

        Not prometheus_client's write_to_textfile: a chmod after its rename would be too late for a scrape in between.
        """
        from prometheus_client import generate_latest

        with contextlib.suppress(OSError):
            atomic_write(path, generate_latest(self._registry), mode=FILE_MODE)
