"""Which output names belong to which input, for good. Whether a stranger's file has one, the publisher finds out."""

from __future__ import annotations

import os
import posixpath
import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from rmbgd import naming as names
from rmbgd.store.database import Database, Row, signed, unsigned
from rmbgd.store.records import FileName, Published, SetKey, Target

_COLUMNS = "extension, target, base, number, pending, sha256, size, inode, mtime_ns, sidecar"
_SELECT = f"SELECT {_COLUMNS} FROM target WHERE output=? AND folder=? AND source=?"  # noqa: S608 - our own words
_TAKE = (
    "INSERT INTO target (output, folder, source, extension, target, base, number, used_at) "  # noqa: S608 - likewise
    "VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (output, target) DO UPDATE SET "
    f"extension=excluded.extension, base=excluded.base, number=excluded.number RETURNING {_COLUMNS}"
)
# What is at this name is not in the set any more, and is known until it has been removed.
_NOT_ANNOUNCED = "UPDATE target SET sha256=coalesce(sha256, pending), pending=NULL"
_GIVE_UP = f"{_NOT_ANNOUNCED}, extension='~'||hex(target)"
_ANOTHERS = "SELECT 1 FROM target WHERE output=? AND target=? AND NOT (folder=? AND source=?)"
_OF_SLOT = "WHERE output=? AND folder=? AND source=? AND extension=?"


def _values(key: SetKey) -> Row:
    return os.fsencode(key.output), key.folder, os.fsencode(key.relative_path)


def _place(target: Target) -> Row:
    return os.fsencode(target.output), os.fsencode(target.path)


