"""Named threads whose exceptions are reported to their owner instead of being lost."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThreadFailure:
    """A thread ended by an exception."""

    stage: str
    error: BaseException

    def traceback(self) -> str:
        return "".join(traceback.format_exception(self.error))


class ThreadGroup:
    """Belongs to the main thread. `on_failure` is called in the thread that failed."""

    def __init__(self, on_failure: Callable[[ThreadFailure], None]) -> None:
        self._on_failure = on_failure
        self._threads: list[threading.Thread] = []

    def start(self, name: str, body: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                body()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the owner must hear of it
                self._on_failure(ThreadFailure(name, error))

        # Daemon, so that a thread stuck in a sick disk or driver cannot keep the process from ending.
        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self, seconds: float) -> list[str]:
        """Wait for all threads, together at most that long. Names of those that have not ended."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread.name for thread in self._threads if thread.is_alive()]
