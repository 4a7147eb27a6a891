"""Measures batches through one engine process: the service's arena, worker and child.

A time is a round trip as the service's inference thread sees it: from pixels in the arena to finished planes in it.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self

from rmbgd.bench.samples import Sample, Spread, largest, spread, stages_of
from rmbgd.config.load import Config, Recipe
from rmbgd.engine.arena import Arena
from rmbgd.engine.device_query import nvml_target
from rmbgd.engine.types import EngineDescription, Limit, OutputPlane, Region, Work, region_bytes, view
from rmbgd.engine.wiring import Machine
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import ConfigError
from rmbgd.models import licences, store

WARM_UP = 2  # batches of each size before the clock starts: first-use costs are not the service's daily ones
BATCHES_MINIMUM = 5  # that count, however slow the device
BATCHES_MAXIMUM = 2000


def resident(pid: int) -> dict[str, int]:
    """{"rss", "rss_peak"} of a process in bytes; empty when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    found = {
        name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest
    }
    return {"rss": found.get("VmRSS", 0), "rss_peak": found.get("VmHWM", 0)}


def processor_seconds(pid: int) -> float:
    """Of all its threads since it began; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class NvmlMemory:
    """One device's memory as NVML sees it. `base` was in use before the engine started: others' and the driver's.

    Used as a context manager. With `nvml` None, or a driver that does not answer, every reading is None.
    """

    def __init__(self, nvml: Any, *, index: int = 0, uuid: str | None = None) -> None:
        self._nvml = nvml
        self._index = index
        self._uuid = uuid
        self._handle: Any = None
        self.base: int | None = None

    def __enter__(self) -> Self:
        nvml = self._nvml
        if nvml is None:
            return self
        try:
            nvml.nvmlInit()
            if self._uuid is not None:
                self._handle = nvml.nvmlDeviceGetHandleByUUID(self._uuid)
            else:
                self._handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
            self.base = int(nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        except nvml.NVMLError:
            self._handle = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle = None
            self._nvml.nvmlShutdown()

    def of(self, pid: int) -> int | None:
        """Bytes that the process holds: as the driver books them, else what the device's total rose since `base`."""
        if self._handle is None or self.base is None:
            return None
        nvml = self._nvml
        try:
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                if process.pid == pid and process.usedGpuMemory:
                    return int(process.usedGpuMemory)
            return max(0, int(nvml.nvmlDeviceGetMemoryInfo(self._handle).used) - self.base)
        except nvml.NVMLError:
            return None


