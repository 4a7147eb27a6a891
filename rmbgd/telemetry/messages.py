"""POLICY: one readable line for each event, for terminals, the journal and hooks.

Standard library only. Names in it are hostile: what could steer a terminal, or turn the text around, is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rmbgd.wording import VERDICTS, duration, printable

LINE_MAXIMUM = 200  # characters; two rows of a terminal. The whole event is in the log
LARGEST = 1e15  # of a number; what is beyond, or none, was never measured
VALUE_MAXIMUM = 120  # characters of one value: a path that is longer loses its middle

# {key} or {key:form}. What is in brackets is left out where one of its values is missing, empty, zero or null.
SENTENCES = {
    "service.start": "starting with {config}: folders {folders}, device {device}",
    "service.ready": "ready on {device} after {seconds:time}[, {recovered:images} resumed]",
    "service.stopping": "stopping ({cause})[, {in_flight:images} in work]",
    "service.stop": "stopped after {seconds:time}[, {returned:images} put back][, exit status {exit_code}]",
    "service.failed": "{stage} failed, so the service ends: {error}",
    "service.exit": "the process ended[ after {uptime:time}]: {result} ({code}, {status})",
    "service.safe_mode": "safe mode, on {device} with {model}, for {seconds:time}: the last starts died ({causes})",
    "film.started": "film {folder}/{path} begins: {width}x{height}, {codec}[, {frames} frames][, {film_seconds} s]",
    "film.progress": "film {folder}/{path}: {frames}[ of {of}] frames, {rate} a second[, {left} s left]",
    "film.lost": "the process of film {folder}/{path} is lost, and begins again: {detail}",
    "sequence.started": (
        "sequence {folder}/{sequence} begins with frame {frame}[; its filter begins from nothing: {why}]"
    ),
    "sequence.gap": "sequence {folder}/{sequence}: frames {first} to {last} are missing ({why})",
    "sequence.done": (
        "sequence {folder}/{sequence} is over ({why}): {frames} frames[, {missing} missing][, {apart} out of order]"
        "[, {rate} a second]"
    ),
    "sequence.state_lost": "cannot keep the state of sequences in {path}: {detail}",
    "service.paused": "paused[ folder {folder}] by {person}",
    "service.resumed": "resumed[ folder {folder}] by {person} after {seconds:time}",
    "config.adjusted": "{setting} = {configured} is read as {used}: {why}",
    "service.reload": "comparing all folders with the ledger, as SIGHUP asks",
    "health": (
        "[paused ({paused}); ]{waiting} waiting[, the oldest for {oldest_waiting:time}], {in_flight} in work, "
        "{done} done, {failed} rejected; {device}[ at {temperature} °C], {rss_bytes:size}, up {uptime:time}"
        "[; lines lost: {unwritten}]"
    ),
    "service.stalled": "no progress for {seconds:time} in {threads}; systemd's watchdog is not fed any more",
    "service.stall_ended": "every thread makes progress again after {seconds:time}",
    "status.lost": "cannot write the status file: {cause}",
    "status.written": "the status file is written again after {seconds:time}",
    "control.lost": "list, retry, pause and resume cannot reach the service at {path}: {cause}",
    "control.restored": "the control socket {path} is there again after {seconds:time}",
    "hook.failed": "hook {hook} failed: {detail}",
    "folder.watching": "watching folder {folder} ({mode}, {file_system}[, inotify watches: {watches}])",
    "folder.waiting": "folder {folder} cannot be used now: {cause}[; {holder} claims from it]",
    "folder.contested": (
        "another service wants folder {folder}: process {contender_pid} on {host} ({state_directory})"
    ),
    "folder.replaced": "folder {folder} is another directory now; comparing it with the ledger",
    "watch.overflow": "the kernel dropped file events[ of folder {folder}]; comparing with the ledger",
    "watch.degraded": "folder {folder} is polled: {cause}[ ({armed} of {wanted} watches)]",
    "watch.restored": "file events of folder {folder} are reliable again",
    "intake.incomplete": "{path} is incomplete ({gate}), waiting for the rest",
    "intake.stuck_upload": "{path} is still open or growing after {seconds:time}",
    "intake.blocked": "cannot take {path}: {cause}",
    "intake.recovered": (
        "looked for what the last run left[: {jobs:images} to do again][, {published} found complete]"
        "[, {set_aside} set aside that crashed the service]"
    ),
    "source.connected": "connected to the broker {servers}[ after {seconds:time}]",
    "source.lost": "the broker is not there: {detail}",
    "source.unusable": "the queue cannot be used[ for folder {folder}]: {detail}",
    "source.clock": "the clocks differ by {seconds:time}: {detail}",
    "source.drained": "an administrator drains this host; nothing more is leased",
    "source.undrained": "this host leases images again",
    "image.announced": "announced {path} after {seconds:time}",
    "sequence.announced": "announced sequence {folder}/{sequence}",
    "lease.dropped": "[{path}: ]nothing to do: {why} ({detail})",
    "lease.lost": "{path} does not move in stage {stage}; its lease is left to expire",
    "image.done": "{path} -> {output} ({width}x{height}, {model} on {device}[, {total:time}])[: {odd}]",
    "image.failed": "rejected {path}: {reason}[ ({detail})]",
    "image.postponed": "put back {path}: {why}[ ({detail})]",
    "image.retried": "{path} is tried again, as {person} asks[; it was {reason}]",
    "review.decided": "{path} {decision}[ by {person}] ({how}) after {seconds:time} of review[ -> {output}]",
    "storage.paused": "paused, {kind}[ ({cause})] at {path}: {detail}",
    "storage.resumed": "resumed after {seconds:time} of {kind}[: {detail}]",
    "storage.retire_failed": "cannot move or delete the original {path}: {detail}",
    "ledger.replaced": "the ledger was damaged ({cause}) and replaced by {replacement}; damaged one: {aside}",
    "ledger.copied": "ledger copied to {path} ({bytes:size}, {seconds:time})",
    "ledger.copy_failed": "cannot copy the ledger {path}: {cause}[ ({detail})]",
    "engine.chosen": "computing on {device}: {why}",
    "engine.started": "engine ready on {device} after {seconds:time}[: {detail}]",
    "engine.batching": "batch times on {device}[, in ms by size: {milliseconds}]",
    "engine.limited": "{device} does without {what}: {detail}",
    "engine.fault": "engine fault on {device} ({kind}): {detail}[; {images:images} retried]",
    "engine.restarted": "engine on {device} restarted after {seconds:time}",
    "engine.output": "{source}: {line}",
    "engine.failover": (
        "failover from {from} to {to} with {model}: {reason}[, {measured}][; {images:images} moved]"
        "[; {operator_action}]"
    ),
    "engine.failback": "back from {from} to {to} with {model} after {seconds:time}",
    "engine.degraded": "{device} is degraded: {reason}[, {measured}][; now {model}][; {operator_action}]",
    "engine.sensor": "health of {device} is read from {source}: {why}",
    "engine.state": "{device} is {to}, was {from}: {reason}[, {measured}][; {operator_action}]",
    "run.summary": "{done} done, {failed} rejected, {skipped} skipped in {seconds:time}",
}
BRACKETS = re.compile(r"\[([^\[\]]*)\]")
PLACE = re.compile(r"\{(\w+)(?::(\w+))?\}")


def message(event: str, keys: Mapping[str, Any]) -> str:
    """One printable line. Never raises: a line must not be lost to what is in it, nor to what is not."""
    known = {**keys, **_derived(event, keys)}
    template = SENTENCES.get(event)
    if template is None:
        text = " ".join([f"{_text(event)}:", *(f"{_text(key)}={_text(value)}" for key, value in keys.items())])
    else:
        template = BRACKETS.sub(lambda found: found[1] if _complete(found[1], known) else "", template)
        text = PLACE.sub(lambda found: _formed(known.get(found[1]), found[2]), template)
    return text if len(text) <= LINE_MAXIMUM else f"{text[: LINE_MAXIMUM - 3]}..."


def _derived(event: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Values that the sentences need beside the keys themselves."""
    found: dict[str, Any] = {}
    if (reading := keys.get("reading")) is not None:
        unit, limit = " °C" * (keys.get("reason") == "temperature"), keys.get("threshold")
        bound = "" if limit is None else f", limit {_text(limit)}{unit}"
        found["measured"] = f"{_text(reading)}{unit}{bound}"
        if keys.get("reason") == "replan":
            found["reason"] = f"out of memory ({_text(reading)} in a row), a fresh process divides what is free now"
            found["measured"] = None
    if event == "image.done":
        times = keys.get("milliseconds")
        total = times.get("total") if isinstance(times, Mapping) else None
        found["total"] = total / 1000 if isinstance(total, (int, float)) else None
        found["odd"] = VERDICTS.get(str(keys.get("verdict", "")))
    if event == "ledger.replaced":
        found["replacement"] = f"the copy of {keys['copy_time']}" if keys.get("copy_time") else "an empty one"
    if event == "health":
        engine = keys.get("engine")
        devices = engine.get("devices") if isinstance(engine, Mapping) else None
        facts = devices.values() if isinstance(devices, Mapping) else ()
        heat = [each["temperature"] for each in facts if isinstance(each, Mapping) and each.get("temperature")]
        found["temperature"] = max(filter(lambda value: isinstance(value, (int, float)), heat), default=None)
    return found


def _complete(part: str, keys: Mapping[str, Any]) -> bool:
    return all(keys.get(key) not in (None, "", 0, [], (), {}) for key, _ in PLACE.findall(part))


def _formed(value: Any, form: str | None) -> str:
    if isinstance(value, (int, float)) and not abs(value) < LARGEST:
        return "unknown"
    match form, value:
        case "time", int() | float():
            return duration(value)
        case "size", int() | float():
            return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
        case "images", _:
            count = len(value) if isinstance(value, (list, tuple)) else value
            return f"{_text(count)} image{'s' * (count != 1)}"
    return _text(value)


def _text(value: Any) -> str:
    match value:
        case None:
            return "unknown"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case Mapping():
            text = ", ".join(f"{_text(key)}: {_text(entry)}" for key, entry in value.items())
        case str():
            text = value
        case Sequence() | set() | frozenset() if not isinstance(value, (bytes, bytearray)):
            text = ", ".join(_text(entry) for entry in value)
        case _:
            text = str(value)
    text = printable(" ".join(text.split()))  # a newline would be escaped, and need not be seen
    if len(text) > VALUE_MAXIMUM:
        half = (VALUE_MAXIMUM - 3) // 2
        text = f"{text[:half]}...{text[-half:]}"
    return text
