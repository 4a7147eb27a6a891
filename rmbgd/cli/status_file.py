"""Reads the status file, and judges whether a service runs and the file can be believed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from rmbgd.cli.status_text import StatusLine, last_rows, minute, rows, troubles
from rmbgd.errors import Exit, RmbgdError
from rmbgd.service.exit_recorder import STATUS_FILE
from rmbgd.store.ledger_lock import LEDGER, is_locked
from rmbgd.telemetry.jsonl import process_start
from rmbgd.wording import duration

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


ENDED = (ServiceState.STOPPED, ServiceState.NOT_RUNNING)
BLIND = (ServiceState.UNSEEN, ServiceState.UNKNOWN)  # nothing in the file is about the service that runs


@dataclass(frozen=True, slots=True)
class SeenStatus:
    """What was seen at one look."""

    state: ServiceState
    why: str
    record: dict[str, Any] | None = None
    shown: list[StatusLine] = field(default_factory=list)

    @property
    def headline(self) -> str:
        found = troubles(self.record) if self.record is not None and self.state is ServiceState.RUNNING else []
        return f"{self.state}{', but ' if found else ''}{', and '.join(found)}"

    def as_dict(self) -> dict[str, object]:
        return {"verdict": self.state, "why": self.why, "status": self.record}

    @property
    def exit(self) -> Exit:
        if self.state is ServiceState.RUNNING:
            return Exit.OK
        return Exit.NOT_RUNNING if self.state in ENDED else Exit.FAILED


def look(runtime: Path, state_directory: Path) -> SeenStatus:
    """Raises RmbgdError: not being allowed to look is no answer."""
    path, now = runtime / STATUS_FILE, datetime.now(UTC)
    shown: list[StatusLine] = []
    try:
        record = read(path)
        state, why = judge(record, now=time.monotonic(), process_start=process_start, where=str(path))
        if record is not None:
            shown = (last_rows if state in ENDED else rows)(record, now)
            troubles(record)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        record, shown, state = None, [], ServiceState.NOT_RUNNING
        why = f"{path} is no status file of rmbgd ({error}); a service that runs replaces it, if it may"
    except PermissionError as error:
        raise RmbgdError(f"you may not read {path}: be root, or in the group of the service") from error
    if state in ENDED:
        locked = is_locked(str(state_directory / LEDGER))
        state, why = by_lock(state, why, path, locked, blind=record is None)
    return SeenStatus(state, why, record, [] if state in BLIND else shown)


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
        return ServiceState.STOPPED, f"in good order at {minute(written)}"
    if process_start(pid) != record["process_start"]:
        return ServiceState.NOT_RUNNING, f"process {pid} is gone; it wrote its last status at {minute(written)}"
    age = now - float(record["monotonic"])
    if age > max(LATE * float(record["interval"]), LATE_MINIMUM):
        return ServiceState.STALE, f"process {pid} exists but has written no status for {duration(age)}"
    if record["stalled"]:
        return ServiceState.HUNG, f"no progress: {', '.join(record['stalled'])}"
    return ServiceState.RUNNING, f"process {pid}, as of {duration(age)} ago"
