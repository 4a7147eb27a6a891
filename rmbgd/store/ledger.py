"""The ledger: which version of which input was claimed, how often it was tried, and how it ended.

Every method is one transaction and on the disk when it returns, except `original_moved`, which rides on the next one:
forgetting it costs a look at start-up and nothing else.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, replace

from rmbgd import naming as names
from rmbgd.clock import Clock
from rmbgd.errors import Reason
from rmbgd.fs import FileVersion
from rmbgd.store.database import Database, Row, storable, unsigned, version_values
from rmbgd.store.opening import Check
from rmbgd.store.outbox import JobOutcome, Outbox, refused
from rmbgd.store.output_names import OutputNames
from rmbgd.store.records import (
    Adopted,
    Candidate,
    ContentKey,
    Job,
    Known,
    Published,
    PublishedFile,
    SetFile,
    SetKey,
    Target,
    Unfinished,
)
from rmbgd.store.review import Reviews

REMEMBERED_SECONDS = 30 * 86_400.0
REMEMBERED_ROWS = 1_000_000

_UNFINISHED = (
    "SELECT id, folder, path, inode, size, mtime_ns, ctime_ns, attempt, first_seen, by_rename, final, "
    "state, target, sha256_out, size_out, reason, detail FROM job"
)

# While a decision about an older version is carried out, its outputs are not anybody else's.
_UNDECIDED = "WHERE NOT EXISTS (SELECT 1 FROM review WHERE folder=? AND path=? AND state IN ('approving','rejecting'))"

_DECIDED = "id NOT IN (SELECT job FROM review WHERE state IN ('open', 'approving', 'rejecting'))"

# Takes up a row that was released with attempts on it: they stay counted however often it is postponed.
_RECLAIM = (
    "UPDATE OR IGNORE job SET state='claimed', attempt=attempt+1, ctime_ns=?, by_rename=?, final=?, claimed_at=? "
    "WHERE folder=? AND path=? AND inode=? AND size=? AND mtime_ns=? AND state='waiting' RETURNING id, attempt"
)
_CLAIM = (
    "INSERT INTO job (folder, path, inode, size, mtime_ns, ctime_ns, state, attempt, by_rename, final, first_seen, "
    f"claimed_at) SELECT ?,?,?,?,?,?,'claimed',1,?,?,?,? {_UNDECIDED} ON CONFLICT DO NOTHING RETURNING id, attempt"
)

# A version that stays where it is and is not worked on.
_END_IN_PLACE = (
    "INSERT INTO job (folder, path, inode, size, mtime_ns, ctime_ns, attempt, by_rename, final, first_seen, "
    "claimed_at, ended_at, retired_at, state, reason, detail) VALUES (?,?,?,?,?,?,0,0,0,?,?,?,?,?,?,?) RETURNING id"
)


class Ledger:
    """Usable from every thread. Raises LedgerFault from every method, ConfigError at opening.

    `check` and `alive` as in Database: how far the file is trusted, and what is called while it is checked.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        clock: Clock,
        check: Check = Check.QUICK,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = os.fspath(path)
        self._clock = clock
        self.database = Database(self.path, clock, check, alive)
        self.is_new = self.database.is_new  # then it knows nothing of what lies in claim folders and beside outputs
        self.output_names = OutputNames(self.database)
        self.outbox = Outbox(self.database)
        self.reviews = Reviews(self.database, self.output_names)

    def close(self) -> None:
        self.database.close()

    def flush(self) -> None:
        self.database.flush()

    def claim(self, candidates: Iterable[Candidate]) -> list[Job]:
        """A job for each candidate but those whose path has a version in flight; attempts counted, in one commit."""
        now, wall = self._clock.monotonic(), self.database.wall()
        jobs: list[Job] = []
        with self.database.transaction() as db:
            for candidate in candidates:
                folder, path = candidate.folder, candidate.relative_path
                inode, size, mtime_ns, ctime_ns = version_values(candidate.version)
                how = (candidate.by_rename, candidate.final)
                again = (ctime_ns, *how, wall, folder, os.fsencode(path), inode, size, mtime_ns)
                seen = wall - (now - candidate.first_seen)
                of_path = (folder, os.fsencode(path))
                new = (*of_path, inode, size, mtime_ns, ctime_ns, *how, seen, wall, *of_path)
                rows = db.execute(_RECLAIM, again).fetchall() or db.execute(_CLAIM, new).fetchall()
                for job_id, attempt in rows:
                    inside = (names.CLAIM_FOLDER, names.claimed_name(job_id, path)) if candidate.by_rename else (path,)
                    source = os.path.join(candidate.root, *inside)
                    tried = (candidate.version, attempt, candidate.first_seen, now)
                    jobs.append(Job(job_id, folder, path, source, *tried, *how))
        return jobs

    def resume(self, row: Unfinished) -> Unfinished:
        """The same job once more, after a crash, its times on the monotonic clock."""
        now = self._clock.monotonic()
        return replace(row, first_seen=min(now, now - (self.database.wall() - row.first_seen)), claimed_at=now)

    def next_attempt(self, row: Unfinished) -> Unfinished:
        """The job to `resume` with; the attempt is counted before the work begins."""
        with self.database.transaction() as db:
            update = "UPDATE job SET state='claimed', attempt=attempt+1, claimed_at=? WHERE id=?"
            db.execute(update, (self.database.wall(), row.job_id))
            self.outbox.drop(db, row.job_id)
        return replace(self.resume(row), attempt=row.attempt + 1)

    def release(self, job_ids: Iterable[int], *, counted: bool = False) -> None:
        """Postponed, not tried: the attempt is taken back, unless it is `counted`; without any the row is forgotten."""
        with self.database.transaction() as db:
            for job_id in job_ids:
                db.execute("UPDATE job SET state='waiting', attempt=attempt-? WHERE id=?", (not counted, job_id))
                db.execute("DELETE FROM job WHERE id=? AND attempt<=0", (job_id,))
                self.outbox.drop(db, job_id)

    def is_in_flight(self, job_id: int) -> bool:
        query = "SELECT 1 FROM job WHERE id=? AND state IN ('claimed','publishing')"
        return self.database.one(query, (job_id,)) is not None

    def owner_of(self, job_id: int) -> tuple[str, str] | None:
        """(folder, relative path) of a job that is not over yet: its claimed file is no orphan."""
        query = "SELECT folder, path FROM job WHERE id=? AND retired_at IS NULL AND state<>'waiting'"
        row = self.database.one(query, (job_id,))
        return None if row is None else (row[0], os.fsdecode(row[1]))

    def handled(self, folder: str, relative_path: str, version: FileVersion) -> bool:
        """Was this very version answered while it stayed in place? What was moved away and is back counts as new."""
        query = (
            "SELECT 1 FROM job WHERE folder=? AND path=? AND inode=? AND size=? AND mtime_ns=? AND ctime_ns=? "
            "AND by_rename=0 AND state IN ('done','failed')"
        )
        return self.database.one(query, (folder, os.fsencode(relative_path), *version_values(version))) is not None

    # ---------------------------------------------------------------------------------------------- outcomes

    def publishing(
        self, outcome: JobOutcome, key: SetKey, files: Sequence[SetFile], elsewhere: Iterable[SetKey] = ()
    ) -> tuple[list[Target], list[Target]]:
        """About to rename: after a crash, what has these hashes at these names is of the set, and is all of it or none.

        Answers the names as they were before: `pending` and `sha256` tell which files there are ours. And what the
        input has besides, also `elsewhere`, which is to be removed. The outcome gets `outputs`, but for a plain one.
        """
        first = files[0]
        with self.database.transaction() as db:
            targets, besides = self.output_names.assign(db, key, [file.name for file in files])
            besides += [target for other in elsewhere for target in self.output_names.of(other).values()]
            update = "UPDATE job SET state='publishing', target=?, sha256_out=?, size_out=? WHERE id=?"
            db.execute(update, (os.fsencode(targets[0].path), first.sha256, first.size, outcome.job_id))
            self.output_names.announce(db, zip(targets, (file.sha256 for file in files), strict=True), besides)
            if not (announced := Published.announced(targets, files)).is_plain:
                outcome.add(outputs=announced.outputs)
            self.outbox.put(db, outcome)
        return targets, besides

    def done(
        self,
        job_id: int,
        published: Published,
        outcome: JobOutcome | None = None,
        *,
        content: ContentKey | None = None,
        report: Mapping[str, object] | None = None,
        original_moved: bool = False,
        removed: Sequence[Target] = (),
    ) -> None:
        """The set stands. `original_moved`: nothing is left to do with it. `content` makes it known for reuse.

        Without an `outcome` the stored one says how it was made. `removed`: what the input does not have any more.
        """
        wall, sha256, size = self.database.wall(), published.sha256, published.size
        output, path = os.fsencode(published.output), os.fsencode(published.path)
        with self.database.transaction() as db:
            told = outcome or self.outbox.pending(job_id)
            db.execute(
                "UPDATE job SET state='done', ended_at=?, retired_at=?, target=?, sha256_out=?, size_out=?, "
                "verdict=?, width=?, height=?, device=?, seconds=?, score=?, coverage=? WHERE id=?",
                (wall, wall if original_moved else None, path, sha256, size, *_of_done(told), job_id),
            )
            self.output_names.publish(db, published)
            if removed:
                self.output_names.forget(db, removed)
            if content is not None:
                files = None if published.is_plain else json.dumps([*map(astuple, published.files)])
                db.execute(
                    "INSERT OR REPLACE INTO content VALUES (?,?,?,?,?,?,?,?,?)",
                    (*astuple(content), output, path, sha256, size, json.dumps(dict(report or {})), wall, files),
                )
            if told is not None and (removed or told.keys.get("verdict") == "review"):
                _review(db, told, wall)
            if outcome is not None:
                self.outbox.put(db, outcome)

    def announced(self, job_ids: Iterable[int]) -> None:
        """Their names are on the queue of a fleet: these versions are not looked at again here."""
        with self.database.transaction() as db:
            wall = self.database.wall()
            rows = [(wall, wall, job_id) for job_id in job_ids]
            db.executemany("UPDATE job SET state='done', ended_at=?, retired_at=? WHERE id=?", rows)

    def failed(self, outcome: JobOutcome) -> None:
        """Refused; the original is still to be moved."""
        reason, detail = str(outcome.keys["reason"]), storable(str(outcome.keys["detail"]))
        with self.database.transaction() as db:
            update = "UPDATE job SET state='failed', ended_at=?, reason=?, detail=? WHERE id=?"
            db.execute(update, (self.database.wall(), reason, detail, outcome.job_id))
            self.outbox.put(db, outcome)

    def refuse(
        self, folder: str, relative_path: str, version: FileVersion, reason: Reason, detail: str
    ) -> JobOutcome | None:
        """Record an entry that is refused and stays where it is; None when this version of it was refused before."""
        if self.handled(folder, relative_path, version):
            return None
        stamps = (self.database.wall(),) * 4
        with self.database.transaction() as db:
            at = (folder, os.fsencode(relative_path), *version_values(version))
            values = (*at, *stamps, "failed", str(reason), storable(detail))
            ((job_id,),) = db.execute(_END_IN_PLACE, values).fetchall()
            keys = {"job": int(job_id), "folder": folder, "path": relative_path, "attempt": 0}
            self.outbox.put(db, outcome := refused(keys, reason, detail))
        return outcome

    def original_moved(self, job_id: int) -> None:
        """The original is archived, deleted, or in quarantine. Written with the next transaction, or at closing."""
        self.database.defer("UPDATE job SET retired_at=? WHERE id=?", (self.database.wall(), job_id))

    def same_content(self, sha256_in: str, recipe_hash: str) -> Known | None:
        """What equal bytes and an equal recipe gave before. Whether the file still stands, the publisher sees."""
        query = (
            "SELECT output, target, sha256_out, size_out, report, files FROM content "
            "WHERE sha256_in=? AND recipe_hash=?"
        )
        if (row := self.database.one(query, (sha256_in, recipe_hash))) is None:
            return None
        output, path, sha256, size, report, stored = row
        files = [("", os.fsdecode(path), sha256, size)] if stored is None else json.loads(stored)
        known = tuple(PublishedFile(*file) for file in files)
        return Known(ContentKey(sha256_in, recipe_hash), os.fsdecode(output), known, json.loads(report))

    def forget_content(self, key: ContentKey) -> None:
        """The known output is not there any more, or is another: the next equal image is computed."""
        with self.database.transaction() as db:
            db.execute("DELETE FROM content WHERE sha256_in=? AND recipe_hash=?", astuple(key))

    def knows_content(self) -> bool:
        """Is anything recorded by which `made_from` could tell?"""
        return bool(self.database.all("SELECT 1 FROM content LIMIT 1"))

    def made_from(self, sha256_in: str, output: str, path: str) -> set[str]:
        """sha256 of what this content gave under that output name, with any recipe."""
        query = "SELECT sha256_out FROM content WHERE sha256_in=? AND output=? AND target=?"
        return {row[0] for row in self.database.all(query, (sha256_in, os.fsencode(output), os.fsencode(path)))}

    def adopt(self, originals: Iterable[Adopted]) -> None:
        """Record kept originals as done that the ledger lost, and which outputs are theirs where that is known."""
        stamps = (self.database.wall(),) * 4
        with self.database.transaction() as db:
            for each in originals:
                key, published = each.key, each.published
                if each.version is not None:
                    at = (key.folder, os.fsencode(key.relative_path), *version_values(each.version))
                    db.execute(_END_IN_PLACE, (*at, *stamps, "done", None, None)).fetchall()
                if published is not None:
                    self.output_names.adopt(db, key, published)

    # ---------------------------------------------------------------------------------------------- the operator's

    def forget_failures(self, job_ids: Iterable[int]) -> None:
        """They are to be tried again: a version that stayed in place counts as new."""
        if not (gone := [(job_id,) for job_id in job_ids]):
            return
        with self.database.transaction() as db:
            db.executemany("DELETE FROM job WHERE id=? AND state='failed' AND retired_at IS NOT NULL", gone)
            db.execute("DELETE FROM untold WHERE job NOT IN (SELECT id FROM job)")

    def pauses(self) -> dict[str, tuple[float, str]]:
        """Folder, "" for every one -> (since, by the wall clock in s; who asked for it)."""
        return {folder: (since, person) for folder, since, person in self.database.all("SELECT * FROM pause")}

    def pause(self, folder: str, person: str) -> None:
        with self.database.transaction() as db:
            db.execute("INSERT OR IGNORE INTO pause VALUES (?,?,?)", (folder, self.database.wall(), person))

    def end_pauses(self, folders: Iterable[str]) -> None:
        with self.database.transaction() as db:
            db.executemany("DELETE FROM pause WHERE folder=?", [(folder,) for folder in folders])

    # ---------------------------------------------------------------------------------------------- looking back

    def unfinished(self) -> list[Unfinished]:
        """Jobs claimed of which anything is left to do, oldest first."""
        query = f"{_UNFINISHED} WHERE retired_at IS NULL AND state<>'waiting' ORDER BY id"
        return [_unfinished(row) for row in self.database.all(query)]

    def ended(self, job_id: int) -> Unfinished | None:
        """A job that may be over; as in `unfinished`."""
        return next((_unfinished(row) for row in self.database.all(f"{_UNFINISHED} WHERE id=?", (job_id,))), None)

    def coverages(self, folder: str, limit: int = 500) -> list[float]:
        """Mean alpha of the last images of a drop folder that were done, the newest first."""
        query = "SELECT coverage FROM job WHERE +folder=? AND coverage IS NOT NULL ORDER BY id DESC LIMIT ?"
        return [coverage for (coverage,) in self.database.all(query, (folder, limit))]

    def counts(self) -> dict[str, int]:
        return dict(self.database.all("SELECT state, count(*) FROM job GROUP BY state"))

    def prune(
        self, in_place: Callable[[Unfinished], bool], *, rows: int = REMEMBERED_ROWS, after: int = 0, batch: int = 2000
    ) -> int:
        """Forget up to `batch` old jobs, beginning behind job number `after`; answers where to go on, or 0 at the end.

        A job is old after REMEMBERED_SECONDS, or when more than `rows` are remembered. Those whose original stays in
        place are kept while it does (`in_place`): forgetting them would compute them again.
        """
        cutoff = self.database.wall() - REMEMBERED_SECONDS
        excess = max(0, sum(self.counts().values()) - rows)
        found = self.database.all(
            f"{_UNFINISHED} WHERE id>? AND (retired_at IS NOT NULL OR state='waiting') AND {_DECIDED} "
            "AND (coalesce(ended_at, claimed_at)<? OR ?) ORDER BY id LIMIT ?",
            (after, cutoff, excess > 0, min(batch, excess) if excess else batch),
        )
        old = [_unfinished(row) for row in found]
        gone = [(row.job_id,) for row in old if row.claimed_by_rename or not in_place(row)]
        with self.database.transaction() as db:
            db.executemany("DELETE FROM job WHERE id=?", gone)
            db.execute("DELETE FROM untold WHERE job NOT IN (SELECT id FROM job)")
            db.execute("DELETE FROM content WHERE used_at<?", (_oldest(db, "content", rows, cutoff),))
            db.execute(
                "DELETE FROM target WHERE used_at<? AND NOT EXISTS "
                "(SELECT 1 FROM job WHERE job.folder=target.folder AND job.path=target.source) AND NOT EXISTS "
                "(SELECT 1 FROM review WHERE review.folder=target.folder AND review.path=target.source "
                "AND review.state IN ('open', 'approving', 'rejecting'))",
                (_oldest(db, "target", rows, cutoff),),
            )
        return old[-1].job_id if old else 0


