"""The event vocabulary: name, level and keys of every JSON line that rmbgd writes.

Standard library only, so that the report tool can read logs where nothing else is installed. telemetry/log.py adds to
every line `event`, `level`, `time` (RFC 3339, UTC), `monotonic` (s), `boot_id`, `pid`, `version`.
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
    """Writes one event. Injected, never global; safe to call from any thread."""

    def __call__(self, event: str, /, **keys: object) -> None: ...


SAFE_MODE_OVER = "safe mode is over"
"""The cause of a planned stop that is followed, in the same process, by a start with everything."""
LEDGER_DAMAGED = "the ledger is damaged"
"""The cause of a stop that is followed, in the same process, by a start that checks the ledger and replaces it."""

_IMAGE = {
    "job": "number of the job in the ledger",
    "folder": "name of the drop folder",
    "path": "path below the drop folder; bytes that are not UTF-8 as \\udcXX escapes",
    "attempt": "1 for the first attempt; only a crash raises it",
    "milliseconds": "time per stage: wait, decode, queue, engine, encode, sync, total; and the processor time of decode, encode and sync, processor",
    "lease?": "of an image from the queue of a fleet: stream:sequence/delivery",
    "fingerprint?": "of the version that was announced to the fleet",
    "sequence?": "name of the sequence of which it is a frame",
    "frame?": "number of the frame",
}
_ENDED = _IMAGE | {
    "duplicate?": "true when another worker of the fleet has published the same version, too",
    "recovered?": "true when the service was killed as the job ended and the next start emits the event; it may then repeat an event of the same job",
}

EVENTS: dict[str, EventKind] = {
    # --- life of the service
    "service.start": EventKind(
        "info", "The process began. Nothing is watched yet.",
        {"config": "configuration file", "folders": "names", "device": "as configured", "python": "version", "host?": "name of the machine", "heartbeat?": "s between two health events"},
    ),
    "service.ready": EventKind(
        "info", "The engine is ready, and every available folder was compared with the ledger.", {"seconds": "since service.start", "device": "in use", "recovered": "jobs resumed after the last run"},
    ),
    "service.stopping": EventKind("info", "The service was asked to stop and claims no more images.", {"cause": "SIGTERM, SIGINT, safe mode is over, the ledger is damaged, or the failed stage", "in_flight": "jobs"}),
    "service.stop": EventKind(
        "info", "The service stopped in good order.", {"exit_code": "0 when asked to stop", "seconds": "since service.stopping", "returned": "jobs put back into their folders"},
    ),
    "service.failed": EventKind("critical", "A thread failed, so the process ends; systemd restarts it.", {"stage": "name of the thread", "error": "type and text", "traceback": "of the error"}),
    "service.exit": EventKind(
        "info", "The exit recorder saw the process end. The only trace of SIGKILL, a segmentation fault or the watchdog.",
        {"result": "systemd's SERVICE_RESULT", "code": "exited, killed, dumped", "status": "exit status or signal name", "uptime?": "seconds", "ended_pid?": "process that ended"},
    ),
    "service.safe_mode": EventKind(
        "error", "The last starts died soon, so this one runs on the CPU with the embedded model, one image at a time. Images that were in work when it died are held back.",
        {
            "causes": "how those starts ended", "window": "s in which they began", "seconds": "s without a crash after which everything is tried again", "device": "in use", "model": "in use",
            "waits": "true with health.require_gpu: nothing is claimed in safe mode",
        },
    ),
    "config.adjusted": EventKind("warning", "A setting is read as another value than the configuration has.", {"setting": "table.name", "configured": "value in the file", "used": "value instead", "why": "reason"}),
    "service.reload": EventKind("info", "SIGHUP: all folders are compared with the ledger now.", {}),
    "health": EventKind(
        "info", "Heartbeat, once per health interval.",
        {
            "uptime": "s", "device": "in use", "done": "images published since start", "failed": "images rejected since start", "postponed": "images put back since start",
            "waiting": "files seen and not yet claimed", "in_flight": "jobs", "oldest_waiting": "s", "rss_bytes": "of the service", "descriptors": "open",
            "threads": "running", "arena_bytes": "leased", "arena_resident": "bytes of the arena in memory: leased, page-locked for a device, or soon to be given back", "channels": "per queue: depth, seconds its producers and its consumers waited",
            "paused": "reason or null; `operator`, or `operator:NAME` while some folders are paused", "engine": "state, restarts; `devices`: per device its state, temperature where known, trips", "ledger_rows": "jobs remembered", "reviews?": "images that wait for review",
            "unwritten?": "log lines and status files lost to a full disk or a reader that hangs, by place",
        },
    ),
    "service.stalled": EventKind("error", "A thread hangs, or the pipeline is deadlocked. The watchdog is no longer fed, so systemd will restart the service.", {"threads": "names; `line`: every thread waits, and no image moves", "seconds": "without progress, at least"}),
    "service.stall_ended": EventKind("info", "Every thread makes progress again.", {"seconds": "stalled"}),
    "status.lost": EventKind("warning", "The status file cannot be written, so `rmbgd status` is blind. The service works on, and makes its directory again when it may.", {"path": "of the file", "cause": "what exactly"}),
    "status.written": EventKind("info", "The status file is written again.", {"path": "of the file", "seconds": "without"}),
    "control.lost": EventKind("warning", "The control socket cannot be made, so `rmbgd list`, `retry`, `pause` and `resume` do not reach the service. It works on, and tries again.", {"path": "of the socket", "cause": "what exactly"}),
    "control.restored": EventKind("info", "The control socket is there again.", {"path": "of the socket", "seconds": "without"}),
    "service.paused": EventKind("info", "An operator paused the intake. Images in work are finished, nothing more is claimed; it stays so over restarts.", {"folder?": "name; absent: every folder", "person": "user who asked for it"}),
    "service.resumed": EventKind("info", "An operator ended a pause.", {"folder?": "as in its service.paused", "person": "user who asked for it", "seconds": "paused"}),
    "hook.failed": EventKind("warning", "A hook could not be run, or its command failed. No image depends on it, and it is not run again for the same event.", {"hook": "on_failed, on_idle, on_failover", "detail": "what exactly"}),
    # --- folders and arrivals
    "folder.watching": EventKind("info", "A drop folder is watched.", {"folder": "name", "mode": "events or poll", "file_system": "type", "watches": "inotify watches in use"}),
    "folder.waiting": EventKind("warning", "A drop folder is missing, or another service claims from it. Nothing is written below its path until it is back.", {"folder": "name", "cause": "missing, not_mounted, denied, in_use", "holder?": "service that claims from it now"}),
    "folder.contested": EventKind(
        "warning", "Another service wants to claim from a drop folder of this one, and waits until this one ends. Nearly always a copied configuration.",
        {"folder": "name", "host": "the other service's machine", "contender_pid": "its process", "state_directory": "its own"},
    ),
    "folder.replaced": EventKind("warning", "The drop folder was replaced by another directory, which is now watched and compared with the ledger.", {"folder": "name"}),
    "watch.overflow": EventKind("warning", "The kernel dropped file events. The folders are compared with the ledger now, so no file is missed.", {"folder?": "name"}),
    "watch.degraded": EventKind("warning", "File events are not reliable here, so the folder is polled.", {"folder": "name", "cause": "watch_limit, silent, dead", "wanted?": "watches needed", "armed?": "watches in use"}),
    "watch.restored": EventKind("info", "File events are reliable again.", {"folder": "name"}),
    "intake.incomplete": EventKind("info", "A closed file is incomplete. It is checked again until it is complete or too old.", {"folder": "name", "path": "below the folder", "gate": "the check that failed"}),
    "intake.stuck_upload": EventKind("warning", "A file is still open or changing after a long time. Reported once per file.", {"folder": "name", "path": "below the folder", "seconds": "since first seen"}),
    "intake.blocked": EventKind("warning", "A file cannot be read or claimed. It stays in place and is tried again.", {"folder": "name", "path": "below the folder", "cause": "permission, busy, ..."}),
    "intake.recovered": EventKind("info", "The service resumed what its last run left unfinished.", {"jobs": "claimed again", "published": "found complete", "temporaries": "removed", "set_aside": "quarantined because the service crashed on them", "told": "outcomes whose events may be missing, emitted now with `recovered`", "adopted?": "as in ledger.replaced, of a folder that was not there then", "unknown?": "likewise"}),
    # --- the queue of a fleet
    "source.connected": EventKind("info", "The broker is connected, and images are leased from it.", {"servers": "as configured", "server_version": "of nats-server", "seconds?": "without"}),
    "source.lost": EventKind("error", "The broker cannot be reached, or does not accept this machine. Images in work are finished, and it is tried again.", {"servers": "as configured", "kind": "unreachable, denied, unfit", "detail": "what exactly, and what to do"}),
    "source.unusable": EventKind("warning", "The broker is there, and lacks something; or images of a root cannot be processed here as they are wanted. They stay in the queue, for machines that can. Reported once for each cause.", {"folder?": "name of the root", "detail": "what exactly, and what to do"}),
    "source.clock": EventKind("warning", "The clock of this host and that of the broker differ. No image is lost by it; times in logs are wrong by so much.", {"seconds": "between them", "detail": "which is ahead, and what to do"}),
    "source.drained": EventKind("info", "An administrator drains this host: images in work are finished, nothing more is leased.", {"worker": "host and process"}),
    "source.undrained": EventKind("info", "This host leases images again.", {"worker": "host and process"}),
    "image.announced": EventKind(
        "info", "The name of a complete image was put on the queue, for any worker of the fleet.",
        {"job": "number in the ledger of the announcer", "folder": "name of the root", "path": "below it", "fingerprint": "of this version", "recipe": "name", "seconds": "since the file was first seen"},
    ),
    "sequence.announced": EventKind(
        "info", "A sequence of frames is over, and was put on the queue as a whole: one worker of the fleet gets all of it.",
        {"folder": "name of the root", "sequence": "its name", "fingerprint": "of this version: how many frames, and which", "recipe": "name"},
    ),
    "lease.dropped": EventKind(
        "info", "A message of the queue needed no work.",
        {"lease": "stream:sequence/delivery", "why": "answered (the root has its result), superseded (the file is another version now), gone, bad_message", "detail": "what exactly", "folder?": "name of the root", "path?": "below it", "fingerprint?": "as announced"},
    ),
    "lease.lost": EventKind("warning", "An image has not moved for so long that its lease is not extended: another worker gets it, too.", {**{key: text for key, text in _IMAGE.items() if key != "milliseconds"}, "stage": "in which it stands"}),
    # --- images: one of these per job
    "image.done": EventKind(
        "info", "A cutout was published.",
        _ENDED | {
            "output": "path below the output folder; with verdict review, below the review folder", "device": "that computed it", "model": "that computed it", "width": "px", "height": "px", "format": "of the input",
            "bytes_in": "size of the input", "bytes_out": "size of the output", "coverage": "mean alpha, 0..1", "soft": "share of soft-edge pixels", "verdict": "ok, review, empty, full", "batch": "images in the same batch",
            "reused": "true when copied from the result of an identical image", "sha256_in": "of the input", "sha256_out": "of the output", "notes?": "oddities of the input that were corrected", "engine_tries?": "runs it took, when an engine fault made it more than one",
            "score?": "confidence 0..1 that the matte is right", "unusual?": "robust z of the area in this folder", "reasons?": "why it waits for review, in words",
            "frames?": "of a film", "film_seconds?": "when its last frame ends", "flicker?": "of a steady film: still_change, warped_error, lag, resets",
            "review?": "what the score was computed from, and the version of its model", "outputs?": "of a set: path, format, size, sha256, preset, compliance of each file",
        },
    ),
    "image.failed": EventKind(
        "warning", "An image was rejected. Its original is in the failed folder, with a .error.json; with the reason `vanished` there is none any more.",
        _ENDED | {"reason": "from the list of reasons", "detail": "what exactly", "stage": "intake, decode, engine, finish", "quarantine?": "path below the failed folder", "sha256_in?": "of the input"},
    ),
    "image.postponed": EventKind("info", "An image was put back to wait. This does not count as an attempt.", _IMAGE | {"why": "incomplete, storage, memory, changed, stopping, vanished, review", "detail": "what exactly"}),
    "image.retried": EventKind("info", "An operator put a rejected original back into its input.", {"folder": "name of the drop folder", "path": "below the drop folder", "reason?": "why it had been rejected", "person": "user who asked for it"}),
    "review.decided": EventKind(
        "info", "A person decided about an image that waited for review.",
        {
            "job": "as in its image.done", "folder": "name of the drop folder", "path": "below the drop folder", "decision": "approved, rejected",
            "how": "command; moved: its files were found in the output or the failed folder; gone: they are nowhere any more", "person?": "user who asked for it",
            "output?": "path below the output folder", "seconds": "it waited", "recovered?": "true when the service was killed before the decision was carried out, and the next start did; it may then repeat an event",
        },
    ),
    # --- sequences of frames
    "sequence.started": EventKind(
        "info", "The first frame of a sequence in this run of the service.",
        {"folder": "name of the drop folder", "sequence": "its name", "frame": "number of the frame", "state": "of the temporal filter: new, resumed, reset", "why?": "why it was reset"},
    ),
    "sequence.gap": EventKind(
        "warning", "Frames of a sequence are missing, and were passed over. What comes of them later is published unfiltered.",
        {"folder": "name of the drop folder", "sequence": "its name", "first": "number that is missing", "last": "likewise", "frames": "so many", "why": "waited (for frame_wait), window (frame_window wait behind them), vanished (as it was to be claimed, or put back), absent (of a leased sequence, which is there whole)"},
    ),
    "sequence.done": EventKind(
        "info", "A sequence is over. Frames that come later go on where it ended.",
        {
            "folder": "name of the drop folder", "sequence": "its name", "frames": "published in order since its sequence.started", "first?": "number of the first of them", "last?": "number of the last",
            "missing": "frames that were passed over", "apart": "frames that came late, or twice", "seconds": "since sequence.started", "rate?": "frames a second",
            "why": "marker, quiet, command, complete (of a leased sequence: each frame has its answer)", "flicker?": "of steady frames: still_change, warped_error, lag",
        },
    ),
    "sequence.state_lost": EventKind("warning", "The state of temporal filters cannot be written: with the next start they begin from nothing. Reported once.", {"path": "of its folder", "detail": "what exactly"}),
    # --- films
    "film.started": EventKind(
        "info", "A film is begun: its header is within the limits, and its first frame was decoded. It ends with image.done or image.failed; killed meanwhile, it begins again.",
        {
            "folder": "name of the drop folder", "path": "below the drop folder", "job": "number of the job", "width": "px, as shown", "height": "px", "codec": "of its frames", "rate": "frames a second, on the mean",
            "frames": "that its header promises; null: it does not say", "film_seconds": "likewise", "streams": "of every kind",
        },
    ),
    "film.progress": EventKind(
        "debug", "How far the film in work is; once a second.",
        {"folder": "name of the drop folder", "path": "below the drop folder", "job": "number of the job", "frames": "that have a matte", "of": "frames that its header promises; null: it does not say", "rate": "frames a second", "left": "seconds until its last one; null: nobody can say", "seconds": "since film.started"},
    ),
    "film.lost": EventKind("warning", "The process that reads a film died or hung; another one begins it again. The second time it is rejected, after kills from outside the third.", {"folder": "name of the drop folder", "path": "below the drop folder", "job": "number of the job", "detail": "how it died, and its last words"}),
    # --- storage
    "storage.paused": EventKind(
        "error", "The disk cannot be written, or the ledger cannot be used. Finished results are kept, no more images are claimed, and it is tried again.",
        {
            "kind": "disk_full, quota, read_only, io_error, denied, missing, ledger", "path": "that could not be written", "detail": "what exactly, and of the ledger what to do",
            "cause?": "with kind ledger: read_only, denied, missing, descriptors, io_error, damaged",
        },
    ),
    "storage.resumed": EventKind(
        "info", "The disk can be written again, or the ledger be used.",
        {"kind": "as in its storage.paused", "seconds": "paused", "cause?": "as in its storage.paused", "detail?": "what was done to the ledger"},
    ),
    "storage.retire_failed": EventKind("warning", "An original could not be moved or deleted after its image had ended. This is retried, at the next start where the disk refuses the name or the size; the image is not processed again.", {"folder": "name", "path": "below the folder", "detail": "what exactly"}),
    "ledger.replaced": EventKind(
        "error", "The ledger was damaged and another took its place. Claimed images went back into their folders; what was recorded since its copy is lost.",
        {
            "cause": "what was found, by which it counts as damaged", "aside": "where the damaged one is kept", "copy": "that it was replaced by; null: by an empty one", "copy_time": "of that copy, or null",
            "rows": "jobs that are known again", "adopted": "kept originals without a record whose outputs are known to be theirs: not computed again",
            "unknown": "kept originals beside an output of which nobody can say whose it is: left as they are; `touch` them to have them computed", "detail": "what is not known any more",
        },
    ),
    "ledger.copied": EventKind("info", "The ledger was copied, as every day.", {"path": "of the copy", "bytes": "of the copy", "seconds": "it took"}),
    "ledger.copy_failed": EventKind("warning", "The ledger could not be copied; it is tried again every hour. Reported once.", {"path": "of the ledger", "cause": "as in storage.paused", "detail": "what exactly"}),
    # --- engine
    "engine.chosen": EventKind(
        "info", "Active and fallback device, once at start.",
        {"device": "that computes", "why": "reason for the choice", "standby?": "models of the CPU fallback: model asked for -> model used", "start?": "whether the fallback stays loaded, and why"},
    ),
    "engine.started": EventKind("info", "An engine is ready.", {"device": "it runs on", "models": "facts per model", "batch_sizes": "it accepts", "seconds": "to start", "detail?": "anything remarkable"}),
    "engine.batching": EventKind(
        "info", "How images are batched on a device: at its start, and when its measured times change the batches.",
        {"device": "name", "milliseconds": "that a batch takes, by its size, where measured", "folders": "per folder: its latency_target, and the batch size when 1, 2, 3 ... images wait"},
    ),
    "engine.limited": EventKind("warning", "An optional speed-up is unavailable on this device. Output quality is unaffected.", {"device": "name", "what": "memory_low, batch, pinned, graphs, kernels, openvino, precision, bfloat16, not_finite; float8 in older logs", "detail": "what exactly, and why"}),
    "engine.fault": EventKind("error", "The engine process failed on a batch. Its images are retried.", {"device": "name", "kind": "lost, memory, nonsense", "detail": "what exactly", "images": "jobs in the batch", "restarts": "since start"}),
    "engine.restarted": EventKind("info", "A new engine process is ready after a fault.", {"device": "name", "seconds": "since the fault", "restarts": "since start"}),
    "engine.output": EventKind("debug", "A line that the engine process or a C library wrote to its output.", {"source": "engine, service, film", "line": "its text"}),
    "engine.failover": EventKind("error", "Work moved to another device.", {"from": "device", "to": "device", "reason": "why", "reading?": "measured value", "threshold?": "its limit", "images": "jobs moved", "model": "now in use", "operator_action?": "what only a person can do"}),
    "engine.failback": EventKind("info", "Work moved back after the device passed its self-test.", {"from": "device", "to": "device", "seconds": "away", "model": "now in use"}),
    "engine.degraded": EventKind("warning", "A device is suspect, a lesser model is in use, or there is no fallback.", {"device": "name", "reason": "why", "reading?": "measured value", "threshold?": "its limit", "model?": "now in use", "operator_action?": "what only a person can do"}),
    "engine.sensor": EventKind("info", "Where the health of a device is read from.", {"device": "name", "source": "nvml, sysfs, none", "why": "reason for the choice"}),
    "engine.state": EventKind(
        "info", "The health state of a device changed. Only a device that is ok or suspect gets images.",
        {
            "device": "name", "from": "absent, probing, ok, suspect, cooling, quarantined, short_of_memory, lost", "to": "the same", "reason": "why", "trips": "failures since it was last healthy for long",
            "reading?": "measured value", "threshold?": "its limit", "until?": "monotonic time of the next probe, at the earliest", "operator_action?": "what only a person can do",
        },
    ),
    # --- one-shot runs
    "run.summary": EventKind("info", "End of `rmbgd once`.", {"done": "images published", "failed": "images that failed", "skipped": "images whose output exists already", "empty?": "published images without a subject", "left?": "images that an interrupted run did not come to", "seconds": "of the run"}),
}  # fmt: skip

ENVELOPE = ("event", "level", "time", "monotonic", "boot_id", "pid", "version")
"""Keys that every line carries."""


def problems_with(event: str, keys: dict[str, object]) -> list[str]:
    """Unknown name, missing or unknown keys of this event. Empty when it fits the vocabulary."""
    kind = EVENTS.get(event)
    if kind is None:
        return [f"unknown event '{event}'"]
    required = {key for key in kind.keys if not key.endswith("?")}
    allowed = {key.rstrip("?") for key in kind.keys}
    missing = [f"{event}: key '{key}' is missing" for key in sorted(required - keys.keys())]
    unknown = [f"{event}: unknown key '{key}'" for key in sorted(keys.keys() - allowed)]
    return missing + unknown


def devices_of(health: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Facts of each device in a health event: name -> state, temperature, ... as far as they are known.

    Its key `engine` holds a table `devices`; without one, it describes the one device in use.
    """
    engine = health.get("engine")
    if not isinstance(engine, Mapping):
        return {}
    devices = engine.get("devices")
    if isinstance(devices, Mapping):
        return {str(name): facts for name, facts in devices.items() if isinstance(facts, Mapping)}
    return {str(health["device"]): engine} if health.get("device") else {}


class RecordedEvents:
    """An Emit that keeps the events, and raises ValueError for what the vocabulary does not know. For tests."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []  # appended by any thread; list.append is atomic

    def __call__(self, event: str, /, **keys: object) -> None:
        problems = problems_with(event, keys)
        if problems:
            raise ValueError("; ".join(problems))
        self.events.append((event, keys))

    def named(self, event: str) -> list[dict[str, object]]:
        return [keys for name, keys in self.events if name == event]
