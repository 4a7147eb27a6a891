"""The ledger read beside its service: quick among a hundred thousand rows, and by whoever may."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from rmbgd.clock import SystemClock
from rmbgd.errors import LedgerFault
from rmbgd.store import reading
from rmbgd.store.ledger import Ledger

ROWS = 3000


def filled(path: Path, rows: int = ROWS) -> Ledger:
    """Every tenth failed, and folder "rare" has the first ten alone."""
    ledger = Ledger(path, SystemClock())
    with ledger.database.transaction() as db:
        db.executemany(
            "INSERT INTO job (folder, path, inode, size, mtime_ns, ctime_ns, state, attempt, by_rename, final, "
            "first_seen, claimed_at, ended_at, retired_at, target, reason, verdict) "
            "VALUES (?,?,1,2,3,4,?,1,1,0,5,6,?,?,?,?,?)",
            (
                (
                    *("rare" if number < 10 else "shop", b"%d.jpg" % number, "done" if number % 10 else "failed"),
                    *(number, number, b"%d.png" % number, "corrupt", "ok"),
                )
                for number in range(rows)
            ),
        )
    return ledger


def steps(db: sqlite3.Connection, state: str, folder: str | None) -> int:
    count = 0

    def step() -> None:
        nonlocal count
        count += 100

    db.set_progress_handler(step, 100)
    assert reading.newest(db, state, 51, folder)
    return count


def test_the_newest_come_first(tmp_path: Path) -> None:
    with closing(filled(tmp_path / "l")), reading.reading(str(tmp_path / "l")) as db:
        assert [each.path for each in reading.newest(db, "failed", 2)] == ["2990.jpg", "2980.jpg"]
        assert [each.output for each in reading.newest(db, "done", 2)] == ["2999.png", "2998.png"]
        assert [each.path for each in reading.newest(db, "failed", 9, "rare")] == ["0.jpg"]
        assert reading.failures(db, "rare").keys() == {1}


@pytest.mark.parametrize("state", ["failed", "done"])
def test_a_list_costs_the_same_among_thirty_times_as_many(tmp_path: Path, state: str) -> None:
    found = []
    for rows in (1000, 30_000):
        with closing(filled(tmp_path / str(rows), rows)), reading.reading(str(tmp_path / str(rows))) as db:
            found.append(steps(db, state, None))
            assert steps(db, state, "shop") < 2 * found[-1] + 1000
    assert found[1] < 1.5 * found[0] + 1000


def test_a_ledger_that_nobody_has_open_is_read_without_a_trace(tmp_path: Path) -> None:
    filled(tmp_path / "l").close()
    there = sorted(os.listdir(tmp_path))
    with reading.reading(str(tmp_path / "l")) as db:
        assert len(reading.newest(db, "done", 5)) == 5
    assert sorted(os.listdir(tmp_path)) == there


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(LedgerFault, match=r"missing|unable to open"), reading.reading(str(tmp_path / "none")):
        pass
    filled(tmp_path / "l", 1).close()
    with closing(sqlite3.connect(tmp_path / "l")) as db:
        db.execute("PRAGMA user_version=2")
    with pytest.raises(LedgerFault, match="it is of schema 2"), reading.reading(str(tmp_path / "l")):
        pass
