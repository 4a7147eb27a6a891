"""Read event logs, also rotated, compressed or damaged ones, into boots, events and image outcomes.

A crash, a full disk or a rotation leaves torn lines, cut archives and repeated lines: all are read as far as they go.
What journalctl exports holds the same lines, in the field RMBGD_JSON, or as the message where an older rmbgd wrote it.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import math
import os
import re
import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from rmbgd.errors import RmbgdError, explain

STANDARD_INPUT = Path("-")
LOG_NAME = re.compile(r"\.(jsonl|ndjson|json|log)([-._][\w.-]*)?$", re.IGNORECASE)
COMPRESSION = re.compile(r"\.(gz|bz2|xz|lzma)$", re.IGNORECASE)
EXTENSION = re.compile(r"\.(jsonl|ndjson|json|log|txt)$", re.IGNORECASE)
NUMBER = re.compile(r"\.(\d{1,4})$")
DATE = re.compile(r"[-._](\d{4}-?\d{2}-?\d{2}(?:[-T_.]?\d{2,6}(?::\d{2})*)?)(?=$|\.)")
MAGIC = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, OSError)  # OSError: gzip.BadGzipFile, and a disk that cannot read

# File names that say nothing of the machine: its folder's name is taken instead.
GENERIC_NAMES = frozenset({"rmbgd", "events", "event", "log", "logs", "messages", "journal", "export"})
UNKNOWN_BOOT = "unknown"  # what rmbgd writes where the kernel does not say
CLOCK_STEP = 1.0  # s between wall and monotonic clock; slewing is slower by far
LARGEST = 1e15  # of any number in a log; what is beyond is damaged, and would not fit the columns
STEP_BACK = 60.0  # s; monotonic time falling by more within "unknown" can only be another boot

# Keys that the report looks at; of other events only the time counts, as a sign of life.
KEPT = {
    "service.start": ("host", "heartbeat"),
    "service.stopping": ("cause",),
    "service.stop": ("exit_code",),
    "service.failed": ("stage", "error"),
    "service.exit": ("result", "code", "status", "ended_pid"),
    "service.paused": ("folder",),
    "service.resumed": ("folder",),
    "service.stalled": ("seconds", "threads"),
    "health": ("device", "in_flight", "paused", "engine"),
    "storage.paused": ("kind", "path", "cause", "detail"),
    "storage.resumed": ("kind",),
    "engine.fault": ("kind",),
    "engine.failover": ("from", "to", "reason", "images", "threshold"),
    "engine.failback": ("to",),
    "engine.restarted": ("device",),
}

# Kind of each image outcome, and which key of the event is kept as its word.
DONE, FAILED, POSTPONED = 0, 1, 2
OUTCOMES = {"image.done": (DONE, "device"), "image.failed": (FAILED, "reason"), "image.postponed": (POSTPONED, "why")}
COLUMNS = ("at", "pid", "kind", "word", "engine", "again", "duplicate", "same", "version", "digest")


def number(value: object) -> float | None:
    """The value as a float; None when it is no number, or one that nothing measures: NaN, infinity, 10**400."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < LARGEST else None


def counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'s' * (count > 1)}"


