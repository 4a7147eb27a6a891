"""`rmbgd status --watch` on a real terminal and in a pipe. This very process plays the service, by its status file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmbgd.errors import Exit
from rmbgd.fs import atomic_write
from rmbgd.telemetry.jsonl import process_start
from tests.support.terminal import DEADLINE, Terminal

pytestmark = pytest.mark.integration
LEAVES, SHOWS_CURSOR = "\x1b[?1049l", "\x1b[?25h"
COMMAND = (sys.executable, "-m", "rmbgd", "status", "--watch")


@pytest.fixture
def play(configuration: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write the status file of a service that runs -> its configuration."""
    config = configuration()

    def written(**changes: Any) -> Path:
        watched = {"mode": "events", "cause": None, "armed": 1, "wanted": 1}
        device = {"state": "ok", "temperature": 61.0, "trips": 0}
        health = {
            "uptime": 60.0, "paused": None, "rss_bytes": 1 << 28, "arena_bytes": 0, "waiting": 3, "in_flight": 2,
            "oldest_waiting": None, "done": 5, "failed": 1, "postponed": 0, "device": "cuda:0",
            "engine": {"state": "ready", "devices": {"cuda:0": device}},
        }  # fmt: skip
        outcome = {"event": "image.done", "folder": "shop", "verdict": "ok", "at": "2026-01-01T00:00:00Z"}
        record = {
            "phase": "ready", "version": "0.1.0", "pid": os.getpid(), "process_start": process_start(os.getpid()),
            "monotonic": time.monotonic(), "interval": 3600.0, "written_at": "2026-01-01T00:00:00Z",
            "started_at": "2026-01-01T00:00:00Z", "per_minute": {"1m": 12.0, "5m": 10.0}, "stalled": [],
            "folders": {"shop": watched}, "recent": [outcome | {"path": "a\x1b[2Jshoe.jpg", "seconds": 0.9}],
            "last_problem": None, "health": health,
        } | changes  # fmt: skip
        atomic_write(tmp_path / "run" / "status.json", json.dumps(record).encode())
        return config

    written.config = config  # type: ignore[attr-defined]
    return written


def test_the_view_comes_back_with_the_service_and_ctrl_c_leaves_the_terminal_clean(
    play: Callable[..., Path], tmp_path: Path
) -> None:
    with Terminal(*COMMAND, "--interval", "0.2", "--config", str(play.config)) as terminal:  # type: ignore[attr-defined]
        terminal.read_until("rmbgd is not running")
        play()
        page = terminal.read_until("Ctrl-C ends")
        while "rmbgd is running" not in page:
            page = terminal.read_until("Ctrl-C ends")
        assert "watching (inotify, 1 directory)" in page
        assert "3 waiting, 2 in flight" in page
        assert "ok, 61 °C" in page
        assert r"a\x1b[2Jshoe.jpg" in page
        assert "done in 0.9 s" in page
        (tmp_path / "run" / "status.json").unlink()
        terminal.read_until("rmbgd is not running")
        play(phase="stopped")
        terminal.read_until("rmbgd is stopped")
        terminal.press("\x03")
        assert terminal.wait() == Exit.OK
    end = terminal.raw[terminal.raw.rindex("Ctrl-C ends") :]
    assert LEAVES in end
    assert SHOWS_CURSOR in end
    assert "Traceback" not in terminal.raw


def test_a_resized_window_is_drawn_at_once(play: Callable[..., Path]) -> None:
    """Not after the interval, which is an hour here."""
    with Terminal(*COMMAND, "--interval", "3600", "--config", str(play())) as terminal:
        assert 100 == width_of(terminal.read_until("Ctrl-C ends"))
        terminal.resize(30, 50)
        assert 50 == width_of(terminal.read_until("Ctrl-C ends"))
        terminal.press("\x03")
        assert terminal.wait() == Exit.OK


def width_of(page: str) -> int:
    """Of the part that is drawn whole: lines are filled with spaces."""
    return max(map(len, page[page.rindex("rmbgd is running") :].splitlines()))


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, Exit.OK), (signal.SIGTERM, Exit.TERMINATED), (None, Exit.FAILED)]
)
def test_in_a_pipe_it_prints_one_status_after_the_other(
    play: Callable[..., Path], number: signal.Signals | None, status: Exit
) -> None:
    """Until a signal, or until its reader leaves."""
    command = [*COMMAND, "--json", "--interval", "0.2", "--config", str(play())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert ["running"] * 2 == [json.loads(process.stdout.readline())["verdict"] for _ in range(2)]
        if number is None:
            process.stdout.close()
        else:
            process.send_signal(number)
        assert status == process.wait(DEADLINE)
        assert process.stderr is not None
        assert b"" == process.stderr.read()


@pytest.mark.parametrize("interval", ["0", "nan", "1e9", "x"])
def test_an_interval_that_cannot_be_is_a_usage_error(interval: str, rmbgd: Any) -> None:
    assert Exit.USAGE == rmbgd("status", "--watch", "--interval", interval)[0]
