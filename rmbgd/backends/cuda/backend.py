"""The engine on a GPU: everything is allocated, recorded, proved and measured before it says that it is ready.

Runs in the engine's process. Knows no process, folder or recipe. `pool.py` has the memory, `network.py` computes,
`passage.py` takes a batch through. A batch for which memory runs short is halved and tried again here; only an image
that alone finds no room is told as a fault.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from rmbgd.backends.cuda.batch import BatchRun
from rmbgd.backends.cuda.device import CudaSeam
from rmbgd.backends.cuda.memory import Pool
from rmbgd.backends.cuda.memory_plan import split
from rmbgd.backends.cuda.network import Network, Precision, precision_of
from rmbgd.backends.cuda.postprocess import FINITE
from rmbgd.backends.faults import faults, unburdened
from rmbgd.backends.memtest import MemoryTest, TorchMemory
from rmbgd.engine.golden_image import check_golden, golden_image
from rmbgd.engine.types import (
    Answer,
    BatchReport,
    EngineDescription,
    Golden,
    Limit,
    MemoryTestPass,
    ModelChoice,
    Options,
    Work,
)
from rmbgd.errors import EngineMemory, EngineNonsense
from rmbgd.imaging.resize import matte_to_image
from rmbgd.models.kernels.runtime import triton_for, use_cache


class CudaBackend:
    """`make_device` is called at start; it raises what torch raises for a device that is not there."""

    def __init__(self, block: NDArray[np.uint8], options: Options, make_device: Callable[[], CudaSeam]) -> None:
        self._block = block
        self._options = options
        self._make_device = make_device
        self._networks: dict[str, Network] = {}
        self._limits: list[Limit] = []  # not yet told
        self._canary: MemoryTest | None = None
        self._device: CudaSeam | None = None  # None before start and after close, like the next two
        self._pool: Pool | None = None
        self._precision: Precision | None = None

    def start(self) -> EngineDescription:
        """Load, plan, allocate, record, prove on the golden image, measure. Raises ModelError, EngineFault."""
        began = time.perf_counter()
        threads = self._options.threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(threads)
        with torch.inference_mode(), faults():
            device = self._device = self._make_device()
            self._precision = precision = precision_of(self._options.precision, device.capability())
            self._limits += precision.limits
            use_cache(self._options.models_directory, device.torch)
            kernels = triton_for(device.torch, "off" if self._options.kernels == "off" else "auto")
            if not kernels.usable and self._options.kernels != "off":
                self._limits.append(Limit("kernels", f"plain kernels are used: {kernels.why}"))
            # All on one stream: whatever is loaded or zeroed there is there before it is read.
            with device.compute():
                for name, choice in self._options.models.items():
                    self._networks[name] = self._loaded(device, name, choice, precision, triton=kernels.usable)
                loaded = time.perf_counter()
                networks = list(self._networks.values())
                pool = self._pool = Pool(device, self._block, networks, self._options, self._limits.append)
                pool.prepare()
                for network in networks:
                    self._prove(network)
                pool.settle_down()
                for network in networks:
                    network.measure(pool.sizes)
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
        return EngineDescription(self._options.device, models, pool.sizes, slowest, detail, self._told())

    def segment(self, batch: Sequence[Work]) -> BatchReport:
        network = self._networks[batch[0].model]
        if any(work.model != network.name for work in batch):
            raise ValueError("a batch has one model; a bug")
        assert self._pool is not None
        report = BatchReport([], {"network": 0.0, "finish": 0.0})
        left, again = list(batch), 0
        with torch.inference_mode():
            with faults():
                self._pool.tend()
            while left:
                count, size = split(len(left), self._pool.sizes, network.seconds)[0]
                shortage = None
                try:
                    with faults():
                        again += self._pass(network, left[:count], size, report)
                except EngineMemory as fault:
                    shortage = unburdened(fault)
                if shortage is None:
                    del left[:count]
                    continue
                with faults():
                    self._pool.shrink(size, shortage)
        if again:
            told = f"{again} of {len(batch)} images were computed again in float32: their alpha was not finite"
            self._limits.append(Limit("not_finite", told))
        return BatchReport(report.answers, report.milliseconds, again, self._told())

    def golden(self, model: str) -> Golden:
        """The golden image, at its own size. Raises EngineFault."""
        rgb, _ = golden_image()
        with torch.inference_mode(), faults():
            began = time.perf_counter()
            matte = self._known_matte(self._networks[model])
            seconds = time.perf_counter() - began
        return Golden(matte_to_image(matte, *rgb.shape[:2]), seconds)

    def canary(self, blocks: int) -> MemoryTestPass:
        """One pass over 4 KiB blocks of this device's memory, which stays taken. Raises EngineFault."""
        assert self._device is not None
        with torch.inference_mode(), faults(), self._device.compute():
            if self._canary is None:
                self._canary = MemoryTest(TorchMemory(self._device.torch), blocks)
            return self._canary.check()

    def close(self) -> None:
        """May be called in any state, more than once."""
        self._networks.clear()
        self._pool = None
        if self._canary is not None:
            self._canary.close()
        if self._device is not None:
            self._device.close()
            self._device = None

    def _loaded(
        self, device: CudaSeam, name: str, choice: ModelChoice, precision: Precision, *, triton: bool
    ) -> Network:
        """A network that computes as quickly as it may; what it does without is told."""
        network = Network(device, name, choice, getattr(torch, precision.storage), self._options.models_directory)
        if triton and (why := network.use_kernels()):
            self._limits.append(Limit("kernels", f"{name} runs on plain kernels: {why}"))
        if precision.float8:
            if why := network.use_float8():
                self._limits.append(Limit("float8", f"{name} computes in {precision.storage}: {why}"))
            else:
                network.facts["precision"] = "float8"
        return network

    def _prove(self, network: Network) -> None:
        """The golden image, through what images will go through; and how far it is from float32."""
        assert self._precision is not None
        matte = self._known_matte(network)
        network.facts["overlap"] = round(check_golden(matte, str(network.facts["model"]), network.name), 4)
        if self._precision.wide:
            return
        with suppress(EngineMemory), faults():  # known only where there is room for a second copy of the weights
            network.again(0)
            difference = np.abs(network.mattes[0].cpu().numpy() - matte).mean()
            network.facts["levels_from_float32"] = round(255 * float(difference), 4)

    def _known_matte(self, network: Network) -> NDArray[np.float32]:
        """float32 [h, w]. Raises EngineNonsense."""
        assert self._device is not None
        rgb, _ = golden_image()
        with self._device.compute():
            network.put(0, [torch.from_numpy(rgb).to(self._device.torch)])
            network.run(1)
            told, matte = network.summary[0].cpu(), network.mattes[0].cpu()
        if float(told[FINITE]) != 1.0:
            raise EngineNonsense(f"alpha of the golden image is not finite ({network.name})")
        return np.array(matte.numpy(), np.float32)  # on the host it would still be the network's own

    def _pass(self, network: Network, batch: Sequence[Work], size: int, report: BatchReport) -> int:
        """Through the device as one batch of `size`; into the report. How many images needed a second try."""
        assert self._device is not None
        assert self._pool is not None
        assert self._precision is not None
        pool = self._pool
        passage = BatchRun(
            self._device, pool.staging, network, self._block, batch, size, pool.summary, wide=self._precision.wide
        )
        began = time.perf_counter()
        try:
            passage.compute()
            mattes = passage.finish()
        except BaseException:
            # Copies into the arena may still be under way, and it may soon belong to others.
            with suppress(RuntimeError):
                self._device.settle()
            pool.staging.clear()
            raise
        answered = time.perf_counter()
        report.milliseconds["network"] += 1000 * (passage.known_at - began)
        report.milliseconds["finish"] += 1000 * (answered - passage.known_at)
        report.answers.extend(Answer(matte, self._options.device, network.name, len(batch)) for matte in mattes)
        return passage.again

    def _told(self) -> list[Limit]:
        told = list(self._limits)
        self._limits.clear()
        return told
