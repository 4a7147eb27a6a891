"""The command line: commands, exit statuses, and what is not loaded for a short answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from rmbgd import __version__, errors
from rmbgd.cli import main as cli
from rmbgd.cli.status import ServiceState, by_lock, duration, judge, rows
from rmbgd.clock import SystemClock
from rmbgd.errors import EXIT_TEXT, Exit
from rmbgd.store.ledger import Ledger
from rmbgd.telemetry.jsonl import process_start

HEAVY = ("numpy", "torch", "pydantic", "structlog", "rich", "PIL", "cv2", "watchdog", "safetensors", "huggingface_hub")


@pytest.fixture
def rmbgd(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """The command line, without colours -> (exit status, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse
            status = int(leaving.code or 0)
        return (status, *capsys.readouterr())

    return call


@pytest.fixture
def configuration(tmp_path: Path) -> Callable[..., Path]:
    """A usable configuration on temporary folders; text given is put in front of it."""

    def write(text: str = "") -> Path:
        places = {name: tmp_path / name for name in ("in", "out", "done", "failed", "state", "run", "models")}
        for place in places.values():
            place.mkdir(exist_ok=True)
        path = tmp_path / "rmbgd.toml"
        path.write_text(
            f"{text}\n[service]\n"
            f'state_directory = "{places["state"]}"\nruntime_directory = "{places["run"]}"\n'
            f'models_directory = "{places["models"]}"\n'
            f'[[folder]]\nname = "shop"\ninput = "{places["in"]}"\noutput = "{places["out"]}"\n'
            f'done = "{places["done"]}"\nfailed = "{places["failed"]}"\n'
        )
        return path

    return write


@pytest.mark.integration
@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"], ["-V"], ["status", "--help"], ["run", "--help"]])
def test_short_answer_loads_no_library(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom rmbgd.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as leaving:\n    assert leaving.code in (0, None)\n"
        f"print(sorted(set(sys.modules) & {set(HEAVY)!r}), file=sys.stderr)\n"
        "print(sorted(name for name in sys.modules if name.startswith('rmbgd.cli.')), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    heavy, modules = done.stderr.splitlines()[-2:]
    assert ("[]", {"rmbgd.cli.main", "rmbgd.cli.parser"}) == (
        heavy,
        set(json.loads(modules.replace("'", '"'))) - {f"rmbgd.cli.{word}" for word in arguments},
    )


def test_help_names_every_command_and_exit_status(rmbgd: Any) -> None:
    said = rmbgd("--help")[1]
    assert all(f" {int(code)} {text}" in " ".join(said.split()) for code, text in EXIT_TEXT.items())
    assert all(f"\n    {command} " in said for command in cli.COMMANDS)
    assert max(map(len, said.splitlines())) < 100


@pytest.mark.parametrize(
    ("words", "signed", "said"),
    [
        ("frobnicate", "rmbgd", "there is no verb 'frobnicate'; there are run, once, "),
        ("statsu", "rmbgd", "there is no verb 'statsu'; did you mean 'status'?"),
        ("help statsu", "rmbgd", "there is no verb 'statsu'; did you mean 'status'?"),
        ("--config x status", "rmbgd", "there is no option '--config'; options follow the verb;"),
        ("status --jsno", "rmbgd status", "there is no option '--jsno'; did you mean '--json'?"),
        ("status --js", "rmbgd status", "there is no option '--js'; did you mean '--json'?"),
        ("status --json=3", "rmbgd status", "--json: takes no value;"),
        ("run extra", "rmbgd run", "one word too many: 'extra';"),
        ("ledger", "rmbgd ledger", "missing: check | backup | restore;"),
        ("ledger chekc", "rmbgd ledger", "there is no verb 'chekc'; did you mean 'check'?"),
        ("models fetch --form x", "rmbgd models fetch", "there is no option '--form'; did you mean '--from'?"),
        ("models list --jsno", "rmbgd models list", "there is no option '--jsno'; did you mean '--json'?"),
        ("mtbf x --claim y", "rmbgd mtbf", "--claim: 'y' is not a number;"),
        ("bench --seconds", "rmbgd bench", "--seconds: a value is missing;"),
        ("bench --precision float61", "rmbgd bench", "--precision: 'float61' is not auto, "),
        ("completion fish", "rmbgd completion", "SHELL: 'fish' is not bash, zsh or tcsh;"),
    ],
)
def test_wrong_word_is_told_in_one_line_below_one_line_of_usage(words: str, signed: str, said: str, rmbgd: Any) -> None:
    status, out, err = rmbgd(*words.split())
    usage, told = err.splitlines()
    assert (Exit.USAGE, "") == (status, out)
    assert usage.startswith(f"usage: {signed} ")
    assert told.startswith(f"{signed}: {said}")
    assert told.endswith(f"ee `{signed} --help`")


def test_without_a_verb_the_short_help_is_shown(rmbgd: Any) -> None:
    status, out, err = rmbgd()
    assert (Exit.USAGE, "") == (status, out)
    assert "\n    status " in err
    assert "exit status" not in err


@pytest.mark.parametrize("words", ["", "status", "ledger", "ledger backup", "models fetch"])
def test_help_verb_shows_what_the_option_shows(words: str, rmbgd: Any) -> None:
    assert rmbgd("help", *words.split()) == rmbgd(*words.split(), "--help")
    assert rmbgd("-V") == rmbgd("--version") == (Exit.OK, f"rmbgd {__version__}\n", "")


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (errors.ConfigError(["one", "two"]), Exit.CONFIGURATION, "rmbgd run: one\nrmbgd run: two\n"),
        (errors.ModelError("no weights"), Exit.CONFIGURATION, "rmbgd run: no weights\n"),
        (errors.StorageFault("disk_full", "no space"), Exit.FAILED, "rmbgd run: disk_full: no space\n"),
        (KeyboardInterrupt(), Exit.INTERRUPTED, ""),
    ],
)
def test_error_becomes_an_exit_status(
    raised: BaseException, expected: Exit, said: str, monkeypatch: pytest.MonkeyPatch, rmbgd: Any
) -> None:
    monkeypatch.setattr(cli, "run", Mock(side_effect=raised))
    assert (expected, "", said) == rmbgd("run")


