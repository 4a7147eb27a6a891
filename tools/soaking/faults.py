"""Faults that a soak does to the service, and the repair of those that last."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rmbgd.testing.engine import CUDA_ERRORS
from tests.support.gpu_service import GpuUnderTest

SHORTAGE = 1.5  # s that a fault lasts which ends


class Faults:
    """`counts` says what was done. One that lasts is `open` until it is mended; no other may begin meanwhile."""

    def __init__(self, service: GpuUnderTest, dice: random.Random) -> None:
        self._service, self._dice = service, dice
        self._repair: tuple[float, Callable[[], None]] | None = None  # moment on the monotonic clock
        self.counts: Counter[str] = Counter()
        self.life = 0
        self.parts: list[Path] = []  # of the log, oldest first, without the newest

    @property
    def open(self) -> bool:
        return self._repair is not None

    def one(self, *, ending: bool) -> None:
        """Any. `ending`: also one that ends a life."""
        fault = self._dice.choice(self._repertoire(ending=ending))
        self.counts[fault.__name__.strip("_")] += 1
        fault()

    def mend_due(self) -> None:
        if self._repair is not None and time.monotonic() >= self._repair[0]:
            self.mend()

    def mend(self) -> None:
        """Now, if there is anything."""
        if self._repair is not None:
            repair, self._repair = self._repair[1], None
            repair()

    @property
    def pid(self) -> int:
        """Of the service."""
        assert self._service.process is not None
        return self._service.process.pid

    def _repertoire(self, *, ending: bool) -> list[Callable[[], None]]:
        """Faults; `ending`: those that end a life as well."""
        return [
            *((self._kill, self._restart) if ending else ()),
            self._freeze,
            self._look_again,
            self._kill_engine,
            self._freeze_engine,
            self._cuda_error,
            self._heat,
            self._output_gone,
            self._no_descriptors,
            self._rotate,
        ]

    def _engines(self) -> list[int]:
        found: list[int] = []
        for children in Path(f"/proc/{self.pid}/task").glob("*/children"):
            found += map(int, children.read_text().split())
        return found

    def _kill(self) -> None:
        self._service.kill()
        self._again()

    def _restart(self) -> None:
        code = self._service.stop()
        assert code == 0, f"exit status {code}: {self._service.tail()}"
        self._again()

    def _again(self) -> None:
        self.life += 1
        self._service.start()

    def _look_again(self) -> None:
        self._service.signal(signal.SIGHUP)

    def _freeze(self) -> None:
        self._service.signal(signal.SIGSTOP)
        self._repair_later(lambda: self._service.signal(signal.SIGCONT))

    def _kill_engine(self) -> None:
        self._signal_engine(signal.SIGKILL)

    def _freeze_engine(self) -> None:
        self._signal_engine(signal.SIGSTOP)

    def _signal_engine(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(self._dice.choice(self._engines()), number)

    def _cuda_error(self) -> None:
        self._service.steps([f"cuda:{self._dice.choice(sorted(CUDA_ERRORS))}"])

    def _rotate(self) -> None:
        log = self._service.log_file
        self.parts.append(log.with_name(f"{log.name}.{len(self.parts) + 1:04}"))
        log.rename(self.parts[-1])

    def _heat(self) -> None:
        self._service.temperature(90.0)
        self._repair_later(lambda: self._service.temperature(60.0))

    def _output_gone(self) -> None:
        away = self._service.base / "away"
        os.rename(self._service.output, away)

        def back() -> None:
            os.rename(away, self._service.output)

        self._repair_later(back)

    def _no_descriptors(self) -> None:
        pid = self.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), before[1]))
        self._repair_later(lambda: _restore_limit(pid, before))

    def _repair_later(self, repair: Callable[[], None]) -> None:
        self._repair = (time.monotonic() + SHORTAGE, repair)


def _restore_limit(pid: int, before: tuple[int, int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
