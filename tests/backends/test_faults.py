"""What PyTorch's errors say of the device, by their exact texts; no torch and no device is needed."""

from __future__ import annotations

import pytest

from rmbgd.backends.faults import fault_of
from rmbgd.errors import EngineLost, EngineMemory
from rmbgd.testing.engine import CUDA_ERRORS, OutOfMemoryError

KINDS = {"memory": EngineMemory, "memory_runtime": EngineMemory}
NO_DEVICE = {"no_device", "driver_mismatch", "init"}


@pytest.mark.parametrize("word", sorted(CUDA_ERRORS))
def test_each_error_has_its_kind(word):
    fault = fault_of(CUDA_ERRORS[word])
    assert type(fault) is KINDS.get(word, EngineLost)
    assert getattr(fault, "cause", "") == ("no_device" if word in NO_DEVICE else "")
    assert str(CUDA_ERRORS[word]) in str(fault)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 17179869184 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        OutOfMemoryError("reworded"),
    ],
)
def test_other_ways_to_be_short_of_memory(error):
    """The CPU's allocator, cuBLAS and Triton have no class of their own for it; where there is one, it is enough."""
    assert type(fault_of(error)) is EngineMemory


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), AssertionError("a bug"), ValueError("CUDA or so")])
def test_a_bug_is_no_device_s_fault(error):
    assert fault_of(error) is None


def test_the_names_are_those_of_torch():
    """The fakes stand for classes that this torch has."""
    torch = pytest.importorskip("torch")
    assert torch.OutOfMemoryError.__name__ == "OutOfMemoryError"
    assert torch.AcceleratorError.__name__ == "AcceleratorError"
