"""The real service with a fake engine: `python launcher.py CONFIG OPTIONS`, where OPTIONS is JSON.

Goes through the command line's own door, so that exit statuses are the real ones; the product itself has no switch for
tests. Everything is off unless asked for.

    engine   keyword arguments of FakeBackend (script, poison, recurrent, ...), and `delay`: seconds for every batch;
             `hard`: alpha is nearly everywhere 0 or 255, as a network's is
    gpu      the real failover over child processes with fake engines: `orders` (a folder, see Orders), `sensor`
             (a file, see ToldSensor), `health` (settings, also beyond their bounds), `standby` (arguments of its
             FakeBackend), `count` (visible GPUs); each GPU but the first has a folder and a file of its own, which end
             in "-1", "-2" ...
    pace     {"factor": 1000, "since": s since 1970}: the wall clock runs `factor` times as fast from then on, over
             restarts too, and old rows are looked for every second; monotonic time, and the times in the log, are true
    announces  it announces images instead of computing them
    left     every image is left to another device, which is not there: no thread hangs, and nothing moves
    count    a file that gets one line per image the engine computed
    entered  a file that gets one line per image the engine was given, before it computes
    hold     a path: while a file stands there, the engine does not answer
    fuse     a path: a number in it counts down with each file operation and each ledger transaction, and at its end the
             process is killed, before that step
    deadly   a path of an image, below its folder: the process is killed where it begins to decode that
    memory   a file that says once a second: process id, bytes of the C heap in use, and bytes that it holds in all; it
             has two arenas then, as under the unit
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rmbgd.cli import main as cli
from rmbgd.clock import SystemClock
from rmbgd.config.load import Config
from rmbgd.engine.device_query import VisibleGpus
from rmbgd.engine.devices import Devices, EngineContext
from rmbgd.engine.fallback_model import FallbackModels
from rmbgd.engine.sensors.base import DeadlineSensor
from rmbgd.engine.types import Answer, BatchReport, MatteReport, Work, view
from rmbgd.engine.wiring import Machine, Models, build
from rmbgd.fs import FileSystem, SystemFileSystem
from rmbgd.heartbeat import Heartbeat
from rmbgd.intake import reconciler
from rmbgd.pipeline.decode import Decoder
from rmbgd.pipeline.infer import DeviceThread
from rmbgd.service import daemon
from rmbgd.store.database import Database
from rmbgd.store.records import Job
from rmbgd.testing.engine import FakeBackend
from rmbgd.testing.sensors import ToldSensor
from rmbgd.testing.worker import in_process

SENSOR_TIMEOUT = 0.2  # s; a reading of a file takes none, and what hangs in a test need not hang long
PRUNE_EVERY = 1.0  # s
ARENA_MAX = -8  # M_ARENA_MAX of malloc.h
HARD = np.clip(8 * (np.arange(256) - 112), 0, 255).astype(np.uint8)  # by green
HOLD_CHECK = 0.01  # s between two looks whether the engine may answer; stands for the device's time


class ObservedEngine(FakeBackend):
    """Slow when told, and says what it was given and what it computed in files that survive the process."""

    def __init__(
        self,
        block: Any,
        *,
        delay: float = 0.0,
        hard: bool = False,
        count: str = "",
        entered: str = "",
        hold: str = "",
        **options: Any,
    ) -> None:
        super().__init__(block, **options)
        self._block_of, self._hard = block, hard
        self._delay, self._count, self._entered, self._hold = delay, count, entered, hold
        self._never = threading.Event()  # time.sleep does not end under a false clock

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        self._note(self._entered, batch)
        while self._hold and os.path.exists(self._hold):
            self._never.wait(HOLD_CHECK)
        self._never.wait(self._delay)
        report = self._hardened(batch) if self._hard else super().segment(batch)
        self._note(self._count, batch)
        return report

    def _hardened(self, batch: Sequence[Work]) -> BatchReport:
        """As little work as can be: what is measured is the service around it."""
        answers = []
        for work in batch:
            slot = view(self._block_of, work.region)
            alpha = cv2.LUT(cv2.extractChannel(slot.rgb, 1), HARD)
            if slot.rgba is not None:
                cv2.cvtColor(slot.rgb, cv2.COLOR_RGB2RGBA, dst=slot.rgba)
                cv2.insertChannel(alpha, slot.rgba, 3)
            elif slot.alpha is not None:
                slot.alpha[...] = alpha
            share = float(cv2.mean(alpha)[0]) / 255
            answers.append(Answer(MatteReport(work.image_id, share, 1.0, share, 0.01), "cpu", work.model, len(batch)))
        return BatchReport(answers, {"network": 0.0})

    @staticmethod
    def _note(path: str, batch: Sequence[Work]) -> None:
        if path:
            with open(path, "a") as file:
                file.write("".join(f"{work.image_id}\n" for work in batch))


class Fuse:
    """Kills the process before the step at which the number in the file reaches zero. No file: nothing burns."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock, contextlib.suppress(FileNotFoundError):
            with open(self._path) as file:
                left = int(file.read()) - 1
            if left <= 0:
                os.unlink(self._path)
                os.kill(os.getpid(), signal.SIGKILL)
            with open(self._path, "w") as file:
                file.write(str(left))

    def lay(self) -> None:
        """Along every operation of the file system seam, and every transaction of the ledger."""
        for name in (name for name in vars(FileSystem) if not name.startswith("_")):
            setattr(SystemFileSystem, name, self._before(getattr(SystemFileSystem, name)))
        Database.transaction = self._before(Database.transaction)  # type: ignore[method-assign]

    def _before(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operation)
        def burning(*given: Any, **named: Any) -> Any:
            self.step()
            return operation(*given, **named)

        return burning


