"""P0, the audit after every fault: folders, outputs, ledger and events tell the same story, and each image ends once.

For archive mode and inputs of one version each. Whether the process had to stay the same its test says.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from rmbgd.errors import Reason
from tests.support import audit
from tests.support.service import ENDINGS, ServiceUnderTest


def check(service: ServiceUnderTest, dropped: Mapping[str, bytes], *, bad: Mapping[str, Reason] | None = None) -> None:
    """Everything has ended, whatever happened meanwhile. The service may be up or down. Raises AssertionError.

    (a) each original lies in one place, unchanged, each good one's cutout is right, nothing else lies about;
    (b) the ledger has one job for each, ended as the folders say, and, when the service is down, nothing is open;
    (c) each output's bytes hash to what the ledger and its event say;
    (d) each outcome is told once, and once more only by a next start that says so.
    """
    bad = bad or {}
    audit.assert_complete(service.roots, dropped, bad=bad)
    rows = _rows(service)
    assert rows.keys() == dropped.keys(), "the ledger knows other images than were dropped"
    told = [event for name in ENDINGS for event in service.recorded(name) if event["path"] in dropped]
    audit.assert_each_told(told)
    events = {event["path"]: event for event in told}
    assert events.keys() == dropped.keys()
    for path, row in rows.items():
        event = events[path]
        assert row["id"] == event["job"], path
        if path in bad:
            assert (row["state"], row["reason"]) == ("failed", bad[path]), path
            assert (event["event"], event["reason"]) == ("image.failed", bad[path]), path
            continue
        assert (row["state"], event["event"]) == ("done", "image.done"), path
        data = (service.output / os.fsdecode(row["target"])).read_bytes()
        found = hashlib.sha256(data).hexdigest()
        assert found == row["sha256_out"] == event["sha256_out"], f"{path}: what is published is not what was recorded"
        assert len(data) == row["size_out"] == event["bytes_out"], path


def _rows(service: ServiceUnderTest) -> dict[str, dict[str, Any]]:
    """The ledger's row of each image, without those that only showed that the service goes round."""
    down = service.process is None or service.process.poll() is not None
    with closing(sqlite3.connect(f"file:{service.state / 'ledger.sqlite'}?mode=ro", uri=True)) as ledger:
        ledger.row_factory = sqlite3.Row
        rows = [dict(row) for row in ledger.execute("SELECT * FROM job WHERE state <> 'waiting' ORDER BY id")]
        unretired = [row for row in rows if row["retired_at"] is None]
        assert not down or not unretired, f"the ledger has open rows: {unretired}"
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        path = os.fsdecode(row["path"])
        if not path.startswith("turn-"):
            assert path not in found, f"{path} was worked on as two jobs"
            found[path] = row
    return found
