"""The seam to what only CUDA has: streams, events, graphs, page-locked memory, allocator counters.

Two implementations: CudaDevice in runtime.py, and HostDevice in rmbgd/testing, which does the same things at once on
the CPU, so that everything else of this package runs where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Event = object
"""A point in the work of a stream: it has been reached once everything before it is done."""


class CaptureFailed(Exception):
    """A graph could not be captured; the device still computes, and what the capture held is free again."""


class CudaSeam(Protocol):
    """Owned by one thread. Every call may raise what torch raises of its device."""

    @property
    def torch(self) -> torch.device: ...

    def facts(self) -> dict[str, object]:
        """Name, capability, versions, for the log."""

    def capability(self) -> tuple[int, int] | None:
        """CUDA's compute capability; None where there is none."""

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device; what torch caches counts as used."""

    def peak_bytes(self, body: Callable[[], object]) -> int:
        """Run `body`: bytes in use at its peak beyond those before; 0 where they are not counted."""

    def allocations(self) -> int:
        """How often torch's allocator has asked the device for memory since the start of the process."""

    def upload_stream(self) -> AbstractContextManager[object]:
        """What is launched within goes, in order, to the stream for copies to the device."""

    def compute_stream(self) -> AbstractContextManager[object]: ...

    def download_stream(self) -> AbstractContextManager[object]: ...

    def record_event(self) -> Event:
        """After what was launched so far on the current stream."""

    def wait_event(self, event: Event) -> None:
        """What is launched from now on, on the current stream, waits for `event`; the host does not."""

    def synchronize_event(self, event: Event) -> None:
        """The host waits for `event`."""

    def synchronize(self) -> None:
        """The host waits for everything."""

    def capture_graph(self, body: Callable[[], object]) -> Callable[[], object]:
        """What `body` launches, to be replayed, one graph at a time: they share memory.

        Raises CaptureFailed, torch.OutOfMemoryError, and EngineLost with the cause unclean_capture where a failed
        capture leaves a process that cannot go on.
        """

    def discard_graphs(self) -> None:
        """No graph will be replayed again: their memory is free once the last reference to each is gone."""

    def reserve(self, byte_count: int) -> None:
        """Cache so many bytes for the compute stream, so that later allocations do not ask the device."""

    def empty_cache(self) -> None:
        """Return what torch's allocator caches to the device."""

    def pin(self, block: NDArray[np.uint8], byte_count: int) -> str:
        """Page-lock the first bytes of `block`, whole pages, once: why that failed, or nothing. No copy may reach
        across the end of what is locked: the driver refuses it."""

    def pinned_tensor(self, shape: tuple[int, ...]) -> Tensor:
        """float32 zeros in page-locked host memory, which copies reach directly."""

    def close(self) -> None: ...
