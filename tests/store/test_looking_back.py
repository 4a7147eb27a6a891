"""Looking back for the report: which images ended, what went wrong first, and how many there are."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from rmbgd.store.reading import Ending, counts_of_kinds, oddest, reading
from tests.support.workspace import Workspace, torn


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


def looked_back(
    path: str, *, since: float = 0, limit: int = 9, folder: str | None = None
) -> tuple[list[Ending], dict[str, int]]:
    with reading(path) as db:
        return oddest(db, since, limit, folder), counts_of_kinds(db, since, folder)


def paths(images: list[Ending]) -> list[str]:
    return [image.path for image in images]


def test_what_went_wrong_comes_first_then_the_newest(ledger: str) -> None:
    found, counts = looked_back(ledger, limit=9)
    assert paths(found) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "0.jpg"]
    assert counts == {"failed": 1, "review": 0, "empty": 1, "full": 1, "done": 2}
    assert [image.kind for image in found] == ["failed", "empty", "full", "done", "done"]
    first = found[0]
    assert (first.reason, first.detail, first.output) == ("corrupt", "torn", None)
    found, counts = looked_back(ledger, limit=4)
    assert (paths(found), sum(counts.values())) == (["1.jpg", "2.jpg", "3.jpg", "4.jpg"], 5)


def test_time_and_folder_bound_images_and_counts(ledger: str) -> None:
    found, counts = looked_back(ledger, since=1003.0, limit=9)
    assert (paths(found), sum(counts.values())) == (["3.jpg", "4.jpg"], 2)
    assert len(looked_back(ledger, folder="shop", limit=9)[0]) == 5
    assert looked_back(ledger, folder="other", limit=9)[0] == []


def test_an_original_that_was_adopted_was_not_processed(ledger: str) -> None:
    with closing(sqlite3.connect(ledger)) as db, db:
        db.execute("UPDATE job SET target=NULL WHERE path=?", (b"4.jpg",))
    found, counts = looked_back(ledger, limit=9)
    assert ("4.jpg" in paths(found), counts["done"]) == (False, 1)
