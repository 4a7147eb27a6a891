"""Copies of the ledger beside it: one a day, one before each migration; and files set aside. By VACUUM INTO.

Each is read through a connection of its own, so nobody waits for it, and is checked before it gets its name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from rmbgd.errors import LedgerFault
from rmbgd.fs import NO_LINKS, give_name
from rmbgd.store.refusals import SUFFIXES, is_damage, ledger_faults
from rmbgd.store.schema import SCHEMA_VERSION, TABLES

FOLDER = "copies"  # in the state directory
STAMP = "%Y%m%dT%H%M%SZ"  # in the names of ledgers set aside
KEPT = 3  # daily copies, and ledgers set aside
DAY = 86_400.0  # s
STEPS = 100_000  # of SQLite's machine between two signs of life
CHECK_RATE = 4 << 20  # bytes a second at which the slowest flash is checked


@dataclass(frozen=True, slots=True)
class LedgerCopy:
    path: Path
    time: float  # of the copying, wall clock


def connect(path: str | Path, mode: str = "rw") -> sqlite3.Connection:
    """`mode` as in SQLite's URIs: rw never makes a file, ro&immutable=1 locks nothing and makes nothing beside it."""
    place = f"file:{quote(os.fsencode(os.path.abspath(path)))}?mode={mode}"
    return sqlite3.connect(place, uri=True, isolation_level=None, check_same_thread=False)


def schema_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def finding(
    connection: sqlite3.Connection, check: str = "quick_check", alive: Callable[[], None] = lambda: None
) -> str:
    """What SQLite finds wrong with the whole file, or the tables that it lacks; empty when it is sound.

    `check`: integrity_check compares the indexes with their tables, too. `alive` is called now and then.
    """
    connection.set_progress_handler(alive, STEPS)
    try:
        found = "; ".join(str(row[0]) for row in connection.execute(f"PRAGMA {check}(3)"))
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return str(error)
        raise
    finally:
        connection.set_progress_handler(None, 0)
    if found != "ok":
        return " ".join(found.split())
    lacks = {table for table, since in TABLES.items() if since <= schema_of(connection)} - names
    return f"it lacks the table {', '.join(sorted(lacks))}" if lacks else ""


def unsound(path: Path, *, alone: bool = True) -> str:
    """Why a file cannot serve as a ledger; empty when it can. `alone`: nobody has it open, and it has no -wal."""
    try:
        with contextlib.closing(connect(path, "ro&immutable=1" if alone else "ro")) as db:
            if not 1 <= (version := schema_of(db)) <= SCHEMA_VERSION:
                return f"it is of schema {version}, and this rmbgd knows 1 to {SCHEMA_VERSION}"
            return finding(db)
    except sqlite3.Error as error:
        return str(error)


def copy(source: str | Path, target: str | Path) -> None:
    """Copy a ledger, also one in use, whole and synced, or not at all. Raises LedgerFault."""
    temporary = Path(f"{target}.tmp")
    with ledger_faults(str(source)):
        temporary.unlink(missing_ok=True)
        try:
            temporary.touch()  # whose fault it is where this fails, SQLite would not say
            with contextlib.closing(connect(source, "ro")) as db:
                db.execute("VACUUM INTO ?", (os.fspath(temporary),))
            if wrong := unsound(temporary):
                raise LedgerFault("io_error", f"the copy of {source} is not sound: {wrong}", path=str(source))
            give_name(temporary, Path(target))
        finally:
            temporary.unlink(missing_ok=True)


def folder(path: str) -> Path:
    return Path(path).parent / FOLDER


def copies(path: str) -> list[LedgerCopy]:
    """Every copy of the ledger at `path`, the newest first; whether they are sound, `unsound` says."""
    found = []
    for each in folder(path).glob("*.sqlite"):
        with contextlib.suppress(OSError):
            found.append(LedgerCopy(each, each.stat().st_mtime))
    return sorted(found, key=lambda copied: copied.time, reverse=True)


def newest_good(path: str) -> LedgerCopy | None:
    return next((each for each in copies(path) if not unsound(each.path)), None)


def is_daily(copied: LedgerCopy) -> bool:
    return copied.path.name.startswith("ledger-")


def copy_of_today(path: str, wall: datetime) -> Path:
    """Make it, and remove those beyond the newest KEPT. Raises LedgerFault."""
    with ledger_faults(path):
        folder(path).mkdir(mode=0o750, exist_ok=True)
        for left in folder(path).glob("*.sqlite.tmp"):  # who made it was killed
            left.unlink(missing_ok=True)
        size = sum(os.path.getsize(path + suffix) for suffix in SUFFIXES[:2] if os.path.exists(path + suffix))
        if (free := shutil.disk_usage(folder(path)).free) < 2 * size:
            raise LedgerFault("disk_full", f"{free} bytes free, twice the ledger's {size} are wanted", path=path)
        copy(path, made := folder(path) / f"ledger-{wall:%Y-%m-%d}.sqlite")
        now = wall.timestamp()
        os.utime(made, (now, now))
        others = [each for each in copies(path) if each.path != made]
        for place, each in enumerate(others, 1):
            if each.time >= now:  # of a clock that ran ahead: it is older than the one just made
                with contextlib.suppress(PermissionError):
                    os.utime(each.path, (now - place, now - place))
        for old in [each for each in others if is_daily(each)][KEPT - 1 :]:
            old.path.unlink(missing_ok=True)
    return made


def copy_before_schema(path: str, version: int) -> None:
    """So that an older rmbgd can go on from there. Raises LedgerFault."""
    with ledger_faults(path):
        folder(path).mkdir(mode=0o750, exist_ok=True)
        copy(path, folder(path) / f"before-schema-{version}.sqlite")


# --- files set aside


def drop_companions(path: str) -> None:
    """Of another file of this name: SQLite would take them for those of the one that is put there."""
    for suffix in SUFFIXES[1:]:
        Path(path + suffix).unlink(missing_ok=True)


def set_aside(path: str, why: str, wall: datetime) -> str:
    """Give the ledger and what SQLite has beside it another name, which is answered; the newest KEPT of these stay.

    The ledger keeps its own name besides, so that there is one at every moment: the next is to be renamed over it.
    """
    name = f"{path}.{why}-{wall:{STAMP}}"
    while os.path.lexists(name):
        name += "~"
    try:
        os.link(path, name)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(path, name)
    for suffix in SUFFIXES[1:]:
        with contextlib.suppress(FileNotFoundError):
            Path(path + suffix).rename(name + suffix)
    for old in aside(path, why)[:-KEPT]:
        for suffix in SUFFIXES:
            Path(f"{old}{suffix}").unlink(missing_ok=True)
    return name


def aside(path: str, why: str) -> list[Path]:
    """Ledgers set aside, the oldest first."""
    found = Path(path).parent.glob(f"{Path(path).name}.{why}-*")
    return sorted(each for each in found if not each.name.endswith(SUFFIXES[1:]))


def last_set_aside(path: str) -> float:
    """When the ledger was last replaced by another, in s since 1970; 0 for never."""
    stamps = [each.name.rpartition("-")[2].rstrip("~") for why in ("damaged", "replaced") for each in aside(path, why)]
    with contextlib.suppress(ValueError):  # somebody else's name
        return datetime.strptime(max(stamps, default=""), STAMP).replace(tzinfo=UTC).timestamp()
    return 0.0