def test_defect_is_an_internal_error_with_a_traceback(monkeypatch: pytest.MonkeyPatch, rmbgd: Any) -> None:
    monkeypatch.setattr(cli, "run", Mock(side_effect=ZeroDivisionError("by hand")))
    status, _, err = rmbgd("run")
    assert Exit.INTERNAL == status
    assert "ZeroDivisionError: by hand" in err


def test_usable_configuration_is_fine(configuration: Callable[..., Path], rmbgd: Any) -> None:
    path = configuration()
    assert (Exit.OK, f"{path}: fine; folders: shop\n", "") == rmbgd("check", "--config", path)


def test_setting_that_is_read_as_another_value_is_told_and_fine(configuration: Callable[..., Path], rmbgd: Any) -> None:
    path = configuration("[engine]\ntries = 1\n")
    status, out, _ = rmbgd("check", "--config", path)
    assert Exit.OK == status
    assert out.startswith(f"{path}: engine.tries = 1 is read as 2: ")


def test_every_problem_is_reported_at_once(configuration: Callable[..., Path], rmbgd: Any) -> None:
    wrong = '[intake]\nquiet_close = 1\n[limits]\nside = 0\n[recipe.default]\nbackground = "red"\n'
    status, _, err = rmbgd("check", "--config", configuration(wrong))
    assert (Exit.CONFIGURATION, 3) == (status, len(err.splitlines()))
    assert "did you mean 'quiet_closed'?" in err
    assert 'write it like "#ffffff"' in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "rmbgd.toml: No such file or directory"),
        (lambda text: "", "no [[folder]] is defined"),
        (lambda text: text.replace("/out", "/in/out"), "/in/out"),  # the service would feed on its own cutouts
        (lambda text: f'[recipe.default]\nmodel = "birefnet"\n{text}', "rmbgd models fetch birefnet"),
    ],
)
def test_what_would_end_the_service_at_its_start_is_refused_before(
    content: Callable[[str], str] | None, said: str, configuration: Callable[..., Path], rmbgd: Any
) -> None:
    path = configuration()
    if content is None:
        path.unlink()
    else:
        path.write_text(content(path.read_text()))
    status, _, err = rmbgd("check", "--config", path)
    assert Exit.CONFIGURATION == status
    assert said in err


