"""Leases that a worker holds, by job; usable from every thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from rmbgd.fleet.attempts import Attempts
from rmbgd.fleet.lease import LeaseProgress
from rmbgd.fleet.message import Announcement
from rmbgd.fleet.pulls import Delivery
from rmbgd.store.records import Job


@dataclass(slots=True)
class Held:
    """A lease. `progress` is replaced by whichever thread moves it; the rest is the reconcile thread's."""

    delivery: Delivery
    announced: Announcement
    attempts: Attempts
    progress: LeaseProgress
    job: Job
    alone: bool = False
    is_dead: bool = False  # it is to be a dead letter


class HeldLeases:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, Held] = {}  # guarded by _lock

    def __len__(self) -> int:
        return len(self._held)

    def add(self, held: Held) -> None:
        with self._lock:
            self._held[held.job.job_id] = held

    def get(self, job: int) -> Held | None:
        with self._lock:
            return self._held.get(job)

    def remove(self, held: Held) -> None:
        with self._lock:
            self._held.pop(held.job.job_id, None)

    def all(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def moved(self, job: int, stage: str, now: float) -> None:
        with self._lock:
            if (held := self._held.get(job)) is not None:
                held.progress = replace(held.progress, stage=stage, moved_at=now)