@dataclass(frozen=True, slots=True)
class Measurement:
    """Batches of one size. Times in ms, memory in bytes; a figure that cannot be read is missing.

    stages     mean ms per batch, with samples.HAND_OVER
    processor  mean ms of processor time per batch, of all threads of the engine's process: what other work on a busy
               machine changes least
    """

    size: int
    spread: Spread
    stages: dict[str, float]
    processor: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Images."""
        return 1000.0 * self.size / self.spread.mean

    @property
    def bound(self) -> tuple[str, float]:
        """What takes the largest share of a batch, and the share."""
        return largest(self.stages)


class EngineUnderTest:
    """Context manager: the process runs inside it. Raises EngineFault or ModelError on entering and on measuring.

    factory, options   as EngineWorker takes them
    places             images of the largest batch that will be asked for
    """

    def __init__(
        self,
        factory: str,
        options: Mapping[str, object],
        *,
        model: str,
        images: Sequence[Sample],
        places: int,
        arena_bytes: int,
        start_timeout: float,
        batch_timeout: float,
        device: BenchDevice | None = None,
        on_output: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._model = model
        self._images = images
        self._places = places
        self._arena = Arena(arena_bytes)
        self._worker = EngineWorker(
            self._arena,
            factory,
            options,
            start_timeout=start_timeout,
            batch_timeout=batch_timeout,
            on_output=on_output,
        )
        device = device or BenchDevice("cpu", "CPU")
        self._device = NvmlMemory(device.nvml(), index=device.nvml_index, uuid=device.nvml_uuid)
        self._stack = ExitStack()
        self._regions: list[Region] = []
        self._next = 0
        self.start_seconds = 0.0
        self.description: EngineDescription
        self.limits: list[Limit] = []  # what it does without, as reported at start and with batches
        self.again = 0  # images that needed a second computation, in float32

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._arena.close)
            stack.enter_context(self._device)
            self._fill(stack)
            stack.callback(self._worker.close)
            began = time.perf_counter()
            self.description = self._worker.start()
            self.start_seconds = time.perf_counter() - began
            self.limits += self.description.limits
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def places(self) -> int:
        """Images that lie in the arena: no batch can be larger."""
        return len(self._regions)

    def sizes(self, wanted: Sequence[int] | None) -> tuple[list[int], dict[int, str]]:
        """(sizes to measure, size -> why it is left out); None wants what the engine offers."""
        offered = self.description.batch_sizes
        left_out: dict[int, str] = {}
        for size in wanted or offered:
            if size not in offered:
                left_out[size] = f"the engine offers {', '.join(map(str, offered))}"
            elif size > self.places:
                left_out[size] = f"only {self.places} of these images fit into pipeline.arena_bytes"
        return [size for size in wanted or offered if size not in left_out], left_out

    def measure(self, size: int, seconds: float, *, batches: int = BATCHES_MAXIMUM) -> Measurement:
        """Batches of `size` for about `seconds`, `batches` at most, after WARM_UP that do not count."""
        for _ in range(WARM_UP):
            self._batch(size)
        pid = self._worker.pid or 0
        began = processor_seconds(pid)
        times: list[float] = []
        stages: dict[str, float] = {}
        until = time.perf_counter() + seconds
        while len(times) < batches and (len(times) < BATCHES_MINIMUM or time.perf_counter() < until):
            milliseconds, spent = self._batch(size)
            times.append(milliseconds)
            for name, value in stages_of(milliseconds, spent).items():
                stages[name] = stages.get(name, 0.0) + value
        means = {name: value / len(times) for name, value in stages.items()}
        processor = 1000.0 * (processor_seconds(pid) - began) / len(times)
        return Measurement(size, spread(times), means, processor, self._memory())

    def planes(self, index: int) -> Any:
        """The slot of the image in place `index`, for looking at what came out."""
        return view(self._arena.block, self._regions[index])

    def _batch(self, size: int) -> tuple[float, dict[str, float]]:
        places = [(self._next + k) % len(self._regions) for k in range(size)]
        self._next = (places[-1] + 1) % len(self._regions)
        batch = [Work(place, self._regions[place], self._model) for place in places]
        began = time.perf_counter()
        report = self._worker.run(batch)
        milliseconds = 1000.0 * (time.perf_counter() - began)
        self.limits += report.limits
        self.again += report.again
        return milliseconds, report.milliseconds

    def _fill(self, stack: ExitStack) -> None:
        """Put the images into the arena, again and again until there are `places`, or no more fit."""
        count = max(self._places, len(self._images))
        free = self._arena.byte_count
        for image in islice(cycle(self._images), count):
            height, width = image.rgb.shape[:2]
            need = region_bytes(height, width, source_alpha=False, output=OutputPlane.RGBA8)
            if need > free:
                break
            free -= need
            lease = self._arena.lease(need)
            stack.callback(lease.release)
            region = Region(lease.offset, height, width, source_alpha=False, output=OutputPlane.RGBA8)
            view(self._arena.block, region).rgb[:] = image.rgb
            self._regions.append(region)

    def _memory(self) -> dict[str, int]:
        pid = self._worker.pid
        if pid is None:
            return {}
        found = resident(pid)
        seen = self._device.of(pid)
        return found if seen is None else found | {"nvml": seen}


@dataclass(frozen=True, slots=True)
class BenchDevice:
    """`device` as the engine wants it ("cpu", "cuda:0"), in words, and where NVML finds it."""

    device: str
    called: str
    nvml_index: int = 0
    nvml_uuid: str | None = None

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def nvml(self) -> object:
        """The module pynvml, where this is a GPU and the module is installed; a driver may be missing all the same."""
        with suppress(ImportError):
            return importlib.import_module("pynvml") if self.is_gpu else None
        return None


def target(asked: str, machine: Machine) -> BenchDevice:
    """For "auto" and "cuda" the first visible GPU; for "auto" else the CPU. Raises ConfigError where there is none."""
    if asked == "cpu":
        return BenchDevice("cpu", "CPU")
    visible = machine.gpus()
    index = int(asked.partition(":")[2] or 0)
    if index < visible.count:
        nvml_index, uuid = nvml_target(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return BenchDevice(f"cuda:{index}", visible.why, nvml_index, uuid)
    if asked == "auto":
        return BenchDevice("cpu", f"CPU; no GPU is visible: {visible.why}")
    raise ConfigError(
        f"--device {asked}: {visible.count} GPUs are visible: {visible.why}. See `rmbgd doctor`, or measure the CPU "
        "with --device cpu"
    )


def require_model(recipe: Recipe, config: Config) -> None:
    """Raises ModelError where the model's weights are not here or not accepted, with the way to get them."""
    models = config.service.models_directory
    place = store.resolve(recipe.model, models)
    if place.entry is not None:
        licences.require(place.entry, models)
