"""CudaDevice: three streams, events between them, graphs in one memory pool, page-locked host memory.

Only what needs CUDA is here. It runs on a GPU alone, so it decides as little as it can.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmbgd.backends.cuda.device import CaptureFailed, Event
from rmbgd.backends.faults import fault_of
from rmbgd.errors import UNCLEAN_CAPTURE, EngineLost, EngineMemory

SMALL_BYTES = 1 << 20  # torch's allocator takes tensors up to this from blocks of their own kind
SEGMENT_BYTES = 16 << 20  # so large a block gets a segment of its own (CUDACachingAllocator: 10 MiB and more)
SMALL_RESERVED = 24  # of them are cached: tables of weights and the like


def _runtime() -> Any:
    """The CUDA runtime that torch has loaded."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def compute_exactly() -> None:
    """No product is computed in less than the type of its factors; for the whole process."""
    # Where float32 is used, a network needs its precision.
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    # cuBLAS may split a long sum among blocks: their partial sums are float32, not of half the precision.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _shortage_in(error: BaseException | None) -> BaseException | None:
    """Of an error and those before it, the one for want of memory: ending a capture after that fails as well."""
    while error is not None and not isinstance(fault_of(error), EngineMemory):
        error = error.__context__
    return error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


class CudaDevice:
    """`name` is "cuda:0", "cuda:1", ... Raises what torch raises for a device that is not there."""

    def __init__(self, name: str) -> None:
        self._device = torch.device(name)
        torch.cuda.init()  # type: ignore[no-untyped-call]  # its errors name best what is missing
        torch.cuda.set_device(self._device)
        compute_exactly()
        self._upload, self._compute, self._download = (
            torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            for _ in range(3)
        )
        self._graph_pool = torch.cuda.graph_pool_handle()
        self._pinned: int | None = None  # address

    @property
    def torch(self) -> torch.device:
        return self._device

    def facts(self) -> dict[str, object]:
        major, minor = self.capability()
        return {
            "name": torch.cuda.get_device_name(self._device),
            "capability": f"{major}.{minor}",
            "cuda": torch.version.cuda,
            "memory_bytes": self.memory()[1],
        }

    def capability(self) -> tuple[int, int]:
        return torch.cuda.get_device_capability(self._device)

    def memory(self) -> tuple[int, int]:
        return torch.cuda.mem_get_info(self._device)

    def peak_bytes(self, body: Callable[[], object]) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        with self.compute_stream():
            body()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def allocations(self) -> int:
        return int(torch.cuda.memory_stats(self._device)["num_device_alloc"])

    def upload_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._upload)

    def compute_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._compute)

    def download_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._download)

    def record_event(self) -> Event:
        # A blocking event lets the host's thread sleep while it waits: decoders and encoders want the core.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        return torch.cuda.current_stream(self._device).record_event(event)

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(event)

    def synchronize_event(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event)
        event.synchronize()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def capture_graph(self, body: Callable[[], object]) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        self.synchronize()
        self.empty_cache()
        reserved = torch.cuda.memory_reserved(self._device)
        before = torch.cuda.current_stream(self._device)
        try:
            # "thread_local": calls that other threads make meanwhile, a sensor's for one, do not spoil the capture.
            # The stream is the one that replays, so that the libraries' workspaces are its own.
            with torch.cuda.graph(
                graph, pool=self._graph_pool, stream=self._compute, capture_error_mode="thread_local"
            ):
                body()
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # torch's context does not restore it when the capture cannot be ended
            # Only the text is kept: frames of the traceback hold what the capture allocated.
            shortage = _shortage_in(error)
            failure, is_shortage = _first_line(shortage or error), shortage is not None
            del shortage
        else:
            return graph.replay
        del graph
        gc.collect()
        if unclean := self._why_unclean(reserved):
            detail = f"a graph could not be captured ({failure}), and afterwards {unclean}"
            raise EngineLost(detail, cause=UNCLEAN_CAPTURE)
        raise torch.OutOfMemoryError(failure) if is_shortage else CaptureFailed(failure)

    def _why_unclean(self, reserved: int) -> str:
        """Why the process cannot go on after a failed capture, or nothing. `reserved` is what the allocator had before.

        torch up to 2.13 throws after the end of the capture, before its allocator knows of it (CUDAGraph::capture_end;
        pytorch#180395). An allocator that waits for the end gives no memory back, or asserts (release_cached_blocks in
        CUDACachingAllocator.cpp); a pool whose capture did not end stays allocated (pytorch#190348). Both show when it
        is asked to give back a block that shares its segment with nothing.
        """
        self._clear_error()
        try:
            with self.compute_stream():
                free_pieces = torch.cuda.memory_stats(self._device)["inactive_split_bytes.all.current"]
                block = torch.ones(free_pieces + SEGMENT_BYTES, dtype=torch.uint8, device=self._device)
                computed = bool((block[-8:] == 1).all())
            del block
            self.empty_cache()
            kept = torch.cuda.memory_reserved(self._device) - reserved
        except RuntimeError as error:
            return f"the device fails: {_first_line(error)}"
        if not computed:
            return "the device computes nonsense"
        return f"{kept} bytes are not given back" if kept > 0 else ""

    def _clear_error(self) -> None:
        """The runtime keeps the last error until it is fetched; torch fetches it at each launch, and raises it."""
        with suppress(RuntimeError):
            torch.zeros(1, device=self._device)

    def discard_graphs(self) -> None:
        self._graph_pool = torch.cuda.graph_pool_handle()

    def reserve(self, byte_count: int) -> None:
        with self.compute_stream():
            cached = [torch.empty(byte_count, dtype=torch.uint8, device=self._device)]
            cached += [torch.empty(SMALL_BYTES, dtype=torch.uint8, device=self._device) for _ in range(SMALL_RESERVED)]
        del cached  # freed into the allocator, which keeps the blocks

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def pin(self, block: NDArray[np.uint8], byte_count: int) -> str:
        runtime = _runtime()
        code = runtime.cudaHostRegister(block.ctypes.data, byte_count, 1)  # portable: for every context
        if int(code) != 0:
            self._clear_error()
            return f"cudaHostRegister of {byte_count} bytes: {runtime.cudaGetErrorString(code)}"
        self._pinned = block.ctypes.data
        return ""

    def pinned_tensor(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, pin_memory=True)

    def close(self) -> None:
        if self._pinned is not None:
            self.synchronize()
            _runtime().cudaHostUnregister(self._pinned)
            self._pinned = None
