"""Errors of a GPU that is not there: PyTorch's classes by name and its texts to the letter, and orders from a folder.

For tests of failover; the product never takes an order. The texts are those of PyTorch 2.9 and newer; where a device
says more (sizes, process numbers) an example stands.
"""

from __future__ import annotations

from pathlib import Path


class AcceleratorError(RuntimeError):
    """Named like torch's class for errors of the CUDA runtime."""


class OutOfMemoryError(RuntimeError):
    """Named like the class that torch's allocator raises."""


_MANUAL = "https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html"


def _runtime(says: str, name: str) -> AcceleratorError:
    return AcceleratorError(
        f"CUDA error: {says}\n"
        f"Search for `{name}' in {_MANUAL} for more information.\n"
        "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
        "incorrect.\n"
        "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
        "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
    )


CUDA_ERRORS: dict[str, RuntimeError] = {
    "assert": _runtime("device-side assert triggered", "cudaErrorAssert"),
    "illegal_address": _runtime("an illegal memory access was encountered", "cudaErrorIllegalAddress"),
    "misaligned": _runtime("misaligned address", "cudaErrorMisalignedAddress"),
    "launch_failure": _runtime("unspecified launch failure", "cudaErrorLaunchFailure"),
    "launch_timeout": _runtime("the launch timed out and was terminated", "cudaErrorLaunchTimeout"),
    "unknown": _runtime("unknown error", "cudaErrorUnknown"),
    "ecc": _runtime("uncorrectable ECC error encountered", "cudaErrorECCUncorrectable"),
    "no_device": _runtime("no CUDA-capable device is detected", "cudaErrorNoDevice"),
    "driver_mismatch": _runtime(
        "system has unsupported display driver / cuda driver combination", "cudaErrorSystemDriverMismatch"
    ),
    "memory_runtime": _runtime("out of memory", "cudaErrorMemoryAllocation"),
    "memory": OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 1.25 GiB. GPU 0 has a total capacity of 7.62 GiB of which 401.06 MiB is "
        "free. Process 4711 has 25.97 MiB memory in use. Including non-PyTorch memory, this process has 7.13 GiB "
        "memory in use. Of the allocated memory 6.09 GiB is allocated by PyTorch, and 291.00 MiB is reserved by "
        "PyTorch but unallocated. If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF="
        "expandable_segments:True to avoid fragmentation.  See documentation for Memory Management  "
        "(https://docs.pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
    ),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb)`"),
    "init": RuntimeError("No CUDA GPUs are available"),
}
"""By the word that a script says after "cuda:"."""


class Orders:
    """A folder in which a test leaves orders for an engine in another process; each file is optional.

    segment  steps, one a line; each batch takes the first line away
    start    the step that every start takes while the file stands there
    zero     while it stands there, every alpha is zero, and nobody is told
    canary   bad blocks that a pass over the canary finds while it stands there
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) if folder else None

    def next_step(self) -> str:
        """Of the next batch; empty when nothing is ordered."""
        if self._folder is None:
            return ""
        file = self._folder / "segment"
        lines = self._read(file).splitlines()
        if not lines:
            return ""
        file.with_suffix(".rest").write_text("".join(f"{line}\n" for line in lines[1:]))
        file.with_suffix(".rest").replace(file)
        return lines[0]

    def start(self) -> str:
        return self._read(self._folder / "start").strip() if self._folder else ""

    def zero(self) -> bool:
        return self._folder is not None and (self._folder / "zero").exists()

    def bad_blocks(self) -> int:
        return int(self._read(self._folder / "canary") or 0) if self._folder else 0

    @staticmethod
    def _read(file: Path) -> str:
        try:
            return file.read_text()
        except FileNotFoundError:
            return ""
