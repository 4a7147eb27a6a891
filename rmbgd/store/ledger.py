"""The ledger: which version of which input was claimed, how often it was tried, and how it ended. One SQLite file.

Remembers; does not look at folders and moves nothing. Every method is one transaction and on the disk when it returns,
except `retired`, which rides on the next one: forgetting it costs a look at start-up and nothing else.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping

from rmbgd import naming as names
from rmbgd.clock import Clock
from rmbgd.errors import Reason
from rmbgd.fs import FileVersion
from rmbgd.store.database import SCHEMA_VERSION, Row, Store, signed, storable, unsigned, version_values
from rmbgd.store.outbox import Outbox
from rmbgd.store.output_names import OutputNames
from rmbgd.store.records import Candidate, ContentKey, Job, Known, OutputKey, Published, Target, Unfinished

__all__ = ["Candidate", "ContentKey", "Known", "Ledger", "OutputKey", "Published", "Target", "Unfinished"]

DAY = 86_400.0
REMEMBERED_DAYS = 30.0
REMEMBERED_ROWS = 1_000_000

_UNFINISHED = (
    "SELECT id, folder, path, inode, size, mtime_ns, ctime_ns, state, attempt, by_rename, final, first_seen, target, "
    "sha256_out, size_out, reason, detail FROM job"
)


def _unfinished(row: Row) -> Unfinished:
    (job_id, folder, path, inode, size, mtime, ctime, state, attempt, by_rename, final, seen, target, *rest) = row
    version = FileVersion(unsigned(inode), size, mtime, ctime)
    target = None if target is None else os.fsdecode(target)
    path = os.fsdecode(path)
    return Unfinished(job_id, folder, path, version, state, attempt, bool(by_rename), bool(final), seen, target, *rest)


class Ledger:
    """Usable from every thread. Raises StorageFault from every method, ConfigError at opening."""

    def __init__(self, path: str | os.PathLike[str], clock: Clock) -> None:
        self._clock = clock
        self._store = Store(os.fspath(path), clock)
        self.targets = OutputNames(self._store)
        self.untold = Outbox(self._store)

    @property
    def path(self) -> str:
        return self._store.path

    @property
    def is_new(self) -> bool:
        """The file did not exist before: whatever lies in claim folders and beside outputs is not in it."""
        return self._store.is_new

    def close(self) -> None:
        self._store.close()

    # ---------------------------------------------------------------------------------------------- claims

    def claim(self, candidates: Iterable[Candidate]) -> list[Job]:
        """A job for each candidate, its attempt counted; all in one commit.

        A candidate whose path has an older version in flight gets none: it is claimed when that one has ended.
        """
        now, wall = self._clock.monotonic(), self._store.wall()
        jobs: list[Job] = []
        with self._store.transaction() as db:
            for candidate in candidates:
                seen = wall - (now - candidate.first_seen)
                claimed = _reclaim(db, candidate, wall) or _insert(db, candidate, seen, wall)
                if claimed is not None:
                    jobs.append(_job(candidate, *claimed, now))
        return jobs

    def next_attempt(self, row: Unfinished, source: str) -> Job:
        """The same job once more, after a crash; the attempt is counted before the work begins."""
        now, wall = self._clock.monotonic(), self._store.wall()
        with self._store.transaction() as db:
            update = "UPDATE job SET state='claimed', attempt=attempt+1, claimed_at=? WHERE id=?"
            db.execute(update, (wall, row.job_id))
            self.untold.drop(db, row.job_id)
        seen = min(now, now - (wall - row.first_seen))
        attempt, by_rename, final = row.attempt + 1, row.by_rename, row.final
        return Job(row.job_id, row.folder, row.relative_path, source, row.version, attempt, seen, now, by_rename, final)

    def release(self, job_ids: Iterable[int]) -> None:
        """Postponed, not tried: the attempt is taken back, and without any the row is forgotten."""
        with self._store.transaction() as db:
            for job_id in job_ids:
                db.execute("UPDATE job SET state='waiting', attempt=attempt-1 WHERE id=?", (job_id,))
                db.execute("DELETE FROM job WHERE id=? AND attempt<=0", (job_id,))
                self.untold.drop(db, job_id)

    def in_flight(self, folder: str, relative_path: str) -> bool:
        """Is a version of this path being worked on?"""
        query = "SELECT 1 FROM job WHERE folder=? AND path=? AND state IN ('claimed','publishing')"
        return self._store.one(query, (folder, os.fsencode(relative_path))) is not None

    def is_in_flight(self, job_id: int) -> bool:
        query = "SELECT 1 FROM job WHERE id=? AND state IN ('claimed','publishing')"
        return self._store.one(query, (job_id,)) is not None

    def owner_of(self, job_id: int) -> tuple[str, str] | None:
        """(folder, relative path) of a job in flight or not yet retired: its claimed file is no orphan."""
        query = "SELECT folder, path FROM job WHERE id=? AND retired_at IS NULL AND state<>'waiting'"
        row = self._store.one(query, (job_id,))
        return None if row is None else (row[0], os.fsdecode(row[1]))

    def handled(self, folder: str, relative_path: str, version: FileVersion) -> bool:
        """Was this very version answered while it stayed in place (originals = "keep", refused entries)?

        What was claimed by rename is gone from its path: whatever stands there now is new, however alike it looks.
        """
        query = (
            "SELECT 1 FROM job WHERE folder=? AND path=? AND inode=? AND size=? AND mtime_ns=? AND ctime_ns=? "
            "AND by_rename=0 AND state IN ('done','failed')"
        )
        return self._store.one(query, (folder, os.fsencode(relative_path), *version_values(version))) is not None

    # ---------------------------------------------------------------------------------------------- outcomes

    def publishing(
        self,
        job_id: int,
        key: OutputKey,
        below: str,
        sha256: str,
        size: int,
        telling: Mapping[str, object] | None = None,
    ) -> Target:
        """About to rename: after a crash, a file of this hash at the target means that the rename has happened.

        Answers the target as it was before: its `pending` and `sha256` tell which files there are ours. `telling`: what
        the event will say beyond the row, here and below; whoever has emitted it calls `untold.told`.
        """
        with self._store.transaction() as db:
            target = self.targets.assign(db, key, below)
            output, path = os.fsencode(target.output), os.fsencode(target.path)
            update = "UPDATE job SET state='publishing', target=?, sha256_out=?, size_out=? WHERE id=?"
            db.execute(update, (path, sha256, size, job_id))
            db.execute("UPDATE target SET pending=? WHERE output=? AND target=?", (sha256, output, path))
            self.untold.put(db, job_id, telling)
        return target

    def done(
        self,
        job_id: int,
        published: Published,
        *,
        content: ContentKey | None = None,
        report: Mapping[str, object] | None = None,
        retired: bool = False,
        telling: Mapping[str, object] | None = None,
    ) -> None:
        """The output stands. `retired`: nothing is left to do with the original. `content` makes it known for reuse."""
        wall = self._store.wall()
        output, path = os.fsencode(published.output), os.fsencode(published.path)
        sha256, size, identity = published.sha256, published.size, (signed(published.inode), published.mtime_ns)
        with self._store.transaction() as db:
            db.execute(
                "UPDATE job SET state='done', ended_at=?, retired_at=?, target=?, sha256_out=?, size_out=? WHERE id=?",
                (wall, wall if retired else None, path, sha256, size, job_id),
            )
            db.execute(
                "UPDATE target SET pending=NULL, sha256=?, size=?, inode=?, mtime_ns=?, sidecar=?, used_at=? "
                "WHERE output=? AND target=?",
                (sha256, size, *identity, published.sidecar, wall, output, path),
            )
            if content is not None:
                db.execute(
                    "INSERT OR REPLACE INTO content VALUES (?,?,?,?,?,?,?,?)",
                    (*_key(content), output, path, sha256, size, json.dumps(dict(report or {})), wall),
                )
            self.untold.put(db, job_id, telling)

    def failed(self, job_id: int, reason: Reason, detail: str, *, telling: Mapping[str, object] | None = None) -> None:
        """Refused; the original is still to be moved."""
        with self._store.transaction() as db:
            update = "UPDATE job SET state='failed', ended_at=?, reason=?, detail=? WHERE id=?"
            db.execute(update, (self._store.wall(), str(reason), storable(detail), job_id))
            self.untold.put(db, job_id, telling)

    def refuse(self, folder: str, relative_path: str, version: FileVersion, reason: Reason, detail: str) -> int | None:
        """Record an entry that is refused and stays where it is; None when this version of it was refused before."""
        if self.handled(folder, relative_path, version):
            return None
        stamps = (self._store.wall(),) * 4
        with self._store.transaction() as db:
            row = db.execute(
                "INSERT INTO job (folder, path, inode, size, mtime_ns, ctime_ns, state, attempt, by_rename, final, "
                "first_seen, claimed_at, ended_at, retired_at, reason, detail) "
                "VALUES (?,?,?,?,?,?,'failed',0,0,0,?,?,?,?,?,?) RETURNING id",
                (folder, os.fsencode(relative_path), *version_values(version), *stamps, str(reason), storable(detail)),
            ).fetchall()
            self.untold.put(db, int(row[0][0]), {"milliseconds": {}, "stage": "intake"})
        return int(row[0][0])

    def retired(self, job_id: int) -> None:
        """The original is archived, deleted, or in quarantine. Written with the next transaction, or at closing."""
        self._store.later("UPDATE job SET retired_at=? WHERE id=?", (self._store.wall(), job_id))

    def settle(self) -> None:
        """Write what waits for the next transaction. Nothing, and no commit, where nothing does."""
        self._store.settle()

    # ---------------------------------------------------------------------------------------------- known content

    def same_content(self, sha256_in: str, recipe_hash: str) -> Known | None:
        """What equal bytes and an equal recipe gave before. Whether the file still stands, the publisher sees."""
        query = "SELECT output, target, sha256_out, size_out, report FROM content WHERE sha256_in=? AND recipe_hash=?"
        row = self._store.one(query, (sha256_in, recipe_hash))
        if row is None:
            return None
        output, path, sha256, size, report = row
        key = ContentKey(sha256_in, recipe_hash)
        return Known(key, os.fsdecode(output), os.fsdecode(path), sha256, size, json.loads(report))

    def forget_content(self, key: ContentKey) -> None:
        """The known output is not there any more, or is another: the next equal image is computed."""
        with self._store.transaction() as db:
            db.execute("DELETE FROM content WHERE sha256_in=? AND recipe_hash=?", _key(key))

    # ---------------------------------------------------------------------------------------------- looking back

    def unfinished(self) -> list[Unfinished]:
        """Jobs claimed and not retired, oldest first."""
        rows = self._store.all(f"{_UNFINISHED} WHERE retired_at IS NULL AND state<>'waiting' ORDER BY id")
        return [_unfinished(row) for row in rows]

    def ended_untold(self) -> list[Unfinished]:
        """Jobs with which nothing is left to do, but perhaps to tell how they ended; oldest first."""
        ended = "retired_at IS NOT NULL AND id IN (SELECT job FROM untold)"
        rows = self._store.all(f"{_UNFINISHED} WHERE {ended} ORDER BY id")
        return [_unfinished(row) for row in rows]

    def probe(self) -> None:
        """Write something that changes nothing: does the disk take it?"""
        with self._store.transaction() as db:
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def counts(self) -> dict[str, int]:
        """Rows per state."""
        return dict(self._store.all("SELECT state, count(*) FROM job GROUP BY state"))

    def prune(
        self,
        still_there: Callable[[Unfinished], bool],
        *,
        days: float = REMEMBERED_DAYS,
        rows: int = REMEMBERED_ROWS,
        after: int = 0,
        batch: int = 2000,
    ) -> int:
        """Forget up to `batch` old jobs, beginning behind job number `after`; answers where to go on, or 0 at the end.

        A job is old after `days`, or when more than `rows` are remembered. Those whose original stays in place are kept
        while it does (`still_there`): forgetting them would compute them again.
        """
        cutoff = self._store.wall() - days * DAY
        excess = max(0, sum(self.counts().values()) - rows)
        found = self._store.all(
            f"{_UNFINISHED} WHERE id>? AND (retired_at IS NOT NULL OR state='waiting') "
            "AND (coalesce(ended_at, claimed_at)<? OR ?) ORDER BY id LIMIT ?",
            (after, cutoff, excess > 0, min(batch, excess) if excess else batch),
        )
        old = [_unfinished(row) for row in found]
        gone = [(row.job_id,) for row in old if row.by_rename or not still_there(row)]
        with self._store.transaction() as db:
            db.executemany("DELETE FROM job WHERE id=?", gone)
            self.untold.forget(db)
            db.execute("DELETE FROM content WHERE used_at<?", (_oldest(db, "content", rows, cutoff),))
            db.execute(
                "DELETE FROM target WHERE used_at<? AND NOT EXISTS "
                "(SELECT 1 FROM job WHERE job.folder=target.folder AND job.path=target.source)",
                (_oldest(db, "target", rows, cutoff),),
            )
        return old[-1].job_id if old else 0


_NEWEST = {
    "content": "SELECT used_at FROM content ORDER BY used_at DESC LIMIT 1 OFFSET ?",
    "target": "SELECT used_at FROM target ORDER BY used_at DESC LIMIT 1 OFFSET ?",
}


def _oldest(db: sqlite3.Connection, table: str, rows: int, cutoff: float) -> float:
    """Before when a table's rows are to be forgotten: `cutoff`, or later if more than `rows` are younger."""
    row = db.execute(_NEWEST[table], (rows - 1,)).fetchone()
    return cutoff if row is None else max(cutoff, float(row[0]))


