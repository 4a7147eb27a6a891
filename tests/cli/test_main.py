"""The command line: commands, exit statuses, and what is not loaded for a short answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from rmbgd import errors
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
