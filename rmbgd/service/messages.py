"""Messages to the main thread: signals, readiness, and threads that failed; one queue, one reader."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from queue import SimpleQueue

from rmbgd.events import LEDGER_DAMAGED
from rmbgd.service.threads import ThreadFailure


@dataclass(frozen=True, slots=True)
class Signalled:
    number: int


class Milestone(Enum):
    """What the service waits for before it is ready."""

    ENGINE = "an engine has answered"
    FOLDERS = "every folder that is there has been compared with the ledger once"


class Trouble(Enum):
    """What ends a life of the service, and is mended by the next one in the same process."""

    LEDGER = LEDGER_DAMAGED


Message = Signalled | Milestone | Trouble | ThreadFailure


@contextmanager
def signals(messages: SimpleQueue[Message]) -> Iterator[None]:
    """Every signal becomes a message at once, by way of the interpreter's wakeup descriptor. The main thread's.

    A handler in Python would not do: it runs when the main thread gets to it, and a signal that comes between that
    thread's last look and its wait for a message would be noticed only with the next message, which may never come.
    """
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def relay() -> None:
        while received := reading.recv(64):  # nothing: the other end is closed
            for number in received:
                if number in numbers:
                    messages.put(Signalled(number))

    thread = threading.Thread(target=relay, name="signals", daemon=True)
    thread.start()
    former_descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
        signal.set_wakeup_fd(former_descriptor)
        writing.close()
        thread.join()
        reading.close()
