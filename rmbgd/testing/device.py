"""HostDevice: the CUDA seam on the CPU, so that the GPU backend runs and is tested without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.backends.cuda.device import Event


class HostDevice:
    """The CPU as a device with one stream, on which everything is done at once. The backend computes real images on it.

    memory      (free, total) bytes that it claims to have
    capability  compute capability that it claims
    capture     makes the replay of a graph from its body; the body itself if None
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
        self.torch = torch.device("cpu")
        self.pinned = self.graphs_discarded = 0
        self._memory, self._capability, self._pins = memory, capability, pins
        self.capture_graph = capture or (lambda body: body)

    def facts(self) -> dict[str, object]:
        return {"name": "the host in place of a GPU"}

    def capability(self) -> tuple[int, int] | None:
        return self._capability

    def memory(self) -> tuple[int, int]:
        return self._memory

    def peak_bytes(self, body: Callable[[], object]) -> int:
        body()
        return 0

    def allocations(self) -> int:
        return 0

    def upload_stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    compute_stream = download_stream = upload_stream

    def record_event(self) -> Event:
        return object()

    def wait_event(self, *_: object) -> None:
        """Nothing to do, as in all of these: what was asked for is done."""

    synchronize_event = synchronize = reserve = empty_cache = close = wait_event

    def discard_graphs(self) -> None:
        self.graphs_discarded += 1

    def pin(self, block: NDArray[np.uint8], byte_count: int) -> str:
        self.pinned = 0 if self._pins else min(byte_count, len(block))
        return self._pins

    def pinned_tensor(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape)
