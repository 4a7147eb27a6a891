"""The engine without its process around it, to ask the allocator what is not visible outside: its peak, and new blocks.

Times are the latency section's business; what is seen here is memory. The engine is closed between two sizes.
"""

from __future__ import annotations

import gc
import mmap
from typing import Any

import numpy as np

from rmbgd.bench.samples import Sample, drawn
from rmbgd.config.load import parse
from rmbgd.engine.types import OutputPlane, Region, Work, region_bytes, view
from rmbgd.engine.wiring import default_machine
from tools.gpubench.plan import Answer, Plan

BATCHES = 50  # of changing sizes, after which nothing new may have been allocated on the device


def measure(plan: Plan, answer: Answer) -> None:
    for size in sorted({1, min(8, max(plan.batches))}):
        answer.row("rows", sized(plan, size))
        gc.collect()


def sized(plan: Plan, size: int) -> dict[str, Any]:
    """Bytes of the allocator with an engine made for batches of `size`, and what it allocated in BATCHES batches."""
    import torch

    from rmbgd.backends.factory import create
    from tools.gpubench.roofline import choose_device

    choose_device(plan)
    if plan.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    folder = str(plan.weights(plan.backbone))
    config = parse({"pipeline": {"batch_maximum": size}})
    models = {folder: {"source": folder, "patch_order": plan.patch_order}}
    options = default_machine().options(config, plan.device, models, "auto")
    block, works = arena(drawn(size, plan.side), folder, config.pipeline.arena_bytes)
    engine = create(block, options)
    sizes = engine.start().batch_sizes
    for batch in sizes:
        engine.segment(works[:batch])
    before = device_allocations(plan)
    for number in range(BATCHES if plan.is_gpu else 2):
        engine.segment(works[: sizes[number % len(sizes)]])
    row: dict[str, Any] = {"step": f"sized for batches of {size}", "batch": sizes[-1]}
    row |= {"new_blocks": device_allocations(plan) - before}
    if plan.is_gpu:
        row["memory"] = {"allocator": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    engine.close()
    return row


def arena(images: list[Sample], model: str, byte_count: int) -> tuple[Any, list[Work]]:
    """A page-aligned block with the images in it, and a piece of work for each."""
    block = np.frombuffer(mmap.mmap(-1, byte_count), np.uint8)
    works, at = [], 0
    for number, image in enumerate(images):
        height, width = image.rgb.shape[:2]
        region = Region(at, height, width, source_alpha=False, output=OutputPlane.RGBA8)
        view(block, region).rgb[:] = image.rgb
        works.append(Work(number, region, model))
        at += region_bytes(height, width, source_alpha=False, output=OutputPlane.RGBA8)
    return block, works


def device_allocations(plan: Plan) -> int:
    """Blocks that torch ever asked the driver for; 0 on a CPU, where they are not counted."""
    import torch

    return int(torch.cuda.memory_stats()["num_device_alloc"]) if plan.is_gpu else 0
