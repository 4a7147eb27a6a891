"""The event log: what a line holds, where it goes, and a reader that hangs."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from rmbgd import events
from rmbgd.config.load import ServiceSettings
from rmbgd.telemetry import journal
from rmbgd.telemetry.jsonl import JsonlFile, rfc3339
from rmbgd.telemetry.log import ConsoleWriter, EventLog, open_log

BLOCKED = {"folder": "shop", "path": "a\udcff\n.jpg", "cause": "permission"}


class FakeJournal:
    """Stands for journald behind systemd.journal, and keeps the fields; `gate` holds it up when it is cleared."""

    def __init__(self) -> None:
        self.entries: list[dict[str, bytes]] = []
        self.gate = threading.Event()
        self.gate.set()

    def sendv(self, *fields: bytes) -> None:
        self.gate.wait()
        self.entries.append({f.split(b"=", 1)[0].decode(): f.split(b"=", 1)[1] for f in fields})


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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


def test_journal_gets_a_sentence_the_line_its_priority_and_fields() -> None:
    fake = FakeJournal()
    with EventLog(None, ConsoleWriter(send=fake.sendv, text=True)) as log:
        log.emit("intake.blocked", **BLOCKED)
    (entry,) = fake.entries
    assert {"console": 0} == log.dropped
    assert (b"4", b"rmbgd") == (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"])
    assert b"a\xff\n.jpg" == entry["RMBGD_PATH"]
    assert (b"intake.blocked", b"shop") == (entry["RMBGD_EVENT"], entry["RMBGD_FOLDER"])
    assert rb"cannot take a\udcff .jpg: permission" == entry["MESSAGE"]
    assert BLOCKED["path"] == json.loads(entry["RMBGD_JSON"])["path"]


def test_journal_that_hangs_blocks_no_thread_and_loses_no_line_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmbgd.telemetry.log.CONSOLE_QUEUE", 10)
    monkeypatch.setattr("rmbgd.telemetry.log.CLOSE_TIMEOUT", 0.01)
    fake = FakeJournal()
    fake.gate.clear()
    console = ConsoleWriter(send=fake.sendv)
    with EventLog(JsonlFile(tmp_path / "log"), console) as log:
        for _ in range(100):
            log.emit("service.reload")
    assert 100 == len(written(tmp_path / "log"))
    assert 89 <= log.dropped["console"] <= 90
    fake.gate.set()
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


@pytest.mark.parametrize("form", ["auto", "json", "text"])
@pytest.mark.parametrize("installed", [True, False])
def test_events_go_to_the_journal_where_stdout_leads_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], installed: bool, form: str
) -> None:
    """Through systemd-python where it is installed, else over the socket itself; with a sentence as the message."""
    fake, stdout = FakeJournal(), os.fstat(1)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stdout.st_dev}:{stdout.st_ino}")
    monkeypatch.setitem(sys.modules, "systemd.journal", fake if installed else None)
    monkeypatch.setattr(journal, "sendv", fake.sendv)
    with open_log(ServiceSettings(log_file=tmp_path / "log"), form) as log:
        log.emit("service.reload")
    line = (tmp_path / "log").read_bytes().rstrip()
    (entry,) = fake.entries
    assert line == entry["RMBGD_JSON"]
    assert entry["MESSAGE"] == (line if form == "json" else b"comparing all folders with the ledger, as SIGHUP asks")
    assert "" == capfd.readouterr().out


@pytest.mark.parametrize("form", ["auto", "json", "text"])
def test_stdout_that_is_no_terminal_gets_json_unless_text_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], form: str
) -> None:
    """JOURNAL_STREAM is inherited by everything below; it counts only for the descriptor that it names."""
    monkeypatch.setenv("JOURNAL_STREAM", "0:0")
    with open_log(ServiceSettings(log_file=tmp_path / "log"), form) as log:
        log.emit("service.reload")
    line, out = (tmp_path / "log").read_text(), capfd.readouterr().out
    assert "service.reload" == json.loads(line)["event"]
    if form == "text":
        assert re.fullmatch(r"\d\d:\d\d:\d\d  info      comparing all folders .*\n", out)
    else:
        assert line == out


@pytest.mark.parametrize(
    ("form", "environ", "shown"),
    [
        ("auto", {"TERM": "xterm", "NO_COLOR": ""}, "\x1b[33mwarning \x1b[0m  cannot take"),
        ("auto", {"TERM": "xterm", "NO_COLOR": "1"}, "  warning   cannot take"),
        ("auto", {"TERM": "dumb"}, "  warning   cannot take"),
        ("json", {"TERM": "xterm"}, '{"event":"intake.blocked"'),
    ],
)
def test_terminal_gets_sentences_in_colour_when_allowed(
    monkeypatch: pytest.MonkeyPatch, form: str, environ: dict[str, str], shown: str
) -> None:
    for name in ("JOURNAL_STREAM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    master, terminal = os.openpty()
    before = os.dup(1)
    os.dup2(terminal, 1)
    try:
        with open_log(ServiceSettings(), form) as log:
            log.emit("intake.blocked", **BLOCKED)
    finally:
        os.dup2(before, 1)
    out = os.read(master, 65536).decode()
    for descriptor in (master, terminal, before):
        os.close(descriptor)
    assert shown in out
    assert out.count("\n") == 1


def test_vocabulary_fits_the_log() -> None:
    """No event has a key of the envelope, which would be lost; the journal has a priority for every level."""
    keys = {key.rstrip("?") for kind in events.EVENTS.values() for key in kind.keys}
    assert set() == keys & set(events.ENVELOPE)
    assert {kind.level for kind in events.EVENTS.values()} <= set(journal.PRIORITY)
