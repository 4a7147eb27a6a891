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
import os
import re
import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from rmbgd.errors import RmbgdError

# --- The outcomes of images in columns: there may be millions, and each costs some forty bytes here.


DONE, FAILED, POSTPONED = 0, 1, 2
KINDS = {"image.done": DONE, "image.failed": FAILED, "image.postponed": POSTPONED}

WORD_OF = {DONE: "device", FAILED: "reason", POSTPONED: "why"}
"""Which key of the event is kept as its word."""


class ImageCounts:
    """One row per outcome.

    at      monotonic seconds of its boot
    pid     of the service's process
    kind    DONE, FAILED or POSTPONED
    word    index into `words`: the device that computed it, the reason it was refused, why it was put back
    engine  1 when the engine stage refused it
    again   1 when the next start told it for a run that was killed about then: it may have been told before
    same    hash of folder, path, job and content: equal for the same work
    digest  hash of the line
    stages  milliseconds per stage, NaN where a row has none; "total" is one of them
    """

    def __init__(self) -> None:
        self.at = array("d")
        self.pid = array("q")
        self.kind = array("B")
        self.word = array("H")
        self.engine = array("B")
        self.again = array("B")
        self.same = array("q")
        self.digest = array("q")
        self.stages: dict[str, array[float]] = {}
        self.words: list[str] = []
        self._index: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.at)

    def add(self, at: float, pid: int, event: str, record: Mapping[str, Any], digest: int) -> None:
        kind = KINDS.get(event)
        if kind is None:
            return
        times = record.get("milliseconds")
        self._append(
            at,
            pid,
            kind,
            str(record.get(WORD_OF[kind], "")),
            record.get("stage") == "engine",
            record.get("recovered") is True,
            hash((record.get("folder"), record.get("path"), record.get("job"), record.get("sha256_in"))),
            digest,
            {str(stage): value for stage, value in times.items()} if isinstance(times, dict) else {},
        )

    def _append(
        self,
        at: float,
        pid: int,
        kind: int,
        word: str,
        engine: bool,
        again: bool,
        same: int,
        digest: int,
        times: Mapping[str, Any],
    ) -> None:
        rows = len(self.at)
        self.at.append(at)
        self.pid.append(pid)
        self.kind.append(kind)
        if word not in self._index:
            if len(self.words) == 1 << 16:
                word = self.words[-1]  # nobody has so many devices and reasons
            else:
                self._index[word] = len(self.words)
                self.words.append(word)
        self.word.append(self._index[word])
        self.engine.append(engine)
        self.again.append(again)
        self.same.append(same)
        self.digest.append(digest)
        for stage, value in times.items():
            if stage not in self.stages and isinstance(value, (int, float)):
                self.stages[stage] = array("f", [math.nan]) * rows
        for stage, column in self.stages.items():
            value = times.get(stage)
            column.append(float(value) if isinstance(value, (int, float)) else math.nan)

    def extend(self, other: ImageCounts) -> None:
        for row in range(len(other)):
            self._append(*other.row(row))

    def row(self, i: int) -> tuple[float, int, int, str, bool, bool, int, int, dict[str, float]]:
        times = {stage: column[i] for stage, column in self.stages.items() if not math.isnan(column[i])}
        word = self.words[self.word[i]]
        marks = bool(self.engine[i]), bool(self.again[i])
        return (self.at[i], self.pid[i], self.kind[i], word, *marks, self.same[i], self.digest[i], times)

    def ordered(self) -> tuple[ImageCounts, int]:
        """(rows by time, each line once; how many lines stood more than once)."""
        order = sorted(range(len(self)), key=lambda i: (self.at[i], self.digest[i]))
        kept = [
            i
            for before, i in zip([None, *order], order, strict=False)
            if before is None or self.at[before] != self.at[i] or self.digest[before] != self.digest[i]
        ]
        if kept == list(range(len(self))):
            return self, 0
        return self._only(kept), len(self) - len(kept)

    def told_again(self) -> set[int]:
        """`same` of what may repeat another row: few, as each needs a crash."""
        return {self.same[i] for i, again in enumerate(self.again) if again}

    def without_repeats(self, asked: set[int], told: set[int]) -> tuple[ImageCounts, int]:
        """(rows without those that repeat what another has told, how many those were). The rows must be in order.

        `asked`: `told_again` of all boots. `told`: those of them that boots before have told; what is here is added.
        """
        told |= {self.same[i] for i, again in enumerate(self.again) if not again and self._ends(i, asked)}
        kept = []
        for i, again in enumerate(self.again):
            if not again or self.same[i] not in told:
                kept.append(i)
            if again:
                told.add(self.same[i])
        return (self, 0) if len(kept) == len(self) else (self._only(kept), len(self) - len(kept))

    def _ends(self, i: int, asked: set[int]) -> bool:
        return self.kind[i] != POSTPONED and self.same[i] in asked

    def _only(self, kept: list[int]) -> ImageCounts:
        result = ImageCounts()
        result.words, result._index = self.words, self._index
        for name in ("at", "pid", "kind", "word", "engine", "again", "same", "digest"):
            column = getattr(self, name)
            getattr(result, name).extend(column[i] for i in kept)
        result.stages = {stage: array("f", (column[i] for i in kept)) for stage, column in self.stages.items()}
        return result

    def between(self, begin: float, end: float) -> range:
        """Rows with begin <= at <= end; the rows must be in order."""
        return range(bisect_left(self.at, begin), bisect_right(self.at, end))

    def values(self, stage: str) -> Iterator[float]:
        """Milliseconds of one stage, of finished images that have it."""
        column = self.stages.get(stage, array("f"))
        for kind, value in zip(self.kind, column, strict=False):
            if kind == DONE and not math.isnan(value):
                yield value


