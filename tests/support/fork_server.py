"""Forks service processes from one that has imported everything: a start costs a tenth of a fresh interpreter's.

The forked process runs the launcher, with its own pipes, and is killed and waited for like any other. What is not in it
is the interpreter's own start and the imports, which touch no file of an image. The server is multiprocessing's.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection

PRELOADED = ["tests.support.launcher", "tests.support.audit", "rmbgd.cli.main", "rmbgd.service.daemon"]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


class ForkedProcess:
    """`launcher.py` with these arguments, as subprocess.Popen shows a process, as far as ServiceUnderTest looks."""

    def __init__(self, arguments: list[str]) -> None:
        (our_out, out), (our_err, err) = os.pipe(), os.pipe()
        self.stdout, self.stderr = open(our_out, "rb"), open(our_err, "rb")  # noqa: SIM115, ServiceUnderTest.reap closes
        # A connection crosses to the process that is forked, a bare descriptor does not.
        with Connection(out, readable=False) as stdout, Connection(err, readable=False) as stderr:
            self._process = _context.Process(target=_live, args=(arguments, stdout, stderr))
            self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("the service", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _live(arguments: list[str], stdout: Connection, stderr: Connection) -> None:
    for connection, descriptor in ((stdout, 1), (stderr, 2)):
        os.dup2(connection.fileno(), descriptor)
        connection.close()
    sys.argv[1:] = arguments
    from tests.support import launcher  # here alone: it is the server that has it imported

    sys.exit(launcher.main())
