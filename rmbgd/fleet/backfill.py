"""Backfill: all images of a root that have no result yet, on the queue of lower priority, a window at a time.

The manifest, an SQLite file, is listed once; what is done is found by looking at the outputs. So the checkpoint is the
output itself, and a run that was killed goes on when it is started again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rmbgd.errors import ConfigError, RmbgdError
from rmbgd.fleet.broker import Broker
from rmbgd.fleet.compare import UNKNOWN, answered
from rmbgd.fleet.inventory import Inventory
from rmbgd.fleet.message import BULK, unusable
from rmbgd.fleet.pulls import BrokerFault
from rmbgd.fleet.root import Entry, Root
from rmbgd.fleet.streams import queue_states
from rmbgd.fleet.sweep import BATCH, publish

WINDOW = 10_000  # images on the queue at once: at 265 bytes each the broker does not notice
LOOK_EVERY = 1.0  # s between two questions how many are left there
PATIENCE = 3  # looks in a row that find the queue empty and nothing new, until what is missing counts as missing
NAMED = 1000  # missing images whose names are kept
ROWS = 10_000  # of the manifest that are read, or written, at once


@dataclass(slots=True)
class Completeness:
    """Of a backfill: images of the manifest, and what is known of them. `announced`: by this run.

    queued    on the queue, or in the hands of actors
    left_out  rows of an inventory that name no image that is there; they are wanted, and missing
    why       of missing images by their path, as far as it is known, and of not too many
    trouble   why actors cannot work, the last time that one could not
    """

    wanted: int = 0
    done: int = 0
    failed: int = 0
    announced: int = 0
    queued: int = 0
    left_out: int = 0
    why: dict[str, str] = field(default_factory=dict)
    trouble: str = ""

    @property
    def missing(self) -> int:
        return self.wanted - self.done - self.failed

    def miss(self, key: str, why: str) -> None:
        if len(self.why) < NAMED:
            self.why[key] = why


class Manifest:
    """The list of a root's images: SQLite, table image(key, fingerprint). Raises ConfigError where it is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path)
            self._db.execute("CREATE TABLE IF NOT EXISTS image (key BLOB PRIMARY KEY, fingerprint TEXT) WITHOUT ROWID")
            self._db.execute("CREATE TABLE IF NOT EXISTS listed (root TEXT PRIMARY KEY, at REAL, part TEXT)")
            self._db.execute("CREATE TABLE IF NOT EXISTS inventory (stamp TEXT, left_out INTEGER, note TEXT)")
        except sqlite3.Error as error:
            raise ConfigError(f"{path}: {error}; name another file, or remove it") from error

    def close(self) -> None:
        self._db.close()

    def is_whole(self, root: str, part: str, stamp: str = "") -> bool:
        """Was it filled to its end, of this root and part, from the inventory with this stamp, or by listing?

        Raises ConfigError where it is another root's or part's.
        """
        found = self._db.execute("SELECT root, part FROM listed").fetchone()
        if found is not None and found != (root, part):
            text = f"is the manifest of root '{found[0]}'{f', part {found[1]}' if found[1] else ''}"
            raise ConfigError(f"{self.path}: {text}; name another file with --manifest, or remove it")
        if not self.count():  # of a root that was not mounted, perhaps
            return False
        return found is not None and stamp == (self._db.execute("SELECT stamp FROM inventory").fetchone() or ("",))[0]

    def fill(self, root: str, part: str, entries: Iterable[Entry], inventory: Inventory | None = None) -> None:
        """Anew; it counts only when all of it is there. `inventory`: where the entries are from, if from one."""
        with self._db:
            for table in ("image", "listed", "inventory"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608
            rows = ((_stored(entry.key), entry.fingerprint) for entry in entries)
            count = self._db.executemany("INSERT OR REPLACE INTO image VALUES (?, ?)", rows).rowcount
            self._db.execute("INSERT INTO listed VALUES (?, ?, ?)", (root, time.time(), part))
            if inventory is not None:
                inventory.repeated(count - self.count())
                told = (inventory.stamp, inventory.left_out, inventory.note)
                self._db.execute("INSERT INTO inventory VALUES (?, ?, ?)", told)

    def left_out(self) -> tuple[int, str]:
        """(rows of the inventory that name no image that is there, what is wrong with its rows)."""
        return self._db.execute("SELECT left_out, note FROM inventory").fetchone() or (0, "")

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM image").fetchone()[0])

    def entries(self) -> Iterator[Entry]:
        """In the order of their paths; may be abandoned at any point."""
        last = b""
        while True:
            query = "SELECT key, fingerprint FROM image WHERE key > ? ORDER BY key LIMIT ?"
            rows = self._db.execute(query, (last, ROWS)).fetchall()
            for key, fingerprint in rows:
                yield Entry(key.decode("utf-8", "surrogateescape"), str(fingerprint))
            if len(rows) < ROWS:
                return
            last = rows[-1][0]


def _stored(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def in_part(key: str, part: str) -> bool:
    """Does an image belong to part "i/n" of a root? "" is the whole. Stable, so that several machines can share."""
    if not part:
        return True
    index, count = map(int, part.split("/"))
    return sum(_stored(key)) % count == index - 1


@contextmanager
def listed(
    source: Root,
    target: Root,
    manifest: Path,
    *,
    part: str,
    anew: bool,
    inventory: Inventory | None,
    warn: Callable[[str], None],
) -> Iterator[Manifest]:
    """The list of the images of `source` that are to be processed as `target` says; made where it is not there yet.

    `warn` hears of rows of the inventory that are no images, and of folders that cannot be read.
    Raises OSError, ConfigError, RmbgdError where the roots do not belong together, or are not there.
    """
    if source.place != target.place:
        text = f"root '{target.folder.name}' reads {target.place}, and '{source.folder.name}' {source.place}"
        raise RmbgdError(f"{text}: --out names a root with the same input")
    if trouble := target.trouble():
        raise RmbgdError(f"root '{target.folder.name}': {trouble}")
    with closing(Manifest(manifest)) as images:
        name = source.folder.name
        if not images.is_whole(name, part, inventory.stamp if inventory else "") or anew:
            if inventory is not None:
                images.fill(name, part, inventory.entries(source, lambda key: in_part(key, part)), inventory)
            else:
                unread: list[str] = []
                images.fill(name, part, (entry for entry in source.inputs(unread) if in_part(entry.key, part)))
                if unread:
                    warn(f"folders that cannot be read are left out ({len(unread)}, such as '{unread[0]}'): --relist")
        if note := images.left_out()[1]:
            warn(note)
        yield images


def backfill(
    broker: Broker,
    source: Root,
    target: Root,
    manifest: Path,
    *,
    part: str = "",
    window: int = WINDOW,
    anew: bool = False,
    retry_failed: bool = False,
    inventory: Inventory | None = None,
    tell: Callable[[Completeness], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Completeness:
    """Have every image of `source` processed as `target` says, which reads the same folder; answers the completeness.

    Ends when all have an answer, or the queue is empty and some still have none. Run it again after it was killed.
    `anew` lists the root again, or reads the inventory again, whose images count where there is one. Raises what
    `listed` does, and BrokerFault.
    """
    with listed(source, target, manifest, part=part, anew=anew, inventory=inventory, warn=warn) as images:
        left_out = images.left_out()[0]
        feeder = _Feeder(broker, target, images, window, retry_failed, tell)
        ended = feeder.run()
        return replace(ended, wanted=ended.wanted + left_out, left_out=left_out)


class _Feeder:
    def __init__(
        self,
        broker: Broker,
        root: Root,
        images: Manifest,
        window: int,
        retry_failed: bool,
        tell: Callable[[Completeness], None],
    ) -> None:
        self._broker, self._root, self._images, self._window = broker, root, images, window
        self._retry_failed, self._tell = retry_failed, tell
        self.progress = Completeness(wanted=images.count())

    def run(self) -> Completeness:
        """Feed once, then wait; what is missing then was lost on the way, and is fed once more."""
        for again in (self._retry_failed, True):
            self._feed(again=again)
            if self._is_complete():
                break
        return self.progress

    def _feed(self, *, again: bool) -> None:
        """`again`: also what was announced just now, as its name may have been lost since, or its result."""
        progress, batch = self.progress, []
        progress.done = progress.failed = 0
        for entry, kind in answered(self._root, filter(lambda each: not unusable(each.key), self._images.entries())):
            retried = kind == "failed" and self._retry_failed and self._root.forget_refusal(entry.key)
            progress.done += kind == "done"
            progress.failed += kind == "failed" and not retried
            if kind and not retried:
                continue
            batch.append(entry)
            if len(batch) >= min(BATCH, self._window):
                self._publish(batch, again)
                batch = []
        if batch:
            self._publish(batch, again)
        self._retry_failed = False

    def _publish(self, batch: list[Entry], again: bool) -> None:
        """As soon as the window has room; a full queue is waited for."""
        while True:
            self._look()
            if self.progress.queued + len(batch) <= self._window:
                try:
                    self.progress.announced += publish(self._broker, BULK, self._root, batch, again=again)
                except BrokerFault as fault:
                    if fault.kind not in ("full", "unreachable"):
                        raise
                else:
                    self.progress.queued += len(batch)
                    self._tell(self.progress)
                    return
            time.sleep(LOOK_EVERY)

    def _is_complete(self) -> bool:
        """Wait until the queue is empty; has every image its answer then?"""
        empty = 0
        while True:
            self._look()
            self._tell(self.progress)
            empty = 0 if self.progress.queued else empty + 1
            if empty in (1, PATIENCE):
                self._count()
                if empty == PATIENCE or not self.progress.missing:
                    return not self.progress.missing
            time.sleep(LOOK_EVERY)

    def _look(self) -> None:
        """How many are on the queue; a broker that is away is waited for."""
        try:
            states = queue_states(self._broker, [self._root.folder.name])
        except BrokerFault as fault:
            if fault.kind != "unreachable":
                raise
            return
        before = self.progress.queued
        self.progress.queued = sum(state.waiting + state.leased for state in states if state.stream == BULK)
        self.progress.done += max(0, before - self.progress.queued)  # until they are counted

    def _count(self) -> None:
        progress = self.progress
        progress.done = progress.failed = 0
        progress.why.clear()
        for entry, kind in answered(self._root, self._images.entries()):
            progress.done += kind == "done"
            progress.failed += kind == "failed"
            if kind in ("", UNKNOWN):
                progress.miss(entry.key, self._why_missing(entry, kind))
        self._tell(progress)

    def _why_missing(self, entry: Entry, kind: str) -> str:
        if len(self.progress.why) >= NAMED:  # nobody reads it
            return ""
        try:
            now = entry.fingerprint if kind == UNKNOWN else self._root.fingerprint(entry.key)
        except OSError as error:
            return str(error)
        if now == entry.fingerprint:
            return "its record cannot be read" if kind == UNKNOWN else "no result yet"
        return "it is gone; --relist" if now is None else "another version is there now; --relist"
