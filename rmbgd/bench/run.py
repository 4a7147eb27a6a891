"""Runs one whole measurement: batches of every size through the engine process, then files through the pipeline.

The same parts and the same settings as the service's. `step` gets, in words, what is measured next.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rmbgd import __version__
from rmbgd.bench import pipeline
from rmbgd.bench.engine import BenchDevice, EngineUnderTest, Measurement, require_model, target
from rmbgd.bench.samples import Sample, drawn, from_folder
from rmbgd.config.load import Config, Recipe
from rmbgd.engine.devices import Devices, EngineContext
from rmbgd.engine.supervisor import DeviceViews
from rmbgd.engine.types import EngineDescription, Limit
from rmbgd.engine.wiring import Machine, cpu_supervisor, default_machine
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import ConfigError
from rmbgd.imaging.pillow import configure_opencv, configure_pillow

SIZES = (1, 2, 4, 8, 16)  # that pipeline.batch_maximum may be
DRAWN, DRAWN_SIDE = 8, 1024  # images, pixels a side
PIPELINE_IMAGES_MAXIMUM = 100_000

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
    scratch: Path | None = None


@dataclass(slots=True)
class BenchResult:
    """What was found.

    left_out  why a size that was wished for is not among the measurements
    limits    what the engine did without
    again     images that it computed a second time, in float32
    """

    description: EngineDescription
    start_seconds: float
    measurements: list[Measurement] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)
    limits: list[Limit] = field(default_factory=list)
    again: int = 0
    throughput: pipeline.Throughput | None = None


def prepared(
    config: Config,
    recipe: Recipe,
    machine: Machine,
    *,
    folder: Path | None = None,
    sizes: Sequence[int] | None = None,
    seconds: float = 20.0,
    scratch: Path | None = None,
) -> Wanted:
    """Look that everything is there; images of `folder`, or drawn ones. Raises ConfigError with what to do."""
    configure_pillow(config.limits)
    configure_opencv()
    if scratch is not None and not scratch.is_dir():
        raise ConfigError(f"{scratch}: not a folder to write into; make it, or name another")
    require_model(recipe, config)
    found = target(config.engine.device, machine)
    images = from_folder(folder, config.limits) if folder else drawn(DRAWN, DRAWN_SIDE)
    return Wanted(config, recipe, found, images, sizes, seconds, scratch)


def measure(wanted: Wanted, machine: Machine, step: Callable[[str], None]) -> BenchResult:
    """Raises ConfigError, ModelError, EngineFault, and what broke in the pipeline."""
    config = wanted.config
    models = {wanted.recipe.model: {"source": wanted.recipe.model, "patch_order": wanted.recipe.patch_order}}
    options = machine.options(config, wanted.target.device, models, config.engine.precision)  # as the service asks
    step("starting the engine")
    with EngineUnderTest(
        machine.factory,
        options,
        model=wanted.recipe.model,
        images=wanted.images,
        places=config.pipeline.batch_maximum,
        arena_bytes=config.pipeline.arena_bytes,
        start_timeout=config.engine.start_timeout,
        batch_timeout=config.engine.batch_timeout,
        device=wanted.target,
    ) as engine:
        result = BenchResult(engine.description, engine.start_seconds)
        sizes, result.left_out = engine.sizes(wanted.sizes)
        for size in sizes:
            step(f"batches of {size}")
            result.measurements.append(engine.measure(size, wanted.seconds / len(sizes)))
        result.limits, result.again = list(engine.limits), engine.again
    step("files through the whole pipeline")
    result.throughput = _through_the_pipeline(wanted, machine, options, result.measurements)
    return result


def plain_device(context: EngineContext, machine: Machine, options: Mapping[str, object]) -> Devices:
    """One process on one device, without a fallback."""
    settings, views = context.config.engine, DeviceViews()

    def make() -> EngineWorker:
        worker = EngineWorker(
            context.arena,
            machine.factory,
            options,
            start_timeout=settings.start_timeout,
            batch_timeout=settings.batch_timeout,
            on_output=lambda text: context.emit("engine.output", source="engine", line=text),
        )
        return context.add(worker)

    return Devices([cpu_supervisor(context, views, make)], views, [])


def _through_the_pipeline(
    wanted: Wanted, machine: Machine, options: Mapping[str, object], measured: Sequence[Measurement]
) -> pipeline.Throughput:
    config = wanted.config
    best = max((each.per_second for each in measured), default=1.0)
    with tempfile.TemporaryDirectory(prefix="rmbgd-bench-", dir=wanted.scratch) as base:
        return pipeline.run(
            pipeline.pipeline_config(Path(base), wanted.recipe, config),
            wanted.images,
            lambda context: plain_device(context, machine, options),
            seconds=wanted.seconds,
            most=PIPELINE_IMAGES_MAXIMUM,
            warm_up=min(pipeline.WARM_UP, int(best * wanted.seconds / 4)),
        )


def to_json(wanted: Wanted, result: BenchResult) -> dict[str, object]:
    """Everything that was found, and on what. Times in ms, memory in bytes, rates in images a second."""
    description, through = result.description, result.throughput
    sides = sorted({image.rgb.shape[:2] for image in wanted.images})
    found: dict[str, object] = {
        "version": __version__,
        "python": platform.python_version(),
        "processors": len(os.sched_getaffinity(0)),
        "device": description.device,
        "detail": description.detail,
        "model": description.models.get(wanted.recipe.model, {}) | {"asked": wanted.recipe.model},
        "pictures": {
            "count": len(wanted.images),
            "smallest": [sides[0][1], sides[0][0]],
            "largest": [sides[-1][1], sides[-1][0]],
        },
        "start_seconds": round(result.start_seconds, 3),
        "batches": [_batch(each) for each in result.measurements],
        "left_out": {str(size): why for size, why in result.left_out.items()},
        "limits": {limit.what: limit.detail for limit in result.limits},
        "again": result.again,
    }
    if through is not None:
        found["line"] = {
            "pictures": through.images,
            "per_second": round(through.per_second, 3),
            "claim_to_published": _rounded(asdict(through.total)),
            "stages": _rounded(through.milliseconds),
            "busy": _rounded(through.busy),
            "bound": through.bound,
            "mean_batch": round(through.batch, 2),
            "decode_threads": wanted.config.pipeline.decode_threads,
            "finish_threads": wanted.config.pipeline.finish_threads,
        }
    return found


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
