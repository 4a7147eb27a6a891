"""Counts launches, bytes and live memory of what torch and our kernels do, on the `meta` device: nothing is computed.

A call of ATen counts if it launches: views do not, and an operation that may be a view counts where it copies. Bytes
are those of all tensors that a call reads and of those that it writes: what works in place does both.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Count(TorchDispatchMode):
    """`launches` and `bytes` by name of the operation; `peak`: bytes of tensors that lived at once, of those that were
    made here."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.peak = 0
        self._live: dict[int, int] = {}

    def note(self, name: str, tensors: Iterable[torch.Tensor]) -> None:
        self.launches[name] += 1
        self.bytes[name] += sum(tensor.nbytes for tensor in tensors)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.conv2d.default and channels_last(args[1]):
            output = output.to(memory_format=torch.channels_last)  # as cuDNN answers, and not as meta does
        given, made = tensors_in((args, kwargs)), tensors_in(output)
        if not any(tensor.is_meta for tensor in (*given, *made)):
            return output
        known = {storage(tensor) for tensor in given}
        view = func.is_view and all(storage(tensor) in known for tensor in made)
        if not view and "empty" not in func.name():
            self.note(func.name(), (*given, *made))
        for tensor in made:
            if storage(tensor) not in known | self._live.keys():
                self._live[storage(tensor)] = tensor.untyped_storage().nbytes()
                weakref.finalize(tensor.untyped_storage(), self._live.pop, storage(tensor))
        self.peak = max(self.peak, sum(self._live.values()))
        return output


class Kernel:
    """In the place of a Triton kernel: notes the tensors that it would be launched with."""

    def __init__(self, name: str, note: Callable[[str, list[torch.Tensor]], None]) -> None:
        self.name, self.note = name, note

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert min(grid) > 0
        return lambda *given, **_: self.note(self.name, tensors_in(given))


def tensors_in(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)
