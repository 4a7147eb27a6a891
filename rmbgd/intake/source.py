"""Where images come from: the Source protocol that the local drop folders and a queue of leases implement.

A source hands out jobs as long as the decoders have room. Each is its own until it is finished or put back; meanwhile
the pipeline says when it moves on to a stage, by which a lease is kept alive.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

from rmbgd.intake.startup_recovery import Recovered
from rmbgd.intake.watcher import FolderWatch
from rmbgd.pipeline.items import Arrival, JobSource
from rmbgd.pipeline.queue import Sender
from rmbgd.store.records import Job


@dataclass(frozen=True, slots=True)
class IntakeQuestion:
    """What is there now? Of one folder, or of all; the `limit` images that have waited longest. Answered once.

    in_work   of images that are worked on; else of those that wait
    about     "sequences" asks for these; "end" ends `sequence`, or all, and answers which
    """

    in_work: bool
    folder: str | None
    limit: int
    about: str = "images"
    sequence: str | None = None
    answer: SimpleQueue[list[dict[str, object]]] = field(default_factory=SimpleQueue)


@dataclass(frozen=True, slots=True)
class IntakeStatistics:
    """For the health event. Replaced whole by the reconcile thread."""

    waiting: int = 0
    in_flight: int = 0
    oldest_waiting: float | None = None
    paused: str | None = None
    ledger_rows: int = 0
    folders: dict[str, dict[str, object]] = field(default_factory=dict)


class Source(JobSource, Protocol):
    """What the service drives. `run` has a thread of its own; `recover` and `hold_suspects` come before it, `release`
    after it. Any thread may call the others."""

    @property
    def watches(self) -> Sequence[FolderWatch]:
        """Of drop folders whose events are watched here."""
        ...

    def recover(self, alive: Callable[[], None]) -> Recovered:
        """End what the last run left unfinished; calls `alive` now and then."""
        ...

    def hold_suspects(self) -> None:
        """What the last run died with waits for another run."""
        ...

    def run(self, jobs: Sender[Job], refusals: Sender[Arrival]) -> None:
        """Take images until closed. `refusals` go straight to the finish stage."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None:
        """Take nothing more; `run` returns soon."""
        ...

    def rescan(self) -> None: ...

    def pause_by_operator(self, folders: Collection[str]) -> None:
        """Take nothing of these folders, and of all others again; "" means every one."""
        ...

    def ask(self, question: IntakeQuestion, timeout: float) -> list[dict[str, object]] | None:
        """None when it is busy with something for so many seconds."""
        ...

    def statistics(self) -> IntakeStatistics: ...

    def finish_returns(self) -> int:
        """Put back what came back after `run` had returned, when no thread of the pipeline is left; how many."""
        ...

    def release(self) -> None:
        """Give up what it holds: locks of folders, a connection. Also where it never ran."""
        ...
