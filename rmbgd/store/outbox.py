"""Transactional outbox: the event of each outcome, stored with the outcome, delivered once.

A process that is killed between ending a job and writing its event takes the event with it. The next start finds it in
the table `untold` and delivers it then.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rmbgd.errors import Reason
from rmbgd.events import Emit
from rmbgd.store.database import Database, Row
from rmbgd.store.records import Job

_STORED = (
    "SELECT id, folder, path, attempt, state, target, size_out, sha256_out, reason, detail, keys "
    "FROM untold JOIN job ON id=job"
)
_KEYS_OF_THE_ROW = {"job", "folder", "path", "attempt", "output", "bytes_out", "sha256_out", "reason", "detail"}


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job ended: the whole event that says so, but for what is known only when it has been published."""

    event: str
    keys: dict[str, Any]

    @property
    def job_id(self) -> int:
        return int(self.keys["job"])

    def add(self, **keys: object) -> None:
        self.keys.update(keys)


def job_keys(job: Job) -> dict[str, object]:
    """What every event of a job begins with."""
    keys: dict[str, object] = {
        "job": job.job_id,
        "folder": job.folder,
        "path": job.relative_path,
        "attempt": job.attempt,
    }
    if job.leased is not None:
        keys |= {"fingerprint": job.leased.fingerprint} | ({"lease": job.leased.lease} if job.leased.lease else {})
    if job.turn is not None:
        keys |= {"sequence": job.turn.sequence}
        keys |= {} if job.turn.number is None else {"frame": job.turn.number}
    return keys


def refused(
    job: Mapping[str, object],
    reason: Reason,
    detail: str,
    *,
    stage: str = "intake",
    milliseconds: Mapping[str, float] | None = None,
    sha256_in: str | None = None,
) -> JobOutcome:
    """The outcome of a job (its `job_keys`) that is refused; by default before any stage has worked on it."""
    known = {} if sha256_in is None else {"sha256_in": sha256_in}
    keys = {**job, "milliseconds": dict(milliseconds or {}), "stage": stage, **known}
    return JobOutcome("image.failed", {**keys, "reason": str(reason), "detail": detail})


class Outbox:
    """One row per job. Methods that take a connection are part of a transaction of the ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, db: sqlite3.Connection, outcome: JobOutcome) -> None:
        """Store what the row of the job does not hold: a version before this one reads those keys from both."""
        keys = {key: value for key, value in outcome.keys.items() if key not in _KEYS_OF_THE_ROW}
        db.execute("INSERT OR REPLACE INTO untold VALUES (?,?)", (outcome.job_id, json.dumps(keys)))

    def drop(self, db: sqlite3.Connection, job_id: int) -> None:
        """The job goes on, or is forgotten: there is no outcome to deliver."""
        db.execute("DELETE FROM untold WHERE job=?", (job_id,))

    def deliver(self, outcome: JobOutcome, emit: Emit | None) -> None:
        """Emit the event, or not where it was before; forget it with the next transaction: at worst it comes twice."""
        if emit is not None:
            emit(outcome.event, **outcome.keys)
        self._database.defer("DELETE FROM untold WHERE job=?", (outcome.job_id,))

    def pending(self, job_id: int) -> JobOutcome | None:
        """The outcome of a job, done or failed, whose event may be missing from the log."""
        return next(iter(self._select("id=?", job_id)), None)

    def deliver_pending(self, emit: Emit) -> int:
        """Deliver what the last run may not have delivered of jobs with which nothing else is left to do; how many."""
        found = self._select("retired_at IS NOT NULL")
        for outcome in found:
            outcome.add(recovered=True)
            self.deliver(outcome, emit)
        return len(found)

    def _select(self, condition: str, *values: object) -> list[JobOutcome]:
        return [_stored(row) for row in self._database.all(f"{_STORED} WHERE {condition} ORDER BY id", values)]


def _stored(row: Row) -> JobOutcome:
    """Earlier versions stored only those keys that the job's row does not hold."""
    job_id, folder, path, attempt, state, target, size, sha256, reason, detail, keys = row
    job = {"job": job_id, "folder": folder, "path": os.fsdecode(path), "attempt": attempt}
    if state == "failed":
        why = {"reason": reason or str(Reason.CORRUPT), "detail": detail or ""}
        return JobOutcome("image.failed", job | why | json.loads(keys))
    output = {"output": None if target is None else os.fsdecode(target), "bytes_out": size, "sha256_out": sha256}
    return JobOutcome("image.done", job | output | json.loads(keys))
