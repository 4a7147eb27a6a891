"""An engine without a network, whose alpha is an exact function of the pixels and whose faults follow a script.

Knows no torch and no model. Runs in the caller's process, or in the real child process through `create`.

What it computes: alpha is the green channel, times the alpha that the image came with.

    a = green (0..255), s = source alpha (0..255, 255 where there is none)
    rgba8    the image's colours as they are, and round(a*s / 255)
    alpha8   round(a*s / 255)
    alpha16  round(a*s * 65535 / 255**2); that is 257*a where s = 255
    (halves round up)

Each pixel by itself, whatever is around it: a second look finds a disagreement of 0.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rmbgd.backends.faults import fault_of
from rmbgd.backends.memtest import MemoryTest
from rmbgd.backends.second_look import needs_second_look
from rmbgd.engine import types
from rmbgd.engine.golden_image import golden_image
from rmbgd.errors import KILLED_FROM_OUTSIDE, EngineLost, EngineMemory, EngineNonsense, ModelError

# Errors of a GPU that is not there: PyTorch's classes by name and its texts to the letter.


class AcceleratorError(RuntimeError):
    """Named like torch's class for errors of the CUDA runtime."""


class OutOfMemoryError(RuntimeError):
    """Named like the class that torch's allocator raises."""


_RUNTIME_ERRORS = {
    "assert": ("device-side assert triggered", "Assert"),
    "illegal_address": ("an illegal memory access was encountered", "IllegalAddress"),
    "misaligned": ("misaligned address", "MisalignedAddress"),
    "launch_failure": ("unspecified launch failure", "LaunchFailure"),
    "launch_timeout": ("the launch timed out and was terminated", "LaunchTimeout"),
    "unknown": ("unknown error", "Unknown"),
    "ecc": ("uncorrectable ECC error encountered", "ECCUncorrectable"),
    "no_device": ("no CUDA-capable device is detected", "NoDevice"),
    "driver_mismatch": ("system has unsupported display driver / cuda driver combination", "SystemDriverMismatch"),
    "memory_runtime": ("out of memory", "MemoryAllocation"),
}

CUDA_ERRORS: dict[str, RuntimeError] = {
    word: AcceleratorError(
        f"CUDA error: {says}\n"
        f"Search for `cudaError{name}' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for "
        "more information.\n"
        "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
        "incorrect.\n"
        "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
        "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
    )
    for word, (says, name) in _RUNTIME_ERRORS.items()
} | {
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
    zero     while it stands there, every alpha is zero, without an error
    canary   bad blocks that a pass over the canary finds while it stands there
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder or "/nonexistent")

    def read(self, name: str) -> str:
        """What is ordered there; empty where nothing is."""
        with suppress(FileNotFoundError):
            return (self._folder / name).read_text()
        return ""

    def next_step(self) -> str:
        first, *rest = self.read("segment").splitlines() or [""]
        if first:
            file = self._folder / "segment.rest"
            file.write_text("".join(f"{line}\n" for line in rest))
            file.replace(self._folder / "segment")
        return first

    def zero(self) -> bool:
        return (self._folder / "zero").exists()


POISON_COLOUR = (255, 0, 254)
"""An image whose top left pixel is this is poison to an engine that was given `poison`."""

ERRORS: dict[str, Callable[[], Exception]] = {
    "memory": partial(EngineMemory, "the script says that device memory is short"),
    "lost": partial(EngineLost, "the script says that the device is lost"),
    "unclean_capture": partial(EngineLost, "the script says that a recording failed", cause="unclean_capture"),
    "no_device": partial(EngineLost, "the script says that there is no such device", cause="no_device"),
    "model": partial(ModelError, "the script says that the weights are damaged"),
    "killed": partial(EngineLost, "killed from outside by SIGKILL", cause=KILLED_FROM_OUTSIDE),
    "nonsense": partial(EngineNonsense, "the script says that alpha is not finite"),
}
"""What FakeBackend raises, by step."""


