"""The ledger's database: locking, one connection for all threads, transactions, and going on after a refusal."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rmbgd.clock import Clock
from rmbgd.errors import ConfigError, LedgerFault
from rmbgd.fs import FileVersion, sync
from rmbgd.store.copies import drop_companions, set_aside
from rmbgd.store.ledger_lock import NO_DESCRIPTORS, lock_out_others
from rmbgd.store.opening import Check, open_ledger, writable
from rmbgd.store.refusals import ledger_faults
from rmbgd.store.schema import ADOPTING

Row = tuple[Any, ...]


class Database:
    """One connection for every thread, behind one lock. Raises LedgerFault, and ConfigError where it cannot open."""

    def __init__(
        self, path: str, clock: Clock, check: Check = Check.QUICK, alive: Callable[[], None] = lambda: None
    ) -> None:
        self.path = path
        self._clock = clock
        self._lock = threading.RLock()
        self._deferred: list[tuple[str, Row]] = []  # guarded by _lock, like the connection
        # What the ledger refused with, until `renew`: one reference, set by the thread that met it, read by any.
        self.refused: LedgerFault | None = None
        self.attention = threading.Event()  # set with it
        with contextlib.ExitStack() as opened:  # whatever fails: a lock that stays would keep the next try out
            self._held = -1
            if path != ":memory:":
                self._held = lock_out_others(path + ".lock")
                opened.callback(self._unlock)
            self._connection, self.is_new, self.replacement = open_ledger(path, clock.wall(), check, alive)
            opened.callback(self._disconnect)
            self._identity = _identity(path)
            self._written_back: tuple[int, int] | None = None  # under _lock: put there, and not opened yet
            self._opened = opened.pop_all()

    def close(self) -> None:
        """What cannot be written any more is left: forgetting it costs the next start a look."""
        with self._lock, self._opened, contextlib.suppress(LedgerFault):
            self.flush()

    def wall(self) -> float:
        """Seconds of the wall clock: stamps for people, and ages in days."""
        return self._clock.wall().timestamp()

    def all(self, query: str, values: Row = ()) -> list[Row]:
        with self._lock, self._noted():
            return self._connection.execute(query, values).fetchall()

    def one(self, query: str, values: Row = ()) -> Row | None:
        return next(iter(self.all(query, values)), None)

    def defer(self, statement: str, values: Row) -> None:
        """Make it part of the next transaction, whichever that is, or of closing."""
        with self._lock:
            self._deferred.append((statement, values))

    def flush(self) -> None:
        """Write what was deferred; no commit where nothing was."""
        with self._lock:
            if self._deferred:
                with self.transaction():
                    pass

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on the disk when the block has ended."""
        with self._lock, self._noted():
            db = self._connection
            db.execute("BEGIN IMMEDIATE")
            try:
                for statement, values in self._deferred:
                    db.execute(statement, values)
                yield db
                db.execute("COMMIT")
            except BaseException:  # whatever it is, the world that stops in a test included: all or nothing
                if db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        db.execute("ROLLBACK")
                raise
            self._deferred.clear()

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """Notes a refusal. Once damage was met nothing is tried any more: it could spread."""
        if self.refused is not None and self.refused.damaged:
            raise LedgerFault("damaged", self.refused.detail, path=self.path)
        try:
            with ledger_faults(self.path):
                yield
        except LedgerFault as fault:
            self.refuse(fault)
            raise

    def refuse(self, fault: LedgerFault) -> None:
        """Note why the ledger cannot be used: the first cause, unless it turns out to be damaged."""
        if self.refused is None or fault.damaged:
            self.refused = fault
            self.attention.set()

    # ---------------------------------------------------------------------------------------------- after a refusal

    def notice_removal(self) -> None:
        """Refuse when the file or its lock was removed or replaced: what is written now is in no folder."""
        if self.refused is None and self.path != ":memory:" and self._is_removed():
            place = f"as soon as {os.path.dirname(self.path)} is there and writable"
            detail = f"the ledger was removed or replaced while the service works; it is written back {place}"
            self.refuse(LedgerFault("missing", detail, path=self.path))

    def renew(self) -> str:
        """Go on with a new connection: one that was opened without rights stays without. Answers what else it took.

        A ledger that was removed is whole as long as it is open, and is written back under its name.
        """
        with self._lock, ledger_faults(self.path):
            told = self._write_back() if self._is_removed() else ""
            fresh = writable(self.path)
            old, self._connection, self._identity = self._connection, fresh, _identity(self.path)
            with contextlib.suppress(sqlite3.Error):
                old.close()  # of a removed file: SQLite sees that, and leaves the new one's companions alone
            self.refused = None
        return told

    def _is_removed(self) -> bool:
        if self._identity != _identity(self.path):
            return True
        try:
            held = os.stat(self.path + ".lock")
        except OSError:
            return True
        return not os.path.samestat(held, os.fstat(self._held))

    def _write_back(self) -> str:
        directory = Path(self.path).parent
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        try:
            held = lock_out_others(self.path + ".lock") if self._lock_is_another() else self._held
        except ConfigError as error:
            no_descriptors = isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_DESCRIPTORS
            cause = "descriptors" if no_descriptors else "denied"
            raise LedgerFault(cause, str(error), path=self.path) from error
        if held != self._held:
            self._unlock()
            self._held = held
        if self._identity == _identity(self.path):
            return "its lock had been removed, and is held again"
        back = Path(self.path + ".new")
        back.unlink(missing_ok=True)
        self._connection.execute("VACUUM INTO ?", (str(back),))
        sync(back)
        told = "it had been removed, and was written back from what the service had open"
        if os.path.lexists(self.path) and _identity(self.path) != (self._written_back or ()):
            told += f"; what stood in its place is {set_aside(self.path, 'replaced', self._clock.wall())}"
        drop_companions(self.path)
        back.replace(self.path)
        self._written_back = _identity(self.path)
        sync(directory)
        return told

    def _lock_is_another(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self.path + ".lock"), os.fstat(self._held))
        except FileNotFoundError:
            return True

    def _unlock(self) -> None:
        os.close(self._held)

    def _disconnect(self) -> None:
        self._connection.close()

    # ---------------------------------------------------------------------------------------------- adoption

    def is_adopting(self) -> bool:
        """Did it take the place of another, and were kept originals not yet compared with their outputs?"""
        return self.one("PRAGMA application_id") == (ADOPTING,)

    def adopted(self) -> None:
        with self.transaction() as db:
            db.execute("PRAGMA application_id=0")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def signed(number: int) -> int:
    """Inode numbers use all 64 bits on some file systems; SQLite's integers are signed."""
    return number - (1 << 64) if number >= 1 << 63 else number


def unsigned(number: int) -> int:
    return number % (1 << 64)


def version_values(version: FileVersion) -> tuple[int, int, int, int]:
    return signed(version.inode), version.size, version.mtime_ns, version.ctime_ns


def storable(text: str) -> str:
    """Text that SQLite takes: escapes for bytes that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
