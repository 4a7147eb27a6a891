"""What the engine's process writes to stdout and stderr, line by line and not too many of them.

Does not read the pipe and knows nothing of processes: the keeper thread feeds it, and is the only one to do so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from rmbgd.clock import Clock
from rmbgd.linelimit import LineLimit

LINE_MAXIMUM = 1000  # bytes; longer lines are cut, so that a process which never ends its line cannot fill memory
LAST_WORDS = 6  # lines; what a dying process says is at its end


class OutputLines:
    def __init__(self, on_line: Callable[[str], None], clock: Clock) -> None:
        self._on_line = on_line
        self._clock = clock
        self._limit = LineLimit(clock.monotonic())
        self._rest = b""
        self._last: deque[str] = deque(maxlen=LAST_WORDS)  # replaced and read whole; deque operations are atomic

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._pass_on(line)
        while len(self._rest) > LINE_MAXIMUM:
            self._pass_on(self._rest[:LINE_MAXIMUM])
            self._rest = self._rest[LINE_MAXIMUM:]

    def finish(self) -> None:
        """The process has closed its output."""
        self._pass_on(self._rest)
        self._rest = b""
        self._tell_left_out()

    def last_words(self) -> str:
        """The last lines, joined; also those that were not passed on. Any thread may ask."""
        return " | ".join(self._last.copy())

    def _pass_on(self, line: bytes) -> None:
        text = line[:LINE_MAXIMUM].decode("utf-8", "backslashreplace").rstrip()
        if not text:
            return
        self._last.append(text)
        if self._limit.allows(self._clock.monotonic()):
            self._tell_left_out()
            self._on_line(text)

    def _tell_left_out(self) -> None:
        if left_out := self._limit.take_left_out():
            self._on_line(f"({left_out} lines left out)")
