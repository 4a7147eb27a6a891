"""The event log: what a line holds, where it goes, and a reader that hangs."""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from rmbgd import events
from rmbgd.config.load import ServiceSettings
from rmbgd.telemetry.jsonl import JsonlFile, rfc3339
from rmbgd.telemetry.log import PRIORITY, ConsoleWriter, EventLog, open_log

BLOCKED = {"folder": "shop", "path": "a\udcff\n.jpg", "cause": "permission"}


class FakeJournal:
    """Stands for systemd.journal, the module, and keeps the fields; `gate` holds it up when it is cleared."""

    def __init__(self) -> None:
        self.entries: list[dict[str, bytes]] = []
        self.gate = threading.Event()
        self.gate.set()

    def sendv(self, *fields: bytes) -> None:
        self.gate.wait()
        self.entries.append({f.split(b"=", 1)[0].decode(): f.split(b"=", 1)[1] for f in fields})


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_line_holds_the_envelope_then_the_keys(tmp_path: Path) -> None:
    with EventLog(JsonlFile(tmp_path / "log"), None) as log:
        log.emit("intake.blocked", **BLOCKED)
    (line,) = written(tmp_path / "log")
    assert [*events.ENVELOPE, *BLOCKED] == list(line)
    assert ("intake.blocked", "warning", os.getpid()) == (line["event"], line["level"], line["pid"])
    assert line.items() >= BLOCKED.items()
    assert line["time"] == rfc3339(datetime.fromisoformat(line["time"]))
    assert line["time"].endswith("Z")


def test_defects_in_the_vocabulary_lose_no_line_in_production(tmp_path: Path) -> None:
    with EventLog(JsonlFile(tmp_path / "log"), None) as log:
        log.emit("no.such", colour="red")
        log.emit("service.reload", level="debug", pid=1)
    unknown, overwriting = written(tmp_path / "log")
    assert ("no.such", "warning", "red") == (unknown["event"], unknown["level"], unknown["colour"])
    assert ("info", os.getpid()) == (overwriting["level"], overwriting["pid"])


def test_journal_gets_the_line_its_priority_and_fields() -> None:
    journal = FakeJournal()
    with EventLog(None, ConsoleWriter(journal=journal.sendv)) as log:
        log.emit("intake.blocked", **BLOCKED)
    (entry,) = journal.entries
    assert {"console": 0} == log.dropped
    assert (b"4", b"rmbgd") == (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"])
    assert b"a\xff\n.jpg" == entry["RMBGD_PATH"]
    assert (b"intake.blocked", b"shop") == (entry["RMBGD_EVENT"], entry["RMBGD_FOLDER"])
    assert BLOCKED["path"] == json.loads(entry["MESSAGE"])["path"]


def test_journal_that_hangs_blocks_no_thread_and_loses_no_line_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmbgd.telemetry.log.CONSOLE_QUEUE", 10)
    monkeypatch.setattr("rmbgd.telemetry.log.CLOSE_TIMEOUT", 0.01)
    journal = FakeJournal()
    journal.gate.clear()
    console = ConsoleWriter(journal=journal.sendv)
    with EventLog(JsonlFile(tmp_path / "log"), console) as log:
        for _ in range(100):
            log.emit("service.reload")
    assert 100 == len(written(tmp_path / "log"))
    assert 89 <= log.dropped["console"] <= 90
    journal.gate.set()
    console._thread.join()


def test_reader_that_went_away_blocks_no_thread(tmp_path: Path) -> None:
    """stdout closed by `| head`: lines are counted as dropped, the file goes on."""
    reading, writing = os.pipe()
    os.close(reading)
    with EventLog(JsonlFile(tmp_path / "log"), ConsoleWriter(descriptor=writing)) as log:
        log.emit("service.reload")
    os.close(writing)
    assert {"file": 0, "console": 1} == log.dropped
    assert 1 == len(written(tmp_path / "log"))


def test_lines_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    def talk(name: str) -> None:
        for number in range(200):
            log.emit("intake.blocked", folder=name, path="x" * 3000, cause=str(number))

    with EventLog(JsonlFile(tmp_path / "log"), None) as log, ThreadPoolExecutor(4) as pool:
        list(pool.map(talk, "abcd"))
    found = written(tmp_path / "log")
    for name in "abcd":
        assert [str(n) for n in range(200)] == [line["cause"] for line in found if line["folder"] == name]


@pytest.mark.parametrize(
    ("leads_there", "installed", "to_journal"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_lines_go_to_the_journal_only_where_stdout_leads_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    leads_there: bool, installed: bool, to_journal: bool,
) -> None:  # fmt: skip
    """JOURNAL_STREAM is inherited by everything below; it counts only for the descriptor it names. Else to stdout."""
    journal, stdout = FakeJournal(), os.fstat(1)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stdout.st_dev}:{stdout.st_ino}" if leads_there else "0:0")
    monkeypatch.setitem(sys.modules, "systemd.journal", journal if installed else None)
    with open_log(ServiceSettings(log_file=tmp_path / "log")) as log:
        log.emit("service.reload")
    line = (tmp_path / "log").read_text()
    assert ([line.rstrip().encode()] if to_journal else []) == [entry["MESSAGE"] for entry in journal.entries]
    assert ("" if to_journal else line) == capfd.readouterr().out
    assert "service.reload" == json.loads(line)["event"]


def test_vocabulary_fits_the_log() -> None:
    """No event has a key of the envelope, which would be lost; the journal has a priority for every level."""
    keys = {key.rstrip("?") for kind in events.EVENTS.values() for key in kind.keys}
    assert set() == keys & set(events.ENVELOPE)
    assert {kind.level for kind in events.EVENTS.values()} <= set(PRIORITY)
