"""The SQLite file of the ledger: schema, opening, locking, transactions. A damaged one is refused, never replaced."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

from rmbgd.clock import Clock
from rmbgd.errors import ConfigError, StorageFault
from rmbgd.fs import FileVersion

SCHEMA_VERSION = 2

_UNTOLD = """
CREATE TABLE untold (
  job   INTEGER PRIMARY KEY,
  keys  TEXT NOT NULL                              -- JSON: what the event of its outcome says beyond the job's row
);
"""

SCHEMA = f"""
CREATE TABLE job (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: names of temporaries hang on it
  folder       TEXT    NOT NULL,
  path         BLOB    NOT NULL,                   -- below the drop folder, as the bytes that the file system has
  inode        INTEGER NOT NULL,
  size         INTEGER NOT NULL,
  mtime_ns     INTEGER NOT NULL,
  ctime_ns     INTEGER NOT NULL,                   -- before the claim; our own rename changes it
  state        TEXT    NOT NULL CHECK (state IN ('waiting', 'claimed', 'publishing', 'done', 'failed')),
  attempt      INTEGER NOT NULL,
  by_rename    INTEGER NOT NULL,                   -- 1: the bytes lie in the claim folder; 0: where they were dropped
  final        INTEGER NOT NULL,
  first_seen   REAL    NOT NULL,                   -- wall clock, for people
  claimed_at   REAL    NOT NULL,
  ended_at     REAL,
  retired_at   REAL,                               -- the original is where it belongs; nothing is left to do
  target       BLOB,
  sha256_out   TEXT,
  size_out     INTEGER,
  reason       TEXT,
  detail       TEXT
);
CREATE INDEX job_by_path ON job (folder, path);
-- Versions of one path are worked on one after another, so that the newest is published last.
CREATE UNIQUE INDEX job_in_flight ON job (folder, path) WHERE state IN ('claimed', 'publishing');
CREATE INDEX job_unfinished ON job (id) WHERE retired_at IS NULL;

CREATE TABLE target (
  output     BLOB    NOT NULL,                     -- the output folder
  target     BLOB    NOT NULL,                     -- below it
  folder     TEXT    NOT NULL,
  source     BLOB    NOT NULL,
  extension  TEXT    NOT NULL,
  base       BLOB    NOT NULL,                     -- the name it would have if nothing were taken ...
  number     INTEGER NOT NULL,                     -- ... and which version of it this is: a, a~2, a~3
  pending    TEXT,                                 -- sha256 of what is about to be renamed there
  sha256     TEXT,                                 -- of what was published there, and how it looked to stat
  size       INTEGER,
  inode      INTEGER,
  mtime_ns   INTEGER,
  sidecar    INTEGER NOT NULL DEFAULT 0,
  used_at    REAL    NOT NULL,
  UNIQUE (output, target),
  UNIQUE (output, folder, source, extension)
);

CREATE TABLE content (
  sha256_in    TEXT NOT NULL,
  recipe_hash  TEXT NOT NULL,
  output       BLOB NOT NULL,
  target       BLOB NOT NULL,
  sha256_out   TEXT NOT NULL,
  size_out     INTEGER NOT NULL,
  report       TEXT NOT NULL,                      -- JSON: what the first computation said of the image
  used_at      REAL NOT NULL,
  PRIMARY KEY (sha256_in, recipe_hash)
) WITHOUT ROWID;

CREATE INDEX target_by_age ON target (used_at);
CREATE INDEX content_by_age ON content (used_at);
{_UNTOLD}"""

MIGRATIONS = {1: _UNTOLD}
"""Schema -> what makes it the next one. Rows stay; a ledger is brought up in one transaction, or not at all."""

QUICK_CHECK_BYTES = 64 << 20  # after an unclean end a file up to this size is checked whole: well below a second

Row = tuple[Any, ...]


class Database:
    """One connection for every thread, behind one lock. Raises StorageFault, and ConfigError where it cannot open."""

    def __init__(self, path: str, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        self._lock = threading.RLock()
        self._deferred: list[tuple[str, Row]] = []  # guarded by _lock, like the connection
        with contextlib.ExitStack() as opened:  # whatever fails: a lock that stays would keep the next try out
            if path != ":memory:":
                opened.callback(os.close, _lock_out_others(path + ".lock"))
            self.is_new = path == ":memory:" or not os.path.exists(path)
            self._connection = opened.enter_context(contextlib.closing(_connect(path)))
            _prepare(self._connection, path)
            self._opened = opened.pop_all()

    def close(self) -> None:
        with self._lock, self._opened:
            self.flush()

    def wall(self) -> float:
        """Seconds of the wall clock: stamps for people, and ages in days."""
        return self._clock.wall().timestamp()

    def all(self, query: str, values: Row = ()) -> list[Row]:
        with self._lock, _storage_faults(self.path):
            return self._connection.execute(query, values).fetchall()

    def one(self, query: str, values: Row) -> Row | None:
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
        with self._lock, _storage_faults(self.path):
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


def _connect(path: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: the ledger cannot be opened ({error}); check the folder's rights") from error


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    write_ahead = path + "-wal"
    unclean = os.path.exists(write_ahead) and os.path.getsize(write_ahead) > 0
    try:
        with _storage_faults(path):
            _bring_up(connection, path, unclean=unclean)
    except StorageFault as fault:
        if fault.kind in ("disk_full", "read_only"):
            raise
        raise ConfigError(
            f"{path}: the ledger is damaged or no ledger ({fault.__cause__}); restore it, or move it aside together "
            "with its -wal file: claimed images are then put back into their folders, and finished ones in folders "
            'with originals = "keep" are computed again'
        ) from fault


def _bring_up(connection: sqlite3.Connection, path: str, *, unclean: bool) -> None:
    # A commit is on the disk when it returns; with NORMAL a power cut may take the last ones back.
    for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", "journal_size_limit=16777216"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    is_empty = version == 0 and tables == 0
    if not is_empty and not 1 <= version <= SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: ledger of schema {version}, this rmbgd knows {SCHEMA_VERSION}; "
            "start the version that wrote it, or move the file aside to begin a new one"
        )
    if unclean and os.path.getsize(path) <= QUICK_CHECK_BYTES:
        finding = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        if finding != "ok":
            raise sqlite3.DatabaseError(finding)
    steps = SCHEMA if is_empty else "".join(MIGRATIONS[each] for each in range(version, SCHEMA_VERSION))
    if steps:
        connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")


def _lock_out_others(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; the state directory must exist and be writable by the service"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"{path}: another rmbgd uses this state directory; stop it, or give this one its own"
        ) from error
    return descriptor


_KINDS = {
    sqlite3.SQLITE_FULL: "disk_full",
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_PERM: "denied",
    sqlite3.SQLITE_AUTH: "denied",
    sqlite3.SQLITE_CANTOPEN: "missing",
}


@contextlib.contextmanager
def _storage_faults(path: str) -> Iterator[None]:
    """Turns every database error of the block into the storage fault it is. Damage found at work counts as io_error."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) or 0
        name = getattr(error, "sqlite_errorname", "") or type(error).__name__
        raise StorageFault(_KINDS.get(code & 0xFF, "io_error"), f"{name}: {error}", path=path) from error


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