def _key(key: ContentKey) -> tuple[str, str]:
    return key.sha256_in, key.recipe_hash


def _job(candidate: Candidate, job_id: int, attempt: int, now: float) -> Job:
    folder, path, version, seen = candidate.folder, candidate.relative_path, candidate.version, candidate.first_seen
    source = os.path.join(candidate.root, path)
    if candidate.by_rename:
        source = os.path.join(candidate.root, names.CLAIM_FOLDER, names.claimed_name(job_id, path))
    return Job(job_id, folder, path, source, version, attempt, seen, now, candidate.by_rename, candidate.final)


def _reclaim(db: sqlite3.Connection, candidate: Candidate, wall: float) -> tuple[int, int] | None:
    """Take up a row that was released with attempts on it: they stay counted however often it is postponed."""
    inode, size, mtime_ns, ctime_ns = version_values(candidate.version)
    path = os.fsencode(candidate.relative_path)
    rows = db.execute(
        "UPDATE OR IGNORE job SET state='claimed', attempt=attempt+1, ctime_ns=?, by_rename=?, final=?, claimed_at=? "
        "WHERE folder=? AND path=? AND inode=? AND size=? AND mtime_ns=? AND state='waiting' RETURNING id, attempt",
        (ctime_ns, candidate.by_rename, candidate.final, wall, candidate.folder, path, inode, size, mtime_ns),
    ).fetchall()
    return rows[0] if rows else None


def _insert(db: sqlite3.Connection, candidate: Candidate, seen: float, wall: float) -> tuple[int, int] | None:
    path = os.fsencode(candidate.relative_path)
    rows = db.execute(
        "INSERT INTO job (folder, path, inode, size, mtime_ns, ctime_ns, state, attempt, by_rename, final, first_seen, "
        "claimed_at) VALUES (?,?,?,?,?,?,'claimed',1,?,?,?,?) ON CONFLICT DO NOTHING RETURNING id, attempt",
        (candidate.folder, path, *version_values(candidate.version), candidate.by_rename, candidate.final, seen, wall),
    ).fetchall()
    return rows[0] if rows else None
