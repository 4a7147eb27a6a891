"""Control socket: a Unix socket by which commands such as `rmbgd pause` ask the running service. JSON lines.

A request is one object in one line, and so is its answer; several may follow each other. Everything is bounded, so that
no client can hold up the service or another client for long.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmbgd.access_rights import user_name
from rmbgd.clock import Clock
from rmbgd.events import Emit
from rmbgd.heartbeat import Heartbeat
from rmbgd.telemetry.jsonl import to_json

SOCKET = "control.sock"  # in the runtime directory
SOCKET_MODE, DIRECTORY_MODE = 0o660, 0o750  # the owner and the group of the service, as systemd makes the directory
LINE_MAXIMUM = 1 << 20  # bytes of a request
CONNECTIONS = 16  # at once; one more takes the place of the one that has been idle for longest
PATIENCE = 10.0  # s for a whole request to come, and for an answer to be read
LOOK_EVERY = 5.0  # s between two looks whether the socket is still there, and two tries to make it
TICK = 0.5  # s between two looks whether the service ends
READ_AT_ONCE = 16 << 10
TIMEVAL = struct.Struct("ll")
PEER = struct.Struct("3i")  # SO_PEERCRED of unix(7): process, user, group


@dataclass(frozen=True, slots=True)
class ControlPeer:
    """Who asks. Root and the service's own user may act; others who may connect may read."""

    uid: int

    @property
    def person(self) -> str:
        return user_name(self.uid)

    @property
    def may_act(self) -> bool:
        return self.uid in (0, os.geteuid())


Handle = Callable[[Mapping[str, Any], ControlPeer], Mapping[str, Any]]


