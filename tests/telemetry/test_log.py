"""The event log: what a line holds, where it goes, and that nobody waits for a reader that hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rmbgd import events
from rmbgd.config import load as config
from rmbgd.telemetry import log as logs
from rmbgd.telemetry.jsonl import JsonlFile

BLOCKED = {"folder": "shop", "path": "a\udcff\n.jpg", "cause": "permission"}


class Kept:
    """Stands for systemd.journal.sendv: keeps the fields; `gate` holds it up."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.entries: list[dict[str, bytes]] = []
        self._gate = gate

    def __call__(self, *fields: bytes) -> None:
        if self._gate is not None:
            self._gate.wait()
        self.entries.append({f.split(b"=", 1)[0].decode(): f.split(b"=", 1)[1] for f in fields})


def written(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_line_holds_the_envelope_then_the_keys(tmp_path: Path) -> None:
    """Who reads the log finds what happened first, and the event's own keys after it, in the order given."""
    with logs.EventLog(JsonlFile(tmp_path / "log"), None) as log:
        log.emit("intake.blocked", **BLOCKED)

    (line,) = written(tmp_path / "log")
    assert [*events.ENVELOPE, *BLOCKED] == list(line)
    assert ("intake.blocked", "warning", os.getpid()) == (line["event"], line["level"], line["pid"])
    assert BLOCKED == {key: line[key] for key in BLOCKED}


def test_unknown_event_is_written_in_production(tmp_path: Path) -> None:
    """A defect in the vocabulary must not lose a line at three in the morning."""
    with logs.EventLog(JsonlFile(tmp_path / "log"), None) as log:
        log.emit("no.such", colour="red")

    (line,) = written(tmp_path / "log")
    assert ("no.such", "warning", "red") == (line["event"], line["level"], line["colour"])


def test_unknown_event_is_refused_when_strict(tmp_path: Path) -> None:
    """In tests the same defect is an error."""
    with (
        logs.EventLog(JsonlFile(tmp_path / "log"), None, strict=True) as log,
        pytest.raises(ValueError, match="unknown key 'colour'"),
    ):
        log.emit("service.reload", colour="red")

    assert not (tmp_path / "log").exists()


def test_keys_of_the_envelope_cannot_be_overwritten(tmp_path: Path) -> None:
    """An event that carries `level` or `pid` of its own does not change what the line says of itself."""
    with logs.EventLog(JsonlFile(tmp_path / "log"), None) as log:
        log.emit("service.reload", level="debug", pid=1)

    (line,) = written(tmp_path / "log")
    assert ("info", os.getpid()) == (line["level"], line["pid"])


def test_journal_gets_the_line_its_priority_and_fields() -> None:
    """The journal can be filtered by level and by RMBGD_ fields; bytes that are no UTF-8 arrive as they are."""
    kept = Kept()
    with logs.EventLog(None, logs.Console(journal=kept)) as log:
        log.emit("intake.blocked", **BLOCKED)

    (entry,) = kept.entries
    assert (b"4", b"rmbgd") == (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"])
    assert b"a\xff\n.jpg" == entry["RMBGD_PATH"]
    assert (b"intake.blocked", b"shop") == (entry["RMBGD_EVENT"], entry["RMBGD_FOLDER"])
    assert BLOCKED["path"] == json.loads(entry["MESSAGE"])["path"]


def test_journal_that_hangs_stops_nobody_and_loses_no_line_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """emit returns, the file has every line, and what does not fit the queue is counted."""
    monkeypatch.setattr(logs, "CONSOLE_QUEUE", 10)
    monkeypatch.setattr(logs, "CLOSE_TIMEOUT", 0.01)
    gate = threading.Event()
    console = logs.Console(journal=Kept(gate))
    log = logs.EventLog(JsonlFile(tmp_path / "log"), console)
    for _ in range(100):
        log.emit("service.reload")
    log.close()

    assert 100 == len(written(tmp_path / "log"))
    assert 89 <= log.dropped["console"] <= 90
    gate.set()
    console._thread.join()


def test_reader_that_went_away_stops_nobody(tmp_path: Path) -> None:
    """stdout closed by `| head`: lines are counted as dropped, the file goes on."""
    reading, writing = os.pipe()
    os.close(reading)
    log = logs.EventLog(JsonlFile(tmp_path / "log"), logs.Console(descriptor=writing))
    log.emit("service.reload")
    log.close()
    os.close(writing)

    assert {"file": 0, "console": 1} == log.dropped
    assert 1 == len(written(tmp_path / "log"))


def test_lines_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    """Every line is whole, and of each thread they come in order."""
    with logs.EventLog(JsonlFile(tmp_path / "log"), None) as log:

        def talk(name: str) -> None:
            for number in range(200):
                log.emit("intake.blocked", folder=name, path="x" * 3000, cause=str(number))

        threads = [threading.Thread(target=talk, args=(f"t{index}",)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    found = written(tmp_path / "log")
    for index in range(4):
        assert [str(n) for n in range(200)] == [line["cause"] for line in found if line["folder"] == f"t{index}"]


def test_stdout_gets_the_lines_when_the_journal_does_not_listen(tmp_path: Path) -> None:
    """Run by hand: one JSON object a line on stdout, and the same in the file."""
    script = (
        "import sys\n"
        "from rmbgd.config import load as config\n"
        "from rmbgd.telemetry import log as logs\n"
        "with logs.open_log(config.Service(log_file=sys.argv[1])) as log:\n"
        "    log.emit('service.reload')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "log"], capture_output=True, check=True, env=environment
    )

    assert b"" == done.stderr
    assert done.stdout.decode() == (tmp_path / "log").read_text()
    assert "service.reload" == json.loads(done.stdout)["event"]


def test_journal_is_recognised_by_what_stdout_leads_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """JOURNAL_STREAM is inherited by everything below; it counts only for the descriptor it names."""
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")

        assert logs._leads_to_journal(stream.fileno())
        with (tmp_path / "other").open("w") as other:
            assert not logs._leads_to_journal(other.fileno())


def test_no_event_has_a_key_of_the_envelope() -> None:
    """Else the key would be lost on the way to the line."""
    taken = {
        (name, key) for name, kind in events.EVENTS.items() for key in kind.keys if key.rstrip("?") in events.ENVELOPE
    }

    assert set() == taken


def test_every_level_of_the_vocabulary_has_a_priority() -> None:
    """The journal knows how bad each event is."""
    assert {kind.level for kind in events.EVENTS.values()} <= set(logs.PRIORITY)


def test_log_without_a_file_still_says_it(tmp_path: Path) -> None:
    """The file is a setting, the console is always there."""
    kept = Kept()
    with logs.EventLog(None, logs.Console(journal=kept)) as log:
        log.emit("service.reload")

    assert 1 == len(kept.entries)
    assert {"console": 0} == log.dropped
    assert config.ServiceSettings().log_file is None
