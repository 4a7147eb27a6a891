"""POLICY: which engine fault an error of PyTorch amounts to, by its class name and text.

Imports no torch, so that it can be tested with texts alone. What it does not recognise ends the process as well: a
fresh one has to pass the device's self-test.

CUDA calls most of its errors sticky: they leave the process's context unusable, and every later call fails with them
(CUDA Runtime API, cudaError_t). Running out of memory is not one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rmbgd.errors import UNCLEAN_CAPTURE, EngineFault, EngineLost, EngineMemory

MEMORY_TEXTS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    # The allocator asks NVML for its message, which a Jetson and a MIG instance refuse (pytorch#112377, #185240).
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its handle takes memory of the device
    "CUDNN_STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",  # cuDNN 9: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    "was unable to find an engine to execute this computation",  # no workspace for any (pytorch#108645)
    "can't allocate memory",  # the CPU's allocator, which has no exception of its own
    "not enough memory",
)
KERNEL_TEXTS = (
    "Triton Error [CUDA]: device kernel image is invalid",
    "Triton Error [CUDA]: no kernel image is available for execution on the device",
    "Triton Error [CUDA]: the provided PTX was compiled with an unsupported toolchain",
    "Triton Error [CUDA]: a PTX JIT compilation failed",
)
"""A kernel that cannot be loaded: the device is well, and plain kernels run on it."""
NO_DEVICE_TEXTS = (
    "No CUDA GPUs are available",
    "Found no NVIDIA driver on your system",
    "The NVIDIA driver on your system is too old",
    "Torch not compiled with CUDA enabled",
    "CUDA driver initialization failed",
    "CUDA unknown error - this may be due to an incorrectly set up environment",
    "Unexpected error from cudaGetDeviceCount()",  # 802, 804 and others, by number
    "no CUDA-capable device is detected",
    "CUDA error: invalid device ordinal",
    "busy or unavailable",  # compute mode EXCLUSIVE_PROCESS, and another process has it
    "CUDA driver version is insufficient for CUDA runtime version",
    "system has unsupported display driver / cuda driver combination",  # 803: upgraded under us
    "system not yet initialized",
    "forward compatibility was attempted on non supported HW",
)
UNCLEAN_CAPTURE_TEXT = "captures_underway.empty() INTERNAL ASSERT FAILED"
RUNTIME_TEXTS = ("CUDA error:", "cuDNN error:", "CUDA driver error:", "Triton Error [CUDA]:")


def fault_of(error: BaseException) -> EngineFault | None:
    """The engine fault that `error`, raised by torch, amounts to; None if it is not an error of the device."""
    text = str(error)

    def says(texts: tuple[str, ...]) -> bool:
        return any(known in text for known in texts)

    if type(error).__name__ == "OutOfMemoryError" or says(MEMORY_TEXTS):
        return EngineMemory(text)
    if says(KERNEL_TEXTS):
        return None
    if says(NO_DEVICE_TEXTS):
        return EngineLost(text, cause="no_device")
    if UNCLEAN_CAPTURE_TEXT in text:
        return EngineLost(text, cause=UNCLEAN_CAPTURE)
    if type(error).__name__ == "AcceleratorError" or says(RUNTIME_TEXTS):
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
