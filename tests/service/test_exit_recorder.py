"""The exit recorder: one event with the cause for every end of the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rmbgd import paths
from rmbgd.config import load as config
from rmbgd.events import ENVELOPE, problems_with
from rmbgd.service import exit_recorder
from rmbgd.service.exit_recorder import STATUS_FILE, exit_keys
from rmbgd.telemetry import journal, jsonl

KILLED = {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL", "INVOCATION_ID": "run-1"}


def record(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """As systemd calls it, but without site packages: the standard library is enough."""
    clean = {key: value for key, value in os.environ.items() if key not in KILLED}
    clean |= {"PYTHONPATH": str(Path(exit_recorder.__file__).parents[2])}
    command = [sys.executable, "-S", "-m", "rmbgd.service.exit_recorder", *arguments]
    return subprocess.run(command, env=clean | environ, capture_output=True, text=True, check=False)


def configured(folder: Path, written: str = "") -> Path:
    path, written = folder / "rmbgd.toml", written or str(folder)
    text = f'[service]\nlog_file = "{written}/events.jsonl"\nruntime_directory = "{written}"\n'
    path.write_text(text, encoding="utf-8-sig")  # with a byte order mark, as some editors write it
    return path


@pytest.mark.integration
@pytest.mark.parametrize("written", ["", "~"])
def test_cause_goes_to_the_journal_and_the_log(written: str, tmp_path: Path) -> None:
    """A killed process cannot log its own death; the recorder's line is like every other, with the uptime."""
    status = {"boot_id": jsonl.boot_id(), "invocation_id": "run-1", "started": 0.0}
    (tmp_path / STATUS_FILE).write_text(json.dumps(status))
    path = configured(tmp_path, written)
    done = record("--config", f"{written}/rmbgd.toml" if written else path, HOME=str(tmp_path), **KILLED)
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout == (tmp_path / "events.jsonl").read_text()
    event = json.loads(done.stdout)
    assert ["service.exit", "signal", "killed", "KILL"] == [event[key] for key in ("event", "result", "code", "status")]
    assert event["uptime"] > 0
    assert [] == problems_with("service.exit", {key: event[key] for key in event if key not in ENVELOPE})


@pytest.mark.parametrize("answers", [True, False])
def test_journal_gets_a_sentence_where_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answers: bool
) -> None:
    """As from the service itself, with the line beside it; a journal that is away gets the line by way of stdout."""
    entries: list[tuple[bytes, ...]] = []

    def send(*fields: bytes) -> None:
        if not answers:
            raise ConnectionRefusedError
        entries.append(fields)

    monkeypatch.setattr(journal, "leads_to_journal", lambda descriptor: descriptor == 1)
    monkeypatch.setattr(journal, "sendv", send)
    for name, value in KILLED.items():
        monkeypatch.setenv(name, value)
    assert exit_recorder.main(["--config", str(configured(tmp_path))]) == 0
    line, out = (tmp_path / "events.jsonl").read_text(), capsys.readouterr().out
    assert out == ("" if answers else line)
    if answers:
        assert {b"MESSAGE=the process ended: signal (killed, KILL)", f"RMBGD_JSON={line.rstrip()}".encode()} <= {
            *entries[0]
        }


def test_a_journal_that_hangs_keeps_nothing_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd kills the recorder then; what the log file and the next start are to know is written by that time."""
    for name, value in KILLED.items():
        monkeypatch.setenv(name, value)
    path = configured(tmp_path)
    path.write_text(f'{path.read_text(encoding="utf-8-sig")}state_directory = "{tmp_path}"\n')
    written: list[str] = []
    monkeypatch.setattr(exit_recorder, "_show", lambda *_: written.extend(each.name for each in tmp_path.iterdir()))
    monkeypatch.setattr(exit_recorder.start_record, "record_exit", lambda state, *_: (state / "known").touch())
    assert exit_recorder.main(["--config", str(path)]) == 0
    assert {"events.jsonl", "known"} <= {*written}


def test_uptime_is_that_of_the_run_that_ended() -> None:
    status = {"boot_id": "b", "invocation_id": "run-1", "started": 100.0}
    assert 23.5 == exit_keys(KILLED, status, "b", 123.5)["uptime"]
    assert "uptime" not in exit_keys(KILLED, status, "other boot", 123.5)
    assert "uptime" not in exit_keys(KILLED, status | {"invocation_id": "run-0"}, "b", 123.5)
    assert "uptime" not in exit_keys(KILLED, {}, "b", 123.5)


@pytest.mark.integration
def test_broken_configuration_is_recorded_in_the_journal(tmp_path: Path) -> None:
    """A service that ended for its configuration is an exit too, though its log cannot be found."""
    (tmp_path / "rmbgd.toml").write_text("[service\n")
    done = record("--config", tmp_path / "rmbgd.toml", **(KILLED | {"EXIT_STATUS": "78"}))
    assert (0, "78") == (done.returncode, json.loads(done.stdout)["status"])


def test_called_by_hand_it_says_what_calls_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_recorder.main([]) == 2
    out, error = capsys.readouterr()
    assert ("", True) == (out, "ExecStopPost" in error)


def test_defaults_are_those_of_the_configuration() -> None:
    """Two files state them, because one of them must not load pydantic."""
    service = config.ServiceSettings()
    assert service.runtime_directory == paths.DEFAULT_RUNTIME_DIRECTORY
    assert service.state_directory == paths.DEFAULT_STATE_DIRECTORY
