"""Opens the ledger's file: checked whole, brought up to date, and replaced by its newest copy when it is damaged."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from rmbgd.errors import ConfigError, LedgerFault
from rmbgd.fs import give_name, sync
from rmbgd.store import copies
from rmbgd.store.copies import LedgerCopy, connect, finding, schema_of, set_aside
from rmbgd.store.refusals import ledger_faults, refusal
from rmbgd.store.schema import ADOPTING, SCHEMA, SCHEMA_VERSION, steps_from

JUMP = 1_000_000  # job numbers left out by a replacement: more than any ledger can have used since its last copy


class Check(StrEnum):
    """How far a ledger is trusted at opening."""

    QUICK = "quick_check"
    WHOLE = "integrity_check"  # after SQLite has met damage in it
    NONE = ""  # after it met damage again, where the whole check had found none: replace it


@dataclass(frozen=True, slots=True)
class Replacement:
    """The ledger was damaged and another took its place: `copy`, or without one an empty one."""

    cause: str
    aside: str
    copy: LedgerCopy | None

    def event(self, rows: int, adoption: dict[str, int]) -> dict[str, object]:
        """The keys of ledger.replaced; `adoption`: its counts."""
        copied = self.copy
        when = None if copied is None else datetime.fromtimestamp(copied.time, UTC).isoformat(timespec="seconds")
        lost = "everything recorded before" if when is None else f"what was recorded since {when}"
        detail = f"not known any more: {lost}; outputs of it count as other programs' files and stay"
        known = {"copy": copied and str(copied.path), "copy_time": when, "rows": rows}
        return {"cause": self.cause, "aside": self.aside, **known, **adoption, "detail": detail}


def open_ledger(
    path: str, wall: datetime, check: Check, alive: Callable[[], None]
) -> tuple[sqlite3.Connection, bool, Replacement | None]:
    """(connection, is it a new one, what it replaced).

    Raises ConfigError for what the operator must mend, LedgerFault for what the disk refuses.
    """
    replacement: Replacement | None = None
    try:
        with ledger_faults(path):
            if not os.path.exists(path):
                replacement = _finish_write_back(path, wall)
            is_new = path == ":memory:" or not os.path.exists(path)
            if path == ":memory:":
                connection = connect_memory()
            elif is_new:
                _make(path, None, 0)
                connection = _open(path, Check.QUICK, alive)
            else:
                try:
                    connection = _open(path, check, alive)
                except LedgerFault as fault:
                    if not fault.damaged:
                        raise
                    replacement = replace(path, fault.detail, wall)
                    connection = _open(path, Check.QUICK, alive)
    except LedgerFault as fault:
        found = None if path == ":memory:" or fault.damaged else refusal(path)
        if found is not None and found.of_operator:
            raise ConfigError(f"{path}: the ledger cannot be used: {found}") from fault
        raise
    return connection, is_new, replacement


def _finish_write_back(path: str, wall: datetime) -> Replacement | None:
    """The ledger has no file: who wrote it back may have been killed before it got its name."""
    left, replacement = Path(path + ".new"), None
    if left.exists():
        if not copies.unsound(left):
            copies.drop_companions(path)  # of the file that was removed
            left.replace(path)
        elif copies.newest_good(path) is not None:
            replacement = replace(path, "it is missing, and was written back in part only", wall)
            left.unlink()
    if os.path.islink(path) and not os.path.exists(path):
        text = f"it is a link to {os.readlink(path)}, which is not there: mount its disk, or remove the link"
        raise LedgerFault("missing", text, path=path)
    return replacement


def connect_memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _in_one_transaction(connection, SCHEMA)
    return connection


def _open(path: str, check: Check, alive: Callable[[], None]) -> sqlite3.Connection:
    """Raises LedgerFault(damaged), ConfigError, sqlite3.Error."""
    if check is Check.NONE:
        raise LedgerFault("damaged", "SQLite met damage again, which its own check does not find", path=path)
    with ledger_faults(path):
        if os.path.getsize(path) == 0:
            raise LedgerFault("damaged", "the file is empty", path=path)
        with contextlib.closing(connect(path, "ro")) as db:  # which changes nothing of what may be damaged
            version = known_schema(db, path)
            is_empty = version == 0
            if not is_empty and (found := finding(db, check, alive)):
                raise LedgerFault("damaged", found, path=path)
        if 0 < version < SCHEMA_VERSION:
            copies.copy_before_schema(path, SCHEMA_VERSION)
        return writable(path, SCHEMA if is_empty else steps_from(version))


def writable(path: str, steps: str = "") -> sqlite3.Connection:
    """A connection that has written, and `steps` with it. Raises sqlite3.Error."""
    connection = connect(path)
    try:
        # A commit is on the disk when it returns; with NORMAL a power cut may take the last ones back.
        for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", "journal_size_limit=16777216"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        _in_one_transaction(connection, steps)
    except BaseException:  # whatever it is: a connection that stays open keeps locks
        connection.close()
        raise
    return connection


def known_schema(connection: sqlite3.Connection, path: str) -> int:
    """The schema's version, 0 of an empty ledger. Raises ConfigError for that of another program or a newer rmbgd."""
    version = schema_of(connection)
    is_empty = version == 0 and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not is_empty and not 1 <= version <= SCHEMA_VERSION:
        raise ConfigError(_foreign(path, version))
    return version


