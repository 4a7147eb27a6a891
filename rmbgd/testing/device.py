"""HostDevice: the CUDA seam on the CPU, so that the GPU backend runs and is tested without a GPU.

It refuses what a GPU would refuse: a copy across the end of page-locked memory, and, where a test says so, memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rmbgd.backends.cuda.device import Event


class HostDevice:
    """The CPU as a device with one stream, on which everything is done at once. The backend computes real images on it.

    memory            (free, total) bytes that it claims to have
    capability        compute capability that it claims
    capture           makes the replay of a graph from its body, or raises; the body itself if None
    pins              why nothing can be page-locked
    allocations_left  until one fails for want of memory, as all do from then on; None if none does. A test may set it
                      at any time
    pinned            bytes that are page-locked: whole pages
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
        self.allocations_left: int | None = None
        self.pinned = self.graphs_discarded = 0
        self._edge: int | None = None  # address after what is page-locked
        self._watched = False
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
        return self._watch()

    compute_stream = download_stream = upload_stream

    def record_event(self) -> Event:
        return object()

    def wait_event(self, *_: object) -> None:
        """Nothing to do, as in all of these: what was asked for is done."""

    synchronize_event = synchronize = reserve = empty_cache = close = wait_event

    def discard_graphs(self) -> None:
        self.graphs_discarded += 1

    def pin(self, block: NDArray[np.uint8], byte_count: int) -> str:
        if not self._pins:
            self.pinned = min(byte_count, len(block)) // mmap.PAGESIZE * mmap.PAGESIZE
            self._edge = block.ctypes.data + self.pinned
        return self._pins

    def pinned_tensor(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape)

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Once, however many streams are entered within each other."""
        if self._watched:
            yield
            return
        self._watched = True
        try:
            with _Refusals(self):
                yield
        finally:
            self._watched = False

    def check_copy(self, *places: Tensor) -> None:
        """Raises AcceleratorError as the driver refuses memory of which only a part is page-locked."""
        for place in places:
            first = place.data_ptr()
            if self._edge is not None and first < self._edge < first + place.nbytes and self.pinned:
                raise torch.AcceleratorError("CUDA error: invalid argument")

    def allocate(self) -> None:
        if self.allocations_left is None:
            return
        if self.allocations_left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.allocations_left -= 1


class _Refusals(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of torch, and asks the device for what it does."""

    def __init__(self, device: HostDevice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.copy_.default:
            self._device.check_copy(args[0], args[1])
        result = func(*args, **(kwargs or {}))
        given = {storage(tensor) for tensor in tensors((args, kwargs))}
        if any(tensor.nbytes and storage(tensor) not in given for tensor in tensors(result)):
            self._device.allocate()
        return result


def tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    """Address of the memory that a tensor lies in."""
    return tensor.untyped_storage().data_ptr()
