"""Images that wait for review: which do, what was decided about each, and labels for the next fit of the score."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rmbgd.errors import Reason
from rmbgd.store.database import Database, Row
from rmbgd.store.output_names import OutputNames
from rmbgd.store.records import Published, SetFile, SetKey, Target

_WAITING = "WHERE state IN ('open', 'approving', 'rejecting')"
_SELECT = "SELECT job, folder, path, since, score, unusual, reasons, facts, state, person FROM review"
# The most doubtful first: by the score, those without one before; of equal ones the most unusual of its folder.
_ORDER = "ORDER BY score IS NOT NULL, score, abs(coalesce(unusual, 0)) DESC, job"
_BEGIN = (
    "UPDATE review SET state=?, person=? WHERE job=? AND state='open' AND NOT EXISTS (SELECT 1 FROM job "
    "WHERE job.folder=review.folder AND job.path=review.path AND job.state IN ('claimed', 'publishing'))"
)


@dataclass(frozen=True, slots=True)
class Review:
    """An image that waits, or waited. `path` below the input; `since` by the wall clock in s.

    reasons  why it waits, in words
    facts    what the score was computed from, and the version of its model
    state    open, or what is carried out: approving, rejecting; else what was decided: approved, rejected, replaced
    person   who decided it by a command
    """

    job_id: int
    folder: str
    path: str
    since: float
    score: float | None
    unusual: float | None
    reasons: tuple[str, ...]
    facts: Mapping[str, Any]
    state: str
    person: str | None


def waiting(db: sqlite3.Connection, limit: int, folder: str | None = None) -> list[Review]:
    """Of one folder, or of all; the most doubtful first."""
    query = f"{_SELECT} {_WAITING} AND (? IS NULL OR folder=?) {_ORDER} LIMIT ?"
    return [_review(row) for row in db.execute(query, (folder, folder, limit))]


def labels(db: sqlite3.Connection, folder: str | None = None) -> Iterator[dict[str, Any]]:
    """What people decided, in that order, with what the score was computed from."""
    query = (
        "SELECT job, folder, path, score, unusual, reasons, facts, state, decided_at FROM review "
        "WHERE state IN ('approved', 'rejected') AND (? IS NULL OR folder=?) ORDER BY decided_at, job"
    )
    for job_id, name, path, score, unusual, reasons, facts, label, decided_at in db.execute(query, (folder, folder)):
        known = {"job": job_id, "folder": name, "path": os.fsdecode(path), "label": label, "decided_at": decided_at}
        yield {**json.loads(facts), **known, "score": score, "unusual": unusual, "reasons": json.loads(reasons)}


class Reviews:
    """Usable from every thread. Raises LedgerFault.

    While a decision is carried out nothing of its input is claimed (Ledger.claim); none begins while that is in work.
    """

    def __init__(self, database: Database, output_names: OutputNames) -> None:
        self._database, self._names = database, output_names

    def count(self) -> int:
        query = "SELECT count(*) FROM review WHERE state IN ('open', 'approving', 'rejecting')"
        return int(self._database.all(query)[0][0])

    def waiting(self) -> list[Review]:
        return [_review(row) for row in self._database.all(f"{_SELECT} {_WAITING} {_ORDER}")]

    def find(self, job_id: int) -> Review | None:
        row = self._database.one(f"{_SELECT} WHERE job=?", (job_id,))
        return None if row is None else _review(row)

    def begin(self, job_id: int, state: str, person: str) -> Review | None:
        """An open one is to be in `state`: approving or rejecting. None where it is not open, or its input in work."""
        with self._database.transaction() as db:
            db.execute(_BEGIN, (state, person, job_id))
            rows = db.execute(f"{_SELECT} WHERE job=? AND state=?", (job_id, state)).fetchall()
        return _review(rows[0]) if rows else None

    def reopen(self, review: Review) -> None:
        """The decision cannot be carried out."""
        with self._database.transaction() as db:
            update = "UPDATE review SET state='open', person=NULL WHERE job=? AND state IN ('approving', 'rejecting')"
            db.execute(update, (review.job_id,))

    def publishing(self, key: SetKey, files: Sequence[SetFile]) -> tuple[list[Target], list[Target]]:
        """About to rename an approved set, as in Ledger.publishing."""
        with self._database.transaction() as db:
            targets, besides = self._names.assign(db, key, [file.name for file in files])
            self._names.announce(db, zip(targets, (file.sha256 for file in files), strict=True), besides)
        return targets, besides

    def published(self, root: str, review: Review, published: Published, removed: Sequence[Target]) -> None:
        """The approved set stands; what waits below `root` is as it was published, also where somebody edited it."""
        update = "UPDATE target SET sha256=?, size=? WHERE output=? AND folder=? AND source=? AND extension=?"
        of_input = (os.fsencode(root), review.folder, os.fsencode(review.path))
        with self._database.transaction() as db:
            self._names.publish(db, published)
            self._names.forget(db, removed)
            for file in published.files:
                db.execute(update, (file.sha256, file.size, *of_input, file.slot))

    def approved(self, root: str, review: Review, published: Published) -> None:
        """Nothing of it waits below `root` any more. What people moved becomes the input's own."""
        key = SetKey(published.output, review.folder, review.path)
        update = "UPDATE job SET verdict='ok', target=?, sha256_out=?, size_out=? WHERE id=?"
        with self._database.transaction() as db:
            self._names.adopt(db, key, published)
            first = (os.fsencode(published.path), published.sha256, published.size)
            db.execute(update, (*first, review.job_id))
            self._settle(db, root, review, "approved")

    def rejected(self, root: str, review: Review, detail: str) -> None:
        update = "UPDATE job SET verdict='rejected', reason=?, detail=? WHERE id=?"
        with self._database.transaction() as db:
            db.execute(update, (str(Reason.REJECTED_IN_REVIEW), detail, review.job_id))
            self._settle(db, root, review, "rejected")

    def _settle(self, db: sqlite3.Connection, root: str, review: Review, decision: str) -> None:
        update = "UPDATE review SET state=?, decided_at=? WHERE job=?"
        db.execute(update, (decision, self._database.wall(), review.job_id))
        delete = "DELETE FROM target WHERE output=? AND folder=? AND source=?"
        db.execute(delete, (os.fsencode(root), review.folder, os.fsencode(review.path)))


def _review(row: Row) -> Review:
    job_id, folder, path, since, score, unusual, reasons, facts, state, person = row
    told = (score, unusual, tuple(json.loads(reasons)), json.loads(facts))
    return Review(job_id, folder, os.fsdecode(path), since, *told, state, person)
