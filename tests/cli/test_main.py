"""The command line: commands, exit statuses, and what is not loaded for a short answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from rmbgd import errors
from rmbgd.cli import check
from rmbgd.cli import main as cli
from rmbgd.errors import EXIT_TEXT, Exit

HEAVY = ("numpy", "torch", "pydantic", "structlog", "rich", "PIL", "cv2", "watchdog", "safetensors", "huggingface_hub")


@pytest.mark.integration
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["status", "--help"], ["run", "--help"]])
def test_short_answer_loads_no_library(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom rmbgd.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as leaving:\n    assert not leaving.code\n"
        f"print(sorted(set(sys.modules) & {set(HEAVY)!r}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert "[]\n" == done.stderr


def test_help_names_every_command_and_exit_status(rmbgd: Any) -> None:
    said = rmbgd("--help")[1]
    assert all(str(int(code)) in said and text in said for code, text in EXIT_TEXT.items())
    assert all(f"\n    {command} " in said for command in cli.COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["status", "--jsno"], ["run", "extra"]])
def test_wrong_command_line_is_a_usage_error(arguments: list[str], rmbgd: Any) -> None:
    status, out, err = rmbgd(*arguments)
    assert (Exit.USAGE, "") == (status, out)
    assert "usage: rmbgd" in err


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (errors.ConfigError(["one", "two"]), Exit.CONFIGURATION, "rmbgd: one\nrmbgd: two\n"),
        (errors.ModelError("no weights"), Exit.CONFIGURATION, "rmbgd: no weights\n"),
        (errors.StorageFault("disk_full", "no space"), Exit.FAILED, "rmbgd: disk_full: no space\n"),
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
