"""Captures the output of C libraries and the engine process as rate-limited lines."""

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

from rmbgd.clock import Clock, SystemClock
from rmbgd.events import Emit

LINES_AT_ONCE = 50  # lines that may come together before the rest is only counted
LINES_PER_SECOND = 5.0
LINE_MAXIMUM = 1000  # bytes of one line; decoders quote the file they choke on
LAST_WORDS = 6  # lines; what a dying process says is at its end
PIPE_BYTES = 1 << 20  # what a library may write while it holds the interpreter lock and nothing can read
STDERR = 2


class OutputLines:
    """Splits output into lines and passes them to `on_line`, not too long and not too many. One thread only."""

    def __init__(self, on_line: Callable[[str], None], clock: Clock) -> None:
        self._on_line, self._clock = on_line, clock
        self._tokens, self._at = float(LINES_AT_ONCE), clock.monotonic()  # a token bucket: each line takes one
        self._left_out = 0
        self._rest = b""  # of a line without an end yet
        self._last: deque[str] = deque(maxlen=LAST_WORDS)  # replaced and read whole; deque operations are atomic

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > LINE_MAXIMUM:
            lines.append(self._rest[:LINE_MAXIMUM])
            self._rest = self._rest[LINE_MAXIMUM:]
        for line in lines:
            self._pass_on(line)

    def finish(self) -> None:
        self._pass_on(self._rest)
        self._rest = b""
        self._report_left_out()

    def last_words(self) -> str:
        """The last lines, joined; also those that were not passed on. Any thread may ask."""
        return " | ".join(self._last.copy())

    def _pass_on(self, line: bytes) -> None:
        text = line[:LINE_MAXIMUM].decode("utf-8", "backslashreplace").rstrip()
        if not text:
            return
        text += " ..." * (len(line) > LINE_MAXIMUM)
        self._last.append(text)
        now = self._clock.monotonic()
        self._tokens = min(LINES_AT_ONCE, self._tokens + (now - self._at) * LINES_PER_SECOND)
        self._at = now
        if self._tokens < 1:
            self._left_out += 1
        else:
            self._tokens -= 1
            self._report_left_out()
            self._on_line(text)

    def _report_left_out(self) -> None:
        if self._left_out:
            self._on_line(f"({self._left_out} lines left out)")
            self._left_out = 0


class StderrCapture(contextlib.AbstractContextManager["StderrCapture"]):
    """A context that holds descriptor 2, and emits what C libraries and the interpreter write to it.

    The true stderr stays open as `original`. faulthandler keeps it, because what that writes, it writes while the
    process dies. The engine process is captured by its own parent side, not here.
    """

    def __init__(self, emit: Emit) -> None:
        # Only the reading thread touches it.
        self._lines = OutputLines(lambda line: emit("engine.output", source="service", line=line), SystemClock())
        if sys.stderr is not None:
            sys.stderr.flush()
        self.original = os.dup(STDERR)
        self._had_faulthandler = faulthandler.is_enabled()
        faulthandler.enable(self.original, all_threads=True)
        # Not blocking: when nothing reads, a library loses text instead of standing still with our locks in hand.
        self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # beyond fs.pipe-max-size or the user's share: the usual 64 KiB serve too
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.dup2(writing, STDERR, inheritable=True)
        os.close(writing)
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)  # the pipe's end would not do: child processes may hold it open
        self._thread = threading.Thread(target=self._run, name="stderr", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._reading, selectors.EVENT_READ)
            selector.register(self._closing, selectors.EVENT_READ)
            closing = False
            while not closing:
                closing = any(key.fd == self._closing for key, _ in selector.select())
                with contextlib.suppress(BlockingIOError):
                    while data := os.read(self._reading, 65536):
                        self._lines.feed(data)
        self._lines.finish()

    def show_stacks(self) -> None:
        """Write the stacks of all threads to the true stderr. Any thread: it holds the interpreter's lock meanwhile.

        What a signal makes faulthandler write comes without that lock, walks frames that change under it, and may end
        in the middle (seen with CPython 3.11). So a thread that hangs is shown here first, while the others wait.
        """
        faulthandler.dump_traceback(self.original, all_threads=True)

    def __exit__(self, *_: object) -> None:
        """Give descriptor 2 back; what was written before is emitted first."""
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(self.original, STDERR, inheritable=True)
        faulthandler.disable()
        if self._had_faulthandler:
            faulthandler.enable(STDERR, all_threads=True)
        os.eventfd_write(self._closing, 1)
        self._thread.join()
        for descriptor in (self._closing, self._reading, self.original):
            os.close(descriptor)
