"""Looking back: which images ended, of any schema, beside a service, and what is said where one may not look."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rmbgd.errors import LedgerFault, RmbgdError
from rmbgd.store.history import EndedImage, read_history
from tests.support.workspace import Workspace, torn

BEFORE = Path(__file__).parents[1] / "contract" / "before" / "ledger.sql"


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    """A closed one, of five images that ended in this order: done, refused, empty, full, done."""
    it = Workspace(tmp_path)
    for number, verdict in enumerate(("ok", "", "empty", "full", "ok")):
        it.drop(f"{number}.jpg", b"image")
        job = it.claim(f"{number}.jpg")
        if verdict:
            it.publish(job, b"cutout %d" % number)
        else:
            it.publisher.quarantine.set_aside(job, torn(job))
        with it.ledger.database.transaction() as db:
            update = "UPDATE job SET verdict=?, ended_at=?, device='cpu', seconds=0.5 WHERE id=?"
            db.execute(update, (verdict or None, 1000.0 + number, job.job_id))
    it.drop("still-here.jpg")
    it.claim("still-here.jpg")
    it.close()
    return it.ledger.path


def paths(images: list[EndedImage]) -> list[str]:
    return [image.path for image in images]


def test_what_went_wrong_comes_first_then_the_newest(ledger: str) -> None:
    found = read_history(ledger, since=0, limit=9)
    assert paths(found.images) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "0.jpg"]
    assert found.counts == {"failed": 1, "empty": 1, "full": 1, "done": 2}
    assert [image.kind for image in found.images] == ["failed", "empty", "full", "done", "done"]
    first = found.images[0]
    assert (first.reason, first.detail, first.output) == ("corrupt", "torn", None)


def test_a_limit_leaves_out_the_oldest_of_the_good_ones_but_counts_them(ledger: str) -> None:
    found = read_history(ledger, since=0, limit=4)
    assert paths(found.images) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert sum(found.counts.values()) == 5


def test_time_and_folder_bound_images_and_counts(ledger: str) -> None:
    found = read_history(ledger, since=1003.0, limit=9)
    assert (paths(found.images), sum(found.counts.values())) == (["3.jpg", "4.jpg"], 2)
    assert len(read_history(ledger, since=0, folder="shop", limit=9).images) == 5
    assert read_history(ledger, since=0, folder="other", limit=9).images == []


def test_an_older_ledger_is_read_without_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(BEFORE.read_text())
    before = path.read_bytes()
    found = read_history(str(path), since=0, limit=99)
    assert found.counts["failed"] >= 1
    assert found.counts["done"] >= 2
    assert {(image.verdict, image.width, image.device, image.seconds) for image in found.images} == {(None,) * 4}
    assert path.read_bytes() == before


def test_it_is_read_beside_the_service_that_writes_it(tmp_path: Path) -> None:
    it = Workspace(tmp_path)
    it.drop("a.jpg")
    it.work("a.jpg")
    assert paths(read_history(it.ledger.path, since=0, limit=9).images) == ["a.jpg"]
    it.close()


def test_an_original_that_was_adopted_was_not_processed(ledger: str) -> None:
    with closing(sqlite3.connect(ledger)) as db, db:
        db.execute("UPDATE job SET target=NULL WHERE path=?", (b"4.jpg",))
    found = read_history(ledger, since=0, limit=9)
    assert ("4.jpg" in paths(found.images), found.counts["done"]) == (False, 1)


def damage(path: str) -> None:
    Path(path).write_bytes(b"SQLite format 3\0" + os.urandom(5000))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (os.unlink, "there is no ledger; the service makes one"),
        (lambda path: sqlite3.connect(path).execute("PRAGMA user_version=99").connection.close(), "schema 99"),
        (damage, "NOTADB|CORRUPT|malformed"),
    ],
)
def test_what_cannot_be_read_is_told(ledger: str, spoil: Callable[[str], None], said: str) -> None:
    spoil(ledger)
    with pytest.raises((RmbgdError, LedgerFault), match=said):
        read_history(ledger, since=0, limit=9)


def test_who_may_not_read_it_is_told_whom_to_be(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the answer of access(2) is played."""
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode == os.X_OK)
    with pytest.raises(RmbgdError, match="Permission denied; be root, or the service's user"):
        read_history(ledger, since=0, limit=9)


def test_a_ledger_at_rest_is_read_without_writing_beside_it(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a right to make a -wal there SQLite refuses the file, unless it is told that nobody writes."""
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    assert len(read_history(ledger, since=0, limit=9).images) == 5
    assert sorted(os.listdir(Path(ledger).parent)) == ["ledger.sqlite", "ledger.sqlite.lock"]
