"""Forks service processes from one that has imported everything: a start costs a tenth of a fresh interpreter's.

The forked process runs the launcher, with its own pipes, and is killed and waited for like any other. What is not in it
is the interpreter's own start and the imports, which touch no file of an image. Linux only.

    python fork_server.py SOCKET    the server itself; ForkServer starts it
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class ForkedProcess:
    """A process as subprocess.Popen shows it, as far as ServiceUnderTest looks."""

    def __init__(self, pid: int, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if self.poll() is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                if not select.select([descriptor], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("the service", timeout or 0.0)
            finally:
                os.close(descriptor)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Makes this process the one to which orphans go, so that it can wait for what is forked."""

    def __init__(self) -> None:
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "this process cannot take orphans in")
        self._socket, theirs = socket.socketpair()
        with theirs:
            root = Path(__file__).parents[2]
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=root,
                env=os.environ | {"PYTHONPATH": str(root)},
            )

    def close(self) -> None:
        self._socket.close()
        self._process.wait()

    def fork(self, arguments: list[str]) -> ForkedProcess:
        """`launcher.py` with these arguments."""
        (our_out, out), (our_err, err) = os.pipe(), os.pipe()
        try:
            socket.send_fds(self._socket, [json.dumps(arguments).encode()], [out, err])
            answer = self._socket.recv(64)
        finally:
            os.close(out)
            os.close(err)
        if not answer:
            raise RuntimeError("the fork server is dead")
        return ForkedProcess(int(answer), open(our_out, "rb"), open(our_err, "rb"))


@functools.cache
def shared_fork_server() -> ForkServer:
    """One for the whole of this process, started when the first service is."""
    server = ForkServer()
    atexit.register(server.close)
    return server


def serve(requests: socket.socket) -> None:
    """Until the other end is closed. Each service is a grandchild: orphaned at once, it is the client's to wait for."""
    main = importlib.import_module("tests.support.launcher").main
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, 1 << 16, 2)
        if not data:
            return
        reading, writing = os.pipe()
        middle = os.fork()
        if middle == 0:
            child = os.fork()
            if child:
                os.write(writing, str(child).encode())
                os._exit(0)
            for descriptor in (reading, writing):
                os.close(descriptor)
            requests.close()
            _live(main, json.loads(data), *descriptors)
        os.waitpid(middle, 0)  # from now on the child is an orphan, and the client can wait for it
        requests.send(os.read(reading, 64))
        for descriptor in (reading, writing, *descriptors):
            os.close(descriptor)


def _live(main: Callable[[], int], arguments: list[str], out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    sys.argv[1:] = arguments
    code = 1
    try:
        code = main()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
