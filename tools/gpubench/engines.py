"""The engine in its child process, step by step: eager, kernels, graphs, batches, types; and how much memory it holds.

Steps are the service's own options. A step that this build or this device does not offer is reported, not imitated.
"""

from __future__ import annotations

import gc
import mmap
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch

from rmbgd.backends.factory import create
from rmbgd.bench.engine import BenchDevice, EngineUnderTest, Measurement
from rmbgd.bench.samples import Sample, drawn
from rmbgd.config.load import parse
from rmbgd.engine.types import Options, OutputPlane, Region, Work, region_bytes, view
from rmbgd.engine.wiring import default_machine
from rmbgd.errors import RmbgdError
from tools.gpubench import networks
from tools.gpubench.plan import Answer, Plan

STEPS: tuple[tuple[str, dict[str, Any], bool], ...] = (
    ("engine, eager float16, folded", {"precision": "float16", "graphs": False, "kernels": "off"}, False),
    ("+ own kernels", {"precision": "float16", "graphs": False, "kernels": "auto"}, False),
    ("+ graphs", {"precision": "float16", "graphs": True, "kernels": "auto"}, True),
    ("graphs without own kernels", {"precision": "float16", "graphs": True, "kernels": "off"}, False),
    ("copies from pageable memory", {"precision": "float16", "pinned_bytes": 0}, False),
    ("bfloat16", {"precision": "bfloat16"}, False),
    ("float8 products", {"precision": "float8"}, False),
    ("float32", {"precision": "float32"}, False),
)
"""(name, options, whether every batch size is measured, or only the smallest and the eighth)"""

LARGE, LARGE_SIDES = "as the service runs it, 12 megapixels", 3.4  # times the network's side: 12 at 1024
MEMORY_BATCHES = 50  # of changing sizes, after which nothing new may have been allocated on the device


def started(
    plan: Plan, backbone: str, images: Sequence[Sample], *, places: int, batches: int, **overrides: Any
) -> EngineUnderTest:
    """An engine on the plan's device with weights of `backbone`, to be entered. `overrides` replace its options."""
    folder = str(plan.weights(backbone))
    config = parse({"pipeline": {"batch_maximum": batches}, "engine": {"start_timeout": plan.start_timeout}})
    machine = default_machine()
    models = {folder: {"source": folder, "patch_order": plan.patch_order}}
    options = dict(machine.options(config, plan.device, models, str(overrides.get("precision", "auto"))))
    target = BenchDevice(plan.device, "", nvml_index=int(plan.device.partition(":")[2] or 0))
    return EngineUnderTest(
        machine.factory,
        options | known(overrides),
        model=folder,
        images=images,
        places=places,
        arena_bytes=config.pipeline.arena_bytes,
        start_timeout=plan.start_timeout,
        batch_timeout=config.engine.batch_timeout,
        device=target,
    )


def known(overrides: dict[str, Any]) -> dict[str, Any]:
    """Those that this build's engine takes. Raises RmbgdError for one that it does not, if leaving it out would lie."""
    names = {field.name for field in fields(Options)}
    missing = {name: value for name, value in overrides.items() if name not in names}
    if any(value not in (False, "off") for value in missing.values()):
        raise RmbgdError(f"this build's engine has no option {', '.join(sorted(missing))}")
    return {name: value for name, value in overrides.items() if name in names}


def waterfall(plan: Plan, answer: Answer) -> None:
    """A row per step and batch size."""
    images = drawn(4, plan.side)
    for name, options, all_sizes in STEPS:
        if plan.steps and name not in plan.steps:
            continue
        if not plan.is_gpu and options["precision"] in ("float16", "float8"):
            options = options | {"precision": "float32"}  # noqa: PLW2901, the same code, and minutes less on a CPU
        sizes = plan.batches if all_sizes else tuple(size for size in plan.batches if size in (1, 8))
        step(plan, answer, plan.backbone, name, options, sizes, images)
    if not plan.steps or LARGE in plan.steps:
        sizes = tuple(size for size in plan.batches if size in (1, 4))
        step(plan, answer, plan.backbone, LARGE, {}, sizes, drawn(2, round(LARGE_SIDES * plan.side)))


