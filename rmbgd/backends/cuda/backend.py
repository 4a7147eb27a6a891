"""Backend on a GPU: everything is allocated, captured, checked and measured at start.

A batch that runs short of memory is halved and tried again here; only an image that is short of memory alone is
reported as a fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from rmbgd.backends.cuda.batch import BatchRun
from rmbgd.backends.cuda.device import CudaSeam
from rmbgd.backends.cuda.memory import MemoryPool
from rmbgd.backends.cuda.memory_plan import split
from rmbgd.backends.cuda.network import CudaNetwork, precision_of, wider
from rmbgd.backends.faults import faults, without_frames
from rmbgd.backends.memtest import MemoryTest
from rmbgd.engine import types
from rmbgd.engine.golden_image import check_golden, golden_image
from rmbgd.errors import EngineMemory
from rmbgd.fs import usable_cores
from rmbgd.imaging.resize import matte_to_image
from rmbgd.models.kernels.runtime import triton_for


class CudaBackend:
    """`make_device` is called at start; it raises what torch raises for a device that is not there."""

    def __init__(self, block: NDArray[np.uint8], options: types.Options, make_device: Callable[[], CudaSeam]) -> None:
        self._block = block
        self._options = options
        self._make_device = make_device
        self._networks: dict[str, CudaNetwork] = {}
        self._limits: list[types.Limit] = []  # not reported yet
        self._memory_test: MemoryTest | None = None
        self._device: CudaSeam | None = None  # None before start and after close, like the next one
        self._pool: MemoryPool | None = None

    def start(self) -> types.EngineDescription:
        """Load, plan, allocate, capture, check on the golden image, measure. Raises ModelError, EngineFault."""
        began = time.perf_counter()
        threads = self._options.threads or usable_cores()
        torch.set_num_threads(threads)
        with torch.inference_mode(), faults():
            device = self._device = self._make_device()
            precision, limits = precision_of(self._options.precision, device.capability())
            self._limits += limits
            kernels = triton_for(device.torch, "off" if self._options.kernels == "off" else "auto")
            if not kernels.usable and self._options.kernels != "off":
                self._limits.append(types.Limit("kernels", f"plain kernels are used: {kernels.why}"))
            # All on one stream: whatever is loaded or zeroed there is there before it is read.
            with device.compute_stream():
                for name, choice in self._options.models.items():
                    self._networks[name] = self._load(device, name, choice, precision, triton=kernels.usable)
                loaded = time.perf_counter()
                networks = list(self._networks.values())
                pool = self._pool = MemoryPool(device, self._block, networks, self._options, self._limits)
                pool.prepare()
                for network in networks:
                    self._check_golden(network)
                pool.finalize()
                for network in networks:
                    network.measure_seconds(pool.sizes)
        detail = {
            "torch": torch.__version__,
            "threads": threads,
            **device.facts(),
            "kernels": kernels.why,
            "graphs": self._options.graphs,
            **pool.plan.facts(),
            "seconds_loading": round(loaded - began, 3),
            "seconds_preparing": round(time.perf_counter() - loaded, 3),
        }
        slowest = {size: max(network.seconds[size] for network in networks) for size in pool.sizes}
        models = {network.name: network.facts for network in networks}
        return types.EngineDescription(self._options.device, models, pool.sizes, slowest, detail, self._take_limits())

    def segment(self, batch: Sequence[types.Work]) -> types.BatchReport:
        network = self._networks[batch[0].model]
        if any(work.model != network.name for work in batch):
            raise ValueError("a batch has one model; a bug")
        pool = self._pool
        assert pool is not None
        report = types.BatchReport([], {"network": 0.0, "finish": 0.0})
        left = list(batch)
        with torch.inference_mode():
            with faults():
                pool.recover_memory()
            while left:
                count, size = split(len(left), pool.sizes, network.seconds)[0]
                try:
                    with faults():
                        self._run(pool, network, left[:count], size, report)
                    del left[:count]
                    continue
                except EngineMemory as fault:
                    shortage = without_frames(fault)
                with faults():
                    pool.shrink(size, shortage)
        if report.not_finite:
            precision = network.facts["precision"]
            detail = f"{len(report.not_finite)} of {len(batch)} images have no finite alpha in {precision}"
            self._limits.append(types.Limit("not_finite", detail))
        report.limits.extend(self._take_limits())
        return report

    def golden(self, model: str) -> types.Golden:
        with torch.inference_mode(), faults():
            began = time.perf_counter()
            matte = self._networks[model].golden_matte()
            seconds = time.perf_counter() - began
        return types.Golden(matte_to_image(matte, *golden_image()[1].shape), seconds)

    def canary(self, blocks: int) -> types.MemoryTestPass:
        """One pass of the memory test over 4 KiB blocks, which stay allocated. Raises EngineFault."""
        assert self._device is not None
        with torch.inference_mode(), faults(), self._device.compute_stream():
            if self._memory_test is not None:
                return self._memory_test.check()
            self._memory_test = MemoryTest(torch, self._device.torch, blocks)
            found = self._memory_test.check()
            assert self._pool is not None
            self._pool.finalize()  # its blocks may have come out of what batches need
            return found

    def close(self) -> None:
        self._networks.clear()
        self._pool = None
        if self._memory_test is not None:
            self._memory_test.close()
        if self._device is not None:
            self._device.close()
            self._device = None

    def _load(
        self, device: CudaSeam, name: str, choice: types.ModelChoice, precision: str, *, triton: bool
    ) -> CudaNetwork:
        """A network with every speed-up that it may use; one that it may not is a limit."""
        models = self._options.models_directory
        network = CudaNetwork(device, name, choice, getattr(torch, precision), models)
        if precision != "float32" and not network.is_finite():
            used = wider(precision, device.capability())
            self._limits.append(types.Limit("precision", f"{name}: alpha is not finite in {precision}: {used} is used"))
            network = CudaNetwork(device, name, choice, getattr(torch, used), models)
        if triton and (why := network.use_kernels()):
            self._limits.append(types.Limit("kernels", f"{name} runs on plain kernels: {why}"))
        return network

    @staticmethod
    def _check_golden(network: CudaNetwork) -> None:
        """The golden image as images are computed. Raises EngineNonsense."""
        matte = network.golden_matte()
        network.facts["overlap"] = round(check_golden(matte, str(network.facts["model"]), network.name), 4)

    def _run(
        self, pool: MemoryPool, network: CudaNetwork, batch: Sequence[types.Work], size: int, report: types.BatchReport
    ) -> None:
        """Through the device as one batch of `size`, into the report."""
        device = self._device
        assert device is not None
        run = BatchRun(device, pool.staging, network, self._block, batch, size, pool.summary)
        began = time.perf_counter()
        try:
            run.compute()
            mattes = run.finish()
        except BaseException:
            # Copies into the arena may still be under way, and its memory may soon be leased to other images.
            with suppress(RuntimeError):
                device.synchronize()
            pool.staging.clear()
            raise
        finished = time.perf_counter()
        report.milliseconds["network"] += 1000 * (run.computed_at - began)
        report.milliseconds["finish"] += 1000 * (finished - run.computed_at)
        report.answers.extend(types.Answer(matte, self._options.device, network.name, len(batch)) for matte in mattes)
        report.not_finite.extend(run.not_finite)

    def _take_limits(self) -> list[types.Limit]:
        limits = list(self._limits)
        self._limits.clear()
        return limits
