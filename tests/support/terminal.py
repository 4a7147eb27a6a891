"""A command on a terminal of its own: what it draws, keys, and the size of the window."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from types import TracebackType
from typing import Self

DEADLINE = 60.0  # s for what takes tenths of one: the machine may be busy
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """The command's controlling terminal, so that Ctrl-C is what it is elsewhere."""

    def __init__(self, *command: str, rows: int = 40, columns: int = 100, **environ: str) -> None:
        self._ours, theirs = os.openpty()
        self.raw = ""  # everything drawn so far
        self.resize(rows, columns)
        given = {**os.environ, "TERM": "xterm-256color", **environ}
        for name in ("COLUMNS", "LINES"):
            given.pop(name, None)
        whole = ["setsid", "--ctty", "--wait", *command]
        self._process = subprocess.Popen(whole, stdin=theirs, stdout=theirs, stderr=theirs, env=given)
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._ours)  # a hang-up, for a command that still runs
        self._process.wait(DEADLINE)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def read_until(self, text: str) -> str:
        """What is drawn from now on, without escapes, up to a piece that holds `text`."""
        drawn, deadline = "", time.monotonic() + DEADLINE
        while text not in (plain := ESCAPES.sub("", drawn)):
            if not (piece := self._read(deadline)):
                raise AssertionError(f"no {text!r} in {plain!r}")
            drawn += piece
        return plain

    def wait(self) -> int:
        """Exit status of the command, everything read."""
        while self._read(time.monotonic() + DEADLINE):
            pass
        return self._process.wait(DEADLINE)

    def _read(self, deadline: float) -> str:
        """Empty when it has ended, or does not draw any more."""
        if not select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return ""
        try:
            piece = os.read(self._ours, 1 << 16).decode("utf-8", "replace")
        except OSError:  # EIO: nobody has the other end open
            return ""
        self.raw += piece
        return piece
