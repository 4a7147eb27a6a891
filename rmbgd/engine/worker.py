"""The parent's side of one engine process: an Engine whose work is done by a child, under a deadline.

Knows no device and no policy: when it is lost it says so and is not used again; resilient.py starts another. One object
is one process. What it raises is the truth: EngineLost when the process died, hung or could not be started,
EngineMemory when it is short of memory and otherwise well, EngineNonsense when what it answered cannot be.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from rmbgd.engine import ipc as wire
from rmbgd.engine.arena import Arena
from rmbgd.engine.examine import Golden, to_golden
from rmbgd.engine.process import ChildProcess
from rmbgd.engine.types import BatchReport, EngineDescription, MemoryTestPass, Work
from rmbgd.errors import EngineLost, EngineMemory, EngineNonsense, ModelError
from rmbgd.heartbeat import Heartbeat, NullHeartbeat

HUNG = 10.0  # times what a batch takes: then it is not slow but hung
LOOK = 10.0  # times the shortest deadline, for a canary or a golden image on a GPU: its first pass takes memory
MEGAPIXEL_SECONDS = 0.02
"""Allowed for each megapixel of a batch beside its measured time, which is that of small images: up and down again,
both changes of size, edge colours, and for what no staging memory holds the way through the host. A guess that is too
large costs some seconds before a hang is noticed; one that is too small takes a GPU away that does its work."""

GRACE = 2.0  # seconds for a process that has said farewell, or was asked to go, to be gone by itself

ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Of the child, where the operator has not said otherwise. CUDA counts devices as NVML does, so that the sensor reads
the device that computes. The network's threads sleep while they wait for each other:
decoders and encoders want the same cores. With several busy threads to a core u2netp took 2.0 s an image instead of
4.2, and 0.7 s of CPU time instead of 1.9."""

StartProcess = Callable[..., ChildProcess]


