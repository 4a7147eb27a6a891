"""starts.json: how the last starts of the service ended.

Written by the service and by the exit recorder; standard library only, as the recorder is. A service writes its start
down before it begins its work, and removes it when it stops in good order; when it worked for so long that its end says
nothing of its start, it marks it as settled. So a start that is left without an end, and whose process is gone, died.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rmbgd.errors import Exit
from rmbgd.fs import atomic_write
from rmbgd.telemetry import jsonl

FILE = "starts.json"
KEPT = 20  # starts; far more than decide anything
MODE = 0o640
NO_WORD = "died without a word"
PLANNED = "success"  # of SERVICE_RESULT, systemd.exec(5)

Moment = tuple[str, float, float]
"""(boot, s on its monotonic clock, s since 1970 on the wall clock)."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start. `began` in s on the monotonic clock of boot `boot_id`, `wall` in s since 1970.

    process  (pid, start of it in clock ticks); None when unknown
    safe     in safe mode
    settled  it worked for long
    ended    how it ended, when abnormally; None while it runs, and when that is unknown
    """

    boot_id: str
    began: float
    wall: float
    invocation_id: str
    process: tuple[int, int] | None = None
    safe: bool = False
    settled: bool = False
    ended: str | None = None

    def age(self, now: Moment) -> float:
        """Seconds since it began; 0 when a clock went back."""
        boot_id, monotonic, wall = now
        return max(0.0, monotonic - self.began if boot_id == self.boot_id else wall - self.wall)

    def is_running(self) -> bool:
        """Another process that is at work now, as far as it can be seen from here."""
        if self.process is None or self.ended is not None:
            return False
        pid, start = self.process
        return pid != os.getpid() and jsonl.process_start(pid) == start


@dataclass(frozen=True, slots=True)
class StartRecord:
    """`safe_modes`: entered one after another, without a start between them that worked for long."""

    starts: tuple[Start, ...] = ()
    safe_modes: int = 0


def moment(monotonic: float, wall: float) -> Moment:
    return jsonl.boot_id(), monotonic, wall


def read(directory: Path) -> StartRecord:
    """The record in `directory`; an empty one when the file is missing or damaged."""
    try:
        found = json.loads((directory / FILE).read_bytes())
        return StartRecord(tuple(_start(each) for each in found["runs"]), int(found["safe_modes"]))
    except (OSError, ValueError, TypeError, KeyError):
        return StartRecord()


def _start(found: Mapping[str, Any]) -> Start:
    return Start(
        boot_id=str(found["boot_id"]),
        began=float(found["began"]),
        wall=float(found["wall"]),
        invocation_id=str(found["invocation_id"]),
        process=None if found["process"] is None else (int(found["process"][0]), int(found["process"][1])),
        safe=bool(found["safe"]),
        settled=bool(found["settled"]),
        ended=None if found["ended"] is None else str(found["ended"]),
    )


def write(directory: Path, record: StartRecord) -> bool:
    """Replace the file, durably. False when the disk refuses: no reason not to serve."""
    runs = [asdict(start) for start in record.starts[-KEPT:]]
    text = json.dumps({"safe_modes": record.safe_modes, "runs": runs}) + "\n"
    try:
        atomic_write(directory / FILE, text.encode(), mode=MODE, durable=True)
    except OSError:
        return False
    return True


def deaths(starts: Iterable[Start]) -> list[Start]:
    """Those that did not end in good order and had not worked for long."""
    return [start for start in starts if not start.settled and not start.is_running()]


def record_exit(directory: Path, environ: Mapping[str, str], now: Moment) -> None:
    """Add how systemd saw the end; called by the exit recorder.

    Also of a process that died before it could write itself down, such as one whose libraries cannot be loaded. A
    configuration that cannot be used is the operator's to mend, and no crash.
    """
    if environ["SERVICE_RESULT"] == PLANNED or environ.get("EXIT_STATUS") == str(int(Exit.CONFIGURATION)):
        return
    record = read(directory)
    invocation, cause = environ.get("INVOCATION_ID", ""), _cause(environ)
    starts = list(record.starts)
    known = [number for number, start in enumerate(starts) if invocation and start.invocation_id == invocation]
    if not known:
        starts.append(Start(*now, invocation, ended=cause))
    elif starts[known[-1]].ended is None:
        starts[known[-1]] = replace(starts[known[-1]], ended=cause)
    else:  # the service has said more itself
        return
    write(directory, replace(record, starts=tuple(starts)))


def _cause(environ: Mapping[str, str]) -> str:
    """As an operator says it: signal KILL, watchdog, timeout, oom-kill, exit status 70."""
    result, status = environ["SERVICE_RESULT"], environ.get("EXIT_STATUS", "unknown")
    known = {"signal": f"signal {status}", "core-dump": f"signal {status}", "exit-code": f"exit status {status}"}
    return known.get(result, result)
