"""Damage to a ledger's file, as flash of an unattended machine does it: pages that are zeroed, or have bits flipped."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

PAGE = 4096


def grow(ledger: Path, rows: int = 600) -> None:
    """Jobs of long ago, so that tables and indexes have many pages; and everything in the file, nothing beside it."""
    with contextlib.closing(sqlite3.connect(ledger, isolation_level=None)) as db:
        db.execute("BEGIN")
        for number in range(rows):
            db.execute(
                "INSERT INTO job (folder, path, inode, size, mtime_ns, ctime_ns, state, attempt, by_rename, final, "
                "first_seen, claimed_at, ended_at, retired_at) "
                "VALUES ('shop', ?, 1, 2, 3, 4, 'done', 1, 1, 0, 5, ?, ?, ?)",
                (f"of-long-ago/{number:05}-{'x' * 90}.png".encode(), *(4e9,) * 3),
            )
        db.execute("COMMIT")
        settle(db)


def settle(db: sqlite3.Connection) -> None:
    """Everything is in the file, and who has it open reads it anew."""
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def spoil(ledger: Path, what: str, how: str) -> None:
    """Overwrite the root page of a table or index: `zero`, or `flip` a bit of its header. Open or not."""
    with contextlib.closing(sqlite3.connect(ledger, isolation_level=None)) as db:
        settle(db)
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name=?", (what,)).fetchone()
        descriptor = os.open(ledger, os.O_RDWR)  # closed behind the connection: it drops the locks of this process
        place = (page - 1) * PAGE
        old = os.pread(descriptor, PAGE, place)
        os.pwrite(descriptor, bytes(PAGE) if how == "zero" else bytes([old[0] ^ 0x40]) + old[1:], place)
        db.execute("UPDATE content SET used_at=used_at")  # no row is changed, and ...
        db.execute("PRAGMA application_id=0")  # ... whose page this is, every cache is out of date
    os.close(descriptor)


def lose_row_of_index(ledger: Path, index: str, prepare: str) -> None:
    """The last job is gone from its table, and still in one index: what SQLite's quick check does not see."""
    rows = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master WHERE name=?"
    job = jobs_of(ledger)[-1]
    statements: list[tuple[str, tuple[object, ...]]] = [
        (prepare, (job,)), ("DELETE FROM sqlite_master WHERE name=?", (index,)), ("DELETE FROM job WHERE id=?", (job,))
    ]  # fmt: skip
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        kept = db.execute(rows, (index,)).fetchone()
    for statement, values in [*statements, ("INSERT INTO sqlite_master VALUES (?,?,?,?,?)", kept)]:
        with contextlib.closing(sqlite3.connect(ledger, isolation_level=None)) as db:  # each with the schema as it is
            db.execute("PRAGMA writable_schema=ON")
            db.execute(statement, values)
            settle(db)


def claim_without_index(ledger: Path, index: str) -> None:
    """A claimed job whose file is gone, and which one index does not have: ending it meets the damage."""
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        rows = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master WHERE name=?"
        kept = db.execute(rows, (index,)).fetchone()
    job = (
        "INSERT INTO job (folder, path, inode, size, mtime_ns, ctime_ns, state, attempt, by_rename, final, first_seen, "
    )
    job += "claimed_at) VALUES ('shop', ?, 1, 2, 3, 4, 'claimed', 1, 1, 0, 5, 5)"
    for statement, values in (
        ("DELETE FROM sqlite_master WHERE name=?", (index,)),
        (job, (b"gone.png",)),
        ("INSERT INTO sqlite_master VALUES (?,?,?,?,?)", kept),
    ):
        with contextlib.closing(sqlite3.connect(ledger, isolation_level=None)) as db:
            db.execute("PRAGMA writable_schema=ON")
            db.execute(statement, values)
            settle(db)


def jobs_of(ledger: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as db:
        return [job for (job,) in db.execute("SELECT id FROM job ORDER BY id")]