class FakeBackend:
    """`script` has a step per segment call, and "ok" for ever after. A step is one of

    ok            answers
    memory, ...   raises what ERRORS has for it
    wrong_count   answers one image too few
    wrong_image   answers for an image that was not asked for
    not_finite    answers, but names the marked images as not finite
    hang          answers only after `release()` was called, from another thread
    delay:0.25    answers after so many seconds, or when released
    exit:70       ends the process with this status
    kill          ends the process by SIGKILL, as the kernel does when memory is short
    signal:SIGSEGV  ends the process by that signal
    eat:1024      takes so many MiB, and raises EngineMemory when it could
    write:/a/b    writes a file: where that disk is frozen, the kernel keeps the process and no signal ends it
    cuda:assert   raises what torch would, see CUDA_ERRORS, and has it judged as torch's errors are

    `orders` is a folder with steps for an engine in another process (Orders); they go before the script.
    `models` are the names that it claims to have loaded; `poison` is the step taken instead whenever a marked image
    (POISON_COLOUR) is in the batch; `memory_limit` the largest batch that does not raise EngineMemory; `start` the step
    taken by start(), behind "kernels " or "graphs " only where that is not switched off; `seconds` what the engine
    claims that one image takes.
    """

    def __init__(
        self,
        block: NDArray[np.uint8],
        script: Sequence[str] = (),
        *,
        device: str = "fake",
        batch_sizes: Sequence[int] = (1, 2, 4, 8, 16),
        poison: str = "",
        memory_limit: int = 0,
        start: str = "ok",
        seconds: float = 0.0,
        models: Sequence[str] = ("fake",),
        orders: str = "",
        kernels: str = "auto",
        graphs: bool = True,
        recurrent: bool = False,
    ) -> None:
        self._on = {"kernels": kernels != "off", "graphs": graphs}
        self._block, self._device, self._start, self._orders = block, device, start, Orders(orders)
        self._script = list(script)  # only the owner's thread touches it
        self._poison, self._memory_limit = poison, memory_limit
        about: dict[str, object] = {"alpha": "green channel"} | ({"recurrent": True} if recurrent else {})
        facts = {name: dict(about) for name in models}
        self._last: dict[str, int] = {}  # ticket of the frame that was computed last, by sequence
        measured = {1: seconds} if seconds else {}
        self._description = types.EngineDescription(device, facts, tuple(batch_sizes), measured)
        self._canary: MemoryTest | None = None
        self._released = threading.Event()
        self.batches: list[list[int]] = []  # image ids per call; appended by the owner's thread, read by tests
        self.closed = False

    def start(self) -> types.EngineDescription:
        step = self._orders.read("start").strip() or self._start
        if (needs := step.partition(" "))[0] in self._on:
            step = needs[2] if self._on[needs[0]] else "ok"
        self._act(step)
        return self._description

    def segment(self, batch: Sequence[types.Work]) -> types.BatchReport:
        self.batches.append([work.image_id for work in batch])
        links = [work.link for work in batch if work.link is not None]
        if any(self._last.get(link.sequence, link.previous) != link.previous for link in links):
            raise EngineNonsense("a frame before the one before it")
        self._last |= {link.sequence: link.ticket for link in links}
        slots = [types.view(self._block, work.region) for work in batch]
        step = self._orders.next_step() or (self._script.pop(0) if self._script else "ok")
        if self._poison and any(tuple(slot.rgb[0, 0]) == POISON_COLOUR for slot in slots):
            step = self._poison
        if self._memory_limit and len(batch) > self._memory_limit:
            step = "memory"
        self._act(step)
        overflows = [step == "not_finite" and tuple(slot.rgb[0, 0]) == POISON_COLOUR for slot in slots]
        numbers = [work.image_id for work in batch]
        not_finite = [number for number, overflow in zip(numbers, overflows, strict=True) if overflow]
        if step == "wrong_image":
            numbers[-1] = -1
        answers = []
        for number, slot, work, overflow in zip(numbers, slots, batch, overflows, strict=True):
            if not overflow:
                fill(slot, zero=self._orders.zero())
                matte = _report(number, slot)
                if work.second_look and needs_second_look(matte):
                    matte = replace(matte, disagreement=0.0)
                answers.append(types.Answer(matte, self._device, work.model, len(batch)))
        counted = answers[: -1 if step == "wrong_count" else None]
        return types.BatchReport(counted, {"network": 0.0}, not_finite=not_finite)

    def golden(self, model: str) -> types.Golden:  # noqa: ARG002 - whatever the model
        rgb, _ = golden_image()
        scale = np.float32(0.0 if self._orders.zero() else 1 / 255)
        return types.Golden(rgb[..., 1].astype(np.float32) * scale, 0.001)

    def canary(self, blocks: int) -> types.MemoryTestPass:
        self._canary = self._canary or MemoryTest(np, "cpu", blocks)
        found = self._canary.check()
        return types.MemoryTestPass(found.blocks, found.bad + int(self._orders.read("canary") or 0))

    def release(self) -> None:
        """Let a hanging call go on, and later ones not hang at all."""
        self._released.set()

    def close(self) -> None:
        self.closed = True

    def _act(self, step: str) -> None:
        name, _, argument = step.partition(":")
        match name:
            case "ok" | "wrong_count" | "wrong_image" | "not_finite":
                pass
            case _ if name in ERRORS:
                error = ERRORS[name]()
                raise error
            case "hang":
                self._released.wait()
            case "delay":
                self._released.wait(float(argument))
            case "exit":
                os._exit(int(argument))
            case "cuda":
                raise fault_of(CUDA_ERRORS[argument]) or CUDA_ERRORS[argument]
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "signal":
                signal.raise_signal(signal.Signals[argument])
            case "eat":
                held = [b"\xff" * (1 << 20) for _ in range(int(argument))]
                raise EngineMemory(f"{len(held)} MiB were there")
            case "write":
                Path(argument).write_bytes(b"x")
            case _:
                raise ValueError(f"no step '{step}' in a fake engine's script")


