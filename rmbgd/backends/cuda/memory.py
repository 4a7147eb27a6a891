"""Device memory of the backend: allocated at start, given up in part after a shortage, recovered later.

memory_plan.py decides how it is divided. Graphs share their memory, so that it is free only when all of them are gone:
after a shortage every batch is launched kernel by kernel, and between batches the graphs are captured again, one at a
time, for the sizes that are left. Larger batches are tried again later, as other programs may have freed memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rmbgd.backends.cuda.device import CudaSeam
from rmbgd.backends.cuda.memory_plan import PLAIN_BYTES, WORKING_BYTES, Plan, plan
from rmbgd.backends.cuda.network import CudaNetwork
from rmbgd.backends.cuda.postprocess import SUMMARY
from rmbgd.backends.cuda.staging import Staging
from rmbgd.backends.faults import faults, without_frames
from rmbgd.engine.types import Limit, Options
from rmbgd.errors import EngineMemory
from rmbgd.fs import host_memory

CHECK_AFTER = 64  # batches, after which the device is asked how much is free
LOW_FRACTION = 2  # less than one in so many of the spare bytes is a limit: the memory test and small needs use some
GROW_AFTER = 256  # batches without a shortage, after which batches twice as large are tried again


class MemoryPool:
    """Each method may raise what torch raises, and is called within faults().

    limits   what the device has to do without is appended to it
    sizes    of batches, in use; fewer than planned after a shortage
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
        self._unprepared: list[tuple[CudaNetwork, int]] = []  # graphs to be captured between batches
        self._since_shortage = self._since_check = 0  # batches
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
        self._working = {size: max(need.batch(size) for need in needs) for size in self.plan.sizes}
        if self.plan.pinned and (why := device.pin(block, self.plan.pinned)):
            self._limit("pinned", f"no memory is page-locked, so copies wait for each other: {why}")
            self.plan = replace(self.plan, pinned=0)
        self.staging = Staging(device, block, self.plan.staging, self.plan.pinned)
        self.sizes = self.plan.sizes
        self.summary = device.pinned_tensor((self.sizes[-1], SUMMARY))
        for network in networks:
            network.allocate(self.sizes[-1])

    def prepare(self) -> None:
        """Every network and size, the largest first: later ones use the memory of the first. Raises EngineMemory."""
        while (shortage := self._prepare(self._all())) is not None:
            self._give_up()
            if len(self.sizes) == 1:
                raise shortage
            self.sizes = self.sizes[:-1]
            self._limit("batch", f"at most {self.sizes[-1]} images at once: {shortage}")

    def finalize(self) -> None:
        """Cache what batches need, and nothing else."""
        self._device.empty_cache()
        self._device.reserve(self.plan.working)

    def shrink(self, size: int, shortage: EngineMemory) -> None:
        """After a shortage in a batch of `size`. Raises `shortage` when nothing is left to give up."""
        captured = any(network.graph_sizes for network in self._networks)
        smaller = tuple(other for other in self.sizes if other < size)
        self._give_up()
        if not smaller and not captured:
            raise shortage
        self.sizes = smaller or self.sizes[:1]
        self._since_shortage = 0
        self._unprepared = self._all() if self._graphs else []
        self._limit("batch", f"at most {self.sizes[-1]} images at once for now: {shortage}")

    def recover_memory(self) -> None:
        """Before each batch; after a shortage this is one step back to what was planned."""
        self._since_shortage += 1
        self._since_check += 1
        if self._since_check >= CHECK_AFTER:
            self._check_free()
        if not self._unprepared and self.sizes != self.plan.sizes and self._since_shortage > GROW_AFTER:
            self._grow()
        if not self._unprepared:
            return
        if self._prepare([self._unprepared.pop(0)]) is not None:
            self._unprepared.clear()  # launched kernel by kernel, as now, they run
            self._device.empty_cache()
        if not self._unprepared:
            self._device.reserve(self.plan.working)

    def _check_free(self) -> None:
        """Report once that other programs took what should be spared; and again after it was free in between."""
        self._since_check = 0
        free, total = self._device.memory()
        is_low = free < self._spare // (1 if self._is_low else LOW_FRACTION)
        if is_low and not self._is_low:
            spare = f"{self._spare >> 20} were left so at start"
            self._limit("memory_low", f"{free >> 20} of {total >> 20} MiB are free on the device; {spare}")
        self._is_low = is_low

    def _grow(self) -> None:
        self._since_shortage = 0
        larger = self.plan.sizes[len(self.sizes)]
        if self._device.memory()[0] >= self._working[larger] + self._spare:
            self.sizes = (*self.sizes, larger)
            self._unprepared = [(network, larger) for network in self._networks]
            self._limit("batch", f"{larger} images at once are tried again")

    def _prepare(self, wanted: Sequence[tuple[CudaNetwork, int]]) -> EngineMemory | None:
        """Prepare networks for batch sizes; the shortage that it ends with, if any. Stops capturing at a failure."""
        failed = ""
        try:
            with faults():
                for network, size in wanted:
                    if why := network.prepare(size, capture=self._graphs and not failed):
                        failed = f"batches of {size} ({network.name}) and smaller are launched kernel by kernel: {why}"
        except EngineMemory as shortage:
            return without_frames(shortage)
        if failed:
            self._limit("graphs", failed)
        return None

    def _give_up(self) -> None:
        for network in self._networks:
            network.discard_graphs()
        self._device.discard_graphs()
        self._device.empty_cache()

    def _all(self) -> list[tuple[CudaNetwork, int]]:
        return [(network, size) for size in reversed(self.sizes) for network in self._networks]

    def _limit(self, what: str, detail: str) -> None:
        self._limits.append(Limit(what, detail))
