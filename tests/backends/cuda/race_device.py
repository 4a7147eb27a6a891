"""Race detector on the device seam, and a check of what may be captured; both see every operation of torch.

Streams, events and the host carry vector clocks. Two accesses to the same bytes, one of them a write, must be ordered
by an event, by a wait of the host, or by lying on one stream: on a GPU nothing else orders them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rmbgd
from rmbgd.testing.device import HostDevice, storage, tensors

HOST = "host"
STREAMS = ("upload", "compute", "download")
PACKAGE = str(Path(rmbgd.__file__).parent)


class Race(Exception):
    """Two accesses that nothing orders."""


@dataclass(frozen=True)
class Access:
    """Bytes first..last-1, at a moment of a stream's clock."""

    first: int
    last: int
    stream: str
    time: int
    writes: bool
    where: str

    def __str__(self) -> str:
        return f"{'write' if self.writes else 'read'} on {self.stream} at {self.where}"


class RaceDevice(HostDevice):
    """`forgets` are waits that it does not make: (method, stream on which it is called)."""

    def __init__(self, *, forgets: tuple[str, str] = ("", "")) -> None:
        super().__init__()
        self._forgets = forgets
        self._clocks: dict[str, Counter[str]] = {name: Counter() for name in (HOST, *STREAMS)}
        self._entered = [HOST]
        self._accesses: list[Access] = []

    @contextmanager
    def _on(self, stream: str) -> Iterator[None]:
        self._entered.append(stream)
        try:
            yield
        finally:
            self._entered.pop()

    upload_stream = partialmethod(_on, "upload")  # type: ignore[assignment]
    compute_stream = partialmethod(_on, "compute")  # type: ignore[assignment]
    download_stream = partialmethod(_on, "download")  # type: ignore[assignment]

    def record_event(self) -> Counter[str]:
        return self._clocks[self._entered[-1]] | self._clocks[HOST]

    def wait_event(self, event: Counter[str]) -> None:
        if self._forgets != ("wait_event", self._entered[-1]):
            self._clocks[self._entered[-1]] |= event

    def synchronize_event(self, event: Counter[str]) -> None:
        if self._forgets[0] != "synchronize_event":
            self._clocks[HOST] |= event

    def synchronize(self) -> None:
        for stream in STREAMS:
            self._clocks[HOST] |= self._clocks[stream]

    def pinned_tensor(self, shape: tuple[int, ...]) -> Tensor:
        """The host reads it without asking torch for an operation."""
        device = self

        class Pinned(Tensor):
            def tolist(self) -> list[object]:
                device.access(self, writes=False)
                return list(super().tolist())

        return torch.zeros(shape).as_subclass(Pinned)

    def read_by_host(self, array: np.ndarray) -> None:
        self.access(torch.from_numpy(array), writes=False)

    def watch(self) -> TorchDispatchMode:
        return Watch(self)

    def allocated(self, tensor: Tensor) -> None:
        """Whatever lay there before is gone; torch's allocator gives memory back to the stream that had it."""
        first, last = extent(tensor)
        self._accesses = [old for old in self._accesses if old.last <= first or last <= old.first]

    def access(self, tensor: Tensor, *, writes: bool) -> None:
        """On the current stream, after all that the host did before. Raises Race."""
        stream = self._entered[-1]
        clock = self._clocks[stream]
        clock |= self._clocks[HOST]
        clock[stream] += 1
        new = Access(*extent(tensor), stream, clock[stream], writes, where())
        kept = []
        for old in self._accesses:
            if old.last <= new.first or new.last <= old.first:
                kept.append(old)
                continue
            if (old.writes or writes) and clock[old.stream] < old.time:
                raise Race(f"{new}, and nothing orders it after the {old}")
            covered = new.first <= old.first and old.last <= new.last
            if not (covered and (writes or (old.stream == stream and not old.writes))):
                kept.append(old)
        self._accesses = [*kept, new]

    def host_waits_for_stream(self) -> None:
        self._clocks[HOST] |= self._clocks[self._entered[-1]]


class Watch(TorchDispatchMode):
    """Tells a RaceDevice of every access."""

    def __init__(self, device: RaceDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {storage(tensor) for tensor in tensors((args, kwargs))}
        made = [tensor for tensor in tensors(result) if tensor.nbytes and storage(tensor) not in given]
        if func.is_view and not made:
            return result
        values = zip(func._schema.arguments, args, strict=False)
        named = ((argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs)
        for argument, value in (*values, *named):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tensors(value):
                self._device.access(tensor, writes=writes)
        for tensor in made:
            self._device.allocated(tensor)
            if "empty" not in func.name():
                self._device.access(tensor, writes=True)
        if func is torch.ops.aten._local_scalar_dense.default:
            self._device.host_waits_for_stream()
        return result


def extent(tensor: Tensor) -> tuple[int, int]:
    """First byte and the one after the last."""
    first = tensor.data_ptr()
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (steps + 1) * tensor.element_size() if tensor.numel() else first


def where() -> str:
    """The innermost line of the package that is under way."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


ASKING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "pin_memory", "_pin_memory"}
ASKING |= {"unique", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"}


class CaptureLegality(TorchDispatchMode):
    """Raises for what a CUDA stream refuses while it is captured: operations that ask the device for a number, or that
    copy between host and device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        given = tensors((args, kwargs))
        asks = name in ASKING
        asks |= name.startswith("index") and any(tensor.dtype in (torch.bool, torch.uint8) for tensor in given[1:])
        # A number of the host that takes part in an operation is a parameter of its kernel, not a copy.
        across = name in ("copy_", "_to_copy") and len({tensor.device for tensor in (*given, *tensors(result))}) > 1
        if asks or across:
            raise RuntimeError(f"{name} at {where()}: operation not permitted when stream is capturing")
        return result


def captured(body: Callable[[], object]) -> Callable[[], object]:
    """For HostDevice: as a GPU would capture `body`."""
    with CaptureLegality():
        body()
    return body
