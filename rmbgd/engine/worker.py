"""Parent side of one engine process: spawn it, send requests, keep deadlines, kill and reap it.

One object is one process; a lost worker is not used again. It raises EngineLost when the process died, hung or could
not be started, EngineMemory when it is short of memory and otherwise well, EngineNonsense for an impossible answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn, TypedDict, TypeVar

from rmbgd.clock import SystemClock
from rmbgd.engine import ipc
from rmbgd.engine.arena import Arena
from rmbgd.engine.golden_image import to_golden
from rmbgd.engine.types import BatchReport, EngineDescription, Golden, MemoryTestPass, Work, mismatch
from rmbgd.errors import KILLED_FROM_OUTSIDE, EngineFault, EngineLost, EngineMemory, EngineNonsense, ModelError
from rmbgd.heartbeat import Heartbeat, NullHeartbeat
from rmbgd.paths import triton_places
from rmbgd.telemetry.captured_output import OutputLines

HUNG = 10.0  # times what a batch takes: then it is not slow but hung
CHECK = 10.0  # times the shortest deadline, for a memory test or a golden image on a GPU: its first pass takes memory
MEGAPIXEL_SECONDS = 0.02
"""Allowed for each megapixel of a batch beside its measured time, which is that of small images: up and down again,
both changes of size, edge colours, and for what no staging memory holds the way through the host. A guess that is too
large costs some seconds before a hang is noticed; one that is too small takes a GPU away that does its work."""

GRACE = 2.0  # s for a process that was asked to end, or said that it will, to be gone by itself

ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Of the child, where the operator has not said otherwise. CUDA counts devices as NVML does, so that the sensor reads
the device that computes. The network's threads sleep while they wait for each other:
decoders and encoders want the same cores. With several busy threads to a core u2netp took 2.0 s an image instead of
4.2, and 0.7 s of CPU time instead of 1.9."""

REAP_SECONDS = 10.0  # after SIGKILL; a process still there is stuck inside the kernel (state D) and no signal ends it

_abandoned: list[subprocess.Popen[bytes]] = []
"""Processes that could not be killed. Kept to be reaped should they ever end; appended to by any owner."""

OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that no program earns by a fault of its own: where we did not send them, somebody else did, or the kernel's
OOM killer."""

T = TypeVar("T")


def oom_kills(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Processes of our control group that the kernel's OOM killer took so far; 0 where cgroup v2 does not say it."""
    with contextlib.suppress(OSError, StopIteration, KeyError, ValueError):
        group = next(line[3:] for line in membership.read_text().splitlines() if line.startswith("0::"))
        events = (root / group.lstrip("/") / "memory.events").read_text()
        return int(dict(line.split() for line in events.splitlines())["oom_kill"])
    return 0


class Deadlines(TypedDict):
    """Seconds, after which a child counts as hung and is killed.

    start_timeout  for its start
    batch_timeout  for a batch; longer on a machine so slow that its own measure at start says so
    hang_minimum   for a GPU, whose times are steady, None for a CPU: a batch is hung after so many seconds and HUNG
                   times its measured time; `batch_timeout` is then for what was not measured
    """

    start_timeout: float
    batch_timeout: float
    hang_minimum: float | None


class ChildProcess:
    """A process from construction to `end`; every call comes from its owner. Raises OSError if it cannot be started.

    A thread of its own starts it and lives as long as its output: the kernel sends the parent-death signal when the
    *thread* that started a child ends, not only its process.
    """

    def __init__(
        self,
        command: Sequence[str],
        pass_fds: Sequence[int],
        on_output: Callable[[str], None],
        environment: Mapping[str, str],
    ) -> None:
        _abandoned[:] = [process for process in _abandoned if process.poll() is None]
        self._output = OutputLines(on_output, SystemClock())
        started: Future[subprocess.Popen[bytes]] = Future()

        def start_and_read() -> None:
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

        self._reader = threading.Thread(target=start_and_read, name="engine", daemon=True)
        try:
            self._reader.start()
        except RuntimeError as error:  # how Python says EAGAIN for threads
            raise BlockingIOError(errno.EAGAIN, str(error)) from error
        self._process = started.result()
        self.pid = self._process.pid
        self.abandoned = self.killed_from_outside = False  # once ended
        self._killed = False  # by us; set by any thread, once
        self._oom_kills = oom_kills()  # before it began to compute

    @property
    def alive(self) -> bool:
        """From any thread. A process that has ended but was not reaped yet is not alive."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, from any thread; the owner still has to call `end`. Nothing when it has ended."""
        self._killed = True
        self._process.kill()

    def end(self, grace: float) -> str:
        """Make sure that it is gone, and say how it went. It has `grace` seconds to go by itself, then SIGKILL. What
        outlives that by REAP_SECONDS is left behind, and `abandoned` is true."""
        if (how := self.end_within(grace, REAP_SECONDS)) is not None:
            return how
        self.abandoned = True
        _abandoned.append(self._process)
        return f"process {self.pid} cannot be killed: it is stuck inside the kernel, and was abandoned"

    def end_within(self, grace: float, patience: float) -> str | None:
        """How it went, if it goes by itself within `grace` seconds or, killed then, within `patience`. None when it is
        still there: `end` is then left to a thread that has the time."""
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                return None
        self._reader.join(1.0)  # its last lines; a grandchild may hold the pipe open, hence the bound
        code, words = self._process.returncode, self._output.last_words()
        if code >= 0:
            how = f"process {self.pid} ended with status {code}"
        else:
            names = {each.value: each.name for each in signal.Signals}  # of realtime signals only the first and last
            self.killed_from_outside = -code in OUTSIDE and not (self._killed and -code == signal.SIGKILL)
            by = " from outside" if self.killed_from_outside else ""
            how = f"process {self.pid} was killed{by} by {names.get(-code, f'signal {-code}')}"
            if self.killed_from_outside and (struck := oom_kills()) > self._oom_kills:
                times = "once" if struck == 1 else f"{struck} times"
                how += f"; the kernel's OOM killer has struck {times} in this control group"
        return f"{how}; its last words: {words}" if words else how


