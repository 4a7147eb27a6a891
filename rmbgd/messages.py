"""What the main thread is told: signals, readiness, and parts that broke. One queue, one reader.

Does not act on any of it: daemon.py does.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from types import FrameType

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
    """Handlers only leave a message; SimpleQueue.put is safe in them."""

    def handler(number: int, _frame: FrameType | None) -> None:
        messages.put(Signalled(number))

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
