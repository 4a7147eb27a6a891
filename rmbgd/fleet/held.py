"""Leases that a worker holds, by job; usable from every thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from rmbgd.fleet.attempts import Attempts
from rmbgd.fleet.lease import LeaseProgress
from rmbgd.fleet.leased_sequence import LeasedSequence
from rmbgd.fleet.message import Announcement
from rmbgd.fleet.pulls import Delivery
from rmbgd.fleet.unit_locks import UnitLock
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
    lock: UnitLock | None = None  # of a film or a sequence
    sequence: LeasedSequence | None = None


class HeldLeases:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, Held] = {}  # guarded by _lock
        self._by_frame: dict[int, Held] = {}  # likewise: frames of sequences in the pipeline
        self._unbegun: set[int] = set()  # likewise: those of them that no decoder has taken yet

    def __len__(self) -> int:
        return len(self._held)

    def add(self, held: Held) -> None:
        with self._lock:
            self._held[held.job.job_id] = held

    def add_frame(self, held: Held, job: int) -> None:
        with self._lock:
            self._by_frame[job] = held
            self._unbegun.add(job)

    def unbegun(self) -> int:
        """Frames that wait for a decoder."""
        return len(self._unbegun)

    def pop_frame(self, job: int) -> Held | None:
        """The lease of a frame that has left the pipeline; None for what is no frame."""
        with self._lock:
            self._unbegun.discard(job)
            return self._by_frame.pop(job, None)

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
            if (held := self._held.get(job) or self._by_frame.get(job)) is not None:
                held.progress = replace(held.progress, stage=stage, moved_at=now)
            self._unbegun.discard(job)

    def describe(self, folder: str | None, limit: int, now: float) -> list[dict[str, object]]:
        """Those that were leased first."""
        jobs = sorted((held.job for held in self.all()), key=lambda job: job.claimed_at)
        return [
            {"folder": job.folder, "path": job.relative_path, "job": job.job_id, "attempt": job.attempt}
            | {"seconds": round(max(0.0, now - job.claimed_at), 3), "bytes": job.version.size}
            for job in [job for job in jobs if folder in (None, job.folder)][:limit]
        ]
