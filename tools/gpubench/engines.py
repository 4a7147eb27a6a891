"""The engine in its child process, step by step: eager, kernels, graphs, batches, types; and how much memory it holds.

Steps are the service's own options. A step that this build or this device does not offer is reported, not imitated.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from rmbgd.bench.engine import BenchDevice, EngineUnderTest, Measurement
from rmbgd.bench.samples import Sample, drawn
from rmbgd.config.load import parse
from rmbgd.engine.wiring import default_machine
from rmbgd.errors import RmbgdError
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
    from rmbgd.engine.types import Options

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
    try:
        with started(plan, backbone, images, places=2 * max(sizes), batches=max(sizes), **options) as engine:
            answer.row("starts", start_facts(name, engine))
            offered, left_out = engine.sizes(list(sizes))
            for size, why in left_out.items():
                answer.row("rows", {"step": name, "batch": size, "error": why})
            for size in offered:
                row = {"step": name, "type": type_of(engine)} | reading_row(engine.measure(size, plan.row_seconds))
                answer.row("rows", row)
            for limit in engine.limits:
                answer.row("limits", {"step": name, "what": limit.what, "detail": limit.detail})
    except RmbgdError as error:
        answer.row("rows", {"step": name, "batch": sizes[0], "error": str(error).splitlines()[0]})


def start_facts(name: str, engine: EngineUnderTest) -> dict[str, Any]:
    description = asdict(engine.description)
    return {
        "step": name,
        "start_seconds": engine.start_seconds,
        "detail": description["detail"],
        "models": list(description["models"].values()),
    }


def type_of(engine: EngineUnderTest) -> str:
    """What it computes in, as it says itself: where a type is not to be had, another is used."""
    return ", ".join(sorted({str(facts.get("precision", "")) for facts in engine.description.models.values()}))


def reading_row(reading: Measurement) -> dict[str, Any]:
    values = reading.spread
    return {
        "batch": reading.size, "ms": values.mean / reading.size, "round_trip": values.mean, "p50": values.p50,
        "p95": values.p95, "p99": values.p99, "jitter": values.jitter, "count": values.count,
        "stages": reading.stages, "memory": reading.memory,
    }  # fmt: skip


def latency(plan: Plan, answer: Answer) -> None:
    """One image at a time, arena to arena, many times; and the memory of an engine that was sized for 1, and for 8."""
    images = drawn(4, plan.side)
    for size in sorted({1, min(8, max(plan.batches))}):
        name = f"sized for batches of {size}"
        try:
            with started(plan, plan.backbone, images, places=max(4, size), batches=size) as engine:
                require_size(engine, size)
                began = time.perf_counter()
                reading = engine.measure(size, 3600.0, batches=plan.latency_images if size == 1 else 20)
                seconds = time.perf_counter() - began
                row = {"step": name, "type": type_of(engine), "seconds": seconds} | reading_row(reading)
                answer.row("rows", row | {"detail": engine.description.detail})
        except RmbgdError as error:
            answer.row("rows", {"step": name, "batch": size, "error": str(error).splitlines()[0]})


def require_size(engine: EngineUnderTest, size: int) -> None:
    """Raises RmbgdError with the reason why the engine does not take batches of `size`."""
    _, left_out = engine.sizes([size])
    if left_out:
        raise RmbgdError(f"no batches of {size}: {left_out[size]}")


def lite(plan: Plan, answer: Answer) -> None:
    """The small backbone: the plain way, and the engine at its best."""
    from tools.gpubench import naive
    from tools.gpubench.roofline import choose_device
    from tools.gpubench.weights import write

    choose_device(plan)
    write(plan, plan.lite)
    naive.measure(plan, answer, plan.lite, naive.WAYS[:2])
    step(plan, answer, plan.lite, "engine", {}, plan.batches, drawn(4, plan.side))
