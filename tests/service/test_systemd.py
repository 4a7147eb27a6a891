"""Messages to systemd, over a real socket where systemd-python is there."""

from __future__ import annotations

import importlib
import os
import socket
from pathlib import Path
from unittest.mock import Mock

import pytest

from rmbgd.doctor.checks import is_installed
from rmbgd.errors import ConfigError
from rmbgd.service.systemd import Notifier, open_notifier, watchdog_seconds

needs_library = pytest.mark.skipif(not is_installed("systemd.daemon"), reason="systemd-python is not installed")


@needs_library
def test_messages_arrive_at_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as socket_of_systemd:
        socket_of_systemd.bind(os.fspath(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(tmp_path / "notify"))
        notifier = open_notifier()
        notifier.ready("watching\n2 folders")
        notifier.watchdog()
        notifier.extend_timeout(1.5)
        notifier.stopping("draining")
        received = [socket_of_systemd.recv(4096).decode() for _ in range(4)]
    ready, stopping = "READY=1\nSTATUS=watching 2 folders", "STOPPING=1\nSTATUS=draining"
    assert [ready, "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1500000", stopping] == received


def test_silent_when_systemd_did_not_start_us() -> None:
    notifier = open_notifier({})
    notifier.ready("watching")
    assert notifier.watchdog_seconds is None


def test_missing_library_is_an_operators_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd waits for READY=1, which would never come: say so at once, and what to install."""
    monkeypatch.setattr(importlib, "import_module", Mock(side_effect=ImportError))
    with pytest.raises(ConfigError, match=r"pip install 'rmbgd\[systemd\]'.*libsystemd-dev"):
        open_notifier({"NOTIFY_SOCKET": "/run/nobody"})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_timeout_of_the_watchdog(environ: dict[str, str], expected: float | None) -> None:
    """As sd_watchdog_enabled(3): in seconds, and only when it is meant for this process."""
    assert expected == watchdog_seconds(environ, 42)


def test_status_is_one_line() -> None:
    """A newline in a message would be read as another assignment."""
    sent: list[str] = []
    Notifier(sent.append).status("disk full\nREADY=1")
    assert ["STATUS=disk full READY=1"] == sent
