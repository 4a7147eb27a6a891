"""`rmbgd status`: shows the status file of the running service, and whether it can be believed.

Reads a file instead of asking the service: that cannot disturb it, and works when it hangs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from rmbgd.cli.main import add_config, printable
from rmbgd.errors import Exit
from rmbgd.paths import DEFAULT_CONFIG, DEFAULT_RUNTIME_DIRECTORY, DEFAULT_STATE_DIRECTORY
from rmbgd.service.exit_recorder import STATUS_FILE
from rmbgd.store.ledger_lock import LEDGER, is_locked
from rmbgd.telemetry.jsonl import process_start, to_json

LATE = 5  # status intervals without a new file: the health thread does not run
KEYS = {"phase", "written_at", "pid", "process_start", "monotonic", "interval", "stalled", "health"}
LATE_MINIMUM = 10.0  # s; a busy small board may be late by seconds


class ServiceState(StrEnum):
    RUNNING = "running"
    HUNG = "hung"
    STALE = "stale"
    STOPPED = "stopped"
    NOT_RUNNING = "not running"
    UNSEEN = "running, but unseen"
    UNKNOWN = "running or not: unknown"


add_arguments = partial(add_config, json=True)


def run(options: argparse.Namespace) -> int:
    runtime, state_directory = directories(options.config)
    path = runtime / STATUS_FILE
    try:
        record = read(path)
        state, why = judge(record, now=time.monotonic(), process_start=process_start, where=str(path))
        shown = rows(record) if record is not None else []
    except PermissionError:
        print(f"rmbgd: you may not read {path}: be root, or in the group of the service", file=sys.stderr)
        return Exit.FAILED
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        record, shown, state = None, [], ServiceState.NOT_RUNNING
        why = f"{path} is no status file of rmbgd ({error}); a service that runs replaces it, if it may"
    if state in (ServiceState.NOT_RUNNING, ServiceState.STOPPED):
        locked = is_locked(str(state_directory / LEDGER))
        state, why = by_lock(state, why, path, locked, blind=record is None)
    if state in (ServiceState.NOT_RUNNING, ServiceState.UNSEEN, ServiceState.UNKNOWN):
        shown = []
    if options.json:
        print(to_json({"verdict": state, "why": why, "status": record}))
    else:
        _print(state, why, shown)
    return Exit.OK if state is ServiceState.RUNNING else Exit.FAILED


def directories(path: Path) -> tuple[Path, Path]:
    """Runtime and state directory. Raises ConfigError when a configuration is named that cannot be used."""
    if path == DEFAULT_CONFIG and not path.exists():
        return DEFAULT_RUNTIME_DIRECTORY, DEFAULT_STATE_DIRECTORY
    from rmbgd.config.load import load

    service = load(path).service
    return service.runtime_directory, service.state_directory


def read(path: Path) -> dict[str, Any] | None:
    """The status file; None when there is none.

    Raises PermissionError: not being allowed to look is no answer; ValueError for what no service has written.
    """
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise ValueError("it is a directory") from None
    if not isinstance(record, dict) or not record.keys() >= KEYS:
        raise ValueError("it is JSON of another kind")
    return record


def by_lock(state: ServiceState, why: str, path: Path, locked: bool | None, *, blind: bool) -> tuple[ServiceState, str]:
    """The same, unless a service holds the lock of the ledger; unknown where this user may look at neither."""
    if locked:
        remedy = f"make {path.parent} again and give it to the service's user, or restart the service"
        return ServiceState.UNSEEN, f"{why}, but a service holds the lock. If it has not just started: {remedy}"
    if locked is None and blind:
        return ServiceState.UNKNOWN, f"{why}; whether one runs only root and the service's user can see"
    return state, why


def judge(
    record: Mapping[str, Any] | None, *, now: float, process_start: Callable[[int], int | None], where: str
) -> tuple[ServiceState, str]:
    """The state of the service, and why. Pure but for `process_start(pid)`; `now` is monotonic, in s.

    A process is known by its pid and its start, which neither a reboot nor a container can confuse: a sandboxed service
    may see another boot id than we do.
    """
    if record is None:
        return ServiceState.NOT_RUNNING, f"there is no status file at {where}"
    written, pid = record["written_at"], record["pid"]
    if record["phase"] == "stopped":
        return ServiceState.STOPPED, f"stopped in good order at {written}"
    if process_start(pid) != record["process_start"]:
        return ServiceState.NOT_RUNNING, f"process {pid} is gone; it wrote its last status at {written}"
    age = now - float(record["monotonic"])
    if age > max(LATE * float(record["interval"]), LATE_MINIMUM):
        return ServiceState.STALE, f"process {pid} exists but has written no status for {duration(age)}"
    if record["stalled"]:
        return ServiceState.HUNG, f"no progress: {', '.join(record['stalled'])}"
    return ServiceState.RUNNING, f"process {pid}, as of {duration(age)} ago"


def duration(seconds: float) -> str:
    """3 s, 12 min, 5 h 20 min, 4 d 3 h: two units at most."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole} s" if whole < 60 else f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    health = record["health"]
    rates = ", ".join(f"{rate:g} a minute over {window}" for window, rate in record["per_minute"].items())
    found = [
        ("phase", record["phase"]),
        ("up", f"{duration(health['uptime'])}, since {record['started_at']}"),
        ("device", health["device"]),
        ("safe mode", _safe_mode(record["safe_mode"]) if record.get("safe_mode") else None),
        ("paused", health["paused"]),
        ("queue", f"{health['waiting']} waiting, {health['in_flight']} in flight"),
        ("oldest", duration(health["oldest_waiting"]) if health["oldest_waiting"] else None),
        ("images", f"{health['done']} done, {health['failed']} refused, {health['postponed']} put back"),
        ("rate", rates),
        ("engine", health["engine"]),
        ("memory", f"{_mib(health['rss_bytes'])}, {_mib(health['arena_bytes'])} of images"),
        ("image memory", _arena(health, record.get("arena_kept", 0)) if "arena_resident" in health else None),
        ("version", record["version"]),
        *((f"folder {name}", facts) for name, facts in (record.get("folders") or {}).items()),
        ("last problem", record.get("last_problem")),
    ]
    return [(label, _flat(value)) for label, value in found if value or label == "device"]


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


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(entry)}" for key, entry in value.items() if entry is not None)
    return str(value)


def _print(state: ServiceState, why: str, shown: Sequence[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console(highlight=False)
    colour = "green" if state is ServiceState.RUNNING else "red"
    console.print(f"rmbgd is [bold {colour}]{state}[/]: {escape(why)}", soft_wrap=True)
    table = Table(Column(style="bold"), Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    for label, text in shown:
        table.add_row(label, escape(printable(text)))
    if shown:
        console.print(table)
