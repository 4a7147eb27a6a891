"""What the work costs on paper, what the device can do, and the share of it that a row reaches."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from tools.gpubench.plan import Answer, Plan
from tools.gpubench.weights import module

MATRIX, COPY_BYTES = 8192, 4 << 30  # of the products and copies on a GPU, where it has the memory


def flops(backbone: str, side: int) -> float:
    """Floating-point operations of one forward of the plain network (a multiplication and an addition are two).

    Counted by torch on shapes alone, windows' padding and the deformable convolutions' products included; pointwise
    work, softmax and sampling are not.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = module("oracle").build(backbone)
        counter = FlopCounterMode(display=False)
        with counter:
            network(torch.empty(1, 3, side, side))
    return float(counter.get_total_flops())


def ceilings(plan: Plan, answer: Answer) -> None:
    """TFLOP/s of a large matrix product by type, and TB/s of a copy inside the device (read and written)."""
    import torch

    choose_device(plan)
    device = torch.device(plan.device)
    side = MATRIX if plan.is_gpu else 256
    for name in ("float16", "bfloat16", "float32"):
        left, right = (torch.randn(side, side, device=device, dtype=getattr(torch, name)) for _ in range(2))
        seconds = timed(partial(torch.matmul, left, right), plan.device, repeats=10)
        answer.put(f"{name}_tflops", 2 * side**3 / seconds / 1e12)
    count = min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 4) // 4 if plan.is_gpu else 1 << 20
    source, target = torch.randn(count, device=device), torch.empty(count, device=device)
    answer.put("copy_tbs", 2 * 4 * count / timed(lambda: target.copy_(source), plan.device, repeats=10) / 1e12)
    answer.put("flops", {backbone: flops(backbone, plan.side) for backbone in {plan.backbone, plan.lite}})
    answer.put("matrix", side)


def choose_device(plan: Plan) -> None:
    """For what counts on the current device: events, and the allocator's figures. Takes memory on it."""
    import torch

    if plan.is_gpu:
        torch.cuda.set_device(plan.device)


def timed(call: Any, device: str, *, repeats: int, warm_up: int = 3) -> float:
    """Median seconds of a call: between device events on a GPU, by the clock on a CPU."""
    import torch

    for _ in range(warm_up):
        call()
    taken = []
    if device == "cpu":
        for _ in range(repeats):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    else:
        event: Any = torch.cuda.Event  # as torch has typed it
        pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(repeats)]
        for start, end in pairs:
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        taken = [start.elapsed_time(end) / 1000 for start, end in pairs]
    return sorted(taken)[len(taken) // 2]