def expected_alpha(
    rgb: NDArray[np.uint8], source_alpha: NDArray[np.uint8] | None = None, *, levels: int = 255
) -> NDArray[np.uint16]:
    """The alpha that FakeBackend answers for `rgb` uint8 [H,W,3]: uint16 [H,W] with values 0..levels (255 or 65535)."""
    if source_alpha is None:
        return rgb[..., 1].astype(np.uint16) * np.uint16(levels // 255)
    product = rgb[..., 1].astype(np.uint64) * source_alpha
    return ((2 * product * levels + 255**2) // (2 * 255**2)).astype(np.uint16)


def fill(slot: types.Slot, *, zero: bool = False) -> None:
    """Write the output plane of one image; `zero`: an answer that is wrong and looks like one, alpha is zero."""
    levels = 65535 if slot.alpha is not None and slot.alpha.dtype == np.uint16 else 255
    alpha = np.uint16(not zero) * expected_alpha(slot.rgb, slot.source_alpha, levels=levels)
    if slot.rgba is not None:
        slot.rgba[..., :3] = slot.rgb
        slot.rgba[..., 3] = alpha
    elif slot.alpha is not None:
        slot.alpha[...] = alpha


def _report(image_id: int, slot: types.Slot) -> types.MatteReport:
    alpha = slot.rgb[..., 1]
    histogram = np.bincount(alpha.ravel(), minlength=256) / alpha.size
    return types.MatteReport(
        image_id,
        coverage=float(histogram @ np.arange(256) / 255),
        peak=float(alpha.max()) / 255,
        solid=float(histogram[128:].sum()),
        soft=float(histogram[13:243].sum()),  # 0.05 < alpha < 0.95
    )


def create(block: NDArray[np.uint8], options: Mapping[str, object]) -> FakeBackend:
    """The factory for the child process: `options` are the keyword arguments of FakeBackend, as JSON has them."""
    return FakeBackend(block, **options)  # type: ignore[arg-type]
