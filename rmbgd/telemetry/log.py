"""Event log: every event as one JSON line, to the journal or stdout and to a log file.

The file is written in the caller's thread, so that it holds everything up to a SIGKILL. The console (journal or stdout)
is written by a thread of its own, so that a reader that hangs blocks no other thread.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import structlog

from rmbgd import events
from rmbgd.config.load import ServiceSettings
from rmbgd.telemetry import jsonl
from rmbgd.telemetry.jsonl import JsonlFile

PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog's, as the journal filters by
# What an operator filters the journal by (`journalctl RMBGD_EVENT=image.failed`); the rest is in the line itself.
JOURNAL_KEYS = ("event", "level", "folder", "path", "job", "reason", "device", "model", "stage", "kind")
CONSOLE_QUEUE = 10_000  # lines that wait for the console; what comes beyond is dropped and counted
CLOSE_TIMEOUT = 2.0  # s for the console to write what waits when the log is closed
Fields = dict[str, bytes]


class EventLog(contextlib.AbstractContextManager["EventLog"]):
    """Writes events. `emit` is an events.Emit: safe from any thread and from signal handlers, and it never raises."""

    def __init__(self, file: JsonlFile | None, console: ConsoleWriter | None) -> None:
        self._file, self._console = file, console
        self._logger = _LevelledLogger(self, [_render], {})

    def emit(self, event: str, /, **keys: object) -> None:
        kind = events.EVENTS.get(event)
        self._logger.log(kind.level if kind else "warning", event, keys)

    @property
    def dropped(self) -> dict[str, int]:
        """Lines that could not be written, by sink."""
        sinks = {"file": self._file, "console": self._console}
        return {name: sink.dropped for name, sink in sinks.items() if sink is not None}

    def write(self, line: str, level: str, fields: Fields) -> None:
        """The end of structlog's chain; callers use `emit`."""
        if self._file is not None:
            self._file.write(line)
        if self._console is not None:
            self._console.put(line, level, fields)

    def __exit__(self, *_: object) -> None:
        """Write what waits for the console, within CLOSE_TIMEOUT. Emitting afterwards still reaches the file."""
        if self._console is not None:
            self._console.close()


class _LevelledLogger(structlog.BoundLoggerBase):  # the level comes from the vocabulary, not from the caller
    def log(self, level: str, event: str, keys: dict[str, object]) -> None:
        arguments, _ = self._process_event(level, event, keys)
        self._logger.write(*arguments)


def _render(_: Any, level: str, keys: structlog.typing.EventDict) -> tuple[tuple[str, str, Fields], Any]:
    own = {key: value for key, value in keys.items() if key not in events.ENVELOPE}
    keys = jsonl.envelope(keys["event"], level) | own
    fields = {f"RMBGD_{key.upper()}": os.fsencode(str(keys[key])) for key in JOURNAL_KEYS if keys.get(key) is not None}
    return (jsonl.to_json(keys), level, fields), {}


class ConsoleWriter:
    """Writes lines to the journal or to a descriptor, on a thread of its own, from a bounded queue.

    Not a logging.handlers.QueueListener: its `stop` waits without limit for a reader that hangs, and a queue.Queue,
    whose lock is not reentrant, would deadlock with an event emitted in a signal handler. `journal`: as
    systemd.journal.sendv, takes each field as b"NAME=value".
    """

    def __init__(self, *, descriptor: int | None = None, journal: Callable[..., object] | None = None) -> None:
        self.dropped = 0  # lines; an estimate when several threads drop at once
        self._descriptor, self._journal = descriptor, journal
        self._queue: queue.SimpleQueue[tuple[str, str, Fields] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log-console", daemon=True)
        self._thread.start()

    def put(self, line: str, level: str, fields: Fields) -> None:
        if self._queue.qsize() >= CONSOLE_QUEUE:
            self.dropped += 1
        else:
            self._queue.put((line, level, fields))

    def close(self) -> None:
        """A journal that hangs is abandoned after CLOSE_TIMEOUT."""
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            try:
                self._write(*entry)
            except OSError:  # the reader of our stdout has gone; the file goes on
                self.dropped += 1

    def _write(self, line: str, level: str, fields: Fields) -> None:
        if self._journal is not None:
            extra = [name.encode() + b"=" + value for name, value in fields.items()]
            extra.append(b"SYSLOG_IDENTIFIER=rmbgd")  # what the unit says holds for stdout only
            self._journal(b"MESSAGE=" + line.encode(), f"PRIORITY={PRIORITY.get(level, 6)}".encode(), *extra)
        elif self._descriptor is not None:
            rest = memoryview(line.encode() + b"\n")
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]


def open_log(service: ServiceSettings) -> EventLog:
    """The log that `service` asks for; to the journal when stdout or stderr already leads there, else to stdout."""
    console = None
    if _leads_to_journal(1) or _leads_to_journal(2):
        # Without the module the lines go to stdout, which the journal captures: only the extra fields are lost.
        with contextlib.suppress(ImportError):
            console = ConsoleWriter(journal=importlib.import_module("systemd.journal").sendv)
    return EventLog(JsonlFile(service.log_file) if service.log_file else None, console or ConsoleWriter(descriptor=1))


def _leads_to_journal(descriptor: int) -> bool:
    """Whether `descriptor` leads to the journal: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    with contextlib.suppress(OSError):
        status = os.fstat(descriptor)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False
