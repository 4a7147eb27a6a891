"""From the configuration and the machine to an engine: one lane, or a GPU's lane with its attendant and a standby.

Starts no process: the engine's owner and the attendant's threads do. The machine is a value: tests bring their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from rmbgd.config import Config
from rmbgd.engine.attendant import Attendant
from rmbgd.engine.base import Engine
from rmbgd.engine.lane import Lane
from rmbgd.engine.references import References
from rmbgd.engine.resilient import OneLane, ResilientEngine
from rmbgd.engine.routing import FailoverRouting
from rmbgd.engine.standby import SubstituteEngine
from rmbgd.engine.telling import Moves
from rmbgd.engine.worker import EngineWorker
from rmbgd.engines.room import EngineParts
from rmbgd.engines.standins import StandIns, stand_ins
from rmbgd.engines.visible import Visible, nvml_target, visible_gpus
from rmbgd.errors import ConfigError
from rmbgd.health.sensors import Choice, choose

TORCH_ENGINE = "rmbgd.engine.torch_engine:create"
CPU_PRECISION = "auto"  # engine.precision is then the GPU's
GOLDEN_FOLDER = "golden"  # below the state directory

Models = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Machine:
    """What engines are made from.

    gpus      how many there are, and who says so; may take seconds
    sensor    for the device of that number
    stand_ins for the CPU while the GPU is away
    factory   the engine's factory in the child
    options   its options, from (configuration, device, models, precision)
    """

    gpus: Callable[[], Visible]
    sensor: Callable[[Config, int], Choice]
    stand_ins: Callable[[Config], StandIns]
    factory: str
    options: Callable[[Config, str, Models, str], Mapping[str, object]]


def default_machine() -> Machine:
    """The one that we are on."""
    return Machine(visible_gpus, _sensor, stand_ins, TORCH_ENGINE, _torch_options)


def default_engine(parts: EngineParts) -> Engine:
    """A process of its own per device, replaced after faults. Raises ConfigError for a device that is not there."""
    return build(parts, default_machine())


def build(parts: EngineParts, machine: Machine) -> Engine:
    """`engine.device` "auto" takes a GPU that is visible, "cuda" insists on one, "cpu" looks for none."""
    config = parts.config
    asked, health = config.engine.device, config.health
    models = _models(config)
    if asked == "cpu":
        if health.require_gpu:
            raise ConfigError('engine.device = "cpu" and health.require_gpu = true contradict each other; drop one')
        return _on_cpu(parts, machine, models, "as configured in engine.device")
    visible = machine.gpus()
    index = int(asked.partition(":")[2] or 0)
    if index < visible.count or health.require_gpu:
        return _with_failover(parts, machine, models, index, visible)
    if asked == "auto":
        return _on_cpu(parts, machine, models, f"no GPU is visible: {visible.why}")
    raise ConfigError(
        f'engine.device = "{asked}", but {visible.count} GPUs are visible: {visible.why}; see `rmbgd doctor`, '
        f'or set engine.device = "auto"'
    )


def _on_cpu(parts: EngineParts, machine: Machine, models: Models, why: str) -> ResilientEngine:
    parts.emit("engine.chosen", device="cpu", why=why)
    lane = _lane(
        parts, "cpu", partial(_worker, parts, machine, "cpu", models, parts.config.engine.precision, mine=True)
    )
    return _resilient(parts, OneLane(lane))


def _with_failover(
    parts: EngineParts, machine: Machine, models: Models, index: int, visible: Visible
) -> ResilientEngine:
    config, health = parts.config, parts.config.health
    device = f"cuda:{index}"
    standby, stand = None, None
    if not health.require_gpu:
        stand = machine.stand_ins(config)
        substitutes = dict(stand.models)
        make = partial(_standby, parts, machine, _choices(models, substitutes), substitutes)
        standby = _lane(parts, "cpu", make)
    stands: dict[str, object] = {"standby": dict(stand.models), "start": stand.why} if stand else {}
    parts.emit("engine.chosen", device=device, why=_of_several(visible), **stands)
    sensor = machine.sensor(config, index)
    sensor.announce(parts.emit, device)
    attendant = Attendant(
        device,
        health=health,
        sensor=sensor.sensor,
        make=partial(_worker, parts, machine, device, models, config.engine.precision),
        references=References(
            config.service.state_directory / GOLDEN_FOLDER,
            partial(_worker, parts, machine, "cpu", models, CPU_PRECISION),
        ),
        moves=Moves(
            aside="cpu" if stand else "",
            aside_model=", ".join(sorted(set(stand.models.values()))) if stand else "",
            own_model=", ".join(sorted(models)),
        ),
        emit=parts.emit,
        clock=parts.clock,
    )
    attendant.start()
    gpu = _lane(parts, device, _never, keep_when_short=standby is not None)
    warm = stand is not None and stand.warm
    routing = FailoverRouting(
        gpu, standby, attendant, warm=warm, models=list(models), health=health, clock=parts.clock, beat=parts.beat
    )
    return _resilient(parts, routing)


def _of_several(visible: Visible) -> str:
    if visible.count > 1:
        return f"{visible.why}; this version computes on one of them"
    return visible.why


def _resilient(parts: EngineParts, routing: OneLane | FailoverRouting) -> ResilientEngine:
    parts.watch.routing = routing
    return ResilientEngine(
        routing, tries=parts.config.engine.tries, stop=parts.stopping, clock=parts.clock, beat=parts.beat
    )


def _lane(parts: EngineParts, device: str, make: Callable[[], Engine], *, keep_when_short: bool = False) -> Lane:
    return Lane(
        device,
        make,
        emit=parts.emit,
        clock=parts.clock,
        delay_maximum=parts.config.engine.restart_delay_maximum,
        keep_when_short=keep_when_short,
    )


def _never() -> Engine:
    raise AssertionError("a GPU's lane adopts engines that have proved themselves; a bug")


def _worker(
    parts: EngineParts, machine: Machine, device: str, models: Models, precision: str, *, mine: bool = False
) -> EngineWorker:
    """`mine`: it is started by the engine's owner, whose beat waits while it does."""
    config = parts.config
    worker = EngineWorker(
        parts.arena,
        machine.factory,
        machine.options(config, device, models, precision),
        start_timeout=config.engine.start_timeout,
        batch_timeout=config.engine.batch_timeout,
        on_output=lambda line: parts.emit("engine.output", source="engine", line=line),
        beat=parts.beat if mine else None,
    )
    return parts.watch.add(worker)


