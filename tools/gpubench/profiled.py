"""The GPU backend in this very process, where the profiler and compute-sanitizer see it: kernels by name and time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from rmbgd.backends.cuda.backend import CudaBackend
from rmbgd.backends.cuda.device import CudaSeam
from rmbgd.backends.cuda.runtime import CudaDevice
from rmbgd.bench.engine import filled
from rmbgd.bench.samples import Sample, drawn
from rmbgd.config.load import parse
from rmbgd.engine.arena import Arena
from rmbgd.engine.types import Options, Work
from rmbgd.engine.wiring import default_machine
from rmbgd.testing.device import HostDevice
from tools.gpubench.plan import Answer, Plan

ROWS = 40  # of the table of kernels
TOLD = 12  # kernels that are named in the answer


@contextmanager
def backend(
    plan: Plan, images: Sequence[Sample], batch: int, **overrides: Any
) -> Iterator[tuple[CudaBackend, list[Work]]]:
    """A started backend, and a batch of images in its arena."""
    folder = str(plan.weights)
    config = parse({"pipeline": {"batch_maximum": batch}})
    models = {folder: {"source": folder, "patch_order": plan.patch_order}}
    options = Options.from_json({**default_machine().options(config, plan.device, models, "auto"), **overrides})
    with ExitStack() as stack:
        arena = Arena(config.pipeline.arena_bytes)
        stack.callback(arena.close)
        regions = filled(arena, islice(cycle(images), batch), stack)
        make: Callable[[], CudaSeam] = partial(CudaDevice, plan.device) if plan.is_gpu else HostDevice
        engine = CudaBackend(arena.block, options, make)
        stack.callback(engine.close)
        engine.start()
        yield engine, [Work(place, region, folder) for place, region in enumerate(regions)]


def profile(plan: Plan, answer: Answer) -> None:
    """One batch of one and one of eight: time in kernels, how many were launched, and the longest by name."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if plan.is_gpu else [])]
    images = drawn(4, plan.side)
    for size in plan.small_and_large:
        with backend(plan, images, size, kernels=plan.kernels) as (engine, works):
            for _ in range(3):
                engine.segment(works)
            began = time.perf_counter()
            report = engine.segment(works)
            wall = 1000 * (time.perf_counter() - began)
            with torch.profiler.profile(activities=activities) as profiler:
                engine.segment(works)
        averages = profiler.key_averages()
        key = "self_device_time_total" if plan.is_gpu else "self_cpu_time_total"
        with Path(plan.out, "profile.txt").open("a") as stream:
            stream.write(f"batch of {size}\n{averages.table(sort_by=key, row_limit=ROWS, max_name_column_width=90)}\n")
        longest = sorted(averages, key=lambda event: -getattr(event, key))
        answer.row(
            {
                "step": f"batch of {size}",
                "wall_ms": wall,
                "stages": report.milliseconds,
                "kernels_ms": sum(getattr(event, key) for event in averages) / 1000,
                "launches": sum(event.count for event in averages if "Launch" in event.key),
                "longest": {event.key[:90]: getattr(event, key) / 1000 for event in longest[:TOLD]},
            }
        )


if __name__ == "__main__":  # one image, for compute-sanitizer
    with backend(Plan(**json.loads(sys.argv[1])), drawn(1, 300), 1, graphs=False) as (started, batch_of_one):
        started.segment(batch_of_one)
