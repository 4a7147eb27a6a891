"""The seam between the engine and what only CUDA has: streams, events, graphs, page-locked memory, allocator counters.

Does not know networks or images. `cuda.py` has the real device; HostDevice does the same things at once on the CPU,
so that everything else of this room runs where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Mark = object
"""A point in the work of a stream: it has been reached once everything before it is done."""

HOST_MEMORY = "/proc/meminfo"


class CaptureFailed(Exception):
    """A graph could not be recorded; the device is well and the body can still be run."""


class CudaSeam(Protocol):
    """Owned by one thread. Every call may raise what torch raises of its device."""

    @property
    def torch(self) -> torch.device: ...

    def facts(self) -> dict[str, object]:
        """Name, capability, versions, for the log."""
        ...

    def capability(self) -> tuple[int, int] | None:
        """CUDA's compute capability; None where there is none."""
        ...

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device; what torch keeps for later counts as taken."""
        ...

    def peak(self, body: Callable[[], object]) -> int:
        """Run `body`: how many more bytes than before were in use at its peak. 0 where nobody counts."""
        ...

    def allocations(self) -> int:
        """How often memory was asked of the device, ever."""
        ...

    def upload(self) -> AbstractContextManager[object]:
        """What is launched within goes to the stream for copies to the device, in order."""
        ...

    def compute(self) -> AbstractContextManager[object]: ...

    def download(self) -> AbstractContextManager[object]: ...

    def mark(self) -> Mark:
        """Of what was launched so far on the current stream."""
        ...

    def follow(self, mark: Mark) -> None:
        """What is launched from now on, on the current stream, waits for `mark`; the host does not."""
        ...

    def wait(self, mark: Mark) -> None:
        """The host waits."""
        ...

    def settle(self) -> None:
        """The host waits for everything."""
        ...

    def capture(self, body: Callable[[], object]) -> Callable[[], object]:
        """Record what `body` launches; the answer launches it again. All recordings share their memory, so that one
        must end before the next begins. Raises CaptureFailed.
        """
        ...

    def forget_graphs(self) -> None:
        """No recording will be used again: their memory is free once the last reference to each is gone."""
        ...

    def reserve(self, byte_count: int) -> None:
        """Keep so many bytes at hand for the compute stream, so that later allocations ask nothing of the device."""
        ...

    def empty(self) -> None:
        """Give back what is kept for later."""
        ...

    def pin(self, block: NDArray[np.uint8], byte_count: int) -> str:
        """Page-lock the first bytes of `block`, once: why it could not be done, or nothing."""
        ...

    def host_tensor(self, shape: tuple[int, ...]) -> Tensor:
        """float32 zeros on the host that copies can reach directly."""
        ...

    def close(self) -> None: ...


def host_free(path: str = HOST_MEMORY) -> int:
    """Bytes of the host's memory that can be had without swapping; 0 where the kernel does not say."""
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name == "MemAvailable":
                    return int(value.split()[0]) * 1024
    except OSError:
        pass
    return 0