class _Connection:
    def __init__(self, accepted: socket.socket, now: float) -> None:
        accepted.setblocking(False)
        self.socket, self.since = accepted, now
        _, uid, _ = PEER.unpack(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
        self.peer = ControlPeer(uid)
        self.received = bytearray()
        self.answer = memoryview(b"")  # what of it is not sent yet


class ControlServer:
    """`run` is the control thread's. `handle` answers one request, in that thread; it may take long.

    The socket is a convenience: where it cannot be made the service works on, and tries again.
    """

    def __init__(self, directory: Path, handle: Handle, emit: Emit, clock: Clock, heartbeat: Heartbeat) -> None:
        self._directory, self._handle, self._emit, self._clock = directory, handle, emit, clock
        self._heartbeat = heartbeat
        self._path = directory / SOCKET
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._identity = (0, 0)  # device and inode of our socket's name
        self._connections: dict[socket.socket, _Connection] = {}
        self._next_look = clock.monotonic()
        self._lost_since: float | None = None
        self._closing = threading.Event()  # set by the main thread

    def close(self) -> None:
        """Called by the main thread: ends `run` soon, unless a request is being handled."""
        self._closing.set()

    def run(self) -> None:
        try:
            while not self._closing.is_set():
                self._heartbeat.waiting()  # also while it handles a request: nothing waits for this thread
                if self._clock.monotonic() >= self._next_look:
                    self._look_after_socket()
                self._serve()
        finally:
            self._stop_listening()
            for each in list(self._connections.values()):
                self._drop(each)
            self._selector.close()

    # ---------------------------------------------------------------------------------------------- the socket

    def _look_after_socket(self) -> None:
        now = self._clock.monotonic()
        self._next_look = now + LOOK_EVERY
        if self._listener is not None and self._identity == _identity(self._path):
            return
        self._stop_listening()
        try:
            self._listen()
        except OSError as error:
            if self._lost_since is None:
                self._lost_since = now
                cause = f"{error.filename or self._path}: {error.strerror or error}"
                self._emit("control.lost", path=str(self._path), cause=cause)
        else:
            if self._lost_since is not None:
                self._emit("control.restored", path=str(self._path), seconds=round(now - self._lost_since, 3))
                self._lost_since = None

    def _listen(self) -> None:
        """Gets its name when it listens and has its mode; replaces what a killed service left. Raises OSError."""
        self._directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), connected(self._path):
            raise OSError(errno.EADDRINUSE, "another service listens there; give each its own runtime directory")
        fresh = self._directory / f"{SOCKET}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(fresh) as address:
                listener.bind(address)
            fresh.chmod(SOCKET_MODE)
            listener.listen(CONNECTIONS)
            listener.setblocking(False)
            fresh.replace(self._path)
        except OSError:
            listener.close()
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        self._listener, self._identity = listener, _identity(self._path)
        self._selector.register(listener, selectors.EVENT_READ)

    def _stop_listening(self) -> None:
        if self._listener is None:
            return
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = None
        with contextlib.suppress(OSError):
            if self._identity == _identity(self._path):
                self._path.unlink()

    # ---------------------------------------------------------------------------------------------- clients

    def _serve(self) -> None:
        """Whatever is ready; and drop who has been too slow."""
        for key, _ in self._selector.select(TICK):
            if key.fileobj is self._listener:
                self._accept(self._listener)
            elif (each := self._connections.get(key.fileobj)) is not None:  # type: ignore[call-overload]
                try:
                    self._advance(each)
                except OSError:
                    self._drop(each)
        now = self._clock.monotonic()
        for each in [each for each in self._connections.values() if now - each.since > PATIENCE]:
            self._drop(each)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                self._closing.wait(1.0)  # it would be ready again at once
            return
        if len(self._connections) >= CONNECTIONS:
            self._drop(min(self._connections.values(), key=lambda each: each.since))
        try:
            each = _Connection(accepted, self._clock.monotonic())
        except OSError:
            accepted.close()
            return
        self._connections[accepted] = each
        self._selector.register(accepted, selectors.EVENT_READ)

    def _advance(self, each: _Connection) -> None:
        """One step with a connection that is ready: its answer goes out, or the next request is answered, or read.

        Raises OSError.
        """
        if each.answer:
            each.answer = each.answer[each.socket.send(each.answer) :]
        elif b"\n" in each.received:
            line, _, each.received = each.received.partition(b"\n")
            began = self._clock.monotonic()
            answer = self._answer(bytes(line), each.peer)
            for other in self._connections.values():  # the others could not help it that this one took so long
                other.since += self._clock.monotonic() - began
            each.answer, each.since = memoryview(f"{to_json(answer)}\n".encode()), self._clock.monotonic()
        else:
            data = each.socket.recv(READ_AT_ONCE)
            each.received += data
            if not data or (len(each.received) > LINE_MAXIMUM and b"\n" not in each.received):
                raise OSError(errno.EMSGSIZE, "it has gone, or its request is too long")
        to_send = each.answer or b"\n" in each.received
        self._selector.modify(each.socket, selectors.EVENT_WRITE if to_send else selectors.EVENT_READ)

    def _answer(self, line: bytes, peer: ControlPeer) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            return {"error": "a request is one JSON object in one line"}
        return self._handle(request, peer)

    def _drop(self, each: _Connection) -> None:
        self._selector.unregister(each.socket)
        del self._connections[each.socket]
        each.socket.close()


# ---------------------------------------------------------------------------------------------- both ends


@contextlib.contextmanager
def connected(path: Path, timeout: float = PATIENCE) -> Iterator[socket.socket]:
    """A connection to the service that listens at `path`. Raises OSError: ENOENT and ECONNREFUSED where none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, _short(path) as address:
        # connect(2) waits for room in the queue of the listener as long as this says; a timeout of Python's would not.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(int(timeout), 0))
        client.connect(address)
        client.settimeout(timeout)
        yield client


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address for `path` of any length: the kernel takes 107 bytes. Raises OSError."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int]:
    """(0, 0) where no socket is."""
    try:
        status = path.lstat()
    except OSError:
        return 0, 0
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else (0, 0)
