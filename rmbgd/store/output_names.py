"""Which output name belongs to which input, for good. Whether a stranger's file has it, the publisher finds out."""

from __future__ import annotations

import os
import posixpath
import sqlite3

from rmbgd import naming as names
from rmbgd.store.database import Database, Row, signed, unsigned
from rmbgd.store.records import OutputKey, Published, Target


def _values(key: OutputKey) -> Row:
    return os.fsencode(key.output), key.folder, os.fsencode(key.relative_path), key.extension


class OutputNames:
    """Usable from every thread. Raises StorageFault. Methods that take a connection run inside its transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, key: OutputKey) -> Target | None:
        row = self._database.one(
            "SELECT target, pending, sha256, size, inode, mtime_ns, sidecar FROM target "
            "WHERE output=? AND folder=? AND source=? AND extension=?",
            _values(key),
        )
        if row is None:
            return None
        path, pending, sha256, size, inode, mtime_ns, sidecar = row
        inode = None if inode is None else unsigned(inode)
        return Target(key.output, os.fsdecode(path), pending, sha256, size, inode, mtime_ns, bool(sidecar))

    def assign(self, db: sqlite3.Connection, key: OutputKey, below: str) -> Target:
        """The output name of this input: the one it has had, or a new one in sub-folder `below` that no input has."""
        if (found := self.find(key)) is not None:
            return found
        plain, later = names.output_names(posixpath.join(below, posixpath.basename(key.relative_path)), key.extension)
        return self._own(db, key, later if self._is_owned(db, key.output, plain) else plain, 1)

    def move(self, key: OutputKey, *, below: str | None = None) -> Target:
        """Another name for the same input: a stranger's file has the one it had, or its folder has to be `below`."""
        with self._database.transaction() as db:
            delete = "DELETE FROM target WHERE output=? AND folder=? AND source=? AND extension=?"
            ((stored, number),) = db.execute(f"{delete} RETURNING base, number", _values(key)).fetchall()
            base = os.fsdecode(stored)
            if below is not None:
                base, number = posixpath.join(below, posixpath.basename(base)), 0
            return self._own(db, key, base, number + 1)

    def adopt(self, db: sqlite3.Connection, key: OutputKey, published: Published) -> None:
        """What stands there is this input's, as is known from elsewhere."""
        path, wall = os.fsencode(published.path), self._database.wall()
        size, inode, mtime_ns = published.size, signed(published.inode), published.mtime_ns
        db.execute(
            "INSERT INTO target (output, folder, source, extension, target, base, number, sha256, size, inode, "
            "mtime_ns, sidecar, used_at) VALUES (?,?,?,?,?,?,1,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET "
            "sha256=excluded.sha256, size=excluded.size, inode=excluded.inode, mtime_ns=excluded.mtime_ns, "
            "sidecar=excluded.sidecar, pending=NULL WHERE folder=excluded.folder AND source=excluded.source",
            (*_values(key), path, path, published.sha256, size, inode, mtime_ns, published.sidecar, wall),
        )

    def _own(self, db: sqlite3.Connection, key: OutputKey, base: str, number: int) -> Target:
        while self._is_owned(db, key.output, path := names.version_of(base, number)):
            number += 1
        db.execute(
            "INSERT INTO target (output, folder, source, extension, target, base, number, used_at) "
            "VALUES (?,?,?,?,?,?,?,?)",
            (*_values(key), os.fsencode(path), os.fsencode(base), number, self._database.wall()),
        )
        return Target(key.output, path)

    def _is_owned(self, db: sqlite3.Connection, output: str, target: str) -> bool:
        values = (os.fsencode(output), os.fsencode(target))
        return bool(db.execute("SELECT 1 FROM target WHERE output=? AND target=?", values).fetchall())
