"""How the last starts of the service ended: a file in the state directory, kept by the service and the exit recorder.

Standard library only, as the recorder is. Does not judge what it holds: crashloop.py does.

A run writes itself down before it begins its work. It takes itself out when it stops in good order; when it worked for
so long that its end would say nothing of its start, it says so; so what is left without a word died.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmbgd.telemetry import jsonl as lines

FILE = "starts.json"
KEPT = 20  # runs; far more than decide anything
MODE = 0o640
NO_WORD = "died without a word"
PLANNED = "success"  # of SERVICE_RESULT, systemd.exec(5)
CONFIGURATION = "78"  # exit status: the operator's to mend, and no crash


Moment = tuple[str, float, float]
"""(boot, s on its monotonic clock, s since 1970 on the wall clock)."""


@dataclass(frozen=True, slots=True)
class Run:
    """One start. `began` in s on the monotonic clock of boot `boot_id`, `wall` in s since 1970.

    process  (pid, start of it in clock ticks); None when nobody knows
    safe     in safe mode
    settled  it worked for long
    ended    how it ended, when abnormally; None while it runs, and when nobody could say
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
        """Seconds since it began; 0 when a clock that went back does not let us know."""
        boot_id, monotonic, wall = now
        return max(0.0, monotonic - self.began if boot_id == self.boot_id else wall - self.wall)

    def lives(self) -> bool:
        """Another process that is at work now, as far as it can be seen from here."""
        if self.process is None or self.ended is not None:
            return False
        pid, start = self.process
        return pid != os.getpid() and lines.process_start(pid) == start


@dataclass(frozen=True, slots=True)
class Record:
    """`safe_modes`: entered one after another, without a run between them that worked for long."""

    runs: tuple[Run, ...] = ()
    safe_modes: int = 0


def read(directory: Path) -> Record:
    """What stands there; nothing when there is no file, or one that a power cut or an operator has spoilt."""
    try:
        found = json.loads((directory / FILE).read_bytes())
        return Record(tuple(_run(each) for each in found["runs"]), int(found["safe_modes"]))
    except (OSError, ValueError, TypeError, KeyError):
        return Record()


def _run(found: Mapping[str, Any]) -> Run:
    return Run(
        boot_id=str(found["boot_id"]),
        began=float(found["began"]),
        wall=float(found["wall"]),
        invocation_id=str(found["invocation_id"]),
        process=None if found["process"] is None else (int(found["process"][0]), int(found["process"][1])),
        safe=bool(found["safe"]),
        settled=bool(found["settled"]),
        ended=None if found["ended"] is None else str(found["ended"]),
    )


def write(directory: Path, record: Record) -> bool:
    """Replace the file, durably. False when the disk refuses: no reason not to serve."""
    temporary = directory / f"{FILE}.tmp"
    text = json.dumps(
        {"safe_modes": record.safe_modes, "runs": [dataclasses.asdict(run) for run in record.runs[-KEPT:]]}
    )
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
        try:
            os.write(descriptor, text.encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, directory / FILE)
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        return False
    return True


def deaths(runs: Iterable[Run]) -> list[Run]:
    """Those that did not end in good order and had not worked for long."""
    return [run for run in runs if not run.settled and not run.lives()]


def record_exit(directory: Path, environ: Mapping[str, str], now: Moment) -> None:
    """The exit recorder's: add how systemd saw the end.

    Also of a process that died before it could write itself down, such as one whose libraries cannot be loaded.
    """
    if environ["SERVICE_RESULT"] == PLANNED or environ.get("EXIT_STATUS") == CONFIGURATION:
        return
    record = read(directory)
    invocation = environ.get("INVOCATION_ID", "")
    cause = _words(environ)
    runs = list(record.runs)
    known = [number for number, run in enumerate(runs) if run.invocation_id == invocation]
    if invocation and known:
        last = known[-1]
        if runs[last].ended is not None:  # it has told more itself
            return
        runs[last] = dataclasses.replace(runs[last], ended=cause)
    else:
        runs.append(Run(*now, invocation, ended=cause))
    write(directory, dataclasses.replace(record, runs=tuple(runs)))


def _words(environ: Mapping[str, str]) -> str:
    """As an operator says it: signal KILL, watchdog, timeout, oom-kill, exit status 70."""
    result, status = environ["SERVICE_RESULT"], environ.get("EXIT_STATUS", "unknown")
    known: dict[str, Any] = {"signal": f"signal {status}", "core-dump": f"signal {status}"}
    return str(known.get(result, f"exit status {status}" if result == "exit-code" else result))


def moment(monotonic: float, wall: float) -> Moment:
    return lines.boot_id(), monotonic, wall
