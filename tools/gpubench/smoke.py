"""Half a minute that says whether the rest is worth its time: each thing that only CUDA has, once, smallest first.

What a step expects of CUDA is written beside what came; where the two differ, an assumption of the engine is wrong. On
a CPU the host stands in the device's place, which refuses nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from rmbgd.backends.cuda.device import CaptureFailed, CudaSeam
from rmbgd.backends.cuda.runtime import CudaDevice
from rmbgd.engine.arena import Arena
from rmbgd.models.kernels.runtime import triton_for
from rmbgd.testing.device import HostDevice
from tools.gpubench.plan import Answer, Plan

BLOCK = 4 << 20  # bytes of the arena, the first half page-locked


def smoke(plan: Plan, answer: Answer) -> None:
    """Raises RuntimeError when the device cannot compute, copy or capture: nothing after it would mean anything."""
    device: CudaSeam = CudaDevice(plan.device) if plan.is_gpu else HostDevice()
    with torch.inference_mode(), Arena(BLOCK) as arena:
        steps: dict[str, Callable[[], object]] = {
            "device": device.facts,
            "memory, bytes free and in all": device.memory,
            "a product": lambda: product(device),
            "Triton": lambda: triton_for(device.torch).why,
            "torchvision's deformable convolution": lambda: importlib.util.find_spec("torchvision") is not None,
            "page-lock half of the arena": lambda: device.pin(arena.block, BLOCK // 2) or "locked",
            "a copy from the locked half": lambda: copied(device, arena, 0),
            "a graph": lambda: captured(device),
            "allocator after a graph": lambda: allocator(plan),
            # From here on what is expected is an error: each is the last of its kind in this process.
            "a graph that asks the host (expected: refused)": lambda: refused(device),
            "allocator after the refusal": lambda: allocator(plan),
            "a copy across the locked edge (expected: invalid argument)": lambda: copied(
                device, arena, BLOCK // 2 - 99
            ),
        }
        needed = {"device", "a product", "a copy from the locked half", "a graph"}
        for name, body in steps.items():
            row = {"step": name}
            try:
                row["found"] = str(body())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
                row["error"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            answer.row(row)
            if "error" in row and name in needed:
                raise RuntimeError(f"{name}: {row['error']}")
        with suppress(RuntimeError):
            device.close()


def product(device: CudaSeam) -> float:
    """Largest error of a float32 product against float64, relative to the largest number."""
    left, right = (torch.randn(256, 256) for _ in range(2))
    with device.compute_stream():
        found = left.to(device.torch) @ right.to(device.torch)
        exact = left.double() @ right.double()
        error = float((found.cpu().double() - exact).abs().max() / exact.abs().max())
    if not error < 1e-5:
        raise RuntimeError(f"a product of float32 is off by {error:.1e}")
    return error


def copied(device: CudaSeam, arena: Arena, first: int) -> str:
    """A part of the arena up, and down again."""
    part = torch.from_numpy(arena.block)[first : first + 4096]
    part[:] = torch.arange(4096, dtype=torch.int64).to(torch.uint8)
    with device.upload_stream():
        up = part.to(device.torch, non_blocking=True)
    device.synchronize()
    if not torch.equal(up.cpu(), part):
        raise RuntimeError("other bytes arrived than were sent")
    return "the same bytes"


def captured(device: CudaSeam) -> str:
    given, out = torch.zeros(64, device=device.torch), torch.zeros(64, device=device.torch)
    replay = device.capture_graph(lambda: out.copy_(given.mul(2).add(1)))
    given.fill_(3)
    replay()
    device.synchronize()
    if not bool((out == 7).all()):
        raise RuntimeError("a replayed graph computed something else")
    return "replayed"


def refused(device: CudaSeam) -> str:
    try:
        device.capture_graph(lambda: torch.ones(8, device=device.torch).sum().item())
    except CaptureFailed as failure:
        return f"refused: {failure}"
    return "accepted"


def allocator(plan: Plan) -> dict[str, Any]:
    """What torch's allocator still holds after it was asked to give back what it caches."""
    if not plan.is_gpu:
        return {}
    torch.cuda.empty_cache()
    stats = torch.cuda.memory_stats(plan.device)
    return {name: stats[name] for name in ("reserved_bytes.all.current", "allocated_bytes.all.current")}