class ImageTable:
    """One row per image outcome, in columns: there may be millions, and each costs some eighty bytes here."""

    def __init__(self) -> None:
        self.at = array("d")  # monotonic seconds of its boot
        self.pid = array("q")  # of the service's process
        self.kind = array("B")  # DONE, FAILED or POSTPONED
        self.word: list[str] = []  # the device that computed it, the reason it was refused, why it was put back
        self.engine = array("B")  # 1 when the engine stage refused it
        self.again = array("B")  # 1 when the next start reported it for a run that was killed: perhaps a second time
        self.duplicate = array("B")  # 1 when another worker of the fleet had published the same version
        self.same = array("q")  # hash of folder, path, job and content: equal for the same work
        self.version = array("q")  # hash of folder, path and fingerprint, of an image of a fleet; 0 of any other
        self.digest = array("q")  # hash of the line
        # Milliseconds, NaN where a row has none; "total" is one of them. A new column is NaN for the rows before it.
        self.stages: defaultdict[str, array[float]] = defaultdict(lambda: array("f", [math.nan]) * len(self))

    def __len__(self) -> int:
        return len(self.at)

    def add(self, at: float, pid: int, event: str, record: Mapping[str, Any], digest: int) -> None:
        times = record.get("milliseconds")
        timed = times.items() if isinstance(times, dict) else ()
        known = {stage: value for stage, each in timed if (value := number(each)) is not None}
        for stage in self.stages.keys() | known.keys():
            self.stages[stage].append(known.get(stage, math.nan))
        kind, key = OUTCOMES[event]
        word = sys.intern(str(record.get(key, "")))
        same = hash((record.get("folder"), record.get("path"), record.get("job"), record.get("sha256_in")))
        fingerprint = record.get("fingerprint")
        of_fleet = isinstance(fingerprint, str)
        version = (hash((record.get("folder"), record.get("path"), fingerprint)) or 1) if of_fleet else 0
        marks = (record.get("stage") == "engine", record.get("recovered") is True, record.get("duplicate") is True)
        row = (at, pid, kind, word, *marks, same, version, digest)
        for name, cell in zip(COLUMNS, row, strict=True):
            getattr(self, name).append(cell)

    def extend(self, other: ImageTable) -> None:
        for stage in self.stages.keys() | other.stages.keys():
            self.stages[stage].extend(other.stages[stage])
        for name in COLUMNS:
            getattr(self, name).extend(getattr(other, name))

    def only(self, rows: Sequence[int]) -> ImageTable:
        """These rows, in this order."""
        if len(rows) == len(self) and all(row == place for place, row in enumerate(rows)):
            return self
        result = ImageTable()
        for name in COLUMNS:
            column = getattr(self, name)
            getattr(result, name).extend(column[row] for row in rows)
        result.stages |= {stage: array("f", (column[row] for row in rows)) for stage, column in self.stages.items()}
        return result

    def ordered(self) -> ImageTable:
        """Rows by time, each line once."""
        rows = sorted(range(len(self)), key=lambda row: (self.at[row], self.digest[row]))
        return self.only([next(same) for _, same in groupby(rows, lambda row: (self.at[row], self.digest[row]))])

    def between(self, begin: float, end: float) -> range:
        """Rows with begin <= at <= end; the rows must be in order."""
        return range(bisect_left(self.at, begin), bisect_right(self.at, end))

    def values(self, stage: str) -> Iterator[float]:
        """Milliseconds of one stage, of finished images that have it."""
        for kind, value in zip(self.kind, self.stages.get(stage, ()), strict=False):
            if kind == DONE and not math.isnan(value):
                yield value


@dataclass(frozen=True, slots=True)
class LogSource:
    device: str
    given: bool  # the operator named it, so what the lines say does not count
    files: tuple[Path, ...]  # oldest first


@dataclass(slots=True)
class LogEvent:
    """One line that is not about an image."""

    at: float  # monotonic within its boot
    pid: int
    event: str
    keys: dict[str, Any]
    digest: int


@dataclass(slots=True)
class BootLog:
    boot_id: str
    source: LogSource
    host: str = ""
    events: list[LogEvent] = field(default_factory=list)
    images: ImageTable = field(default_factory=ImageTable)
    versions: set[str] = field(default_factory=set)
    # (monotonic, wall - monotonic) of the first line and of each that differs from the line before by over 1 s
    clock: list[tuple[float, float]] = field(default_factory=list)
    last: float = -math.inf  # the greatest monotonic time


@dataclass(slots=True)
class LogIndex:
    boots: list[BootLog] = field(default_factory=list)  # of all sources, in the order in which they were read
    lines: int = 0
    foreign: dict[Path, int] = field(default_factory=dict)  # lines of each file that has no event
    notes: list[tuple[str, str]] = field(default_factory=list)  # (machine, sentence)


# --- files


def rotation(name: str) -> tuple[str, tuple[int, int, str]]:
    """(the log that a file is a part of, its place among the parts, oldest first), from the file's name.

    rmbgd.jsonl.2.gz, rmbgd.jsonl-20260131.gz, rmbgd-20260131.jsonl are parts of `rmbgd`; the bare one is newest.
    """
    bare, place = COMPRESSION.sub("", name), (1, 0, "")
    if count := NUMBER.search(bare):
        bare, place = bare[: count.start()], (0, -int(count[1]), "")
    elif date := DATE.search(bare):
        bare, place = bare[: date.start()] + bare[date.end() :], (0, 0, re.sub(r"\D", "", date[1]))
    return EXTENSION.sub("", bare), place


