"""From the configuration and the machine to devices: the CPU alone, or GPUs with a CPU fallback behind them.

Starts no process. The machine is a value: tests bring their own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rmbgd.config.load import Config
from rmbgd.engine.degradation import Degradation
from rmbgd.engine.device_query import VisibleGpus, not_visible, visible_gpus
from rmbgd.engine.devices import Devices, EngineContext
from rmbgd.engine.fallback_model import FallbackModels, choose_fallback_models
from rmbgd.engine.gpu_supervisor import GpuSupervisor
from rmbgd.engine.probe import REFERENCE, GoldenReferences
from rmbgd.engine.sensors.base import DeadlineSensor
from rmbgd.engine.sensors.choose import choose_sensor
from rmbgd.engine.supervisor import CpuSupervisor, DeviceParts, DeviceViews
from rmbgd.engine.worker import Deadlines, EngineWorker
from rmbgd.errors import ConfigError
from rmbgd.models.checkpoint import read_header
from rmbgd.models.store import resolve
from rmbgd.paths import user_places

BACKEND_FACTORY = "rmbgd.backends.factory:create"
CPU_PRECISION = "auto"  # engine.precision is then the GPU's
GOLDEN_FOLDER, PRECISION_FOLDER = "golden", "precision"  # below the state directory

Models = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Machine:
    """What devices are made from.

    gpus       how many there are, and who says so; may take seconds
    sensor     for the device of that number, and why that one
    fallback   models for the CPU while no GPU is usable
    factory    the backend's factory in the child
    options    its options, from (configuration, device, models, precision)
    """

    gpus: Callable[[], VisibleGpus]
    sensor: Callable[[Config, int], tuple[DeadlineSensor, str]]
    fallback: Callable[[Config], FallbackModels]
    factory: str
    options: Callable[[Config, str, Models, str], Mapping[str, object]]


def default_machine() -> Machine:
    return Machine(visible_gpus, _sensor, choose_fallback_models, BACKEND_FACTORY, _backend_options)


def default_devices(context: EngineContext) -> Devices:
    """A process of its own per device, replaced after faults. Raises ConfigError for a device that is not there, and
    ModelError for weights that are not there or cannot be read, before a process is started."""
    for model in _models(context.config):
        read_header(resolve(model, context.config.service.models_directory).weights)
    return build(context, default_machine())


def build(context: EngineContext, machine: Machine) -> Devices:
    """`engine.device` "auto" takes the GPUs that are visible, "cuda" insists on them, "cuda:1" on that one; "cpu" looks
    for none."""
    config = context.config
    for adjusted in config.adjusted:
        context.emit("config.adjusted", **adjusted)
    asked, health = config.engine.device, config.health
    models = _models(config)
    if asked == "cpu":
        return _on_cpu(context, machine, models, "as configured in engine.device")
    visible = machine.gpus()
    one = asked.partition(":")[2]
    indices = [int(one)] if one else list(range(visible.count))
    if health.require_gpu:
        indices = indices or [0]
    elif not indices and asked == "auto":
        return _on_cpu(context, machine, models, f"no GPU is visible: {visible.why}")
    elif missing := not_visible(asked, visible):
        raise ConfigError(f"engine.device: {missing}")
    return _on_gpus(context, machine, models, indices, visible)


def _on_cpu(context: EngineContext, machine: Machine, models: Models, why: str) -> Devices:
    context.emit("engine.chosen", device="cpu", why=why)
    views = DeviceViews()
    make = partial(_worker, context, machine, "cpu", models, context.config.engine.precision_used)
    return Devices([cpu_supervisor(context, views, make)], views, list(models))


def cpu_supervisor(
    context: EngineContext,
    views: DeviceViews,
    make: Callable[[], EngineWorker],
    fallback: FallbackModels | None = None,
    gpus: Sequence[GpuSupervisor] = (),
) -> CpuSupervisor:
    """Of the only device; or with `fallback` of the one behind `gpus`."""
    config, emit, clock = context.config, context.emit, context.clock
    substitutes = fallback.models if fallback else {}
    return CpuSupervisor(
        DeviceParts("cpu", views, make, emit, clock, is_fallback=bool(fallback), substitutes=substitutes),
        delay_maximum=config.engine.restart_delay_maximum,
        interval=config.health.interval,
        stopping=context.stopping,
        warm=fallback is None or fallback.warm,
        undecided_gpus=lambda: any(gpu.undecided for gpu in gpus),
        gives_up=context.gives_up,
    )


def _on_gpus(
    context: EngineContext, machine: Machine, models: Models, indices: Sequence[int], visible: VisibleGpus
) -> Devices:
    config, views = context.config, DeviceViews()
    fallback = None if config.health.require_gpu else machine.fallback(config)
    chosen: dict[str, object] = {"standby": dict(fallback.models), "start": fallback.why} if fallback else {}
    names = [f"cuda:{index}" for index in indices]
    context.emit("engine.chosen", device=", ".join(names), why=visible.why, **chosen)
    aside = ("cpu", ", ".join(sorted(set(fallback.models.values())))) if fallback else ("", "")
    alone = threading.Lock()  # the CPU's answers to the golden image are computed once for all GPUs
    gpus: list[GpuSupervisor] = []
    for index, name in zip(indices, names, strict=True):
        sensor, why = machine.sensor(config, index)
        context.emit("engine.sensor", device=name, source=sensor.source, why=why)
        make = partial(_worker, context, machine, name, models, config.engine.precision_used)
        on_cpu = partial(_worker, context, machine, "cpu", models, REFERENCE["precision"], REFERENCE["runtime"])
        gpus.append(
            GpuSupervisor(
                DeviceParts(name, views, make, context.emit, context.clock),
                health=config.health,
                sensor=sensor,
                references=GoldenReferences(config.service.state_directory / GOLDEN_FOLDER, on_cpu, alone),
                model=", ".join(sorted(models)),
                aside=aside,
                degradation=Degradation(kernels=config.gpu.kernels != "off", graphs=config.gpu.graphs),
            )
        )
    if fallback is None:
        return Devices(gpus, views, list(models))
    # As the recipe says where a model is its own fallback.
    used = {used: models.get(used, {"source": used, "patch_order": "auto"}) for used in fallback.models.values()}
    make = partial(_worker, context, machine, "cpu", used, CPU_PRECISION)
    return Devices([*gpus, cpu_supervisor(context, views, make, fallback, gpus)], views, list(models))


def _worker(
    context: EngineContext,
    machine: Machine,
    device: str,
    models: Models,
    precision: str,
    cpu_runtime: str = "",
    **other: object,
) -> EngineWorker:
    """`other`: options that differ from the configuration's."""
    options = {**machine.options(context.config, device, models, precision), **other}
    if cpu_runtime and "cpu_runtime" in options:
        options = {**options, "cpu_runtime": cpu_runtime}
    worker = EngineWorker(
        context.arena,
        machine.factory,
        options,
        **deadlines_of(context.config, device),
        on_output=lambda line: context.emit("engine.output", source="engine", line=line),
    )
    return context.add(worker)


