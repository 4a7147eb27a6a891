"""Messages to systemd, over a real socket."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rmbgd.service.systemd import Notifier, open_notifier, watchdog_seconds


@pytest.mark.parametrize("abstract", [False, True])
def test_messages_arrive_at_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    """A path, or a name in the abstract name space; systemd-python is not there."""
    monkeypatch.setitem(sys.modules, "systemd.daemon", None)
    name = os.fspath(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as socket_of_systemd:
        socket_of_systemd.bind(f"\0{name}" if abstract else name)
        socket_of_systemd.settimeout(30)
        notifier = open_notifier({"NOTIFY_SOCKET": f"@{name}" if abstract else name})
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


def test_the_library_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setitem(sys.modules, "systemd.daemon", SimpleNamespace(notify=sent.append))
    open_notifier({"NOTIFY_SOCKET": "vsock:2:1234"}).watchdog()
    assert ["WATCHDOG=1"] == sent


def refuse(text: str) -> None:
    raise ConnectionRefusedError(text)


@pytest.mark.parametrize("library", [None, SimpleNamespace(notify=refuse)])
def test_systemd_that_does_not_listen_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: object
) -> None:
    monkeypatch.setitem(sys.modules, "systemd.daemon", library)
    open_notifier({"NOTIFY_SOCKET": os.fspath(tmp_path / "nobody")}).ready("watching")


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