def step(
    plan: Plan,
    answer: Answer,
    backbone: str,
    name: str,
    options: dict[str, Any],
    sizes: Sequence[int],
    images: Sequence[Sample],
) -> None:
    with (
        answer.or_error({"step": name, "batch": sizes[0]}, RmbgdError),
        started(plan, backbone, images, places=2 * max(sizes), batches=max(sizes), **options) as engine,
    ):
        description = asdict(engine.description)
        start = {"detail": description["detail"], "models": list(description["models"].values())}
        answer.row({"step": name, "start_seconds": engine.start_seconds} | start, "starts")
        offered, left_out = engine.sizes(list(sizes))
        for size, why in left_out.items():
            answer.row({"step": name, "batch": size, "error": why})
        for size in offered:
            answer.row({"step": name, "type": type_of(engine)} | reading_row(engine.measure(size, plan.row_seconds)))
        for limit in engine.limits:
            answer.row({"step": name, "what": limit.what, "detail": limit.detail}, "limits")


def type_of(engine: EngineUnderTest) -> str:
    """What it computes in, as it says itself: where a type is not to be had, another is used."""
    return ", ".join(sorted({str(facts.get("precision", "")) for facts in engine.description.models.values()}))


def reading_row(reading: Measurement) -> dict[str, Any]:
    times = asdict(reading.spread)
    mean = times.pop("mean")
    row = {"batch": reading.size, "ms": mean / reading.size, "round_trip": mean}
    return row | times | {"stages": reading.stages, "memory": reading.memory}


def latency(plan: Plan, answer: Answer) -> None:
    """One image at a time, arena to arena, many times; and the memory of an engine that was sized for 1, and for 8."""
    images = drawn(4, plan.side)
    for size in sorted({1, min(8, max(plan.batches))}):
        name = f"sized for batches of {size}"
        with (
            answer.or_error({"step": name, "batch": size}, RmbgdError),
            started(plan, plan.backbone, images, places=max(4, size), batches=size) as engine,
        ):
            if left_out := engine.sizes([size])[1]:
                raise RmbgdError(f"no batches of {size}: {left_out[size]}")
            began = time.perf_counter()
            reading = engine.measure(size, 3600.0, batches=plan.latency_images if size == 1 else 20)
            facts = {"seconds": time.perf_counter() - began, "detail": engine.description.detail}
            answer.row({"step": name, "type": type_of(engine)} | facts | reading_row(reading))


def lite(plan: Plan, answer: Answer) -> None:
    """The small backbone: the plain way, and the engine at its best."""
    networks.choose_device(plan)
    networks.write_weights(plan, plan.lite)
    networks.naive(plan, answer, plan.lite, networks.NAIVE_WAYS[:2])
    step(plan, answer, plan.lite, "engine", {}, plan.batches, drawn(4, plan.side))


def memory(plan: Plan, answer: Answer) -> None:
    """The engine without its process, to ask the allocator what is not visible outside: its peak, and new blocks.

    It is closed between two sizes. Times are the latency section's business.
    """
    networks.choose_device(plan)
    for size in sorted({1, min(8, max(plan.batches))}):
        networks.forget_peak(plan)
        folder = str(plan.weights(plan.backbone))
        config = parse({"pipeline": {"batch_maximum": size}})
        models = {folder: {"source": folder, "patch_order": plan.patch_order}}
        block, works = arena(drawn(size, plan.side), folder, config.pipeline.arena_bytes)
        engine = create(block, default_machine().options(config, plan.device, models, "auto"))
        sizes = engine.start().batch_sizes
        for batch in sizes:
            engine.segment(works[:batch])
        before = device_allocations(plan)
        for number in range(MEMORY_BATCHES if plan.is_gpu else 2):
            engine.segment(works[: sizes[number % len(sizes)]])
        row: dict[str, Any] = {"step": f"sized for batches of {size}", "batch": sizes[-1]}
        row["new_blocks"] = device_allocations(plan) - before
        if plan.is_gpu:
            row["memory"] = networks.peak(plan) | {"reserved": torch.cuda.max_memory_reserved()}
        answer.row(row)
        engine.close()
        del engine, block, works
        gc.collect()


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
    return int(torch.cuda.memory_stats()["num_device_alloc"]) if plan.is_gpu else 0
