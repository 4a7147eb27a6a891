"""The engine in its child process, step by step: eager, kernels, graphs, batches, types; and how much memory it holds.

Steps are the service's own options. A step that this device does not offer is reported, not imitated.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rmbgd.bench.engine import BATCHES_MAXIMUM, BenchDevice, EngineUnderTest, engine_under_test
from rmbgd.bench.samples import Sample, drawn
from rmbgd.config.load import parse
from rmbgd.engine.types import OutputPlane, Region, Work, view
from rmbgd.engine.wiring import default_machine
from rmbgd.errors import RmbgdError
from tools.gpubench.networks import write_weights
from tools.gpubench.plan import Answer, Plan

STEPS: dict[str, dict[str, Any]] = {
    "engine, eager float16, folded": {"precision": "float16", "graphs": False, "kernels": "off"},
    "+ own kernels": {"precision": "float16", "graphs": False, "kernels": "auto"},
    "+ graphs": {"precision": "float16", "graphs": True, "kernels": "auto"},
    "graphs without own kernels": {"precision": "float16", "graphs": True, "kernels": "off"},
    "copies from pageable memory": {"precision": "float16", "pinned_bytes": 0},
    "bfloat16": {"precision": "bfloat16"},
    "float32": {"precision": "float32"},
}
ALL_SIZES = "+ graphs"  # the step that is measured at every batch size; of the others the smallest and the eighth
EIGHT_SIZES = 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5  # times the network's side
LARGE, LARGE_SIDES = "as the service runs it, 12 megapixels", 3.4  # times the network's side: 12 at 1024


def started(
    plan: Plan,
    images: Sequence[Sample],
    *,
    places: int,
    batches: int,
    **overrides: Any,
) -> AbstractContextManager[EngineUnderTest]:
    """An engine on the plan's device. `overrides` replace its options."""
    folder = str(plan.weights)
    settings = {"start_timeout": plan.start_timeout}
    config = parse({"pipeline": {"batch_maximum": batches}, "engine": settings})
    machine = default_machine()
    models = {folder: {"source": folder, "patch_order": plan.patch_order}}
    options = {**machine.options(config, plan.device, models, "auto"), "kernels": plan.kernels, **overrides}
    device = BenchDevice(plan.device, "", int(plan.device.partition(":")[2] or 0))
    return engine_under_test(
        machine.factory, options, config, model=folder, images=images, places=places, device=device
    )


def first_images(plan: Plan, answer: Answer) -> None:
    """A row per output plane and size of image: the first of its kind and the second, in ms, with the small network.

    The first is the one that loads kernels; it has to fit into the service's deadline, under which this runs.
    """
    small = replace(plan, work=str(Path(plan.work, "first")), backbone="swin_v1_t", checkpoint="")
    write_weights(small)
    sides = [(plan.side, plan.side), (plan.side * 3 // 2, plan.side), (plan.side * 3, plan.side * 4)]
    images = [drawn(1, max(side))[0].rgb[: side[0], : side[1]] for side in sides]
    with started(small, drawn(1, 64), places=1, batches=1) as engine:
        answer.put(start_seconds=engine.start_seconds, precision=type_of(engine))
        offset = engine.regions[-1].offset
        for plane in OutputPlane:
            for rgb in images:
                height, width = rgb.shape[:2]
                region = Region(offset, height, width, source_alpha=False, output=plane)
                view(engine.arena.block, region).rgb[:] = rgb
                row = {"step": f"{plane}, {width} x {height}"}
                with answer.or_error(row, RmbgdError):
                    times = []
                    for _ in range(2):
                        began = time.perf_counter()
                        engine.worker.run([Work(0, region, str(small.weights))])
                        times.append(1000 * (time.perf_counter() - began))
                    answer.row(row | {"first_ms": times[0], "second_ms": times[1]})


def waterfall(plan: Plan, answer: Answer) -> None:
    """A row per step and batch size."""
    images = drawn(4, plan.side)
    for name, options in STEPS.items():
        if plan.steps and name not in plan.steps:
            continue
        # The same code, and minutes less on a CPU.
        slow = not plan.is_gpu and options["precision"] == "float16"
        sizes = [size for size in plan.batches if name == ALL_SIZES or size in (1, 8)]
        step(plan, answer, name, options | ({"precision": "float32"} if slow else {}), sizes, images)
    if not plan.steps or LARGE in plan.steps:
        sizes = [size for size in plan.batches if size in (1, 4)]
        step(plan, answer, LARGE, {}, sizes, drawn(2, round(LARGE_SIDES * plan.side)))


def latency(plan: Plan, answer: Answer) -> None:
    """One image at a time, arena to arena, many times; and the memory of an engine that was sized for 1, and for 8."""
    images = drawn(4, plan.side)
    for size in plan.small_and_large:
        many = plan.latency_images if size == 1 else 20
        step(plan, answer, f"sized for batches of {size}", {}, [size], images, batches=many)
    mixed = [drawn(1, round(times * plan.side))[0] for times in EIGHT_SIZES]
    step(plan, answer, "eight images of eight sizes", {}, plan.small_and_large[-1:], mixed, batches=20)


def step(
    plan: Plan,
    answer: Answer,
    name: str,
    options: dict[str, Any],
    sizes: Sequence[int],
    images: Sequence[Sample],
    *,
    batches: int | None = None,
) -> None:
    """`batches` of each size, or for as long as the plan says."""
    with (
        answer.or_error({"step": name, "batch": sizes[0]}, RmbgdError),
        started(plan, images, places=2 * max(sizes), batches=max(sizes), **options) as engine,
    ):
        offered, left_out = engine.sizes(sizes)
        for size, why in left_out.items():
            answer.row({"step": name, "batch": size, "error": why})
        for size in offered:
            seconds = 3600.0 if batches else plan.row_seconds
            reading = engine.measure(size, seconds, batches=batches or BATCHES_MAXIMUM)
            times = asdict(reading.spread)
            row = {"step": name, "type": type_of(engine), "batch": size, "ms": times.pop("mean") / size}
            answer.row(row | times | {"stages": reading.stages, "memory": reading.memory})
        for limit in engine.limits:
            answer.row({"step": name, "what": limit.what, "detail": limit.detail}, "limits")


def type_of(engine: EngineUnderTest) -> str:
    """What it computes in, as it says itself: where a type is not to be had, another is used."""
    return ", ".join(sorted({str(facts.get("precision", "")) for facts in engine.description.models.values()}))
