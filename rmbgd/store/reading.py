"""Reads how jobs ended, beside the service that writes the ledger: what failed, waits for review, and was done.

Over a connection of its own that can only read: nobody waits for it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from rmbgd.store.copies import connect, schema_of
from rmbgd.store.database import Row
from rmbgd.store.refusals import ledger_faults
from rmbgd.store.schema import SCHEMA_VERSION

_SELECT = (
    "SELECT id, folder, path, state, size, mtime_ns, by_rename, retired_at IS NOT NULL, ended_at, reason, detail, "
    "target, size_out, verdict, width, height, device, seconds FROM job"
)
# An original that was adopted has no target: it was not processed.
_ENDED = "(state='failed' OR state='done' AND target IS NOT NULL) AND ended_at>=? AND (? IS NULL OR +folder=?)"
KINDS = ("failed", "review", "empty", "full", "done")
"""Of jobs that are over, the oddest first."""
_WAITS = "id IN (SELECT job FROM review WHERE state IN ('open', 'approving', 'rejecting'))"
_ODD = (
    "CASE WHEN state='failed' OR verdict='rejected' THEN 0 WHEN verdict='review' THEN 1 WHEN verdict='empty' THEN 2 "
    "WHEN verdict='full' THEN 3 ELSE 4 END"
)


@dataclass(frozen=True, slots=True)
class Ending:
    """A job that is over, and its original's `size` and `mtime_ns`.

    settled  the original is where it belongs: nothing is left to do
    """

    job_id: int
    folder: str
    path: str
    state: str
    size: int
    mtime_ns: int
    by_rename: bool
    settled: bool
    ended_at: float
    reason: str | None
    detail: str | None
    output: str | None
    size_out: int | None
    verdict: str | None
    width: int | None
    height: int | None
    device: str | None
    seconds: float | None

    @property
    def kind(self) -> str:
        """One of KINDS; what was rejected in review has failed."""
        if self.state == "done" and self.verdict == "rejected":
            return "failed"
        return self.verdict if self.state == "done" and self.verdict in KINDS else self.state


@contextlib.contextmanager
def reading(path: str) -> Iterator[sqlite3.Connection]:
    """The ledger at `path`. Raises LedgerFault, also for one of another schema."""
    # Without this file nobody has it open, and SQLite is not to make files beside it.
    mode = "ro" if os.path.exists(f"{path}-wal") else "ro&immutable=1"
    with ledger_faults(path), contextlib.closing(connect(path, mode)) as db:
        version = schema_of(db)
        if version != SCHEMA_VERSION:
            raise sqlite3.OperationalError(f"it is of schema {version}, and this rmbgd reads {SCHEMA_VERSION}")
        yield db


def newest(db: sqlite3.Connection, state: str, limit: int, folder: str | None = None) -> list[Ending]:
    """The last `limit` jobs that ended as `state`, the newest first: failed by their end, others by their claim."""
    order = "ended_at" if state == "failed" else "id"  # the first has an index of its own, the second needs none
    ended = _WAITS if state == "review" else f"state='{state}'"
    # The unary plus keeps SQLite from sorting all jobs of a folder to find the last few.
    where = f"WHERE {ended} AND (? IS NULL OR +folder=?) ORDER BY {order} DESC LIMIT ?"
    return [_ending(row) for row in db.execute(f"{_SELECT} {where}", (folder, folder, limit))]


def oddest(db: sqlite3.Connection, since: float, limit: int, folder: str | None = None) -> list[Ending]:
    """Up to `limit` jobs that ended after `since`: by their kind, then the newest first."""
    query = f"{_SELECT} WHERE {_ENDED} ORDER BY {_ODD}, ended_at DESC, id DESC LIMIT ?"
    return [_ending(row) for row in db.execute(query, (since, folder, folder, limit))]


def counts_of_kinds(db: sqlite3.Connection, since: float, folder: str | None = None) -> dict[str, int]:
    """How many of each kind ended after `since`, of which `oddest` answers the first."""
    query = f"SELECT {_ODD}, count(*) FROM job WHERE {_ENDED} GROUP BY 1"  # noqa: S608 - our own words
    found = dict(db.execute(query, (since, folder, folder)).fetchall())
    return {kind: found.get(place, 0) for place, kind in enumerate(KINDS)}


def failures(db: sqlite3.Connection, folder: str) -> dict[int, Ending]:
    """Every job of a folder that failed, by number, the oldest first."""
    query = f"{_SELECT} WHERE state='failed' AND +folder=? ORDER BY ended_at"
    return {found.job_id: found for found in map(_ending, db.execute(query, (folder,)))}


def _ending(row: Row) -> Ending:
    job_id, folder, path, state, size, mtime_ns, by_rename, settled, ended_at, reason, detail, target, *made = row
    output = None if target is None else os.fsdecode(target)
    original = (size, mtime_ns, bool(by_rename), bool(settled))
    return Ending(job_id, folder, os.fsdecode(path), state, *original, ended_at, reason, detail, output, *made)
