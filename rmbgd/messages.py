"""What the main thread is told: signals, readiness, and parts that broke. One queue, one reader.

Does not act on any of it: daemon.py does.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from rmbgd.crew import Broken
from rmbgd.engine.base import EngineDescription


@dataclass(frozen=True, slots=True)
class Signalled:
    number: int


@dataclass(frozen=True, slots=True)
class EngineReady:
    description: EngineDescription


@dataclass(frozen=True, slots=True)
class Compared:
    """Every folder that is there has been compared with the ledger once."""


Message = Signalled | EngineReady | Compared | Broken


@contextmanager
def signals(messages: SimpleQueue[Message]) -> Iterator[None]:
    """Every signal becomes a message at once, by way of the interpreter's wakeup descriptor. The main thread's.

    A handler in Python would not do: it runs when the main thread gets to it, and a signal that comes between that
    thread's last look and its wait for a message would be noticed only with the next message, which may never come.
    """
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    relay = threading.Thread(target=_relay, args=(reading, messages, numbers), name="signals", daemon=True)
    relay.start()
    former_descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
        signal.set_wakeup_fd(former_descriptor)
        writing.close()
        relay.join()
        reading.close()


def keep_signals(messages: SimpleQueue[Message]) -> None:
    """Forget what else is in there: it is of a service that has ended, and signals are meant for the process."""
    kept = []
    with suppress(Empty):
        while True:
            kept.append(messages.get_nowait())
    for message in kept:
        if isinstance(message, Signalled):
            messages.put(message)


def _relay(reading: socket.socket, messages: SimpleQueue[Message], numbers: Collection[int]) -> None:
    """Until the other end is closed."""
    while received := reading.recv(64):
        for number in received:
            if number in numbers:
                messages.put(Signalled(number))
