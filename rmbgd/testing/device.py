"""The CPU behind the seam of the CUDA device, so that the GPU backend runs and is tested without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.backends.cuda.device import Mark


class HostDevice:
    """The CPU in a device's place: one stream, on which everything is done at once. For tests, and it is no toy: the
    engine computes real images with it.

    memory      (free, total) that it pretends to have
    capability  of CUDA, likewise
    capture     what a graph is made of, instead of the body itself
    pins        why nothing can be page-locked
    """

    def __init__(
        self,
        memory: tuple[int, int] = (8 << 30, 8 << 30),
        *,
        capability: tuple[int, int] | None = None,
        capture: Callable[[Callable[[], object]], Callable[[], object]] | None = None,
        pins: str = "",
    ) -> None:
        self.reserved: list[int] = []
        self.pinned = 0
        self.graphs_forgotten = 0
        self._memory = memory
        self._capability = capability
        self._capture = capture or (lambda body: body)
        self._pins = pins

    @property
    def torch(self) -> torch.device:
        return torch.device("cpu")

    def facts(self) -> dict[str, object]:
        return {"name": "the host in place of a GPU"}

    def capability(self) -> tuple[int, int] | None:
        return self._capability

    def memory(self) -> tuple[int, int]:
        return self._memory

    def peak(self, body: Callable[[], object]) -> int:
        body()
        return 0

    def allocations(self) -> int:
        return 0

    def upload(self) -> AbstractContextManager[object]:
        return nullcontext()

    compute = download = upload

    def mark(self) -> Mark:
        return object()

    def follow(self, mark: Mark) -> None:
        pass

    wait = follow

    def settle(self) -> None:
        pass

    def capture(self, body: Callable[[], object]) -> Callable[[], object]:
        return self._capture(body)

    def forget_graphs(self) -> None:
        self.graphs_forgotten += 1

    def reserve(self, byte_count: int) -> None:
        self.reserved.append(byte_count)

    def empty(self) -> None:
        pass

    def pin(self, block: NDArray[np.uint8], byte_count: int) -> str:
        self.pinned = 0 if self._pins else min(byte_count, len(block))
        return self._pins

    def host_tensor(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape)

    def close(self) -> None:
        pass
