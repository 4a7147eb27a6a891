"""Looking at processes from the outside, without polling."""

from __future__ import annotations

import os
import select
import threading

from rmbgd.heartbeat import NullHeartbeat

PATIENCE = 60  # seconds after which a test has hung; nothing waits that long


def wait_until_gone(pid: int) -> bool:
    """True once the process, anybody's child, has ended; False when it has not within PATIENCE."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], PATIENCE)[0])
    finally:
        os.close(descriptor)


class SpyHeartbeat(NullHeartbeat):
    """A heartbeat that says when its thread is about to block."""

    def __init__(self) -> None:
        self.blocked = threading.Event()
        self.waiting, self.working = self.blocked.set, self.blocked.clear
