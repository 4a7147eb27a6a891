"""POLICY: which engine fault an error of PyTorch amounts to, by its class name and text.

Imports no torch, so that it can be tested with texts alone. What it does not recognise ends the process as well: a
fresh one has to pass the device's self-test.

CUDA calls most of its errors sticky: they leave the process's context unusable, and every later call fails with them
(CUDA Runtime API, cudaError_t). Running out of memory is not one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rmbgd.errors import EngineFault, EngineLost, EngineMemory

MEMORY_TEXTS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",  # the CPU's allocator, which has no exception of its own
    "not enough memory",
)
RUNTIME_TEXTS = ("CUDA error:", "cuDNN error:", "CUDA driver error:")
NO_DEVICE_TEXTS = (
    "No CUDA GPUs are available",
    "Found no NVIDIA driver on your system",
    "Torch not compiled with CUDA enabled",
    "CUDA error: no CUDA-capable device is detected",
    "CUDA error: invalid device ordinal",
    "CUDA error: system has unsupported display driver / cuda driver combination",  # 803: upgraded under us
    "CUDA error: system not yet initialized",
)


def fault_of(error: BaseException) -> EngineFault | None:
    """The engine fault that `error`, raised by torch, amounts to; None if it is not an error of the device."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or any(known in text for known in MEMORY_TEXTS):
        return EngineMemory(text)
    if any(known in text for known in NO_DEVICE_TEXTS):
        return EngineLost(text, cause="no_device")
    if type(error).__name__ == "AcceleratorError" or any(known in text for known in RUNTIME_TEXTS):
        return EngineLost(text)
    return None


@contextmanager
def faults() -> Iterator[None]:
    """Raises EngineLost or EngineMemory for errors of the device; all others stay what they are."""
    try:
        yield
        return
    except (RuntimeError, AssertionError) as error:
        fault = fault_of(error)
        if fault is None:
            raise
    raise fault


def without_frames(shortage: EngineMemory) -> EngineMemory:
    """`shortage` without the tracebacks, whose frames keep the tensors of the failed batch alive."""
    shortage.__context__ = None
    return shortage.with_traceback(None)
