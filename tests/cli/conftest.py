"""The command line in this process, and a configuration that it can use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rmbgd.cli import main as cli


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
