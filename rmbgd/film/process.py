"""Parent side of one film process: start it, take its frames, give it their mattes, keep deadlines, end it.

One object is one film. Everything is its owner's; only `abort` may be called by any thread.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rmbgd.config.load import LimitSettings, Recipe
from rmbgd.engine import ipc
from rmbgd.engine.worker import ChildProcess
from rmbgd.errors import ImageError, Reason, RmbgdError
from rmbgd.film.forms import FilmHeader
from rmbgd.fs import fault_of
from rmbgd.heartbeat import Heartbeat

Bytes = NDArray[np.uint8]

DAMAGE = re.compile(
    r"exceeds containing master|ended prematurely|partial file|CRC mismatch|error while decoding|concealing|"
    r"Invalid NAL|truncated|corrupt",
    re.IGNORECASE,
)
"""What libav logs of damage without an error that its callers would see: lines that no sound film brings about."""
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
"""Of the process, where the operator has not said otherwise: frames pass from thread to thread, and with a heap for
each what is free in one is of no use to another."""
SLICE = 0.5  # s between two looks whether the service stops
GRACE = 2.0  # s for a process that has said its last to be gone by itself


class FilmLost(RmbgdError):
    """The process died, or hung.

    from_outside  killed by a signal that is not ours, and that no program earns by itself
    """

    def __init__(self, detail: str, *, from_outside: bool = False) -> None:
        self.from_outside = from_outside
        super().__init__(detail)


class FilmStopped(RmbgdError):
    """The service stops."""


class UnreadFilm(RmbgdError):
    """The disk does not give the film's bytes. `number` is an errno."""

    def __init__(self, number: int, detail: str) -> None:
        self.number = number
        super().__init__(detail)


@dataclass(frozen=True, slots=True)
class FilmResult:
    """What was made: frames, the seconds at which the last ends, remarks; of a steady one figures of flicker."""

    frames: int
    seconds: float
    notes: tuple[str, ...]
    flicker: Mapping[str, object] | None


