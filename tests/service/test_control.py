"""The control socket: answers whoever speaks its language, and outlives whoever does not."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pytest

from rmbgd.clock import SystemClock
from rmbgd.events import RecordedEvents
from rmbgd.heartbeat import Heartbeats
from rmbgd.service import control
from rmbgd.service.control import SOCKET, ControlPeer, ControlServer, connected
from rmbgd.testing.clock import FakeClock

DEADLINE = 20.0


def answer(request: Mapping[str, Any], peer: ControlPeer) -> Mapping[str, Any]:
    more = {"more": "x" * 8000} if "long" in request else {}
    return {"asked": request, "may_act": peer.may_act, "person": peer.person, **more}


class Running:
    """A server in its thread, which must still be there at the end."""

    def __init__(self, directory: Path) -> None:
        self.path, self.events = directory / SOCKET, RecordedEvents()
        self.clock = SystemClock()
        beats = Heartbeats(self.clock)
        self.server = ControlServer(directory, answer, self.events, self.clock, beats.new("control"))
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.thread.is_alive()
        self.server.close()
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()

    def listening(self) -> Running:
        wait(self.path.exists)
        return self


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ask(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    with connected(path) as client, client.makefile("rb") as answers:
        client.sendall(b"".join(lines))
        return [json.loads(answers.readline()) for _ in lines]


def gone(client: socket.socket) -> bool:
    """Has the server ended the conversation, whether or not it has read everything?"""
    client.settimeout(DEADLINE)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as running:
        yield running.listening()


def test_each_line_is_answered_by_one(it: Running) -> None:
    found = ask(it.path, b'{"do": 1}\n', b'{"long": 2}\n', b'{"path": "\\udcff"}\n')
    assert [each["asked"] for each in found] == [{"do": 1}, {"long": 2}, {"path": "\udcff"}]
    assert found[0]["may_act"]
    assert found[0]["person"]


def test_only_owner_and_group_may_use_it(tmp_path: Path) -> None:
    with Running(tmp_path / "run") as it:
        it.listening()
        assert stat.S_IMODE(it.path.stat().st_mode) == 0o660
        assert stat.S_IMODE(it.path.parent.stat().st_mode) == 0o750
    assert list(it.path.parent.iterdir()) == []


def test_others_than_root_and_the_service_may_only_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert [ControlPeer(uid).may_act for uid in (0, 4711, 4712)] == [True, True, False]


def test_a_path_longer_than_the_kernel_takes_will_do(tmp_path: Path) -> None:
    with Running(tmp_path / ("long" * 40)) as it:
        assert ask(it.listening().path, b"{}\n")[0]["asked"] == {}


GARBAGE = [
    *(b"", b"\n" * 3000, b"{", b"[]\n", b"null\n", b'{"a":' * 5000 + b"\n", b"[" * 60_000 + b"\n", b"\xff\xfe\n"),
    *(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b'{"do": "list"', b"\0" * 4096 + b"\n", b"1e999999\n"),
]


def test_garbage_and_clients_that_leave_harm_nobody(it: Running) -> None:
    chance = random.Random(5)
    for number in range(300):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError), connected(it.path) as client:
            client.sendall(GARBAGE[number % len(GARBAGE)] + chance.randbytes(chance.randrange(50)))
            if number % 3 == 0:  # leaves with a reset, its answers unread
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert ask(it.path, b"[]\n", b"{}\n")[0] == {"error": "a request is one JSON object in one line"}


def test_a_line_without_end_is_not_collected_for_ever(it: Running) -> None:
    with connected(it.path) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(3 * control.LINE_MAXIMUM // 4096):
                client.sendall(b"x" * 4096)
        assert gone(client)
    assert ask(it.path, b"{}\n")


def test_who_sits_there_makes_room(it: Running) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(it.path)) for _ in range(3 * control.CONNECTIONS)]
        for client in idle:
            with contextlib.suppress(BrokenPipeError):
                client.sendall(b'{"do"')
        assert ask(it.path, b"{}\n")
        assert gone(idle[0])


def test_who_is_too_slow_is_left(it: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a request, nor an answer that nobody reads, is waited for; others are served meanwhile."""
    monkeypatch.setattr(control, "PATIENCE", 0.1)
    monkeypatch.setattr(control, "LOOK_EVERY", 0.05)
    it.server._next_look = 0.0
    with connected(it.path) as half, connected(it.path) as deaf:
        half.sendall(b"{")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            deaf.sendall(b'{"long": 1}\n' * 2000)
        assert ask(it.path, b"{}\n")
        assert gone(half)
        with contextlib.suppress(ConnectionResetError):
            while deaf.recv(1 << 16):
                pass


def test_what_a_killed_service_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET))
    with Running(tmp_path) as it:
        wait(lambda: not it.events.events and _answers(it.path))


def _answers(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(ask(path, b"{}\n"))
    return False


def test_another_service_keeps_its_socket(it: Running) -> None:
    with Running(it.path.parent) as other:
        wait(lambda: other.events.named("control.lost"))
        (lost,) = other.events.named("control.lost")
        assert os.strerror(errno.EADDRINUSE) not in lost["cause"]
        assert "another service listens there" in lost["cause"]
    assert ask(it.path, b"{}\n")


def test_a_missing_directory_costs_the_socket_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told once, tried again, and told when it is back; a socket that somebody removed is made again, too."""
    monkeypatch.setattr(control, "LOOK_EVERY", 0.02)
    (tmp_path / "run").write_text("in the way")
    with Running(tmp_path / "run") as it:
        wait(lambda: it.events.named("control.lost"))
        (tmp_path / "run").unlink()
        wait(lambda: it.events.named("control.restored"))
        assert ask(it.path, b"{}\n")
        it.path.unlink()
        wait(lambda: _answers(it.path))
    assert [name for name, _ in it.events.events] == ["control.lost", "control.restored"]


def test_who_waits_while_others_are_answered_is_not_too_slow(tmp_path: Path) -> None:
    """As several commands do while a disk hangs: each answer takes as long as a client may take."""
    clock = FakeClock()

    def slow(request: Mapping[str, Any], _: ControlPeer) -> Mapping[str, Any]:
        clock.advance(control.PATIENCE)
        return request

    server = ControlServer(tmp_path, slow, RecordedEvents(), clock, Heartbeats(clock).new("control"))
    server._look_after_socket()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(tmp_path / SOCKET)) for _ in range(4)]
        for client in clients:
            client.sendall(b"{}\n")
        wait(lambda: (server._serve(), len(server._connections) == len(clients))[1])
        for _ in range(3):  # is read, is answered, is sent
            server._serve()
        for client in clients:
            client.settimeout(DEADLINE)
            assert client.recv(9) == b"{}\n"
        server.close()
        server.run()