def _foreign(path: str, version: int) -> str:
    text = f"{path}: ledger of schema {version}, this rmbgd knows {SCHEMA_VERSION}; start the version that wrote it"
    if version > SCHEMA_VERSION and (copied := copies.newest_good(path)) is not None:
        return f"{text}, or go back to the copy from before: rmbgd ledger restore {copied.path}"
    return f"{text}, or move the file aside to begin a new one"


def _in_one_transaction(connection: sqlite3.Connection, steps: str) -> None:
    connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")


# --- another ledger in the place of one


def replace(path: str, cause: str, wall: datetime) -> Replacement:
    """Set the damaged ledger aside, and begin from its newest sound copy, or anew. Raises LedgerFault, OSError."""
    copied = copies.newest_good(path)
    return Replacement(cause, put_in_place(path, copied.path if copied else None, "damaged", wall), copied)


def put_in_place(path: str, source: Path | None, why: str, wall: datetime) -> str:
    """A copy of `source`, or an empty ledger, in the place of the one at `path`: where that one lies now.

    Of the new one it is marked that it replaced another, and its job numbers are others than those used so far. What an
    operator has paused stays paused, and nothing else.
    """
    _make(path + ".next", source, _last_job(path) + JUMP, _pauses(path))
    lies = set_aside(path, why, wall) if os.path.lexists(path) else ""
    copies.drop_companions(path)
    give_name(Path(path + ".next"), Path(path))
    return lies


def _make(path: str, source: Path | None, jump: int, pauses: list[tuple[str, float, str]] | None = None) -> None:
    """Make a ledger that gets its name when it is whole. `jump`: job numbers that are not used; 0 for a first one.

    `pauses` take the place of those of `source`.
    """
    fresh = Path(path + ".new")
    for left in (fresh, Path(f"{fresh}-journal")):
        left.unlink(missing_ok=True)
    if source is not None:
        copies.copy(source, fresh)
    with contextlib.closing(connect(fresh, "rwc")) as db:
        _in_one_transaction(db, SCHEMA if source is None else steps_from(schema_of(db)))
        if jump:
            db.execute(f"PRAGMA application_id={ADOPTING}")
            # Claimed in place: whether it has been published since, adoption finds out.
            db.execute("DELETE FROM job WHERE by_rename=0 AND state='claimed'")
            # Claimed by renaming: likely done since. What still lies in the claim folder is put back, and taken up
            # again with its attempts; an output that stands by then is known by `target.pending`.
            db.execute("UPDATE job SET state='waiting' WHERE by_rename=1 AND state IN ('claimed','publishing')")
            db.execute("DELETE FROM untold WHERE job IN (SELECT id FROM job WHERE state='waiting')")
            last = db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name='job'").fetchone()[0] or 0
            db.execute("DELETE FROM sqlite_sequence WHERE name='job'")
            db.execute("INSERT INTO sqlite_sequence VALUES ('job', ?)", (max(last + JUMP, jump),))
        if pauses is not None:
            db.execute("DELETE FROM pause")
            db.executemany("INSERT OR IGNORE INTO pause VALUES (?,?,?)", pauses)
    sync(fresh)
    copies.drop_companions(path)
    give_name(fresh, Path(path))


def _last_job(path: str) -> int:
    """The last job number of a ledger that may be damaged; 0 where it cannot be read, or cannot be one."""
    try:
        with contextlib.closing(connect(path, "ro")) as db:
            last = int(db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name='job'").fetchone()[0] or 0)
    except (sqlite3.Error, ValueError, TypeError, OverflowError):
        return 0
    return last if 0 <= last < 1 << 53 else 0


def _pauses(path: str) -> list[tuple[str, float, str]] | None:
    """Those of a ledger that may be damaged; None where they cannot be read, or it knows none yet."""
    try:
        with contextlib.closing(connect(path, "ro")) as db:
            found = [tuple(row) for row in db.execute("SELECT folder, since, person FROM pause")]
    except sqlite3.Error:
        return None
    return found if all([*map(type, row)] == [str, float, str] for row in found) else None
