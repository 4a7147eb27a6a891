"""Outcomes that may not have been told yet: what their events will say is in the ledger before they are, until after.

A process that is killed between ending an image and telling so takes the event with it. What is found here at the next
start is told then. Part of the ledger; decides nothing and emits nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping

from rmbgd.store.database import Store


class Outbox:
    """One row per job. Those methods that take a connection are part of a transaction of the ledger's."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, db: sqlite3.Connection, job_id: int, keys: Mapping[str, object] | None) -> None:
        """`keys` of the event that the job's row does not hold. None: what is known already stays."""
        if keys is not None:
            db.execute("INSERT OR REPLACE INTO untold VALUES (?,?)", (job_id, json.dumps(keys)))

    def drop(self, db: sqlite3.Connection, job_id: int) -> None:
        """The job goes on, or is forgotten: there is no outcome to be told."""
        db.execute("DELETE FROM untold WHERE job=?", (job_id,))

    def forget(self, db: sqlite3.Connection) -> None:
        """Rows of jobs that are remembered no more."""
        db.execute("DELETE FROM untold WHERE job NOT IN (SELECT id FROM job)")

    def told(self, job_id: int) -> None:
        """The event is written. On the disk with the next transaction: at worst it is told once more."""
        self._store.later("DELETE FROM untold WHERE job=?", (job_id,))

    def keys(self) -> dict[int, dict[str, object]]:
        """Job number -> keys, of every job whose event may be missing; its outcome is in the job's row."""
        return {job_id: json.loads(keys) for job_id, keys in self._store.all("SELECT job, keys FROM untold")}
