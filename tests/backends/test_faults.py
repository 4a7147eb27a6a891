"""What PyTorch's errors say of the device, by their exact texts; no torch and no device is needed."""

from __future__ import annotations

import pytest

from rmbgd.backends.faults import fault_of
from rmbgd.errors import EngineLost, EngineMemory
from rmbgd.testing.engine import CUDA_ERRORS, AcceleratorError, OutOfMemoryError

KINDS = {"memory": EngineMemory, "memory_runtime": EngineMemory}
NO_DEVICE = {"no_device", "driver_mismatch", "init"}


@pytest.mark.parametrize("word", sorted(CUDA_ERRORS))
def test_each_error_has_its_kind(word):
    fault = fault_of(CUDA_ERRORS[word])
    assert type(fault) is KINDS.get(word, EngineLost)
    assert getattr(fault, "cause", "") == ("no_device" if word in NO_DEVICE else "")
    assert str(CUDA_ERRORS[word]) in str(fault)


ALLOCATOR = '"/pytorch/c10/cuda/CUDACachingAllocator.cpp"'
PLEASE = "please report a bug to PyTorch. "
MEMORY = [
    # DefaultCPUAllocator, on Linux and elsewhere
    (
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 17179869184 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "DefaultCPUAllocator: not enough memory: you tried to allocate 17179869184 bytes.",
    # CUDACachingAllocator.cpp where NVML does not answer: Jetson, MIG instances (pytorch#185240, #112377)
    f"NVML_SUCCESS == r INTERNAL ASSERT FAILED at {ALLOCATOR}:1016, {PLEASE}",
    (
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/opt/pytorch/pytorch/c10/cuda/CUDACachingAllocator.cpp":841, '
        f"{PLEASE}"
    ),
    "CUDA driver error: out of memory",  # expandable segments
    # cuBLAS: its handle and its workspace
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    # cuDNN 8 and 9; no engine whose workspace could be allocated
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation",
    "Triton Error [CUDA]: out of memory",
]
NUMBER = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error "
)
HINT = "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
NOTHING_ANSWERS = [
    # c10/cuda/CUDAFunctions.cpp
    (
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
        "http://www.nvidia.com/Download/index.aspx"
    ),
    (
        "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
        "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx "
        "Alternatively, go to: https://pytorch.org to install a PyTorch version that has been compiled with your "
        "version of the CUDA driver."
    ),
    "CUDA driver initialization failed, you might not have a CUDA gpu.",
    (
        "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable "
        "CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero."
    ),
    f"{NUMBER}802: system not yet initialized",
    f"{NUMBER}804: forward compatibility was attempted on non supported HW",
    f"{NUMBER}3: initialization error",
    # errors of the runtime, while a context is made
    f"CUDA error: CUDA-capable device(s) is/are busy or unavailable{HINT}",
    f"CUDA error: all CUDA-capable devices are busy or unavailable{HINT}",
    f"CUDA error: CUDA driver version is insufficient for CUDA runtime version{HINT}",
    f"CUDA error: invalid device ordinal\nGPU device may be out of range, do you have enough GPUs?{HINT}",
    "Torch not compiled with CUDA enabled",
]
LOST = [
    "Triton Error [CUDA]: an illegal memory access was encountered",
    "Triton Error [CUDA]: unspecified launch failure",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN error: CUDNN_STATUS_MAPPING_ERROR",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb)`",
    "CUDA driver error: invalid argument",
]


@pytest.mark.parametrize("text", MEMORY)
def test_other_ways_to_be_short_of_memory(text):
    """Libraries and allocators that have no class of their own for it."""
    assert type(fault_of(RuntimeError(text))) is EngineMemory


def test_where_there_is_a_class_for_it_that_is_enough():
    assert type(fault_of(OutOfMemoryError("reworded"))) is EngineMemory


@pytest.mark.parametrize("text", NOTHING_ANSWERS)
@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, AcceleratorError])
def test_a_device_that_does_not_answer_is_not_there(text, kind):
    fault = fault_of(kind(text))
    assert (type(fault), fault.cause) == (EngineLost, "no_device")


@pytest.mark.parametrize("text", LOST)
def test_what_a_device_or_a_library_fails_with_ends_its_process(text):
    fault = fault_of(RuntimeError(text))
    assert (type(fault), fault.cause) == (EngineLost, "")


def test_an_allocator_that_waits_for_a_capture_to_end_has_its_own_cause():
    fault = fault_of(RuntimeError(f"captures_underway.empty() INTERNAL ASSERT FAILED at {ALLOCATOR}:3089, {PLEASE}"))
    assert (type(fault), fault.cause) == (EngineLost, "unclean_capture")


@pytest.mark.parametrize("why", ["device kernel image is invalid", "a PTX JIT compilation failed"])
def test_a_kernel_that_cannot_be_loaded_is_no_fault_of_the_device(why):
    """Plain kernels take its place."""
    assert fault_of(RuntimeError(f"Triton Error [CUDA]: {why}")) is None


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), AssertionError("a bug"), ValueError("CUDA or so")])
def test_a_bug_is_no_device_s_fault(error):
    assert fault_of(error) is None


def test_the_names_are_those_of_torch():
    """The fakes stand for classes that this torch has."""
    torch = pytest.importorskip("torch")
    assert torch.OutOfMemoryError.__name__ == "OutOfMemoryError"
    assert torch.AcceleratorError.__name__ == "AcceleratorError"