def _unfinished(row: Row) -> Unfinished:
    job_id, folder, path, inode, size, mtime_ns, ctime_ns, attempt, first_seen, by_rename, final, *more = row
    state, target, sha256, size_out, reason, detail = more
    version = FileVersion(unsigned(inode), size, mtime_ns, ctime_ns)
    job = (job_id, folder, os.fsdecode(path), "", version, attempt, first_seen, 0.0, bool(by_rename), bool(final))
    output = {"target": None if target is None else os.fsdecode(target), "sha256_out": sha256, "size_out": size_out}
    return Unfinished(*job, state=state, reason=reason, detail=detail, **output)


def _of_done(outcome: JobOutcome | None) -> tuple[object, ...]:
    """Verdict, width, height, device, seconds, score and coverage of image.done, as far as they are known."""
    keys = {} if outcome is None else outcome.keys
    total = keys.get("milliseconds", {}).get("total")
    seconds = None if total is None else round(total / 1000.0, 3)
    made, found = ("verdict", "width", "height", "device"), ("score", "coverage")
    return (*(keys.get(name) for name in made), seconds, *(keys.get(name) for name in found))


def _review(db: sqlite3.Connection, outcome: JobOutcome, wall: float) -> None:
    """Ask people about this set, if it is for them; what was asked of an older version of the input is settled."""
    keys = outcome.keys
    at = (keys["folder"], os.fsencode(keys["path"]))
    waiting = "folder=? AND path=? AND state IN ('open', 'approving', 'rejecting')"
    db.execute(f"UPDATE job SET verdict='replaced' WHERE id IN (SELECT job FROM review WHERE {waiting})", at)  # noqa: S608 - our own words
    db.execute(f"UPDATE review SET state='replaced', decided_at=? WHERE {waiting}", (wall, *at))  # noqa: S608 - likewise
    if keys.get("verdict") == "review":
        asked = (json.dumps(keys.get("reasons", [])), json.dumps(keys.get("review", {})))
        db.execute(
            "INSERT OR REPLACE INTO review (job, folder, path, since, score, unusual, reasons, facts, state) "
            "VALUES (?,?,?,?,?,?,?,?,'open')",
            (outcome.job_id, *at, wall, keys.get("score"), keys.get("unusual"), *asked),
        )


def _oldest(db: sqlite3.Connection, table: str, rows: int, cutoff: float) -> float:
    """Before when a table's rows are to be forgotten: `cutoff`, or later if more than `rows` are younger."""
    query = f"SELECT used_at FROM {table} ORDER BY used_at DESC LIMIT 1 OFFSET ?"  # noqa: S608 - our own two tables
    row = db.execute(query, (rows - 1,)).fetchone()
    return cutoff if row is None else max(cutoff, float(row[0]))
