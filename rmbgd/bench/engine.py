"""Measures batches through one engine process: the service's arena, worker and child.

A time is a round trip as the service's inference thread sees it: from pixels in the arena to finished planes in it.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self

from rmbgd.bench.samples import Sample, Spread, means, spread, stages_of
from rmbgd.config.load import Config
from rmbgd.engine.arena import Arena
from rmbgd.engine.sensors.nvml import handle_of
from rmbgd.engine.types import EngineDescription, Limit, OutputPlane, Region, Work, region_bytes, view
from rmbgd.engine.wiring import Machine, deadlines_of
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import ConfigError

WARM_UP = 2  # batches of each size before the clock starts: first-use costs are not the service's daily ones
BATCHES_MINIMUM = 5  # that count, however slow the device
BATCHES_MAXIMUM = 2000


def resident(pid: int) -> dict[str, int]:
    """{"rss", "rss_peak"} of a process in bytes; empty when it is gone."""
    with suppress(OSError, KeyError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        status = dict(line.split(":", 1) for line in lines)
        return {name: int(status[key].split()[0]) << 10 for name, key in (("rss", "VmRSS"), ("rss_peak", "VmHWM"))}
    return {}


def processor_seconds(pid: int) -> float:
    """Of all its threads since it began; 0 when it is gone."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()  # the name before may hold anything
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


@dataclass(frozen=True, slots=True)
class BenchDevice:
    """`device` as the engine wants it ("cpu", "cuda:0"), in words, and the number of a GPU."""

    device: str
    called: str
    index: int = 0

    def nvml(self) -> object:
        """The module pynvml, where this is a GPU and the module is installed; a driver may be missing all the same."""
        with suppress(ImportError):
            return importlib.import_module("pynvml") if self.device != "cpu" else None
        return None


CPU = BenchDevice("cpu", "CPU")


