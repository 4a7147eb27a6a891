"""What C libraries and the interpreter write to descriptor 2, as `engine.output` events and not between the JSON lines.

Does not touch the engine's child process: its parent reads its stderr. faulthandler keeps the true stderr, because what
it writes, it writes while the process dies.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import selectors
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Self

from rmbgd.clock import Clock, SystemClock
from rmbgd.events import Emit

# --- How many lines of somebody else's output are passed on: many at once, few in the long run. Reads no clock.


LINES_AT_ONCE = 50  # lines that may come together before the rest is only counted
LINES_PER_SECOND = 5.0


class LineLimit:
    """A token bucket: LINES_AT_ONCE together, LINES_PER_SECOND in the long run. One thread only."""

    def __init__(self, now: float) -> None:
        self._tokens = float(LINES_AT_ONCE)
        self._at = now
        self._left_out = 0

    def allows(self, now: float) -> bool:
        self._tokens = min(LINES_AT_ONCE, self._tokens + (now - self._at) * LINES_PER_SECOND)
        self._at = now
        if self._tokens < 1:
            self._left_out += 1
            return False
        self._tokens -= 1
        return True

    def take_left_out(self) -> int:
        """Lines refused since the last call."""
        count, self._left_out = self._left_out, 0
        return count


# What C libraries and the interpreter write to descriptor 2, as `engine.output` events and not between the JSON lines.


LINE_MAXIMUM = 1000  # bytes of one line; decoders quote the file they choke on
PIPE_BYTES = 1 << 20  # what a library may write while it holds the interpreter lock and nobody can read
STDERR = 2


class StderrCapture:
    """Holds descriptor 2 until closed. The true stderr stays open as `original`."""

    def __init__(self, emit: Emit, *, clock: Clock | None = None) -> None:
        self._emit = emit
        self._clock = clock or SystemClock()
        self._limit = LineLimit(self._clock.monotonic())  # only the reading thread touches this
        self._flush_python()
        self.original = os.dup(STDERR)
        self._had_faulthandler = faulthandler.is_enabled()
        faulthandler.enable(self.original, all_threads=True)
        self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Not blocking: when nobody reads, a library loses its remarks instead of standing still with our locks in hand.
        with contextlib.suppress(OSError):  # beyond fs.pipe-max-size or the user's share: the usual 64 KiB serve too
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.dup2(writing, STDERR, inheritable=True)
        os.close(writing)
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="stderr", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._reading, selectors.EVENT_READ)
            selector.register(self._closing, selectors.EVENT_READ)
            rest = b""
            while True:
                ready = {key.fd for key, _ in selector.select()}
                rest = self._drain(rest)
                if self._closing in ready:
                    self._tell(rest)
                    return

    def _drain(self, rest: bytes) -> bytes:
        """Emit every whole line that is there; returns what has no end yet."""
        while True:
            try:
                data = os.read(self._reading, 65536)
            except BlockingIOError:
                return rest
            if not data:
                return rest
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                self._tell(line)
            if len(rest) > LINE_MAXIMUM:
                self._tell(rest)
                rest = b""

    def _tell(self, line: bytes) -> None:
        if not line.strip() or not self._limit.allows(self._clock.monotonic()):
            return
        if left_out := self._limit.take_left_out():
            self._emit("engine.output", source="service", line=f"({left_out} lines left out)")
        cut = b" ..." if len(line) > LINE_MAXIMUM else b""
        text = (line[:LINE_MAXIMUM] + cut).decode("utf-8", "backslashreplace")
        self._emit("engine.output", source="service", line=text)

    @staticmethod
    def _flush_python() -> None:
        if sys.stderr is not None:
            sys.stderr.flush()

    def show_stacks(self) -> None:
        """Where every thread stands, on the true stderr. Any thread: it holds the interpreter's lock meanwhile.

        What a signal makes the fault handler write comes without that lock, walks frames that change under it, and may
        end in the middle (seen with CPython 3.11): a thread that hangs is shown here first, while the others wait.
        """
        faulthandler.dump_traceback(self.original, all_threads=True)

    def close(self) -> None:
        """Give descriptor 2 back; what was written before is emitted first."""
        if self._closing < 0:
            return
        self._flush_python()
        os.dup2(self.original, STDERR, inheritable=True)
        if self._had_faulthandler:
            faulthandler.enable(STDERR, all_threads=True)
        else:
            faulthandler.disable()
        os.eventfd_write(self._closing, 1)
        self._thread.join()
        for descriptor in (self._closing, self._reading, self.original):
            os.close(descriptor)
        self._closing = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def capture_stderr(emit: Emit) -> StderrCapture:
    """Take descriptor 2 over until the returned capture is closed."""
    return StderrCapture(emit)


# --- What the engine's process writes to stdout and stderr, line by line and not too many of them.


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
