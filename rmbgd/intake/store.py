"""One SQLite connection for all threads: transactions, questions, and what stored values look like.

Knows no table: ledger.py and targets.py do.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

from rmbgd.clock import Clock
from rmbgd.intake.ledger_schema import LedgerFile, storage_faults
from rmbgd.jobs import Version

Row = tuple[Any, ...]


def signed(number: int) -> int:
    """Inode numbers use all 64 bits on some file systems; SQLite's integers are signed."""
    return number - (1 << 64) if number >= 1 << 63 else number


def unsigned(number: int) -> int:
    return number % (1 << 64)


def version_values(version: Version) -> tuple[int, int, int, int]:
    return signed(version.inode), version.size, version.mtime_ns, version.ctime_ns


def storable(text: str) -> str:
    """Text that SQLite takes: escapes for bytes that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


class Store:
    """Every method may come from any thread; there is one lock. Raises StorageFault, and ConfigError at opening."""

    def __init__(self, path: str, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        self._file = LedgerFile(path)
        self._connection = self._file.connection  # guarded by _lock, like everything below
        self._lock = threading.RLock()
        self._later: list[tuple[str, Row]] = []

    @property
    def is_new(self) -> bool:
        return self._file.is_new

    def close(self) -> None:
        with self._lock:
            try:
                self.settle()
            finally:
                self._file.close()

    def wall(self) -> float:
        """Seconds of the wall clock: stamps for people, and ages in days."""
        return self._clock.wall().timestamp()

    def all(self, query: str, values: Row = ()) -> list[Row]:
        with self._lock, storage_faults(self.path):
            return self._connection.execute(query, values).fetchall()

    def one(self, query: str, values: Row) -> Row | None:
        with self._lock, storage_faults(self.path):
            row: Row | None = self._connection.execute(query, values).fetchone()
            return row

    def later(self, statement: str, values: Row) -> None:
        """Part of whatever transaction comes next, or of closing."""
        with self._lock:
            self._later.append((statement, values))

    def settle(self) -> None:
        """What was put off until later, now."""
        with self._lock:
            if self._later:
                with self.transaction():
                    pass

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on the disk when the block has ended."""
        with self._lock, storage_faults(self.path):
            db = self._connection
            db.execute("BEGIN IMMEDIATE")
            try:
                for statement, values in self._later:
                    db.execute(statement, values)
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        db.execute("ROLLBACK")
                raise
            self._later.clear()
