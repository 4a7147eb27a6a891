"""The memory of an engine on a GPU: taken before the first image, given up in part when memory runs short.

Does what `plan.py` decides. Knows networks as things that take memory, and no images.

Recordings share their memory, so that it is free only when all of them are gone: after a shortage every batch is
launched kernel by kernel, and between batches they are recorded anew, one at a time, for the sizes that are left.
Larger batches are tried again later: whoever took the memory may have left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rmbgd.backends.cuda.device import CudaSeam, host_free
from rmbgd.backends.cuda.memory_plan import Plan, Wishes, plan
from rmbgd.backends.cuda.network import Network
from rmbgd.backends.cuda.postprocess import SUMMARY
from rmbgd.backends.cuda.staging import Staging
from rmbgd.backends.faults import faults, unburdened
from rmbgd.engine.types import Limit, Options
from rmbgd.errors import EngineMemory

LOOK_AFTER = 64  # batches, after which the device is asked how much is free
LOW_SHARE = (
    2  # less than one in so many of the spare bytes is told: a canary and others' small needs may come out of them
)
GROW_AFTER = 256  # batches without a shortage, after which batches twice as large are tried again


class Pool:
    """`sizes`: of batches, in use; fewer than planned after a shortage. `tell` hears of what is done without.

    The owner calls everything within faults(), for it raises what torch does where nothing else is said.
    """

    def __init__(
        self,
        device: CudaSeam,
        block: NDArray[np.uint8],
        networks: Sequence[Network],
        options: Options,
        tell: Callable[[Limit], None],
    ) -> None:
        self._device = device
        self._networks = networks
        self._graphs = options.graphs
        self._spare = options.spare_bytes
        self._tell = tell
        self._unprepared: list[tuple[Network, int]] = []  # to be recorded between batches
        self._since_shortage = 0  # batches
        self._since_look = 0
        needs = [network.need() for network in networks]
        device.empty()
        free, total = device.memory()
        self.plan: Plan = plan(
            free=free,
            total=total,
            host_free=host_free(),
            arena=len(block),
            networks=needs,
            wishes=Wishes(options.batch_maximum, options.staging_bytes, options.pinned_bytes, options.spare_bytes),
        )
        for limit in self.plan.limits:
            tell(limit)
        self._is_low = free < options.spare_bytes  # told, and not yet over
        self._working = {size: max(need.batch(size) for need in needs) for size in self.plan.sizes}
        pinned = self.plan.pinned
        if pinned and (why := device.pin(block, pinned)):
            tell(Limit("pinned", f"no memory is page-locked, so copies wait for each other: {why}"))
            pinned = 0
        self.staging = Staging(device, block, self.plan.upload, self.plan.download, pinned)
        self.sizes = self.plan.sizes
        self.summary = device.host_tensor((self.sizes[-1], SUMMARY))
        for network in networks:
            network.allocate(self.sizes[-1])

    def prepare(self) -> None:
        """Every network and size, the largest first: later ones find the memory of the first. Raises EngineMemory."""
        while (shortage := self._short_of(self._all())) is not None:
            self._give_up()
            if len(self.sizes) == 1:
                raise shortage
            self.sizes = self.sizes[:-1]
            self._tell(Limit("batch", f"at most {self.sizes[-1]} images at once: {shortage}"))

    def settle_down(self) -> None:
        """Only what batches need is kept at hand, and all of that."""
        self._device.empty()
        self._device.reserve(self.plan.working)

    def shrink(self, size: int, shortage: EngineMemory) -> None:
        """There was no room for a batch of `size`. Raises `shortage` when nothing is left to give up."""
        recorded = any(network.recorded for network in self._networks)
        smaller = tuple(other for other in self.sizes if other < size)
        self._give_up()
        if not smaller and not recorded:
            raise shortage
        self.sizes = smaller or self.sizes[:1]
        self._since_shortage = 0
        self._unprepared = self._all() if self._graphs else []
        self._tell(Limit("batch", f"at most {self.sizes[-1]} images at once for now: {shortage}"))

    def tend(self) -> None:
        """Before each batch; after a shortage this is one step back to what was planned."""
        self._since_shortage += 1
        self._since_look += 1
        if self._since_look >= LOOK_AFTER:
            self._look()
        if not self._unprepared and self.sizes != self.plan.sizes and self._since_shortage > GROW_AFTER:
            self._grow()
        if not self._unprepared:
            return
        if self._short_of([self._unprepared.pop(0)]) is not None:
            self._unprepared.clear()  # as they are launched now, they work
            self._device.empty()
        if not self._unprepared:
            self._device.reserve(self.plan.working)

    def _look(self) -> None:
        """Tell once when others have taken what should be spared; and again after it was free in between."""
        self._since_look = 0
        free, total = self._device.memory()
        is_low = free < self._spare // (1 if self._is_low else LOW_SHARE)
        if is_low and not self._is_low:
            told = (
                f"{free >> 20} of {total >> 20} MiB are free on the device; {self._spare >> 20} were left so at start"
            )
            self._tell(Limit("memory_low", told))
        self._is_low = is_low

    def _grow(self) -> None:
        self._since_shortage = 0
        larger = self.plan.sizes[len(self.sizes)]
        if self._device.memory()[0] >= self._working[larger] + self._spare:
            self.sizes = (*self.sizes, larger)
            self._unprepared = [(network, larger) for network in self._networks]
            self._tell(Limit("batch", f"{larger} images at once are tried again"))

    def _short_of(self, wanted: Sequence[tuple[Network, int]]) -> EngineMemory | None:
        """Prepare them: the shortage that it ends with, if any."""
        try:
            with faults():
                self._prepare(wanted)
        except EngineMemory as shortage:
            return unburdened(shortage)
        return None

    def _prepare(self, wanted: Sequence[tuple[Network, int]]) -> None:
        failed = ""
        for network, size in wanted:
            why = network.prepare(size, record=self._graphs and not failed)
            if why and not failed:
                failed = f"batches of {size} ({network.name}) and smaller are launched kernel by kernel: {why}"
        if failed:
            self._tell(Limit("graphs", failed))

    def _give_up(self) -> None:
        """The recordings' memory, and what is kept at hand."""
        for network in self._networks:
            network.forget()
        self._device.forget_graphs()
        self._device.empty()

    def _all(self) -> list[tuple[Network, int]]:
        return [(network, size) for size in reversed(self.sizes) for network in self._networks]
