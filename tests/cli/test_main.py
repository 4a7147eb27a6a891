"""The command line: commands, exit statuses, and what is not loaded for a short answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from rmbgd import __version__, errors
from rmbgd.cli import check
from rmbgd.cli import main as cli
from rmbgd.errors import EXIT_TEXT, Exit

HEAVY = ("numpy", "torch", "pydantic", "structlog", "rich", "PIL", "cv2", "watchdog", "safetensors", "huggingface_hub")


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
        ("frobnicate", "rmbgd", "there is no verb 'frobnicate'; there are init, run, "),
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

    monkeypatch.setattr(check, "run", work)
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
