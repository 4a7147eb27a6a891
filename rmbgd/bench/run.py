"""Runs one whole measurement: batches of every size through the engine process, then files through the pipeline.

The same parts and the same settings as the service's. `step` gets, in words, what is measured next.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rmbgd import __version__
from rmbgd.bench import pipeline
from rmbgd.bench.engine import BenchDevice, Measurement, engine_under_test, target, worker_of
from rmbgd.bench.samples import Sample, drawn, from_folder
from rmbgd.config.load import Config, Recipe
from rmbgd.engine.devices import Devices, EngineContext
from rmbgd.engine.supervisor import DeviceViews
from rmbgd.engine.types import EngineDescription, Limit
from rmbgd.engine.wiring import Machine, cpu_supervisor, default_machine
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import ConfigError
from rmbgd.imaging.pillow import configure_opencv, configure_pillow
from rmbgd.models import licences, store

SIZES = (1, 2, 4, 8, 16)  # that pipeline.batch_maximum may be
DRAWN, DRAWN_SIDE = 8, 1024  # images, pixels a side

__all__ = ["SIZES", "BenchResult", "Wanted", "default_machine", "measure", "prepared", "to_json"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is measured. `seconds` for each half: all batch sizes together, and the pipeline."""

    config: Config
    recipe: Recipe
    target: BenchDevice
    images: Sequence[Sample]
    sizes: Sequence[int] | None
    seconds: float
    scratch: Path | None


@dataclass(frozen=True, slots=True)
class BenchResult:
    description: EngineDescription
    start_seconds: float
    measurements: Sequence[Measurement]
    left_out: Mapping[int, str]  # why a size that was wished for is not among the measurements
    limits: Sequence[Limit]  # what the engine did without
    not_finite: int  # images without an answer: their alpha was not finite
    throughput: pipeline.Throughput


def prepared(
    config: Config,
    recipe: Recipe,
    machine: Machine,
    *,
    folder: Path | None,
    sizes: Sequence[int] | None,
    seconds: float,
    scratch: Path | None,
) -> Wanted:
    """Looks that everything is there; images of `folder`, or drawn ones. Raises ConfigError and ModelError."""
    configure_pillow(config.limits)
    configure_opencv()
    if scratch is not None and not scratch.is_dir():
        raise ConfigError(f"{scratch}: not a folder to write into; make it, or name another")
    if (entry := store.resolve(recipe.model, config.service.models_directory).entry) is not None:
        licences.require(entry, config.service.models_directory)
    device = target(config.engine.device, machine)
    images = from_folder(folder, config.limits) if folder else drawn(DRAWN, DRAWN_SIDE)
    return Wanted(config, recipe, device, images, sizes, seconds, scratch)


def measure(wanted: Wanted, machine: Machine, step: Callable[[str], None]) -> BenchResult:
    """Raises ConfigError, ModelError, EngineFault, and what broke in the pipeline."""
    config = wanted.config
    models = {wanted.recipe.model: {"source": wanted.recipe.model, "patch_order": wanted.recipe.patch_order}}
    options = machine.options(config, wanted.target.device, models, config.engine.precision_used)  # as the service asks
    step("starting the engine")
    with engine_under_test(
        machine.factory,
        options,
        config,
        model=wanted.recipe.model,
        images=wanted.images,
        places=config.pipeline.batch_maximum,
        device=wanted.target,
    ) as engine:
        sizes, left_out = engine.sizes(wanted.sizes)
        measurements = []
        for size in sizes:
            step(f"batches of {size}")
            measurements.append(engine.measure(size, wanted.seconds / len(sizes)))
    step("files through the whole pipeline")
    best = max((each.per_second for each in measurements), default=1.0)
    with tempfile.TemporaryDirectory(prefix="rmbgd-bench-", dir=wanted.scratch) as base:
        throughput = pipeline.run(
            pipeline.pipeline_config(Path(base), wanted.recipe, config),
            wanted.images,
            partial(plain_device, machine=machine, options=options, device=wanted.target),
            seconds=wanted.seconds,
            warm_up=min(pipeline.WARM_UP, int(best * wanted.seconds / 4)),
        )
    return BenchResult(
        engine.description, engine.start_seconds, measurements, left_out, engine.limits, engine.not_finite, throughput
    )


def plain_device(
    context: EngineContext, machine: Machine, options: Mapping[str, object], device: BenchDevice
) -> Devices:
    """One process on one device, without a fallback."""
    views = DeviceViews()

    def make() -> EngineWorker:
        return context.add(worker_of(context.config, context.arena, machine.factory, options, device))

    return Devices([cpu_supervisor(context, views, make)], views, [])


def to_json(wanted: Wanted, result: BenchResult) -> dict[str, object]:
    """Everything that was found, and on what. Times in ms, memory in bytes, rates in images a second."""
    description, through, threads = result.description, result.throughput, wanted.config.pipeline
    sides = sorted(image.rgb.shape[:2] for image in wanted.images)
    return {
        "version": __version__,
        "python": platform.python_version(),
        "processors": len(os.sched_getaffinity(0)),
        "device": description.device,
        "detail": description.detail,
        "model": description.models.get(wanted.recipe.model, {}) | {"asked": wanted.recipe.model},
        "pictures": {"count": len(wanted.images), "smallest": sides[0][::-1], "largest": sides[-1][::-1]},
        "start_seconds": round(result.start_seconds, 3),
        "batches": [_batch(each) for each in result.measurements],
        "left_out": {str(size): why for size, why in result.left_out.items()},
        "limits": {limit.what: limit.detail for limit in result.limits},
        "not_finite": result.not_finite,
        "line": {
            "pictures": through.images,
            "per_second": round(through.per_second, 3),
            "claim_to_published": _rounded(asdict(through.total)),
            "stages": _rounded(through.milliseconds),
            "busy": _rounded(through.busy),
            "bound": through.bound,
            "mean_batch": round(through.batch, 2),
            "decode_threads": threads.decode_threads,
            "finish_threads": threads.finish_threads,
        },
    }


def _batch(measured: Measurement) -> dict[str, object]:
    name, share = measured.bound
    return {
        "size": measured.size,
        "per_second": round(measured.per_second, 3),
        **_rounded(asdict(measured.spread)),
        "stages": _rounded(measured.stages),
        "processor": round(measured.processor, 1),
        "bound": name,
        "bound_share": round(share, 3),
        "memory": measured.memory,
    }


def _rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 3) for name, value in values.items()}
