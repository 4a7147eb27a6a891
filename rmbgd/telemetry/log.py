"""Event log: every event as one JSON line in a log file, and for people or programs in the journal or on stdout.

The file is written in the caller's thread, so that it holds everything up to a SIGKILL. The console (journal or stdout)
is written by a thread of its own, so that a reader that hangs blocks no other thread.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import structlog

from rmbgd import events
from rmbgd.config.load import ServiceSettings
from rmbgd.telemetry import journal, jsonl
from rmbgd.telemetry.jsonl import JsonlFile
from rmbgd.telemetry.messages import message

FORMS = ("auto", "json", "text")  # of `rmbgd run --log`; auto: text for people, JSON for programs
CONSOLE_QUEUE = 10_000  # lines that wait for the console; what comes beyond is dropped and counted
CLOSE_TIMEOUT = 2.0  # s for the console to write what waits when the log is closed
COLOURS = {"debug": "2", "warning": "33", "error": "31", "critical": "1;31"}  # SGR, by level
Keys = Mapping[str, Any]


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

    def write(self, line: str, keys: Keys) -> None:
        """The end of structlog's chain; callers use `emit`."""
        if self._file is not None:
            self._file.write(line)
        if self._console is not None:
            self._console.put(line, keys)

    def __exit__(self, *_: object) -> None:
        """Write what waits for the console, within CLOSE_TIMEOUT. Emitting afterwards still reaches the file."""
        if self._console is not None:
            self._console.close()


class _LevelledLogger(structlog.BoundLoggerBase):  # the level comes from the vocabulary, not from the caller
    def log(self, level: str, event: str, keys: dict[str, object]) -> None:
        arguments, _ = self._process_event(level, event, keys)
        self._logger.write(*arguments)


def _render(_: Any, level: str, keys: structlog.typing.EventDict) -> tuple[tuple[str, Keys], Any]:
    own = {key: value for key, value in keys.items() if key not in events.ENVELOPE}
    keys = jsonl.envelope(keys["event"], level) | own
    return (jsonl.to_json(keys), keys), {}


class ConsoleWriter:
    """Writes lines to the journal or to a descriptor, on a thread of its own, from a bounded queue.

    Not a logging.handlers.QueueListener: its `stop` waits without limit for a reader that hangs, and a queue.Queue,
    whose lock is not reentrant, would deadlock with an event emitted in a signal handler. `send`: to the journal.
    `text`: sentences for people instead of JSON. `colour`: of the level, for terminals.
    """

    def __init__(
        self,
        *,
        descriptor: int | None = None,
        send: journal.Send | None = None,
        text: bool = False,
        colour: bool = False,
    ) -> None:
        self.dropped = 0  # lines; an estimate when several threads drop at once
        self._descriptor, self._send, self._text, self._colour = descriptor, send, text, colour
        self._queue: queue.SimpleQueue[tuple[str, Keys] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log-console", daemon=True)
        self._thread.start()

    def put(self, line: str, keys: Keys) -> None:
        if self._queue.qsize() >= CONSOLE_QUEUE:
            self.dropped += 1
        else:
            self._queue.put((line, keys))

    def close(self) -> None:
        """A journal that hangs is abandoned after CLOSE_TIMEOUT."""
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT)

    def _run(self) -> None:
        while (each := self._queue.get()) is not None:
            try:
                self._write(*each)
            except OSError:  # the reader of our stdout has gone; the file goes on
                self.dropped += 1

    def _write(self, line: str, keys: Keys) -> None:
        shown = message(keys["event"], keys) if self._text else line
        if self._send is not None:
            self._send(*journal.entry(shown, line, keys))
        elif self._descriptor is not None:
            shown = terminal_line(shown, keys, colour=self._colour) if self._text else shown
            rest = memoryview(shown.encode() + b"\n")
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]


def terminal_line(text: str, keys: Keys, *, colour: bool) -> str:
    """Local time, level, text."""
    level, at = keys["level"], datetime.fromisoformat(keys["time"]).astimezone()
    word = f"{level:<8}"
    if colour and level in COLOURS:
        word = f"\x1b[{COLOURS[level]}m{word}\x1b[0m"
    return f"{at:%H:%M:%S}  {word}  {text}"


def open_log(service: ServiceSettings, form: str = "auto") -> EventLog:
    """The log that `service` asks for; to the journal when stdout or stderr already leads there, else to stdout.

    `form`: one of FORMS. In the journal it is the message that is text or JSON; the whole event stands beside it.
    """
    if journal.leads_to_journal(1) or journal.leads_to_journal(2):
        console = ConsoleWriter(send=journal.open_journal(), text=form != "json")
    else:
        terminal = os.isatty(1)
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
        text = form == "text" or (form == "auto" and terminal)
        console = ConsoleWriter(descriptor=1, text=text, colour=terminal and not plain)
    return EventLog(JsonlFile(service.log_file) if service.log_file else None, console)