def _standby(parts: EngineParts, machine: Machine, models: Models, substitutes: Mapping[str, str]) -> Engine:
    return SubstituteEngine(_worker(parts, machine, "cpu", models, CPU_PRECISION, mine=True), substitutes)


def _choices(models: Models, substitutes: Mapping[str, str]) -> Models:
    """How to load the stand-ins: as the recipe says where a model stands in for itself."""
    return {used: models.get(used, {"source": used, "patch_order": "auto"}) for used in substitutes.values()}


def _models(config: Config) -> dict[str, dict[str, str]]:
    """The models of every recipe in use, by the name that the recipes give them."""
    models: dict[str, dict[str, str]] = {}
    for folder in config.folder:
        recipe = config.recipe_of(folder)
        choice = {"source": recipe.model, "patch_order": recipe.patch_order}
        if models.setdefault(recipe.model, choice) != choice:
            raise ConfigError(
                f"recipes disagree about the patch_order of model '{recipe.model}'; one file has one order"
            )
    return models


def _torch_options(config: Config, device: str, models: Models, precision: str) -> dict[str, object]:
    return {
        "models": {name: dict(choice) for name, choice in models.items()},
        "models_directory": str(config.service.models_directory),
        "device": device,
        "precision": precision,
        "threads": config.engine.threads,
        "batch_maximum": config.pipeline.batch_maximum,
        **config.gpu.model_dump(),
    }


def _sensor(config: Config, index: int) -> Choice:
    target, uuid = nvml_target(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return choose(config.health.sensor, config.health.sensor_timeout, index=target, uuid=uuid)