class NvmlMemory:
    """One device's memory as NVML sees it. `base` was in use before the engine started: others' and the driver's.

    Used as a context manager. With `nvml` None, or a driver that does not answer, every reading is None.
    """

    def __init__(self, nvml: Any, *, index: int = 0) -> None:
        self._nvml, self._index = nvml, index
        self._handle: Any = None
        self.base: int | None = None

    def __enter__(self) -> Self:
        if (nvml := self._nvml) is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlInit()
                self._handle = handle_of(nvml, self._index)
                self.base = int(nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        return self

    def __exit__(self, *_: object) -> None:
        if self.base is not None:
            self._nvml.nvmlShutdown()

    def of(self, pid: int) -> int | None:
        """Bytes that the process holds: as the driver books them, else what the device's total rose since `base`."""
        if self.base is None:
            return None
        nvml = self._nvml
        with suppress(nvml.NVMLError):
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                if process.pid == pid and process.usedGpuMemory:
                    return int(process.usedGpuMemory)
            return max(0, int(nvml.nvmlDeviceGetMemoryInfo(self._handle).used) - self.base)
        return None


@dataclass(frozen=True, slots=True)
class Measurement:
    """Batches of one size. Times in ms per batch, memory in bytes; a figure that cannot be read is missing."""

    size: int
    spread: Spread
    stages: dict[str, float]  # means, with samples.HAND_OVER
    processor: float  # mean, of all threads of the engine's process: what other work on a busy machine changes least
    memory: dict[str, int]

    @property
    def per_second(self) -> float:
        return 1000.0 * self.size / self.spread.mean

    @property
    def bound(self) -> tuple[str, float]:
        """What takes the largest share of a batch, and the share."""
        name = max(self.stages, key=self.stages.__getitem__)
        return name, self.stages[name] / sum(self.stages.values())


@dataclass
class EngineUnderTest:
    """A running engine with images in its arena. Raises EngineFault or ModelError on measuring."""

    worker: EngineWorker
    arena: Arena
    regions: Sequence[Region]
    works: Iterator[Work]
    memory: NvmlMemory
    description: EngineDescription
    start_seconds: float
    limits: list[Limit]  # what it does without, as reported at start and with batches
    not_finite: int = 0  # images without an answer: their alpha was not finite

    def sizes(self, wanted: Sequence[int] | None) -> tuple[list[int], dict[int, str]]:
        """(sizes to measure, size -> why it is left out); None wants what the engine offers."""
        offered = self.description.batch_sizes
        wanted, places = wanted or offered, len(self.regions)
        few = f"only {places} of these images fit into pipeline.arena_bytes"
        other = f"the engine offers {', '.join(map(str, offered))}"
        left_out = {size: few if size in offered else other for size in wanted if size not in offered or size > places}
        return [size for size in wanted if size not in left_out], left_out

    def measure(self, size: int, seconds: float, *, batches: int = BATCHES_MAXIMUM) -> Measurement:
        """Batches of `size` for about `seconds`, `batches` at most, after WARM_UP that do not count."""
        for _ in range(WARM_UP):
            self._batch(size)
        pid = self.worker.pid or 0
        began = processor_seconds(pid)
        times: list[float] = []
        stages: list[dict[str, float]] = []
        until = time.perf_counter() + seconds
        while len(times) < batches and (len(times) < BATCHES_MINIMUM or time.perf_counter() < until):
            milliseconds, spent = self._batch(size)
            times.append(milliseconds)
            stages.append(stages_of(milliseconds, spent))
        processor = 1000.0 * (processor_seconds(pid) - began) / len(times)
        held = self.memory.of(pid)
        memory = resident(pid) | ({} if held is None else {"nvml": held})
        return Measurement(size, spread(times), means(stages), processor, memory)

    def planes(self, index: int) -> Any:
        """The slot of the image in place `index`, for looking at what came out."""
        return view(self.arena.block, self.regions[index])

    def _batch(self, size: int) -> tuple[float, dict[str, float]]:
        batch = list(islice(self.works, size))
        began = time.perf_counter()
        report = self.worker.run(batch)
        milliseconds = 1000.0 * (time.perf_counter() - began)
        self.limits += report.limits
        self.not_finite += len(report.not_finite)
        return milliseconds, report.milliseconds


def worker_of(
    config: Config, arena: Arena, factory: str, options: Mapping[str, object], device: BenchDevice
) -> EngineWorker:
    """With the service's deadlines. A measurement passes over what the engine's libraries print."""
    deadlines = deadlines_of(config, device.device)
    return EngineWorker(arena, factory, options, **deadlines, on_output=lambda _line: None)


@contextmanager
def engine_under_test(
    factory: str,
    options: Mapping[str, object],
    config: Config,
    *,
    model: str,
    images: Sequence[Sample],
    places: int,
    device: BenchDevice = CPU,
) -> Iterator[EngineUnderTest]:
    """Starts an engine for batches of up to `places` images, and ends it. Raises EngineFault or ModelError."""
    with ExitStack() as stack:
        arena = Arena(config.pipeline.arena_bytes)
        stack.callback(arena.close)
        memory = stack.enter_context(NvmlMemory(device.nvml(), index=device.index))
        regions = filled(arena, islice(cycle(images), max(places, len(images))), stack)
        worker = worker_of(config, arena, factory, options, device)
        stack.callback(worker.close)
        works = cycle([Work(place, region, model) for place, region in enumerate(regions)])
        began = time.perf_counter()
        description = worker.start()
        seconds = time.perf_counter() - began
        yield EngineUnderTest(worker, arena, regions, works, memory, description, seconds, [*description.limits])


def filled(arena: Arena, images: Iterable[Sample], stack: ExitStack) -> list[Region]:
    """Puts images into the arena until no more fit; `stack` releases them."""
    regions: list[Region] = []
    free = arena.byte_count
    for image in images:
        height, width = image.rgb.shape[:2]
        need = region_bytes(height, width, source_alpha=False, output=OutputPlane.RGBA8)
        if need > free:
            break
        free -= need
        lease = arena.lease(need)
        stack.callback(lease.release)
        regions.append(Region(lease.offset, height, width, source_alpha=False, output=OutputPlane.RGBA8))
        view(arena.block, regions[-1]).rgb[:] = image.rgb
    return regions


def target(asked: str, machine: Machine) -> BenchDevice:
    """For "auto" and "cuda" the first visible GPU; for "auto" else the CPU. Raises ConfigError where there is none."""
    if asked == "cpu":
        return CPU
    visible = machine.gpus()
    index = int(asked.partition(":")[2] or 0)
    if index < visible.count:
        return BenchDevice(f"cuda:{index}", visible.why, index)
    if asked == "auto":
        return BenchDevice("cpu", f"CPU; no GPU is visible: {visible.why}")
    raise ConfigError(
        f"--device {asked}: {visible.count} GPUs are visible: {visible.why}. See `rmbgd doctor`, or measure the CPU "
        "with --device cpu"
    )
