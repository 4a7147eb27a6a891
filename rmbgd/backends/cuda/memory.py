"""Device memory of the backend: allocated at start, as memory_plan.py divides it.

Nothing is given up or taken while images are computed: a process that runs short then is replaced by a fresh one,
which divides what is free. At start, a plan that was too bold is cut to the next smaller batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from rmbgd.backends.cuda.device import CudaSeam
from rmbgd.backends.cuda.memory_plan import PLAIN_BYTES, WORKING_BYTES, Plan, plan
from rmbgd.backends.cuda.network import CudaNetwork
from rmbgd.backends.cuda.postprocess import SUMMARY
from rmbgd.backends.cuda.staging import Staging
from rmbgd.engine.types import Limit, Options
from rmbgd.errors import EngineMemory
from rmbgd.fs import host_memory

CHECK_AFTER = 64  # batches, after which the device is asked how much is free
LOW_FRACTION = 2  # less than one in so many of the spare bytes is a limit: the memory test and small needs use some


class MemoryPool:
    """Each method may raise what torch raises, and is called within faults().

    limits   what the device has to do without is appended to it
    sizes    of batches; fewer than planned where memory was short at start
    staging  the staging buffer
    summary  float32 [largest batch, SUMMARY] on the host, page-locked
    """

    def __init__(
        self,
        device: CudaSeam,
        block: NDArray[np.uint8],
        networks: Sequence[CudaNetwork],
        options: Options,
        limits: list[Limit],
    ) -> None:
        self._device = device
        self._networks = networks
        self._graphs = options.graphs
        self._spare = options.spare_bytes
        self._limits = limits
        self._since_check = 0  # batches
        needs = [network.measure_need() for network in networks]
        device.empty_cache()
        free, total = device.memory()
        self.plan: Plan = plan(
            free=free,
            total=total,
            host_free=host_memory().available,
            arena=len(block),
            networks=needs,
            options=options,
            working=WORKING_BYTES if all(network.triton for network in networks) else PLAIN_BYTES,
        )
        limits.extend(self.plan.limits)
        self._is_low = free < options.spare_bytes  # reported, and not over yet
        if self.plan.pinned and (why := device.pin(block, self.plan.pinned)):
            self._limit("pinned", f"no memory is page-locked, so copies wait for each other: {why}")
            self.plan = replace(self.plan, pinned=0)
        memory = torch.empty(self.plan.staging, dtype=torch.uint8, device=device.torch)
        self.staging = Staging(device, block, memory, self.plan.pinned)
        self.sizes = self.plan.sizes
        self.summary = device.pinned_tensor((self.sizes[-1], SUMMARY))

    def prepare(self) -> None:
        """Inputs, outputs and graphs of every network. Raises what torch raises for want of memory: see drop_largest.

        Every size is warmed up before the first graph is captured, so that no warm-up needs memory beside that of the
        graphs; and the largest comes first, as graphs share its memory. Capturing stops at a failure.
        """
        for network in self._networks:
            network.allocate(self.sizes[-1])
        every = [(network, size) for size in reversed(self.sizes) for network in self._networks]
        expected = []
        for network, size in every:
            self._device.empty_cache()  # what another size has cached may be in pieces
            expected.append(network.warm_up(size))
        if not self._graphs:
            return
        for (network, size), mattes in zip(every, expected, strict=True):
            if why := network.capture(size, mattes):
                self._graphs = False
                detail = f"batches of {size} ({network.name}) and smaller are launched kernel by kernel: {why}"
                self._limit("graphs", detail)
                return

    def drop_largest(self, shortage: EngineMemory) -> None:
        """Give up what was prepared, and the largest batch; raises `shortage` if that is one image."""
        for network in self._networks:
            network.discard()
        self._device.discard_graphs()
        self._device.empty_cache()
        if len(self.sizes) == 1:
            raise shortage
        self.sizes = self.sizes[:-1]
        self._limit("batch", f"at most {self.sizes[-1]} images at once: {shortage}")

    def finalize(self) -> None:
        """Cache what batches need, and nothing else."""
        self._device.empty_cache()
        self._device.reserve(self.plan.working)

    def check_free(self) -> None:
        """Before each batch. Report once that other programs took what should be spared; and again after it was free
        in between."""
        self._since_check += 1
        if self._since_check < CHECK_AFTER:
            return
        self._since_check = 0
        free, total = self._device.memory()
        is_low = free < self._spare // (1 if self._is_low else LOW_FRACTION)
        if is_low and not self._is_low:
            spare = f"{self._spare >> 20} were left so at start"
            self._limit("memory_low", f"{free >> 20} of {total >> 20} MiB are free on the device; {spare}")
        self._is_low = is_low

    def _limit(self, what: str, detail: str) -> None:
        self._limits.append(Limit(what, detail))