def test_default_configuration_can_be_printed_and_checked(tmp_path: Path, rmbgd: Any) -> None:
    (tmp_path / "rmbgd.toml").write_text(rmbgd("check", "--print-default")[1])
    assert Exit.OK == rmbgd("check", "--config", tmp_path / "rmbgd.toml")[0]


def status_record(**changes: Any) -> dict[str, Any]:
    images = {"waiting": 3, "in_flight": 2, "oldest_waiting": 9.0, "done": 5, "failed": 1, "postponed": 0}
    engine = {"device": "cuda:0", "engine": {"state": "ready", "restarts": 0}}
    health = {"uptime": 100000.0, "paused": None, "rss_bytes": 1 << 28, "arena_bytes": 1 << 26, **images, **engine}
    times = {"written_at": "2026-01-01T00:00:00.000Z", "started_at": "2025-12-31T00:00:00.000Z", "interval": 2.0}
    process = {"phase": "ready", "version": "0.1.0", "pid": 42, "process_start": 777, "monotonic": 1000.0}
    problem = {"event": "image.failed", "time": "then", "reason": "truncated"}
    rates = {"per_minute": {"1m": 12.0, "5m": 10.5}, "stalled": []}
    return process | times | rates | {"last_problem": problem, "health": health} | changes


@pytest.mark.parametrize(
    ("record", "now", "start", "expected"),
    [
        (None, 1001.0, 777, ServiceState.NOT_RUNNING),
        (status_record(), 1001.0, 777, ServiceState.RUNNING),
        (status_record(), 1001.0, None, ServiceState.NOT_RUNNING),
        (status_record(), 1001.0, 778, ServiceState.NOT_RUNNING),  # another process got the number
        (status_record(), 1010.0, 777, ServiceState.RUNNING),
        (status_record(), 1010.1, 777, ServiceState.STALE),
        (status_record(interval=60.0), 1300.0, 777, ServiceState.RUNNING),
        (status_record(phase="stopped"), 9999.0, None, ServiceState.STOPPED),
        (status_record(stalled=["decode-0"]), 1001.0, 777, ServiceState.HUNG),
    ],
)
def test_state_by_the_status_file(
    record: dict[str, Any] | None, now: float, start: int | None, expected: ServiceState
) -> None:
    state, _ = judge(record, now=now, process_start=lambda _: start, where="/run/rmbgd/status.json")
    assert expected == state


def test_rows_show_what_a_person_asks_first() -> None:
    shown = dict(rows(status_record()))
    assert "cuda:0" == shown["device"]
    assert "3 waiting, 2 in flight" == shown["queue"]
    assert "12 a minute over 1m, 10.5 a minute over 5m" == shown["rate"]
    assert "5 done, 1 refused, 0 put back" == shown["images"]
    assert "event image.failed, time then, reason truncated" == shown["last problem"]
    assert "1 d 3 h, since 2025-12-31T00:00:00.000Z" == shown["up"]
    assert "image memory" not in shown, "a version before this one does not say it"


@pytest.mark.parametrize(
    ("leased", "resident", "kept", "said"),
    [
        (64, 512, 0, "512 MiB resident: 64 MiB in use, 448 MiB soon given back"),
        (64, 512, 256, "512 MiB resident: 64 MiB in use, 256 MiB page-locked for a device, 256 MiB soon given back"),
        (64, 16, 0, "16 MiB resident: 16 MiB in use, 0 MiB soon given back"),  # lent, and not written yet
    ],
)
def test_status_says_why_memory_is_resident(leased: int, resident: int, kept: int, said: str) -> None:
    record = status_record(arena_kept=kept << 20)
    record["health"] |= {"arena_bytes": leased << 20, "arena_resident": resident << 20}
    assert said == dict(rows(record))["image memory"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (600, "10 min"), (7260, "2 h 1 min")])
def test_duration_for_people(seconds: float, text: str) -> None:
    assert text == duration(seconds)


def test_status_without_a_service_says_so(configuration: Callable[..., Path], rmbgd: Any) -> None:
    path = configuration()
    assert (Exit.FAILED, "") == rmbgd("status", "--config", path)[::2]
    status, out, _ = rmbgd("status", "--json", "--config", path)
    assert (Exit.FAILED, "not running") == (status, json.loads(out)["verdict"])


