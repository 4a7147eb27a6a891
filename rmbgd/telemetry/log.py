"""The event log: every event as one JSON line, to the journal or stdout, and to a file that keeps what they drop.

Does not decide what is worth an event, and knows none by name but through the vocabulary. Nothing here is global:
whoever emits was handed an `emit`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import threading
from typing import Any, Protocol, Self

import structlog

from rmbgd import events
from rmbgd.config import load as config
from rmbgd.telemetry import jsonl as lines

PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog's, as the journal filters by

# What an operator filters the journal by (`journalctl RMBGD_EVENT=image.failed`); the rest is in the line itself.
JOURNAL_KEYS = ("event", "level", "folder", "path", "job", "reason", "device", "model", "stage", "kind")

CONSOLE_QUEUE = 10_000  # lines; a journal that stands still for a moment loses nothing, one that is dead stops nobody
CLOSE_TIMEOUT = 2.0  # s for the console to take what waits when the log is closed


class JournalSend(Protocol):
    """systemd.journal.sendv: each field as b"NAME=value"."""

    def __call__(self, *fields: bytes) -> None: ...


class EventLog:
    """Writes events. `emit` is an events.Emit: safe from any thread, from signal handlers, and it never raises.

    The file is written in the caller's thread, so that it holds everything up to a SIGKILL. The console (journal or
    stdout) is written by a thread of its own, so that nobody waits for a journal that hangs.
    """

    def __init__(self, file: lines.JsonlFile | None, console: Console | None, *, strict: bool = False) -> None:
        self._file = file
        self._console = console
        self._strict = strict
        self._logger: _Leveled = structlog.wrap_logger(
            self,
            processors=[_stamp, _render],
            wrapper_class=_Leveled,
            context_class=dict,
            cache_logger_on_first_use=False,
        ).bind()

    def emit(self, event: str, /, **keys: object) -> None:
        """Write one event. With `strict`, raises ValueError for what the vocabulary does not know."""
        if self._strict and (problems := events.problems_with(event, keys)):
            raise ValueError("; ".join(problems))
        kind = events.EVENTS.get(event)
        self._logger.log(kind.level if kind else "warning", event, keys)

    @property
    def dropped(self) -> dict[str, int]:
        """Lines that could not be written, by sink; sinks that are not there are left out."""
        counts = {"file": self._file.dropped} if self._file else {}
        return counts | ({"console": self._console.dropped} if self._console else {})

    def write(self, line: str, level: str, fields: dict[str, bytes]) -> None:
        """The end of structlog's chain; `emit` is the door."""
        if self._file is not None:
            self._file.write(line)
        if self._console is not None:
            self._console.put(line, level, fields)

    def close(self) -> None:
        """Hand over what waits, within CLOSE_TIMEOUT. Emitting afterwards still reaches the file."""
        if self._console is not None:
            self._console.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Leveled(structlog.BoundLoggerBase):
    """structlog's logger with one method: the level comes from the vocabulary, not from the caller."""

    def log(self, level: str, event: str, keys: dict[str, object]) -> None:
        with contextlib.suppress(structlog.DropEvent):
            arguments, _ = self._process_event(level, event, keys)
            self._logger.write(*arguments)


def _stamp(_: Any, level: str, keys: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event = keys.pop("event")
    return lines.envelope(event, level) | {key: keys[key] for key in keys if key not in events.ENVELOPE}


def _render(_: Any, level: str, keys: structlog.typing.EventDict) -> tuple[tuple[str, str, dict[str, bytes]], Any]:
    fields = {f"RMBGD_{key.upper()}": os.fsencode(str(keys[key])) for key in JOURNAL_KEYS if keys.get(key) is not None}
    return (lines.to_json(keys), level, fields), {}


class Console:
    """Lines on their way to the journal or stdout, through a thread that alone may be kept waiting by them."""

    def __init__(self, *, descriptor: int | None = None, journal: JournalSend | None = None) -> None:
        self.dropped = 0  # an estimate when several threads drop at once; nobody sums it up
        self._descriptor = descriptor
        self._journal = journal
        self._waiting: queue.SimpleQueue[tuple[str, str, dict[str, bytes]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log-console", daemon=True)
        self._thread.start()

    def put(self, line: str, level: str, fields: dict[str, bytes]) -> None:
        if self._waiting.qsize() >= CONSOLE_QUEUE:
            self.dropped += 1
        else:
            self._waiting.put((line, level, fields))

    def _run(self) -> None:
        while (entry := self._waiting.get()) is not None:
            try:
                self._write(*entry)
            except OSError:  # the reader of our stdout has gone; the file goes on
                self.dropped += 1

    def _write(self, line: str, level: str, fields: dict[str, bytes]) -> None:
        if self._journal is not None:
            entry = {
                "MESSAGE": line.encode(),
                "PRIORITY": str(PRIORITY.get(level, 6)).encode(),
                "SYSLOG_IDENTIFIER": b"rmbgd",  # what the unit says holds for stdout only
                **fields,
            }
            self._journal(*(name.encode() + b"=" + value for name, value in entry.items()))
        elif self._descriptor is not None:
            rest = memoryview(line.encode() + b"\n")
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def close(self) -> None:
        """Write what waits, then end. A journal that hangs is left behind after CLOSE_TIMEOUT."""
        self._waiting.put(None)
        self._thread.join(CLOSE_TIMEOUT)


def open_log(service: config.ServiceSettings, *, to_journal: bool | None = None, strict: bool = False) -> EventLog:
    """The log as `service` wants it. `to_journal` None: the journal when stdout or stderr already leads there.

    `strict` refuses events that the vocabulary does not know, for tests; in production they are written all the same.
    """
    file = lines.JsonlFile(service.log_file) if service.log_file is not None else None
    if to_journal is None:
        to_journal = _leads_to_journal(1) or _leads_to_journal(2)
    send = _journal_sender() if to_journal else None
    return EventLog(file, Console(journal=send) if send else Console(descriptor=1), strict=strict)


def _leads_to_journal(descriptor: int) -> bool:
    """Whether `descriptor` leads to the journal: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _journal_sender() -> JournalSend | None:
    try:
        journal = importlib.import_module("systemd.journal")
    except ImportError:  # the lines go to stdout then, which the journal captures: only the extra fields are lost
        return None
    sender: JournalSend = journal.sendv
    return sender
