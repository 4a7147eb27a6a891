"""POLICY: what the status file says, in words that a person reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from rmbgd.events import devices_of
from rmbgd.telemetry.messages import message
from rmbgd.wording import VERDICTS, computing, duration

PAUSES = {
    "operator": "paused by an operator",
    "safe_mode": "claiming nothing in safe mode",
    "disk_full": "paused, as the disk is full",
    "quota": "paused, as the disk quota is used up",
    "read_only": "paused, as the disk is read-only",
    "io_error": "paused, as the disk fails",
    "denied": "paused, as it may not write",
    "missing": "paused, as a folder is missing",
    "ledger": "paused, as the ledger cannot be used",
}
UNREADABLE = {
    "denied": "this service may not look into it; run `rmbgd doctor`",
    "missing": "there is no such directory; make it, or mount its disk",
    "not_mounted": "its disk is not mounted",
}
POLLED = {
    "watch_limit": "inotify watches for {armed} of {wanted} directories; raise fs.inotify.max_user_watches",
    "silent": "the kernel sends no file events here",
    "dead": "the watcher ended",
}
WELL, ILL = ("ok", "ready", "none"), ("lost", "quarantined", "missing", "absent")  # states of a device


class Mood(StrEnum):
    """How a line is to be taken; the colour of its text on a terminal."""

    PLAIN = ""
    GOOD = "green"
    ODD = "yellow"
    BAD = "red"


@dataclass(frozen=True, slots=True)
class StatusLine:
    label: str
    text: str
    mood: Mood = Mood.PLAIN


def ago(time: str, now: datetime) -> str:
    return f"{duration(max(0.0, (now - datetime.fromisoformat(time)).total_seconds()))} ago"


def minute(time: str) -> str:
    return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"


def troubles(record: Mapping[str, Any]) -> list[str]:
    """What keeps a running service from its work, the first to be told first."""
    folders = (record.get("folders") or {}).values()
    causes = [facts.get("cause") for facts in folders if facts.get("mode") == "waiting"]
    found = []
    if unreadable := sum(cause in UNREADABLE for cause in causes):
        found.append(f"{unreadable} of {len(folders)} folders cannot be read")
    if taken := causes.count("in_use"):
        found.append(f"another service claims from {taken} of {len(folders)} folders")
    return [*found, paused] if (paused := _paused(record["health"]["paused"])) else found


def rows(record: Mapping[str, Any], now: datetime) -> list[StatusLine]:
    """Of a service that runs. Raises LookupError, TypeError, ValueError, AttributeError for what none has written."""
    health = record["health"]
    one, five = (f"{record['per_minute'][window]:.3g}" for window in ("1m", "5m"))
    waiting = f"{health['waiting']} waiting, {health['in_flight']} in flight"
    oldest = health["oldest_waiting"]
    safe = record.get("safe_mode")
    paused = _paused(health["paused"])
    state = health["engine"].get("state", "")
    return [
        StatusLine("phase", record["phase"], Mood.GOOD if record["phase"] == "ready" else Mood.ODD),
        StatusLine("up", f"{duration(health['uptime'])}, since {minute(record['started_at'])}"),
        *([StatusLine("safe mode", _safe_mode(safe), Mood.BAD)] if safe else []),
        *([StatusLine("paused", paused, Mood.ODD)] if paused else []),
        StatusLine("queue", f"{waiting}, the oldest for {duration(oldest)}" if oldest else waiting),
        StatusLine("rate", f"{one} a minute, {five} over five minutes"),
        StatusLine("images", _counts(health)),
        *([StatusLine("film", _film(record["film"]))] if record.get("film") else []),
        *([StatusLine("review", _reviews(health["reviews"]), Mood.ODD)] if health.get("reviews") else []),
        StatusLine("device", f"{health['device']}, {state}", _device_mood(state)),
        *_devices(health),
        *_cpu_models(record.get("cpu_models") or {}),
        *(_folder(name, facts) for name, facts in (record.get("folders") or {}).items()),
        StatusLine("memory", f"{_mib(health['rss_bytes'])}, {_mib(health['arena_bytes'])} of images"),
        *(
            [StatusLine("image memory", _arena(health, record.get("arena_kept", 0)))]
            if "arena_resident" in health
            else []
        ),
        *_history(record, now),
    ]


def last_rows(record: Mapping[str, Any], now: datetime) -> list[StatusLine]:
    """What is still true of a service that has ended."""
    health = record["health"]
    ran = f"{duration(health['uptime'])}, since {minute(record['started_at'])}"
    return [StatusLine("was up", ran), StatusLine("images", _counts(health)), *_history(record, now)]


def outcomes(record: Mapping[str, Any], now: datetime) -> Iterator[tuple[str, StatusLine]]:
    """(path, how it ended and when) of the last images, the newest first; a version before this one names none."""
    for each in record.get("recent") or ():
        verdict = VERDICTS.get(each.get("verdict"), "")
        how = f"rejected: {each['reason']}" if "reason" in each else f"done, {verdict}" if verdict else "done"
        took = f" in {each['seconds']:.1f} s" if each.get("seconds") is not None else ""
        mood = Mood.BAD if "reason" in each else Mood.ODD if verdict else Mood.GOOD
        yield str(each["path"]), StatusLine(ago(each["at"], now), f"{how}{took}", mood)


def _history(record: Mapping[str, Any], now: datetime) -> Iterator[StatusLine]:
    yield StatusLine("version", record["version"])
    if record.get("config"):
        yield StatusLine("config", record["config"])
    if record.get("last_problem"):
        yield StatusLine("last problem", _problem(record["last_problem"], now), Mood.ODD)
    for path, line in outcomes(record, now):
        yield StatusLine(line.label, f"{path} {line.text}", line.mood if line.mood is not Mood.GOOD else Mood.PLAIN)


def _counts(health: Mapping[str, Any]) -> str:
    return f"{health['done']} done, {health['failed']} rejected, {health['postponed']} put back"


def _reviews(count: int) -> str:
    return f"{count} image{'s' * (count != 1)} wait{'s' * (count == 1)} for a person; see `rmbgd review list`"


def _film(facts: Mapping[str, Any]) -> str:
    of = f" of {facts['of']}" if facts["of"] else ""
    left = f", {duration(facts['left'])} left" if facts["left"] is not None else ""
    return f"{facts['path']}: {facts['frames']}{of} frames, {facts['rate']:.3g} a second{left}"


def _paused(reason: str | None) -> str:
    kind, _, folders = (reason or "").partition(":")
    text = PAUSES.get(kind, f"paused ({kind})") if kind else ""
    several = "s" * ("," in folders)
    return f"{text} in folder{several} {folders.replace(',', ', ')}" if folders else text


def _problem(problem: Mapping[str, Any], now: datetime) -> str:
    when = ago(problem["time"], now)
    if problem["event"] != "image.failed":
        return f"{message(problem['event'], problem)}, {when}"
    detail = f" ({problem['detail']})" if problem.get("detail") else ""
    return f"{problem['path']} rejected {when}: {problem['reason']}{detail}"


def _folder(name: str, facts: Mapping[str, Any]) -> StatusLine:
    mode, cause = facts.get("mode"), facts.get("cause")
    if mode == "events":
        text, mood = f"watching (inotify, {_directories(facts['armed'])})", Mood.GOOD
    elif mode == "poll":
        why = (
            POLLED.get(str(cause), cause) if cause else "file events are switched off, or not sent by this file system"
        )
        text, mood = f"polling: {why}".format(**facts), Mood.ODD if cause else Mood.PLAIN
    elif mode == "lease":
        text, mood = ("leasing from the queue", Mood.GOOD) if not cause else (f"nothing is leased: {cause}", Mood.BAD)
    elif cause == "in_use":
        text, mood = "waiting: another service claims from it; run `rmbgd doctor`", Mood.BAD
    elif cause:
        text, mood = f"cannot be read: {cause}: {UNREADABLE.get(cause, 'run `rmbgd doctor`')}", Mood.BAD
    else:
        text, mood = "not looked at yet", Mood.PLAIN
    if facts.get("more"):
        text += "; it holds more files than are looked at once"
    if odd := [f"{facts[key]} {key}" for key in ("overflows", "missed") if facts.get(key)]:
        text += f"; file events: {', '.join(odd)}"
    return StatusLine(f"folder {name}", text, mood)


def _directories(count: int) -> str:
    return f"{count} director{'y' if count == 1 else 'ies'}"


def _devices(health: Mapping[str, Any]) -> Iterator[StatusLine]:
    """Each device by itself, where there are several; temperature, trips and the next try where they are known."""
    if "devices" not in health["engine"]:
        return
    for name, facts in devices_of(health).items():
        state = str(facts.get("state", "unknown"))
        parts = [state.replace("_", " ")]
        if (heat := facts.get("temperature")) is not None:
            parts.append(f"{heat:g} °C")
        if facts.get("trips"):
            parts.append(f"{facts['trips']} trip{'s' if facts['trips'] > 1 else ''}")
        if facts.get("dwell"):
            parts.append(f"next try in {duration(facts['dwell'])}")
        action = f": {facts['operator_action']}" if facts.get("operator_action") else ""
        yield StatusLine(f"- {name}", ", ".join(parts) + action, _device_mood(state))


def _cpu_models(models: Mapping[str, Mapping[str, Any]]) -> Iterator[StatusLine]:
    for name, facts in models.items():
        if {"runtime", "precision"} <= facts.keys():
            yield StatusLine("cpu", f"{name} {computing(facts)}")


def _device_mood(state: str) -> Mood:
    return (
        Mood.GOOD if state in WELL else Mood.BAD if state in ILL else Mood.PLAIN if state == "on_demand" else Mood.ODD
    )


def _safe_mode(facts: Mapping[str, Any]) -> str:
    left = facts["left_in"]
    ends = "its time counts when it is ready" if left is None else f"everything is tried again in {duration(left)}"
    waits = "; images wait for the GPU" if facts["waits"] else ""
    return f"the last starts died ({', '.join(facts['causes'])}); {ends}{waits}"


def _arena(health: Mapping[str, Any], kept: int) -> str:
    """Why memory for images is resident. What a device has page-locked is lent first."""
    leased, resident = health["arena_bytes"], health["arena_resident"]
    locked = f", {_mib(kept)} page-locked for a device" if kept else ""
    idle = max(0, resident - max(leased, kept))
    return f"{_mib(resident)} resident: {_mib(min(leased, resident))} in use{locked}, {_mib(idle)} soon given back"


def _mib(byte_count: int) -> str:
    return f"{byte_count / (1 << 20):.0f} MiB"
