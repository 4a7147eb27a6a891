"""A ledger and a log of an earlier version are taken over: tests/contract/before/ holds what a kill left of one.

Four images had ended; `late-3` was killed between its ledger row and its rename, the others were claimed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from rmbgd.cli import main as cli
from tests.support.images import assert_cutout_of, sample_image
from tests.support.service import ServiceUnderTest

BEFORE = Path(__file__).parents[1] / "contract" / "before"
ENDED, LATE = ("shoes/a.png", "b.png", "again.png", "broken.jpg"), (3, 4, 5, 6)


def restore(service: ServiceUnderTest) -> None:
    """The folders and the ledger as they were, with the inode numbers and paths that they have here."""
    for role in ("input", "output", "done", "failed"):
        shutil.copytree(BEFORE / role, service.roots[role], dirs_exist_ok=True)
    db = sqlite3.connect(service.state / "ledger.sqlite")
    db.executescript((BEFORE / "ledger.sql").read_text())
    for table in ("target", "content"):
        db.execute(f"UPDATE {table} SET output = ?", (os.fsencode(service.output),))
    for job, path, mtime in db.execute("SELECT id, path, mtime_ns FROM job WHERE id > 4").fetchall():
        claimed = service.input / ".rmbgd" / f"{job}__{os.fsdecode(path)}"
        here = claimed if claimed.exists() else service.input / os.fsdecode(path)
        os.utime(here, ns=(mtime, mtime))
        db.execute("UPDATE job SET inode = ? WHERE id = ?", (here.stat().st_ino, job))
    for target, mtime in db.execute("SELECT target, mtime_ns FROM target WHERE sha256 IS NOT NULL").fetchall():
        here = service.output / os.fsdecode(target)
        os.utime(here, ns=(mtime, mtime))
        db.execute("UPDATE target SET inode = ? WHERE target = ?", (here.stat().st_ino, target))
    db.commit()
    db.close()


def test_work_of_an_earlier_version_is_finished(tmp_path: Path) -> None:
    service = ServiceUnderTest(tmp_path)
    restore(service)
    with service:
        service.wait_for("image.done", count=len(LATE))
        service.wait(service.is_idle, "nothing left to do")
        reused = service.serve("known.png", sample_image(2))
    endings = [event["path"] for event in service.endings()]
    assert sorted([*(f"late-{number}.png" for number in LATE), "known.png"]) == sorted(endings)
    assert reused["reused"]
    for number in LATE:
        assert_cutout_of(sample_image(number), service.output / f"late-{number}.png")
    assert set() == {path for path in ENDED if service.endings(path)}
    with contextlib.closing(sqlite3.connect(service.state / "ledger.sqlite")) as db:
        made = "SELECT path, verdict, width, height, device, seconds > 0 FROM job"
        rows = {os.fsdecode(path): tuple(how) for path, *how in db.execute(made)}
    for path in (*(f"late-{number}.png" for number in LATE), "known.png"):
        assert rows[path] == ("ok", 64, 48, "fake", 1), path
    assert rows["b.png"] == (None,) * 5  # which that version did not keep


def test_log_of_an_earlier_version_gives_the_same_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two failures, two failovers and an orderly stop: every figure and every key as that version printed them."""
    monkeypatch.chdir(BEFORE)
    assert 0 == cli.main(["mtbf", "--json", "failures.jsonl"])
    report = json.loads(capsys.readouterr().out)
    for part in (report["total"], *report["machines"]):
        assert part.pop("full_disk") == {"seconds": 0, "incidents": 0}  # which that version did not tell
        assert part.pop("paused_hours") == 0
        assert set(part["pictures"].pop("further").values()) == {0}
    assert json.loads((BEFORE / "mtbf.json").read_text()) == report
