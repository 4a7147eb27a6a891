"""Signals as messages: none is lost, whatever the main thread is doing when it comes."""

from __future__ import annotations

import os
import signal
from queue import SimpleQueue

from rmbgd.service.messages import Message, Signalled, signals


def test_signals_arrive_in_order_while_the_main_thread_runs_or_waits() -> None:
    """Each signal that is sent becomes one message, and the former handlers are back afterwards."""
    before = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)
    messages: SimpleQueue[Message] = SimpleQueue()
    with signals(messages):
        for number in (signal.SIGHUP, signal.SIGTERM) * 200:
            os.kill(os.getpid(), number)
            assert messages.get(timeout=30.0) == Signalled(number)
    assert (signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)) == before