def gather(arguments: Sequence[str], pattern: str | None = None) -> list[LogSource]:
    """The sources that the arguments name. Raises RmbgdError for what is not there or matches nothing.

    An argument is a file, a folder (searched whole), or `-` for standard input; `NAME=` before it names the machine.
    `pattern` is a regular expression: its first group, or the whole match, found in a file's path, names the machine.
    """
    try:
        expression = None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise RmbgdError(f"--device '{pattern}' is no regular expression: {error}") from error
    found: dict[tuple[str, bool], set[Path]] = {}
    for argument in arguments:
        given, equals, path = argument.partition("=")
        if not equals or "/" in given or os.path.exists(argument):  # a path that exists is a path, whatever it holds
            given, path = "", argument
        for file, guess in _files(Path(path)):
            name = given or (_named(expression, file) if expression else guess)
            found.setdefault((name, bool(given or expression)), set()).add(file)
    return [
        LogSource(device, given, tuple(sorted(files, key=lambda file: (str(file.parent), rotation(file.name)))))
        for (device, given), files in found.items()
    ]


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    """(file, the machine's name as far as the path tells)."""
    if path == STANDARD_INPUT:
        yield path, "standard input"
    elif path.is_dir():
        found = sorted(Path(folder, name) for folder, _, names in os.walk(path, onerror=_unread) for name in names)
        files = [file for file in found if LOG_NAME.search(file.name) and file.is_file()]
        if not files:
            raise RmbgdError(f"{path}: no log in this folder; logs end in .jsonl, .json or .log, rotated or compressed")
        for file in files:
            # A folder per machine, or a file per machine, whichever the path looks like.
            below = file.relative_to(path).parts
            yield file, below[0] if len(below) > 1 else _stem(file)
    elif not path.exists():
        raise RmbgdError(f"{path}: no such file; name the log_file of the configuration, or a folder of such files")
    else:
        yield path, _stem(path)


def _unread(error: OSError) -> None:
    raise error  # a report that leaves out what it could not read would be untrue


def _stem(file: Path) -> str:
    stem, _ = rotation(file.name)
    return stem if stem.lower() not in GENERIC_NAMES else file.resolve().parent.name or stem


def _named(expression: re.Pattern[str], file: Path) -> str:
    match = expression.search(str(file))
    if match is None or not (name := match[1] if expression.groups else match[0]):
        raise RmbgdError(f"{file}: --device '{expression.pattern}' finds no name in this path")
    return name


# --- lines


def read(sources: Sequence[LogSource], since: float | None = None, until: float | None = None) -> LogIndex:
    """Every line of every source; `since` and `until` are wall times in seconds, and leave lines outside them out."""
    index = LogIndex()
    window = (-math.inf if since is None else since, math.inf if until is None else until)
    for source in sources:
        boots: dict[str, BootLog] = {}
        for file in source.files:
            _read_file(file, source, boots, index, window)
        index.boots += boots.values()
    return index


def _read_file(
    file: Path, source: LogSource, boots: dict[str, BootLog], index: LogIndex, window: tuple[float, float]
) -> None:
    torn, foreign, cut, before = 0, 0, 0, index.lines
    for line in _lines(file, source, index):
        if not (text := line.strip(b"\0 \t\r\n")):
            continue
        index.lines += 1
        try:
            text, host = _event_text(text)
            record = json.loads(text)
        except CutField:
            cut += 1
            continue
        except (ValueError, RecursionError):
            torn += 1
            continue
        if (envelope := _envelope(record)) is None:
            foreign += 1
            continue
        at, wall, pid, event = envelope
        if not window[0] <= wall <= window[1] or event == "engine.output":  # which is what others printed
            continue
        boot = _boot_of(record["boot_id"], at, boots, source)
        boot.host = boot.host or host or str((event == "service.start" and record.get("host")) or "")
        boot.versions.add(str(record.get("version", "")))
        boot.last = max(boot.last, at)
        if not boot.clock or abs(wall - at - boot.clock[-1][1]) > CLOCK_STEP:
            boot.clock.append((at, wall - at))
        digest = hash(text)  # the same in the log file and in the journal
        if event in OUTCOMES:
            boot.images.add(at, pid, event, record, digest)
        else:
            keys = {key: record[key] for key in KEPT.get(event, ()) if key in record}
            boot.events.append(LogEvent(at, pid, event, keys, digest))
    if index.lines > before and torn + foreign == index.lines - before:
        index.foreign[file] = torn + foreign
    for count, what, kind in (
        (torn, "torn or unreadable line", ""),
        (foreign, "line", " of other programs"),
        (cut, "event", " that journalctl cut short; export with `journalctl -o json --all`;"),
    ):
        if count:
            index.notes.append((source.device, f"{file.name}: {counted(count, what)}{kind} left out"))