class EngineWorker:
    """`factory` is "module:function" in the child, called with the block and `options` (which must be JSON)."""

    def __init__(
        self,
        arena: Arena,
        factory: str,
        options: Mapping[str, object],
        *,
        on_output: Callable[[str], None],  # called with each line the child writes, from another thread
        start_timeout: float,
        batch_timeout: float,
        hang_minimum: float | None = None,
    ) -> None:
        self._arena, self._factory, self._options = arena, factory, dict(options)
        self._start_timeout, self._batch_timeout, self._hang_minimum = start_timeout, batch_timeout, hang_minimum
        self._on_output = on_output
        self._heartbeat: Heartbeat = NullHeartbeat()  # of the owner's thread: waiting for the child has a deadline
        self._process: ChildProcess | None = None  # None before start and after the end
        self._connection: socket.socket | None = None  # likewise
        self._seconds: dict[int, float] = {}  # per batch size, as the child measured at start
        self._aborted = False  # set by any thread, once
        self._launched = False
        self._patience: float | None = None  # set by its owner
        self.abandoned = False  # its process could not be killed; once closed
        self.asking = False  # the child has a request and a deadline; written by the owner, read by any thread

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether there is a process, now. From any thread."""
        process = self._process
        return process is not None and process.alive

    @property
    def ended(self) -> bool:
        """It had a process and will never have one again. From any thread."""
        return self._launched and self._process is None

    @property
    def lingers(self) -> bool:
        """Its process was killed after a fault and is not gone yet: `close` may take long. The owner's question."""
        return self._process is not None and self._connection is None

    def attach(self, heartbeat: Heartbeat, *, patience: float | None = None) -> None:
        """It has a new owner, with this heartbeat. `patience`: seconds to wait for the end of a process after a fault;
        a driver may hold it for long, and its images are wanted elsewhere. None: until it is gone, or abandoned."""
        self._heartbeat, self._patience = heartbeat, patience

    def start(self) -> EngineDescription:
        """Start the process and wait for its proof. Raises EngineFault, ModelError."""
        self._launch()
        request: ipc.Message = {"do": "start", "factory": self._factory, "options": self._options}
        request["arena_bytes"] = self._arena.byte_count
        seconds, wrong = self._start_timeout, "it described itself in a way that cannot be"
        try:
            description = self._ask(request, seconds, lambda answer: ipc.to_description(answer["description"]), wrong)
        except EngineMemory:
            self.close()
            raise
        self._seconds = description.seconds
        self._arena.keep(self, _pinned_bytes(description.detail))
        return description

    def run(self, batch: Sequence[Work]) -> BatchReport:
        """Compute a batch. Raises EngineFault; the input planes are then unchanged."""
        seconds = self._deadline(len(batch), sum(work.region.height * work.region.width for work in batch))
        request = {"do": "segment", "batch": [asdict(work) for work in batch]}
        wrong = "it answered what cannot be"
        try:
            report = self._ask(request, seconds, lambda answer: ipc.to_report(answer["report"]), wrong)
            if mistaken := mismatch(batch, report):
                self._fail(EngineNonsense, mistaken, 0)
        except EngineFault:
            if self.lingers or self.abandoned:
                self._arena.withhold(self, [work.region.offset for work in batch])
            raise
        return report

    def golden(self, model: str) -> Golden:
        """The golden image, computed by `model`. Raises EngineFault."""
        request, wrong = {"do": "golden", "model": model}, "a golden image that cannot be one"
        return self._ask(request, self._check_deadline, lambda answer: to_golden(answer["golden"]), wrong)

    def canary(self, blocks: int) -> MemoryTestPass:
        """One pass over so many blocks of its device's memory. Raises EngineFault."""
        request, wrong = {"do": "canary", "blocks": blocks}, "a canary's pass that cannot be"
        return self._ask(
            request,
            self._check_deadline,
            lambda answer: MemoryTestPass(int(answer["canary"]["blocks"]), int(answer["canary"]["bad"])),
            wrong,
        )

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                ipc.send(self._connection, {"do": "close"})
        self._end(GRACE)

    def abort(self) -> None:
        """Kill the process, now or as soon as there is one. From any thread; the owner gets EngineLost."""
        self._aborted = True
        process = self._process
        if process is not None:
            process.kill()

    @property
    def _check_deadline(self) -> float:
        return max(self._deadline(1, 0), CHECK * (self._hang_minimum or 0.0))

    def _deadline(self, images: int, pixels: int) -> float:
        """Seconds after which a batch is hung."""
        measured = expected_seconds(self._seconds, images)
        if self._hang_minimum is None or not measured:
            return max(self._batch_timeout, HUNG * measured)
        return self._hang_minimum + HUNG * (measured + MEGAPIXEL_SECONDS * pixels / 1e6)

    def _launch(self) -> None:
        if self._process is not None:
            raise RuntimeError("this engine worker was started before; a bug")
        self._arena.keep(self, _pinned_bytes(self._options))  # at most; its description says how much it is
        try:
            self._connection, theirs = socket.socketpair()
            with theirs:
                descriptors = (theirs.fileno(), self._arena.fd)
                command = [sys.executable, "-m", "rmbgd.engine.child", *map(str, descriptors), str(os.getpid())]
                environment = ENVIRONMENT | triton_places() | os.environ
                self._process = ChildProcess(command, descriptors, self._on_output, environment)
        except OSError as error:
            self._end(0)
            raise EngineLost(f"the engine's process cannot be started: {error}") from error
        self._launched = True
        if self._aborted:  # between our question and the process's birth
            self._process.kill()

    def _ask(self, request: ipc.Message, seconds: float, parse: Callable[[ipc.Message], T], wrong: str) -> T:
        """What `parse` finds in the child's answer, or else what is `wrong` with it. Every way to fail but shortage of
        memory ends the process."""
        if self._connection is None:
            raise EngineLost("the engine's process is not running")
        self._heartbeat.waiting()
        self.asking = True
        try:
            ipc.send(self._connection, request | {"deadline": seconds})
            answer = ipc.receive(self._connection, seconds)
        except TimeoutError:
            self._fail(EngineLost, f"no answer within {seconds:g} s to '{request['do']}': hung, and killed", 0)
        except (EOFError, OSError):
            self._fail(EngineLost, f"gone in the middle of '{request['do']}'", GRACE, cause=None)
        except ipc.GarbledError as error:
            self._fail(EngineNonsense, f"no message: {error}", 0)
        finally:
            self.asking = False
            self._heartbeat.working()
        if "fault" in answer:
            self._raise_fault(answer)
        try:
            return parse(answer)
        except (ipc.GarbledError, KeyError, TypeError, ValueError) as error:
            self._fail(EngineNonsense, f"{wrong}: {error}", 0)

    def _raise_fault(self, answer: ipc.Message) -> NoReturn:
        detail = str(answer.get("detail", ""))
        match answer["fault"]:
            case "memory":
                raise EngineMemory(detail)
            case "model":
                self._end(GRACE)
                raise ModelError(detail)
            case "nonsense":
                self._fail(EngineNonsense, detail, GRACE)
            case _:
                self._fail(EngineLost, detail, GRACE, cause=str(answer.get("cause", "")))

    def _fail(
        self, fault: type[EngineLost | EngineNonsense], why: str, grace: float, *, cause: str | None = ""
    ) -> NoReturn:
        """`cause` None: the way in which the process ends says it, as it said nothing itself."""
        process = self._process
        how, is_gone = self._end(grace, self._patience)
        text = f"{why} ({how})"
        if not is_gone:
            raise EngineLost(text, cause="unkillable")
        if cause is None:
            cause = KILLED_FROM_OUTSIDE if process is not None and process.killed_from_outside else ""
        raise EngineLost(text, cause=cause) if fault is EngineLost else fault(text)

    def _end(self, grace: float, patience: float | None = None) -> tuple[str, bool]:
        """No descriptor after this, and no process that we know; but what is not gone after `patience` is left to
        `close`: killed, and lingering. How it went, and whether it is gone or will be."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        process = self._process
        if process is None:
            self._arena.keep(self, 0)
            return "not running", True
        self._heartbeat.waiting()
        how = process.end(grace) if patience is None else process.end_within(min(grace, patience), patience)
        self._heartbeat.working()
        if how is None:
            return f"process {process.pid} was killed, and is not gone yet", True
        self.abandoned = process.abandoned
        self._process = None
        if not self.abandoned:
            self._arena.keep(self, 0)
        return how, not self.abandoned


def _pinned_bytes(facts: Mapping[str, object]) -> int:
    """Bytes of the arena's start that a device may page-lock or has, by its options or its description."""
    found = facts.get("pinned_bytes")
    return found if isinstance(found, int) else 0


def expected_seconds(measured: Mapping[int, float], images: int) -> float:
    """What a batch of so many takes, from measured seconds by batch size; 0 where nothing was measured."""
    if not measured:
        return 0.0
    size = min((size for size in measured if size >= images), default=max(measured))
    return measured[size] * max(images / size, 1.0)