def run_fast(factor: float, since: float) -> None:
    """The service's wall clock, for what takes it days, such as forgetting old rows."""
    began = datetime.fromtimestamp(since, UTC)

    def wall(_clock: SystemClock) -> datetime:
        now = datetime.now(UTC)
        return now + timedelta(seconds=(now - began).total_seconds() * (factor - 1))

    SystemClock.wall = wall  # type: ignore[assignment, method-assign]
    reconciler.PRUNE_EVERY = PRUNE_EVERY


def die_of(deadly: str) -> None:
    """As of a file that breaks a C library."""
    decode = Decoder.decode

    def dying(self: Decoder, job: Job, heartbeat: Heartbeat) -> Any:
        if job.relative_path == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(self, job, heartbeat)

    Decoder.decode = dying  # type: ignore[method-assign]


class HeapStatistics(ctypes.Structure):
    """struct mallinfo2 of glibc, all arenas together."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


def report_memory(path: str) -> None:
    """From a thread of its own. What is in use tells a leak from a heap that large images have left full of holes."""
    library, fresh = ctypes.CDLL(None), f"{path}.fresh"
    library.mallopt(ARENA_MAX, 2)
    library.mallinfo2.restype = HeapStatistics  # glibc 2.33

    def report() -> None:
        while True:
            found = library.mallinfo2()
            with open(fresh, "w") as file:
                file.write(f"{os.getpid()} {found.uordblks + found.hblkhd} {found.arena + found.hblkhd}")
            os.replace(fresh, path)
            time.sleep(1.0)

    threading.Thread(target=report, daemon=True, name="memory").start()


def suffix(index: int) -> str:
    """Of what belongs to the GPU of that number."""
    return f"-{index}" if index else ""


def failover(
    context: EngineContext, *, orders: str, sensor: str, health: dict[str, Any], standby: dict[str, Any], count: int
) -> Devices:
    """As the product builds it, on a machine whose GPUs are told by files and whose CPU has a lesser model."""
    config = context.config.model_copy(update={"health": context.config.health.model_copy(update=health)})

    def fake(_config: Config, device: str, models: Models, _precision: str) -> dict[str, object]:
        if index := device.partition(":")[2]:
            mine: dict[str, object] = {"orders": orders + suffix(int(index))}
        else:  # for images, or for the golden image's answers
            mine = standby if "lesser" in models or config.engine.device == "cpu" else {}
        return {"device": device, "models": list(models), "batch_sizes": [1, 2, 4]} | mine

    def told(_config: Config, index: int) -> tuple[DeadlineSensor, str]:
        return DeadlineSensor(ToldSensor(Path(sensor + suffix(index))), SENSOR_TIMEOUT), "a test"

    machine = Machine(
        gpus=lambda: VisibleGpus(count, "told by a test"),
        sensor=told,
        fallback=lambda _config: FallbackModels({"u2netp": "lesser"}, True, "told by a test"),
        factory="rmbgd.testing.engine:create",
        options=fake,
    )
    context.config = config
    return build(context, machine)


def main() -> int:
    config, options = Path(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    seen = {name: options.get(name, "") for name in ("count", "entered", "hold")}
    if "pace" in options:
        run_fast(**options["pace"])
    if options.get("fuse"):
        Fuse(options["fuse"]).lay()
    if options.get("memory"):
        report_memory(options["memory"])

    def devices(context: EngineContext) -> Devices:
        if "gpu" in options:
            return failover(context, **options["gpu"])
        return in_process(lambda _: ObservedEngine(context.arena.block, **seen, **options.get("engine", {})))(context)

    if options.get("deadly"):
        die_of(options["deadly"])
    if options.get("left"):
        DeviceThread._choose = lambda *_: None  # type: ignore[method-assign]
    daemon.run = functools.partial(daemon.run, build_devices=devices)
    return cli.main(["announce" if options.get("announces") else "run", "--config", str(config)])


if __name__ == "__main__":
    sys.exit(main())
