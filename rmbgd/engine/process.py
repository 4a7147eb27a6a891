"""One child process: started by a thread of its own, its output read, killed and reaped within a bound.

Knows nothing of engines or messages. The thread that starts the process lives exactly as long as the process's output,
because the kernel sends the parent-death signal when the *thread* that started a child ends, not only its process.
"""

from __future__ import annotations

import errno
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from rmbgd.clock import Clock, SystemClock
from rmbgd.telemetry.captured_output import OutputLines

REAP_SECONDS = 10.0  # after SIGKILL; a process still there is stuck inside the kernel (state D) and nobody can end it

_abandoned: list[subprocess.Popen[bytes]] = []
"""Processes that could not be killed. Kept to be reaped should they ever end; appended to by any owner."""


class ChildProcess:
    """Runs from construction to `end`; every call comes from the owner's thread. Raises OSError if it cannot start."""

    def __init__(
        self,
        command: Sequence[str],
        pass_fds: Sequence[int],
        on_output: Callable[[str], None],
        *,
        environment: Mapping[str, str] | None = None,
        kill: Callable[[subprocess.Popen[bytes]], None] = subprocess.Popen.kill,
        reap_seconds: float = REAP_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        _abandoned[:] = [process for process in _abandoned if process.poll() is None]
        self._kill = kill
        self._reap_seconds = reap_seconds
        self._output = OutputLines(on_output, clock or SystemClock())
        started: Future[subprocess.Popen[bytes]] = Future()
        self._keeper = threading.Thread(
            target=self._keep, args=(list(command), tuple(pass_fds), environment, started), name="engine", daemon=True
        )
        try:
            self._keeper.start()
        except RuntimeError as error:  # how Python says EAGAIN for threads
            raise BlockingIOError(errno.EAGAIN, str(error)) from error
        self._process = started.result()
        self.pid = self._process.pid
        self.abandoned = False

    def _keep(
        self,
        command: list[str],
        pass_fds: tuple[int, ...],
        environment: Mapping[str, str] | None,
        started: Future[subprocess.Popen[bytes]],
    ) -> None:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                env=environment,
                bufsize=0,
                process_group=0,  # Ctrl-C at a terminal is for us; when the child ends is for us to say
            )
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(process)
        assert process.stdout is not None
        with process.stdout as pipe:
            while data := pipe.read(65536):
                self._output.feed(data)
        self._output.finish()

    @property
    def alive(self) -> bool:
        """From any thread. A process that has ended but was not reaped yet is not alive."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, from any thread; the owner still has to call `end`. Nothing when it has ended."""
        self._kill(self._process)

    def end(self, grace: float = 0.0) -> str:
        """Make sure that it is gone, and say how it went. It has `grace` seconds to go by itself, then SIGKILL.

        A process that outlives SIGKILL by the reap bound is abandoned: `abandoned` is then true, nobody waits for it.
        """
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
            try:
                self._process.wait(self._reap_seconds)
            except subprocess.TimeoutExpired:
                self.abandoned = True
                _abandoned.append(self._process)
                return f"process {self.pid} cannot be killed: it is stuck inside the kernel, and was abandoned"
        self._keeper.join(1.0)  # its last lines; a grandchild may hold the pipe open, hence the bound
        return self._how()

    def leaves(self, grace: float, patience: float) -> str | None:
        """How it went, if it goes by itself within `grace` seconds or, killed then, within `patience`. None when it is
        still there: `end` is then left to somebody who has the time."""
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                return None
        self._keeper.join(1.0)
        return self._how()

    def _how(self) -> str:
        code = self._process.returncode
        if code >= 0:
            how = f"process {self.pid} ended with status {code}"
        else:
            how = f"process {self.pid} was killed by {_name(-code)}"
        words = self._output.last_words()
        return f"{how}; its last words: {words}" if words else how


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a realtime signal
        return f"signal {number}"