class EngineWorker:
    """`factory` is "module:function" in the child, called with the block and `options` (which must be JSON).

    start_timeout, batch_timeout  seconds after which the child counts as hung and is killed; a batch gets longer on a
                                  machine so slow that its own measure at start says so
    hang_minimum                  for a GPU, whose times are steady: a batch is hung after HUNG times its measured time,
                                  but not before so many seconds; `batch_timeout` is then for what was not measured
    on_output                     called with each line the child writes, from another thread
    heartbeat                          of the owner's thread; waiting for the child counts as waiting: it has a deadline
    """

    def __init__(
        self,
        arena: Arena,
        factory: str,
        options: Mapping[str, object],
        *,
        start_timeout: float,
        batch_timeout: float,
        on_output: Callable[[str], None],
        hang_minimum: float | None = None,
        heartbeat: Heartbeat | None = None,
        start_process: StartProcess = ChildProcess,
    ) -> None:
        self._arena = arena
        self._factory = factory
        self._options = dict(options)
        self._start_timeout = start_timeout
        self._batch_timeout = batch_timeout
        self._hang_minimum = hang_minimum
        self._on_output = on_output
        self._heartbeat = heartbeat or NullHeartbeat()
        self._start_process = start_process
        self._process: ChildProcess | None = None  # None before start and after the end
        self._connection: socket.socket | None = None  # likewise
        self._seconds: dict[int, float] = {}  # per batch size, as the child measured at start
        self._aborted = False  # set by any thread, once
        self._abandoned = False
        self._launched = False
        self._patience: float | None = None  # set by its owner
        self._asking = False  # the child has a request and a deadline; written by the owner, read by any thread

    @property
    def asking(self) -> bool:
        """The child has something to do, and a deadline for it. From any thread."""
        return self._asking

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
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
    def abandoned(self) -> bool:
        """Its process could not be killed. Once closed."""
        return self._abandoned

    @property
    def lingers(self) -> bool:
        """Its process was killed after a fault and is not gone yet: `close` may take long. The owner's question."""
        return self._process is not None and self._connection is None

    def belongs_to(self, heartbeat: Heartbeat, *, patience: float | None = None) -> None:
        """It has a new owner, with this heartbeat. `patience`: seconds to wait for the end of a process after a fault;
        a driver may hold it for long, and other devices wait for its images. None: until it is gone, or abandoned."""
        self._heartbeat, self._patience = heartbeat, patience

    def start(self) -> EngineDescription:
        """Start the process and wait for its proof. Raises EngineFault, ModelError."""
        self._launch()
        request = {
            "do": "start",
            "factory": self._factory,
            "options": self._options,
            "arena_bytes": self._arena.byte_count,
            "deadline": self._start_timeout,
        }
        try:
            answer = self._ask(request, self._start_timeout)
            description = wire.to_description(answer["description"])
        except EngineMemory:
            self.close()
            raise
        except (wire.GarbledError, KeyError) as error:
            self._fail(EngineNonsense, f"it described itself in a way that cannot be: {error}", 0)
        self._seconds = description.seconds
        return description

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        seconds = self._deadline(len(batch), sum(work.region.height * work.region.width for work in batch))
        request = {"do": "segment", "batch": [wire.from_work(work) for work in batch], "deadline": seconds}
        answer = self._ask(request, seconds)
        try:
            report = wire.to_report(answer["report"])
        except (wire.GarbledError, KeyError) as error:
            self._fail(EngineNonsense, f"it answered what cannot be: {error}", 0)
        asked = [work.image_id for work in batch]
        answered = [entry.image_id for entry in report.answers]
        if asked != answered:
            self._fail(EngineNonsense, f"asked for images {asked} it answered for {answered}", 0)
        return report

    def golden(self, model: str) -> Golden:
        """The golden image, computed by `model`. Raises EngineFault."""
        answer = self._look({"do": "golden", "model": model})
        try:
            return to_golden(answer["golden"])
        except (KeyError, TypeError, ValueError) as error:
            self._fail(EngineNonsense, f"a golden image that cannot be one: {error}", 0)

    def canary(self, blocks: int) -> MemoryTestPass:
        """One pass over so many blocks of its device's memory. Raises EngineFault."""
        answer = self._look({"do": "canary", "blocks": blocks})
        try:
            return MemoryTestPass(int(answer["canary"]["blocks"]), int(answer["canary"]["bad"]))
        except (KeyError, TypeError, ValueError) as error:
            self._fail(EngineNonsense, f"a canary's pass that cannot be: {error}", 0)

    def close(self) -> None:
        """Ask the process to go; kill it when it does not."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                wire.send(self._connection, {"do": "close"})
        self._end(GRACE)

    def abort(self) -> None:
        """Kill the process, now or as soon as there is one. From any thread; the owner gets EngineLost."""
        self._aborted = True
        process = self._process
        if process is not None:
            process.kill()

    def _look(self, request: wire.Message) -> wire.Message:
        seconds = self._deadline(1, 0)
        if self._hang_minimum is not None:
            seconds = max(seconds, LOOK * self._hang_minimum)
        return self._ask(request | {"deadline": seconds}, seconds)

    def _deadline(self, images: int, pixels: int) -> float:
        """Seconds after which a batch is hung."""
        measured = expected_seconds(self._seconds, images)
        if self._hang_minimum is None or not measured:
            return max(self._batch_timeout, HUNG * measured)
        return max(self._hang_minimum, HUNG * (measured + MEGAPIXEL_SECONDS * pixels / 1e6))

    def _launch(self) -> None:
        if self._process is not None:
            raise RuntimeError("this engine worker was started before; a bug")
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise EngineLost(f"the engine's process cannot be started: {error}") from error
        with theirs:
            descriptors = (theirs.fileno(), self._arena.fd)
            command = [sys.executable, "-m", "rmbgd.engine.child", *map(str, descriptors), str(os.getpid())]
            try:
                self._process = self._start_process(
                    command, descriptors, self._on_output, environment={**ENVIRONMENT, **os.environ}
                )
            except OSError as error:
                ours.close()
                raise EngineLost(f"the engine's process cannot be started: {error}") from error
        self._connection = ours
        self._launched = True
        if self._aborted:  # between our question and the process's birth
            self._process.kill()

    def _ask(self, request: wire.Message, seconds: float) -> wire.Message:
        """The child's answer to `request`. Every way to fail but shortage of memory ends the process."""
        if self._connection is None:
            raise EngineLost("the engine's process is not running")
        self._heartbeat.waiting()
        self._asking = True
        try:
            wire.send(self._connection, request)
            answer = wire.receive(self._connection, seconds)
        except TimeoutError:
            self._fail(EngineLost, f"no answer within {seconds:g} s to '{request['do']}': hung, and killed", 0)
        except (EOFError, OSError):
            self._fail(EngineLost, f"gone in the middle of '{request['do']}'", GRACE)
        except wire.GarbledError as error:
            self._fail(EngineNonsense, f"no message: {error}", 0)
        finally:
            self._asking = False
            self._heartbeat.working()
        if "fault" in answer:
            self._raise_told(answer)
        return answer

    def _raise_told(self, answer: wire.Message) -> NoReturn:
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

    def _fail(self, fault: type[EngineLost | EngineNonsense], why: str, grace: float, *, cause: str = "") -> NoReturn:
        how, is_gone = self._end(grace) if self._patience is None else self._leave(grace, self._patience)
        if not is_gone:
            raise EngineLost(f"{why} ({how})", cause="unkillable")
        if fault is EngineLost:
            raise EngineLost(f"{why} ({how})", cause=cause)
        raise fault(f"{why} ({how})")

    def _leave(self, grace: float, patience: float) -> tuple[str, bool]:
        """Like `_end`, without waiting for a process that does not go at once: it is then killed, and lingers."""
        process = self._process
        if process is None or self._connection is None:
            return self._end(grace)
        self._heartbeat.waiting()
        how = process.leaves(min(grace, patience), patience)
        self._heartbeat.working()
        if how is not None:
            return self._end(0)
        self._connection.close()
        self._connection = None
        return f"process {process.pid} was killed, and is not gone yet", True

    def _end(self, grace: float) -> tuple[str, bool]:
        """No descriptor after this, and no process that we know. How it went, and whether it is gone."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is None:
            return "not running", True
        self._heartbeat.waiting()
        how = self._process.end(grace)
        self._heartbeat.working()
        self._abandoned = self._process.abandoned
        self._process = None
        return how, not self._abandoned


def expected_seconds(measured: Mapping[int, float], images: int) -> float:
    """What a batch of so many takes, from measured seconds by batch size; 0 where nothing was measured."""
    larger = [size for size in measured if size >= images]
    if larger:
        return measured[min(larger)]
    largest = max(measured, default=0)
    return measured[largest] * images / largest if largest else 0.0