def _boot_of(boot_id: str, at: float, boots: dict[str, BootLog], source: LogSource) -> BootLog:
    if boot_id == UNKNOWN_BOOT:
        generation = sum(name.startswith(UNKNOWN_BOOT) for name in boots)
        known = boots.get(f"{UNKNOWN_BOOT}-{generation}")
        rebooted = known is not None and known.events and at < known.events[-1].at - STEP_BACK
        boot_id = f"{UNKNOWN_BOOT}-{generation + 1 if rebooted else max(generation, 1)}"
    if boot_id not in boots:
        boots[boot_id] = BootLog(boot_id, source)
    return boots[boot_id]


class CutField(ValueError):
    """journalctl shows a long field as null unless it is asked for all."""


def _event_text(text: bytes) -> tuple[bytes, str]:
    """(the event's own line, the host's name where a journal export tells it). Raises ValueError for a torn line."""
    if not text.startswith(b"{"):  # a line as `journalctl` shows it: time, host and program before the event
        return text[max(text.find(b'{"event":'), 0) :], ""
    if text.startswith(b'{"event":') or not isinstance(record := json.loads(text), dict) or "event" in record:
        return text, ""
    if "RMBGD_EVENT" in record and record.get("RMBGD_JSON", "") is None:
        raise CutField
    for name in ("RMBGD_JSON", "MESSAGE"):
        if (line := _field(record.get(name))).startswith(b"{"):
            return line, str(record.get("_HOSTNAME", ""))
    return b"{}", ""


def _field(value: object) -> bytes:
    """The bytes of a field: a text, or numbers where it is no printable UTF-8; of a repeated field the first."""
    match value:
        case str():
            return value.encode("utf-8", "surrogatepass")
        case [int(), *_]:
            with contextlib.suppress(ValueError, TypeError):
                return bytes(value)  # type: ignore[arg-type]
        case [first, *_]:
            return _field(first)
    return b""


def _envelope(record: Any) -> tuple[float, float, int, str] | None:
    """(monotonic, wall, pid, event), or None for a line that is not rmbgd's."""
    with contextlib.suppress(ValueError, OverflowError):
        match record:
            case {"event": str(event), "monotonic": at, "boot_id": str(), "pid": int(pid), "time": str(stamp)} if (
                (monotonic := number(at)) is not None and abs(pid) < LARGEST and bool not in (type(at), type(pid))
            ):
                return monotonic, datetime.fromisoformat(stamp).timestamp(), pid, event
    return None


def _lines(file: Path, source: LogSource, index: LogIndex) -> Iterator[bytes]:
    """The lines of a plain or compressed file, as far as it can be read. Raises RmbgdError if it cannot be opened."""
    try:
        stream = _open(file)
    except OSError as error:
        raise RmbgdError(explain(error)) from error
    with stream:
        try:
            yield from stream
        except DAMAGED as error:
            index.notes.append((source.device, f"{file.name}: damaged, read up to there ({error})"))


def _open(file: Path) -> IO[bytes]:
    if file == STANDARD_INPUT:
        return sys.stdin.buffer
    with open(file, "rb") as start:
        head = start.read(6)
    opener: Any = next((opener for magic, opener in MAGIC.items() if head.startswith(magic)), open)
    return opener(file, "rb")  # type: ignore[no-any-return]