def deadlines_of(config: Config, device: str) -> Deadlines:
    """Of a worker for that device."""
    engine = config.engine
    hang_minimum = None if device == "cpu" else engine.hang_minimum
    return {"start_timeout": engine.start_timeout, "batch_timeout": engine.batch_timeout, "hang_minimum": hang_minimum}


def _models(config: Config) -> dict[str, dict[str, str]]:
    """The models of every recipe in use, by the name that the recipes give them."""
    recipes = [config.recipe_of(folder) for folder in config.folder]
    return {recipe.model: {"source": recipe.model, "patch_order": recipe.patch_order} for recipe in recipes}


def _backend_options(config: Config, device: str, models: Models, precision: str) -> dict[str, object]:
    return {
        "models": {name: dict(choice) for name, choice in models.items()},
        "models_directory": str(config.service.models_directory),
        "device": device,
        "precision": precision,
        "verdicts": str(_writable_state(config) / PRECISION_FOLDER),
        "threads": config.engine.threads,
        "cpu_runtime": config.engine.cpu_runtime,
        "batch_maximum": config.pipeline.batch_maximum,
        **config.gpu.model_dump(),
    }


def _writable_state(config: Config) -> Path:
    """The state directory; for somebody who may not write there, as with `rmbgd once`, one of their own."""
    configured = config.service.state_directory
    return configured if os.access(configured, os.W_OK) else user_places().state


def _sensor(config: Config, index: int) -> tuple[DeadlineSensor, str]:
    return choose_sensor(config.health.sensor, config.health.sensor_timeout, index=index)
