"""The backup that docs/operations.md advises, taken while the service works. Restored: system/test_operations.py."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from rmbgd.cli import main as cli
from tests.support.images import samples
from tests.support.service import ServiceUnderTest

WAVE, WAVES = 10, 4


def test_backups_of_a_busy_ledger_are_whole(tmp_path: Path) -> None:
    """Each taken while images are on their way; each opens, is sound, and knows all that was told before it began."""
    with ServiceUnderTest(tmp_path, folder={"originals": "keep"}, options={"engine": {"delay": 0.02}}) as service:
        for wave in range(WAVES):
            service.drop_all(samples(range(wave * WAVE, (wave + 1) * WAVE)))
            service.wait_for("image.done", count=wave * WAVE + 1)
            told = {event["path"] for event in service.named("image.done")}
            copy = tmp_path / f"copy-{wave}.sqlite"
            assert cli.main(["ledger", "backup", str(copy), "--config", str(service.config)]) == 0
            with contextlib.closing(sqlite3.connect(copy)) as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                assert told <= {path.decode() for (path,) in db.execute("SELECT path FROM job WHERE state='done'")}
        service.wait_for_endings(WAVE * WAVES)