class OutputNames:
    """Usable from every thread. Raises StorageFault. Methods that take a connection run inside its transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, key: SetKey) -> dict[str, Target]:
        """Slot -> its name, of everything that this input has there: of its set, and of what is no longer in it."""
        return _targets(key, self._database.all(_SELECT, _values(key)))

    def current(self, key: SetKey, wanted: Sequence[FileName]) -> list[Target]:
        """The names of a set that has just these files, in their order; empty where it has others or other names."""
        had = self.of(key)
        kept = _kept(had, wanted)
        return kept if len(kept) == len(wanted) == len(had) else []

    def assign(
        self, db: sqlite3.Connection, key: SetKey, wanted: Sequence[FileName]
    ) -> tuple[list[Target], list[Target]]:
        """(the names of this input's set: those it has had, or new ones that no input has; what it had besides)."""
        had = self.of(key)
        kept = _kept(had, wanted)
        if len(kept) == len(wanted) and len({target.number for target in kept}) == 1:
            targets = kept
        else:
            targets = self._choose(db, key, wanted, {target.slot: target for target in kept}, had=bool(had))
        paths = {target.path for target in targets}
        return targets, [target for target in had.values() if target.path not in paths]

    def move(self, key: SetKey, targets: Sequence[Target], folders: Mapping[str, str] | None = None) -> None:
        """Other names for the same set: a stranger's file has one of them, or `folders` have to be others."""
        bases = [(target.slot, target.base) for target in targets]
        number = max(target.number for target in targets) + 1
        if folders:
            number = 1
            parts = [(slot, *posixpath.split(base)) for slot, base in bases]
            bases = [(slot, posixpath.join(folders.get(below, below), name)) for slot, below, name in parts]
        with self._database.transaction() as db:
            self._own(db, key, bases, number)

    def announce(self, db: sqlite3.Connection, files: Iterable[tuple[Target, str]], besides: Iterable[Target]) -> None:
        """What is about to be renamed to the names of a set, by its sha256; it is announced of no other name."""
        for target in besides:
            if target.pending is not None:
                db.execute(f"{_NOT_ANNOUNCED} WHERE output=? AND target=?", _place(target))
        for target, sha256 in files:
            db.execute("UPDATE target SET pending=? WHERE output=? AND target=?", (sha256, *_place(target)))

    def publish(self, db: sqlite3.Connection, published: Published) -> None:
        """They have been renamed, and look so."""
        output, wall = os.fsencode(published.output), self._database.wall()
        sidecar = published.sidecar  # it stands beside the first
        for file in published.files:
            looks = (file.sha256, file.size, signed(file.inode), file.mtime_ns, sidecar)
            db.execute(
                "UPDATE target SET pending=NULL, sha256=?, size=?, inode=?, mtime_ns=?, sidecar=?, used_at=? "
                "WHERE output=? AND target=?",
                (*looks, wall, output, os.fsencode(file.path)),
            )
            sidecar = False

    def forget(self, db: sqlite3.Connection, targets: Iterable[Target]) -> None:
        """What was there is removed, or is somebody else's by now."""
        db.executemany("DELETE FROM target WHERE output=? AND target=?", map(_place, targets))

    def adopt(self, db: sqlite3.Connection, key: SetKey, published: Published) -> None:
        """What stands there is this input's, as is known from elsewhere."""
        wall = self._database.wall()
        for place, file in enumerate(published.files):
            path, inode = os.fsencode(file.path), signed(file.inode)
            looks = (file.sha256, file.size, inode, file.mtime_ns, published.sidecar and place == 0)
            db.execute(f"{_GIVE_UP} {_OF_SLOT} AND target<>?", (*_values(key), file.slot, path))
            db.execute(
                "INSERT INTO target (output, folder, source, extension, target, base, number, sha256, size, inode, "
                "mtime_ns, sidecar, used_at) VALUES (?,?,?,?,?,?,1,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET "
                "sha256=excluded.sha256, size=excluded.size, inode=excluded.inode, mtime_ns=excluded.mtime_ns, "
                "sidecar=excluded.sidecar, pending=NULL WHERE folder=excluded.folder AND source=excluded.source",
                (*_values(key), file.slot, path, path, *looks, wall),
            )

    def _choose(
        self,
        db: sqlite3.Connection,
        key: SetKey,
        wanted: Sequence[FileName],
        kept: Mapping[str, Target],
        *,
        had: bool,
    ) -> list[Target]:
        if kept:
            later = any(name.slot in kept and _has_later(kept[name.slot], name) for name in wanted)
        else:
            later = any(self._is_anothers(db, key, name.plain) for name in wanted)
        bases = [
            (name.slot, kept[name.slot].base if name.slot in kept else name.later if later else name.plain)
            for name in wanted
        ]
        return self._own(db, key, bases, max((target.number for target in kept.values()), default=1), had=had)

    def _own(
        self, db: sqlite3.Connection, key: SetKey, bases: Sequence[tuple[str, str]], number: int, *, had: bool = True
    ) -> list[Target]:
        """Give the set the first version of its names, from `number` on, of which no other input has one.

        `had`: may it have other names?
        """
        while any(self._is_anothers(db, key, names.version_of(base, number)) for _, base in bases):
            number += 1
        paths = [os.fsencode(names.version_of(base, number)) for _, base in bases]
        if had:
            for (slot, _), path in zip(bases, paths, strict=True):
                db.execute(f"{_GIVE_UP} {_OF_SLOT} AND target<>?", (*_values(key), slot, path))
        owned = []
        for (slot, base), path in zip(bases, paths, strict=True):
            row = db.execute(_TAKE, (*_values(key), slot, path, os.fsencode(base), number, self._database.wall()))
            owned.append(_target(key, row.fetchall()[0]))
        return owned

    def is_anothers(self, key: SetKey, path: str) -> bool:
        """Does it belong to another input?"""
        return self._database.one(_ANOTHERS, _another(key, path)) is not None

    def _is_anothers(self, db: sqlite3.Connection, key: SetKey, target: str) -> bool:
        return bool(db.execute(_ANOTHERS, _another(key, target)).fetchall())


def _another(key: SetKey, path: str) -> Row:
    return os.fsencode(key.output), os.fsencode(path), key.folder, os.fsencode(key.relative_path)


def read_names(db: sqlite3.Connection, key: SetKey) -> dict[str, Target]:
    """As OutputNames.of, over a connection that may only read."""
    return _targets(key, db.execute(_SELECT, _values(key)))


def _targets(key: SetKey, rows: Iterable[Row]) -> dict[str, Target]:
    return {target.slot: target for target in (_target(key, row) for row in rows)}


def _target(key: SetKey, row: Row) -> Target:
    slot, path, base, number, pending, sha256, size, inode, mtime_ns, sidecar = row
    looks = (pending, sha256, size, None if inode is None else unsigned(inode), mtime_ns, bool(sidecar))
    return Target(key.output, os.fsdecode(path), slot, os.fsdecode(base), number, *looks)


def _kept(had: Mapping[str, Target], wanted: Sequence[FileName]) -> list[Target]:
    return [target for name in wanted if (target := had.get(name.slot)) is not None and _is_of(target, name)]


def _is_of(target: Target, name: FileName) -> bool:
    """Is it still what the set wants? A name may hold a date or a size; a folder may have had to be another version."""
    return _is_version(target.base, name.plain) or _is_version(target.base, name.later)


def _is_version(base: str, wanted: str) -> bool:
    (folder, file), (below, name) = posixpath.split(base), posixpath.split(wanted)
    return file == name and (folder == below or names.without_versions(folder) == names.without_versions(below))


def _has_later(target: Target, name: FileName) -> bool:
    return _is_version(target.base, name.later) and not _is_version(target.base, name.plain)
