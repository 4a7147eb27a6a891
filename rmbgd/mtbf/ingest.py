"""Log files to what one boot of one machine has told: lines, parsed, in columns where there are millions of them.

Reads whatever a crash, a full disk or a rotation has left: torn lines, cut archives, lines twice. Does not interpret.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import math
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from rmbgd.errors import RmbgdError
from rmbgd.mtbf.pictures import Pictures
from rmbgd.mtbf.sources import STANDARD_INPUT, Source

MAGIC = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, OSError)  # OSError: gzip.BadGzipFile, and a disk that cannot read

UNKNOWN_BOOT = "unknown"  # what rmbgd writes where the kernel does not say
CLOCK_STEP = 1.0  # s between wall and monotonic clock; slewing is slower by far
STEP_BACK = 60.0  # s; monotonic time falling by more within "unknown" can only be another boot


@dataclass(slots=True)
class Mark:
    """One line that is not about a picture. `at` is monotonic within its boot, `wall` seconds since 1970."""

    at: float
    wall: float
    pid: int
    event: str
    keys: dict[str, Any]
    digest: int


@dataclass(slots=True)
class Boot:
    """Everything that was read of one boot of one machine.

    first   where its first line stood (file, line), for order among boots
    clock   (monotonic, wall - monotonic) of the first line and of each that differs from the line before by over 1 s
    last    the greatest monotonic time
    """

    boot_id: str
    source: Source
    first: tuple[int, int]
    host: str = ""
    marks: list[Mark] = field(default_factory=list)
    pictures: Pictures = field(default_factory=Pictures)
    versions: set[str] = field(default_factory=set)
    clock: list[tuple[float, float]] = field(default_factory=list)
    last: float = -math.inf

    def heard(self, at: float, wall: float) -> None:
        if not self.clock or abs(wall - at - self.clock[-1][1]) > CLOCK_STEP:
            self.clock.append((at, wall - at))
        self.last = max(self.last, at)


@dataclass(slots=True)
class Reading:
    """What reading has found besides the lines."""

    boots: list[Boot] = field(default_factory=list)
    lines: int = 0
    notes: list[tuple[str, str]] = field(default_factory=list)  # (machine, sentence)


KEPT = {
    "service.start": ("host", "heartbeat", "device"),
    "service.ready": ("device",),
    "service.stopping": ("cause",),
    "service.stop": ("exit_code",),
    "service.failed": ("stage", "error"),
    "service.exit": ("result", "code", "status", "ended_pid"),
    "service.stalled": ("seconds", "threads"),
    "service.stall_ended": ("seconds",),
    "health": ("device", "in_flight", "waiting", "paused", "engine", "rss_bytes"),
    "storage.paused": ("kind",),
    "engine.fault": ("device", "kind"),
    "engine.failover": ("from", "to", "reason", "images", "reading", "threshold"),
    "engine.failback": ("from", "to", "seconds"),
    "engine.degraded": ("device", "reason"),
    "engine.restarted": ("device",),
    "run.summary": (),
}
"""Keys that the report looks at; of other events only the time counts, as a sign of life."""

IGNORED = frozenset({"engine.output"})


def read(sources: list[Source], since: float | None = None, until: float | None = None) -> Reading:
    """Every line of every source; `since` and `until` are wall times in seconds, and leave lines outside them out."""
    reading = Reading()
    rank = 0
    for source in sources:
        boots: dict[str, Boot] = {}
        for file in source.files:
            rank += 1
            _read_file(file, rank, source, boots, reading, since, until)
        reading.boots += boots.values()
    return reading


def _read_file(
    file: Path,
    rank: int,
    source: Source,
    boots: dict[str, Boot],
    reading: Reading,
    since: float | None,
    until: float | None,
) -> None:
    torn, foreign, ours = 0, 0, 0
    lines = _lines(file, source, reading)
    for number, line in enumerate(lines):
        if not line.strip(b"\0 \t\r\n"):
            continue
        reading.lines += 1
        record, host = _parse(line)
        if record is None:
            torn += 1
            continue
        entry = _envelope(record)
        if entry is None:
            foreign += 1
            continue
        ours += 1
        at, wall, pid, event = entry
        if (since is not None and wall < since) or (until is not None and wall > until) or event in IGNORED:
            continue
        boot = _boot_of(str(record["boot_id"]), at, boots, source, (rank, number))
        boot.host = boot.host or host or str((event == "service.start" and record.get("host")) or "")
        boot.heard(at, wall)
        boot.versions.add(str(record.get("version", "")))
        digest = hash(line.strip(b"\0 \t\r\n") if not host else str(record))
        if event.startswith("image."):
            boot.pictures.add(at, pid, event, record, digest)
        else:
            keys = {key: record[key] for key in KEPT.get(event, ()) if key in record}
            boot.marks.append(Mark(at, wall, pid, event, keys, digest))
    if torn:
        reading.notes.append((source.device, f"{file.name}: {torn} torn or unreadable line{'s' * (torn > 1)} left out"))
    if foreign:
        reading.notes.append(
            (source.device, f"{file.name}: {foreign} line{'s' * (foreign > 1)} of other programs left out")
        )


def _boot_of(boot_id: str, at: float, boots: dict[str, Boot], source: Source, first: tuple[int, int]) -> Boot:
    key = boot_id
    if boot_id == UNKNOWN_BOOT:
        generation = sum(name.startswith(UNKNOWN_BOOT) for name in boots)
        key = f"{UNKNOWN_BOOT}-{max(generation, 1)}"
        known = boots.get(key)
        if known is not None and known.marks and at < known.marks[-1].at - STEP_BACK:
            key = f"{UNKNOWN_BOOT}-{generation + 1}"
    if key not in boots:
        boots[key] = Boot(key, source, first)
    return boots[key]


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """(the event's keys or None, the host's name where a journal export tells it)."""
    text = line.strip(b"\0 \t\r\n")
    if not text.startswith(b"{"):  # a line as `journalctl` shows it: time, host and program before the event
        at = text.find(b'{"event":')
        text = text[at:] if at > 0 else text
    try:
        record = json.loads(text)
        host = ""
        if isinstance(record, dict) and "event" not in record and isinstance(record.get("MESSAGE"), str):
            host = str(record.get("_HOSTNAME", ""))
            message = record["MESSAGE"]
            record = json.loads(message) if message.startswith("{") else {}
    except (ValueError, RecursionError):
        return None, ""
    return (record, host) if isinstance(record, dict) else (None, "")


def _envelope(record: dict[str, Any]) -> tuple[float, float, int, str] | None:
    """(monotonic, wall, pid, event), or None for a line that is not rmbgd's."""
    event, at, pid, stamp = record.get("event"), record.get("monotonic"), record.get("pid"), record.get("time")
    if not isinstance(event, str) or not isinstance(record.get("boot_id"), str) or not isinstance(stamp, str):
        return None
    if isinstance(at, bool) or not isinstance(at, (int, float)) or isinstance(pid, bool) or not isinstance(pid, int):
        return None
    with contextlib.suppress(ValueError, OverflowError):
        return float(at), datetime.fromisoformat(stamp).timestamp(), pid, event
    return None


def _lines(file: Path, source: Source, reading: Reading) -> Iterator[bytes]:
    """The lines of a plain or compressed file, as far as it can be read. Raises RmbgdError if it cannot be opened."""
    try:
        stream = _open(file)
    except OSError as error:
        raise RmbgdError(f"{file}: {error.strerror or error}") from error
    with stream:
        while True:
            try:
                line = stream.readline()
            except DAMAGED as error:
                reading.notes.append((source.device, f"{file.name}: damaged, read up to there ({error})"))
                return
            if not line:
                return
            yield line


def _open(file: Path) -> IO[bytes]:
    if file == STANDARD_INPUT:
        return sys.stdin.buffer
    with open(file, "rb") as start:
        head = start.read(6)
    for magic, opener in MAGIC.items():
        if head.startswith(magic):
            return opener(file, "rb")  # type: ignore[no-any-return, operator]
    return open(file, "rb")