# --- Which files hold the log of which machine, oldest first: from what was named on the command line.


STANDARD_INPUT = Path("-")

LOG_NAME = re.compile(r"\.(jsonl|ndjson|json|log)([-._][\w.-]*)?$", re.IGNORECASE)
COMPRESSION = re.compile(r"\.(gz|bz2|xz|lzma)$", re.IGNORECASE)
EXTENSION = re.compile(r"\.(jsonl|ndjson|json|log|txt)$", re.IGNORECASE)
NUMBER = re.compile(r"\.(\d{1,4})$")
DATE = re.compile(r"[-._](\d{4}-?\d{2}-?\d{2}(?:[-T_.]?\d{2,6}(?::\d{2})*)?)(?=$|\.)")

NAMES_OF_NOBODY = frozenset({"rmbgd", "events", "event", "log", "logs", "messages", "journal", "export"})
"""File names that say nothing of the machine: its folder's name is taken instead."""


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one machine, oldest first. `given`: the operator named it, so what the lines say does not count."""

    device: str
    given: bool
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a file's name says: the log it is a part of, and its place among the parts, oldest first."""

    stem: str
    place: tuple[int, int, str]


def rotation(name: str) -> Rotation:
    """rmbgd.jsonl.2.gz, rmbgd.jsonl-20260131.gz, rmbgd-20260131.jsonl are parts of `rmbgd`; the bare one is newest."""
    bare = COMPRESSION.sub("", name)
    if number := NUMBER.search(bare):
        stem, place = bare[: number.start()], (0, -int(number[1]), "")
    elif date := DATE.search(bare):
        stem, place = bare[: date.start()] + bare[date.end() :], (0, 0, re.sub(r"\D", "", date[1]))
    else:
        stem, place = bare, (1, 0, "")
    return Rotation(EXTENSION.sub("", stem), place)


def gather(arguments: Sequence[str], pattern: str | None = None) -> list[Source]:
    """The sources that the arguments name. Raises RmbgdError for what is not there or matches nothing.

    An argument is a file, a folder (searched whole), or `-` for standard input; `NAME=` before it names the machine.
    `pattern` is a regular expression: its first group, or the whole match, found in a file's path, names the machine.
    """
    expression = _compiled(pattern)
    found: dict[tuple[str, bool], list[Path]] = {}
    for argument in arguments:
        given, path = _split(argument)
        for file, guess in _files(path):
            name = given or (_named(expression, file) if expression else guess)
            files = found.setdefault((name, bool(given or expression)), [])
            if file not in files:
                files.append(file)
    return [Source(device, given, tuple(_oldest_first(files))) for (device, given), files in found.items()]


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RmbgdError(f"--device '{pattern}' is no regular expression: {error}") from error


def _split(argument: str) -> tuple[str, Path]:
    """(name or "", path). A path that exists is a path, whatever it holds."""
    name, equals, rest = argument.partition("=")
    if equals and name and "/" not in name and not os.path.exists(argument):
        return name, Path(rest)
    return "", Path(argument)


def _files(path: Path) -> list[tuple[Path, str]]:
    """(file, the machine's name as far as the path tells)."""
    if path == STANDARD_INPUT:
        return [(path, "standard input")]
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and LOG_NAME.search(file.name)]
        if not files:
            raise RmbgdError(f"{path}: no log in this folder; logs end in .jsonl, .json or .log, rotated or compressed")
        return [(file, _guess(file, path)) for file in files]
    if not path.exists():
        raise RmbgdError(f"{path}: no such file; name the log_file of the configuration, or a folder of such files")
    return [(path, _guess(path, None))]


def _guess(file: Path, root: Path | None) -> str:
    """A folder per machine, or a file per machine, whichever the path looks like."""
    if root is not None and len(below := file.relative_to(root).parts) > 1:
        return below[0]
    stem = rotation(file.name).stem
    if stem.lower() not in NAMES_OF_NOBODY:
        return stem
    return file.resolve().parent.name or stem


def _named(expression: re.Pattern[str], file: Path) -> str:
    match = expression.search(str(file))
    if match is None or not (name := match[1] if expression.groups else match[0]):
        raise RmbgdError(f"{file}: --device '{expression.pattern}' finds no name in this path")
    return name


def _oldest_first(files: list[Path]) -> list[Path]:
    """Parts of one log in order; different logs one after the other, by name."""

    def place(file: Path) -> tuple[str, str, tuple[int, int, str]]:
        parts = rotation(file.name)
        return str(file.parent), parts.stem, parts.place

    return sorted(files, key=place)


# --- Log files to what one boot of one machine has told: lines, parsed, in columns where there are millions of them.


MAGIC = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, OSError)  # OSError: gzip.BadGzipFile, and a disk that cannot read

UNKNOWN_BOOT = "unknown"  # what rmbgd writes where the kernel does not say
CLOCK_STEP = 1.0  # s between wall and monotonic clock; slewing is slower by far
STEP_BACK = 60.0  # s; monotonic time falling by more within "unknown" can only be another boot


@dataclass(slots=True)
class Mark:
    """One line that is not about an image. `at` is monotonic within its boot, `wall` seconds since 1970."""

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
    images: ImageCounts = field(default_factory=ImageCounts)
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
            boot.images.add(at, pid, event, record, digest)
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
