"""Backend on a GPU: everything is allocated, captured, checked, run once and measured at start.

A batch that runs short of memory later is a fault: the process ends, and a fresh one divides what is free then.
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
from rmbgd.backends.cuda.staging import Staging
from rmbgd.backends.faults import faults, without_frames
from rmbgd.backends.memtest import MemoryTest
from rmbgd.engine import types
from rmbgd.engine.golden_image import check_golden, golden_image
from rmbgd.errors import EngineMemory, ModelError
from rmbgd.fs import usable_cores
from rmbgd.imaging.resize import image_to_network, matte_to_image
from rmbgd.models.kernels.runtime import triton_for
from rmbgd.models.store import resolve


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
                while (shortage := self._make_ready(device, pool)) is not None:
                    pool.drop_largest(shortage)
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
        device, pool = self._device, self._pool
        assert device is not None
        assert pool is not None
        report = types.BatchReport([], {"network": 0.0, "finish": 0.0})
        left = list(batch)
        with torch.inference_mode(), faults():
            pool.check_free()
            for count, size in split(len(batch), pool.sizes, network.seconds):
                part, left = left[:count], left[count:]
                run = BatchRun(device, pool.staging, network, self._block, part, size, pool.summary)
                began = time.perf_counter()
                mattes = self._run(run)
                finished = time.perf_counter()
                report.milliseconds["network"] += 1000 * (run.computed_at - began)
                report.milliseconds["finish"] += 1000 * (finished - run.computed_at)
                report.answers.extend(
                    types.Answer(matte, self._options.device, network.name, count) for matte in mattes
                )
                report.not_finite.extend(run.not_finite)
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
            self._device.empty_cache()  # its blocks are not to come out of what is cached for batches
            self._memory_test = MemoryTest(torch, self._device.torch, blocks)
            found = self._memory_test.check()
            assert self._pool is not None
            self._pool.finalize()
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
        entry = resolve(choice.source, models).entry
        if entry is not None and entry.recurrent:
            raise ModelError(
                f'{name} takes the frame before as well, which only the CPU does; set engine.device = "cpu"'
            )
        network = CudaNetwork(device, name, choice, getattr(torch, precision), models)
        if precision != "float32" and not network.is_finite():
            used = wider(precision, device.capability())
            self._limits.append(types.Limit("precision", f"{name}: alpha is not finite in {precision}: {used} is used"))
            network = CudaNetwork(device, name, choice, getattr(torch, used), models)
        if triton and (why := network.use_kernels()):
            self._limits.append(types.Limit("kernels", f"{name} runs on plain kernels: {why}"))
        return network

    def _make_ready(self, device: CudaSeam, pool: MemoryPool) -> EngineMemory | None:
        """Everything that batches need, once; the shortage of memory that this ends with, if any."""
        try:
            with faults():
                pool.prepare()
                for network in self._networks.values():
                    self._check_golden(network)
                pool.finalize()
                for network in self._networks.values():
                    self._rehearse(device, pool, network)
        except EngineMemory as shortage:
            return without_frames(shortage)
        return None

    def _rehearse(self, device: CudaSeam, pool: MemoryPool, network: CudaNetwork) -> None:
        """Every kind of image once, so that nothing is loaded for the first time within a batch's deadline; then the
        seconds of each batch size, from the upload to the last copy.

        Other processes use the arena now: these images lie in memory of this one.
        """
        block, kinds = rehearsal_images(network)
        staging = Staging(device, block, pool.staging.memory, pinned=0)
        for work in kinds:
            self._run(BatchRun(device, staging, network, block, [work], 1, pool.summary))
        by_host = image_to_network(types.view(block, kinds[0].region).rgb, network.size, network.filter)
        network.set_resized(0, torch.from_numpy(by_host))
        for size in reversed(pool.sizes):  # the largest first: smaller ones fit into what torch caches for it
            run = BatchRun(device, staging, network, block, kinds[:1] * size, size, pool.summary)
            began = time.perf_counter()
            self._run(run)
            network.seconds[size] = time.perf_counter() - began

    @staticmethod
    def _check_golden(network: CudaNetwork) -> None:
        """The golden image as images are computed. Raises EngineNonsense."""
        matte = network.golden_matte()
        network.facts["overlap"] = round(check_golden(matte, str(network.facts["model"]), network.name), 4)

    @staticmethod
    def _run(run: BatchRun) -> list[types.MatteReport]:
        try:
            run.compute()
            return run.look_again(run.finish())
        except BaseException:  # whatever ends the batch: copies may still be under way into memory that is lent again
            with suppress(RuntimeError):
                run.device.synchronize()
            run.staging.clear()
            raise

    def _take_limits(self) -> list[types.Limit]:
        limits = list(self._limits)
        self._limits.clear()
        return limits


def rehearsal_images(network: CudaNetwork) -> tuple[NDArray[np.uint8], list[types.Work]]:
    """(block, images in it): the golden image, higher and narrower than the network's input, with as many pixels, for
    every output plane, with an alpha of its own. The first takes the longest to finish."""
    height, width = network.size[0] * 9 // 8, network.size[1] * 8 // 9
    planes = list(types.OutputPlane)
    most = types.region_bytes(height, width, source_alpha=True, output=planes[0])
    block = np.full(len(planes) * most, 255, np.uint8)
    regions = [types.Region(number * most, height, width, True, output) for number, output in enumerate(planes)]
    rgb = image_to_network(golden_image()[0], (height, width), network.filter)
    for region in regions:
        types.view(block, region).rgb[...] = rgb
    return block, [types.Work(number, region, network.name) for number, region in enumerate(regions)]