class FilmProcess(AbstractContextManager["FilmProcess"]):
    """Of the open `film`, into the open `output`; `place` is its folder, for faults.

    patience  seconds without a word from the process, after which it hangs

    Every method raises ImageError (the film), StorageFault (the output's disk), UnreadFilm, MemoryError, FilmLost and
    FilmStopped. OSError where no process can be started.
    """

    def __init__(
        self,
        film: int,
        output: int,
        place: str,
        *,
        patience: float,
        heartbeat: Heartbeat,
        stopping: threading.Event,
        on_output: Callable[[str], None],
    ) -> None:
        self._place, self._patience, self._heartbeat, self._stopping = place, patience, heartbeat, stopping
        self._connection, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), film, output)
            self._on_output = on_output
            self.damage = ""  # what libav has said of it; complete when the process has ended
            command = [sys.executable, "-m", "rmbgd.film.child", *map(str, descriptors), str(os.getpid())]
            try:
                self._process = ChildProcess(command, descriptors, self._hear, ENVIRONMENT | os.environ)
            except BaseException:  # whatever it is: no descriptor stays behind
                self._connection.close()
                raise

    def start(self, limits: LimitSettings, recipe: Recipe, *, steady: bool, look_ahead: int, stem: str) -> FilmHeader:
        """The film's header, its first frame decoded.

        look_ahead  frames after each that its steady matte follows from, too
        stem        of the names of frames in an archive
        """
        settings = {"limits": limits.model_dump(mode="json"), "recipe": recipe.model_dump(mode="json")}
        about = {"steady": steady, "look_ahead": look_ahead, "stem": stem}
        answer = self._ask({"do": "start"} | about | settings, "header")
        return FilmHeader(**answer["header"] | {"notes": tuple(answer["header"]["notes"])})

    def next(self) -> tuple[int, float] | None:
        """(number, seconds) of the next frame, whose planes `take` gets; None after the last."""
        answer = self._ask({"do": "next"}, "frame")
        return None if answer["frame"] is None else (int(answer["frame"]), float(answer["seconds"]))

    def take(self, *planes: Bytes | None) -> None:
        """Fill the planes of the frame that was announced: uint8 [H, W, 3] RGB, and [H, W] that it came with."""
        self._heartbeat.waiting()  # with a deadline of its own
        for plane in planes:
            if plane is not None:
                with self._heard():
                    ipc.receive_into(self._connection, plane.data.cast("B"), self._patience)
        self._heartbeat.working()

    def give(self, number: int, alpha: Bytes) -> None:
        """The matte of a frame, uint8 [H, W]; those of frames must come in order."""
        self._send({"do": "alpha", "number": number}, alpha)

    def finish(self) -> FilmResult:
        """Every frame has its matte: the film is written whole."""
        answer = self._ask({"do": "finish"}, "done")
        return FilmResult(int(answer["done"]), float(answer["seconds"]), tuple(answer["notes"]), answer["flicker"])

    def __exit__(self, *_: object) -> None:
        self._connection.close()  # it ends when that does
        self._process.end(GRACE)

    # ------------------------------------------------------------------------------------------------ messages

    def _hear(self, line: str) -> None:
        """A line that the process has written; its reader's thread."""
        if not self.damage and DAMAGE.search(line):
            self.damage = line
        self._on_output(line)

    def _ask(self, message: ipc.Message, wanted: str) -> ipc.Message:
        self._send(message)
        return self._answer(wanted)

    def _send(self, message: ipc.Message, plane: Bytes | None = None) -> None:
        self._heartbeat.waiting()  # with a deadline of its own
        try:
            ipc.send(self._connection, message)
            if plane is not None:
                self._connection.settimeout(self._patience)
                self._connection.sendall(np.ascontiguousarray(plane).data.cast("B"))
        except TimeoutError as error:
            raise self._lost(f"it has taken nothing for {self._patience:g} s") from error
        except OSError:  # it is gone: its last word says why
            self._answer("")
        self._heartbeat.working()

    def _answer(self, wanted: str) -> ipc.Message:
        self._heartbeat.waiting()
        while "alive" in (answer := self._message()):
            pass
        self._heartbeat.working()
        if wanted in answer:
            return answer
        raise self._fault(answer)

    def _message(self) -> ipc.Message:
        waited = 0.0
        while not select.select([self._connection], [], [], SLICE)[0]:
            waited += SLICE
            if self._stopping.is_set():
                raise FilmStopped("the service stops")
            if waited >= self._patience:
                if _waits_for_disk(self._process.pid):
                    raise UnreadFilm(errno.ETIMEDOUT, f"the disk has not answered for {self._patience:g} s")
                raise self._lost(f"not a word for {self._patience:g} s")
        with self._heard():
            return ipc.receive(self._connection, self._patience)

    @contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            yield
        except EOFError as error:
            raise self._lost("") from error
        except (TimeoutError, ipc.GarbledError) as error:
            raise self._lost(f"it stopped in the middle of a message ({error})") from error

    def _fault(self, answer: ipc.Message) -> Exception:
        """What the process says instead of an answer."""
        with suppress(ValueError, KeyError, TypeError):
            if "refused" in answer:
                reason, incomplete = Reason(answer["refused"]), bool(answer["maybe_incomplete"])
                return ImageError(reason, str(answer["detail"]), maybe_incomplete=incomplete)
            if "unread" in answer:
                return UnreadFilm(int(answer["unread"]), str(answer["detail"]))
            if "unwritten" in answer:
                return fault_of(OSError(int(answer["unwritten"]), str(answer["detail"])), self._place)
            if "memory" in answer:
                return MemoryError(str(answer["memory"]))
        return self._lost(str(answer.get("broke", f"it said {sorted(answer)}")))

    def _lost(self, why: str) -> FilmLost:
        how = self._process.end(0.0 if why else GRACE)
        return FilmLost(f"{why}: {how}" if why else how, from_outside=self._process.killed_from_outside)


def _waits_for_disk(pid: int) -> bool:
    """Is a thread of it within a call that nothing interrupts? Then the disk is silent, and not the process."""
    for status in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError, IndexError):
            if status.read_text().rpartition(")")[2].split()[0] == "D":
                return True
    return False
