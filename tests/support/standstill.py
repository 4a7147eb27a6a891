"""Stops a process by SIGSTOP, and returns once it stands still: when kill returns, the signal is only on its way."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

PATIENCE = 20.0  # s
LOOK_AGAIN = 0.002  # s


def stand_still(pid: int) -> None:
    """Until SIGCONT or SIGKILL; every thread of it."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE
    while not _stands(pid):
        assert time.monotonic() < deadline, f"process {pid} goes on after SIGSTOP"
        time.sleep(LOOK_AGAIN)


def _stands(pid: int) -> bool:
    """Is each of its threads stopped, or dead? A stat line ends as "(name) STATE ..."."""
    threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(line.rpartition(")")[2].split()[0] in "TZX" for line in threads)