def test_status_of_a_running_service(configuration: Callable[..., Path], tmp_path: Path, rmbgd: Any) -> None:
    """From the file alone: this very process plays the service. Names in it cannot steer the terminal."""
    path = configuration()
    problem = {"event": "image.failed", "path": "\x1b[2J[bold]a.jpg"}
    me = {"pid": os.getpid(), "process_start": process_start(os.getpid()), "monotonic": time.monotonic()}
    record = status_record(interval=60.0, last_problem=problem, **me)
    (tmp_path / "run" / "status.json").write_text(json.dumps(record))
    status, out, err = rmbgd("status", "--config", path)
    assert (Exit.OK, "") == (status, err)
    assert out.startswith(f"rmbgd is running: process {os.getpid()}")
    assert r"\x1b[2J[bold]a.jpg" in out
    assert out.isascii()


@pytest.mark.parametrize("text", ['{"phase": "rea', "[1, 2]", '{"phase": "ready"}', "", None])
def test_what_is_no_status_file_is_told_as_that(
    configuration: Callable[..., Path], tmp_path: Path, rmbgd: Any, text: str | None
) -> None:
    path, place = configuration(), tmp_path / "run" / "status.json"
    place.mkdir() if text is None else place.write_text(text)
    status, out, _ = rmbgd("status", "--config", path)
    assert (Exit.FAILED, f"rmbgd is not running: {place} is no status file of rmbgd") == (
        status,
        out.partition(" (")[0],
    )


@pytest.mark.parametrize(
    ("locked", "blind", "expected"),
    [
        (False, True, ServiceState.STOPPED),
        (None, False, ServiceState.STOPPED),  # what the file says holds
        (None, True, ServiceState.UNKNOWN),
        (True, False, ServiceState.UNSEEN),
    ],
)
def test_state_by_the_lock(locked: bool | None, blind: bool, expected: ServiceState) -> None:
    path = Path("/run/rmbgd/status.json")
    assert expected == by_lock(ServiceState.STOPPED, "why", path, locked, blind=blind)[0]


@pytest.mark.parametrize("left", [None, "stopped", "torn"])
def test_a_service_without_its_status_file_is_seen_by_its_lock(
    configuration: Callable[..., Path], tmp_path: Path, rmbgd: Any, left: str | None
) -> None:
    path = configuration()
    if left:
        record = json.dumps(status_record(phase="stopped"))
        (tmp_path / "run" / "status.json").write_text(record if left == "stopped" else record[:-9])
    with closing(Ledger(tmp_path / "state" / "ledger.sqlite", SystemClock())):
        status, out, _ = rmbgd("status", "--config", path)
        assert (Exit.FAILED, True) == (status, out.startswith("rmbgd is running, but unseen: "))
        assert f"make {tmp_path}/run again" in out
    assert "not running" in rmbgd("status", "--config", path)[1] or left == "stopped"


@pytest.mark.parametrize(
    ("number", "before", "expected"),
    [
        (signal.SIGTERM, signal.SIG_DFL, Exit.TERMINATED),
        (signal.SIGHUP, signal.SIG_DFL, Exit.HUNG_UP),
        (signal.SIGHUP, signal.SIG_IGN, Exit.OK),  # nohup
    ],
)
def test_signal_ends_a_command_as_the_keyboard_does(
    number: signal.Signals, before: signal.Handlers, expected: Exit, monkeypatch: pytest.MonkeyPatch, rmbgd: Any
) -> None:
    def work(_: object) -> int:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), 0)  # the interpreter looks for signals here
        return Exit.OK

    monkeypatch.setattr(cli, "check", work)
    outside = signal.signal(number, before)
    try:
        assert (expected, "", "") == rmbgd("check")
    finally:
        signal.signal(number, outside)


def test_service_is_not_ended_like_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rmbgd: Any) -> None:
    """It stops in good order, with 0; and an error of the system is told with its traceback."""
    monkeypatch.setattr(cli, "run", lambda _: os.stat(tmp_path / "absent"))
    status, _, err = rmbgd("run")
    assert (Exit.INTERNAL, True) == (status, "Traceback" in err)
    monkeypatch.setattr(cli, "run", lambda _: int(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL))
    assert Exit.OK == rmbgd("run")[0]
