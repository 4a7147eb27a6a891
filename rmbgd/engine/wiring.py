"""From the configuration and the machine to engines: one lane, or a station per GPU and one standby for all of them.

Starts no process: the engine's owner and the attendant's threads do. The machine is a value: tests bring their own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rmbgd.config.load import Config
from rmbgd.engine.attendant import Attendant
from rmbgd.engine.device_query import Visible, nvml_target, visible_gpus
from rmbgd.engine.devices import Devices
from rmbgd.engine.fallback_model import StandIns, stand_ins
from rmbgd.engine.golden_references import References
from rmbgd.engine.keeper import Standby
from rmbgd.engine.lane import Lane
from rmbgd.engine.resilient import OneLane, ResilientEngine, Routing
from rmbgd.engine.room import EngineParts
from rmbgd.engine.routing import FailoverRouting
from rmbgd.engine.seats import Seat, Seats
from rmbgd.engine.sensors.choose import Choice, choose
from rmbgd.engine.standby import SubstituteEngine
from rmbgd.engine.station import Station
from rmbgd.engine.telling import Moves
from rmbgd.engine.types import Backend
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import ConfigError
from rmbgd.heartbeat import Heartbeat

TORCH_ENGINE = "rmbgd.backends.factory:create"
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


def default_engine(parts: EngineParts) -> Seats:
    """A process of its own per device, replaced after faults. Raises ConfigError for a device that is not there."""
    return build(parts, default_machine())


def build(parts: EngineParts, machine: Machine) -> Seats:
    """`engine.device` "auto" takes the GPUs that are visible, "cuda" insists on them, "cuda:1" on that one; "cpu" looks
    for none. The engine of the first seat belongs to the thread of `parts.heartbeat`."""
    config = parts.config
    asked, health = config.engine.device, config.health
    models = _models(config)
    if asked == "cpu":
        if health.require_gpu:
            raise ConfigError('engine.device = "cpu" and health.require_gpu = true contradict each other; drop one')
        return _on_cpu(parts, machine, models, "as configured in engine.device")
    visible = machine.gpus()
    one = asked.partition(":")[2]
    indices = [int(one)] if one else list(range(visible.count))
    if health.require_gpu:
        indices = indices or [0]
    elif not indices and asked == "auto":
        return _on_cpu(parts, machine, models, f"no GPU is visible: {visible.why}")
    elif not indices or indices[-1] >= visible.count:
        raise ConfigError(
            f'engine.device = "{asked}", but {visible.count} GPUs are visible: {visible.why}; see `rmbgd doctor`, '
            f'or set engine.device = "auto"'
        )
    return _on_gpus(parts, machine, models, indices, visible)


def _on_cpu(parts: EngineParts, machine: Machine, models: Models, why: str) -> Seats:
    parts.emit("engine.chosen", device="cpu", why=why)
    make = partial(_worker, parts, machine, "cpu", models, parts.config.engine.precision, parts.heartbeat)
    lane = _lane(parts, "cpu", make)
    routing = OneLane(lane)
    parts.watch.routing = routing
    return Seats((Seat("cpu", partial(_resilient, parts, routing), description=lambda: lane.description),))


def _on_gpus(parts: EngineParts, machine: Machine, models: Models, indices: Sequence[int], visible: Visible) -> Seats:
    config = parts.config
    stand = None if config.health.require_gpu else machine.stand_ins(config)
    stands: dict[str, object] = {"standby": dict(stand.models), "start": stand.why} if stand else {}
    names = [f"cuda:{index}" for index in indices]
    parts.emit("engine.chosen", device=", ".join(names), why=visible.why, **stands)
    standby = _standby(parts, machine, models, stand) if stand is not None else None
    changed, alone = threading.Condition(threading.RLock()), threading.Lock()
    stations: list[Station] = []
    found: list[Devices] = []  # the one, once all its stations are there
    for place, index in enumerate(indices):
        sensor = machine.sensor(config, index)
        sensor.announce(parts.emit, names[place])
        attendant = Attendant(
            names[place],
            health=config.health,
            sensor=sensor.sensor,
            make=partial(_worker, parts, machine, names[place], models, config.engine.precision),
            references=References(
                config.service.state_directory / GOLDEN_FOLDER,
                partial(_worker, parts, machine, "cpu", models, CPU_PRECISION),
                alone,
            ),
            moves=_moves(models, stand),
            emit=parts.emit,
            clock=parts.clock,
            others=partial(_others, found, place),
            changed=changed,
        )
        gpu = _lane(parts, names[place], _never, keep_when_short=standby is not None)
        stations.append(Station(gpu, attendant, health=config.health, clock=parts.clock))
    devices = Devices(stations, standby, changed=changed, is_stopping=parts.stopping.is_set)
    found.append(devices)
    parts.watch.routing = devices
    for station in stations:
        station.attendant.start()
    if standby is not None:
        standby.start()
    seats = [
        Seat(
            name,
            partial(_fed_by, parts, devices, list(models), place),
            partial(devices.may_take, place),
            partial(devices.description, place),
        )
        for place, name in enumerate(names)
    ]
    return Seats(tuple(seats), devices.listen)


def _others(found: Sequence[Devices], place: int) -> list[str]:
    return found[0].others(place)


def _moves(models: Models, stand: StandIns | None) -> Moves:
    return Moves(
        aside="cpu" if stand else "",
        aside_model=", ".join(sorted(set(stand.models.values()))) if stand else "",
        own_model=", ".join(sorted(models)),
    )


def _standby(parts: EngineParts, machine: Machine, models: Models, stand: StandIns) -> Standby:
    standby: Standby
    substitutes = dict(stand.models)

    def make() -> Backend:
        worker = _worker(parts, machine, "cpu", _choices(models, substitutes), CPU_PRECISION, standby.turn)
        standby.process = worker
        return SubstituteEngine(worker, substitutes)

    lane = _lane(parts, "cpu", make, forgiving=True)
    standby = Standby(lane, warm=stand.warm, interval=parts.config.health.interval, emit=parts.emit, clock=parts.clock)
    return standby


def _fed_by(
    parts: EngineParts, devices: Devices, models: Sequence[str], place: int, heartbeat: Heartbeat
) -> ResilientEngine:
    return _resilient(parts, FailoverRouting(devices, models=models, index=place, heartbeat=heartbeat), heartbeat)


def _resilient(parts: EngineParts, routing: Routing, heartbeat: Heartbeat) -> ResilientEngine:
    return ResilientEngine(
        routing, tries=parts.config.engine.tries, stop=parts.stopping, clock=parts.clock, heartbeat=heartbeat
    )


def _lane(
    parts: EngineParts,
    device: str,
    make: Callable[[], Backend],
    *,
    keep_when_short: bool = False,
    forgiving: bool = False,
) -> Lane:
    return Lane(
        device,
        make,
        emit=parts.emit,
        clock=parts.clock,
        delay_maximum=parts.config.engine.restart_delay_maximum,
        keep_when_short=keep_when_short,
        forgiving=forgiving,
    )


def _never() -> Backend:
    raise AssertionError("a GPU's lane adopts engines that have proved themselves; a bug")


def _worker(
    parts: EngineParts,
    machine: Machine,
    device: str,
    models: Models,
    precision: str,
    heartbeat: Heartbeat | None = None,
) -> EngineWorker:
    """`heartbeat`: of whoever starts it, where waiting for it must not look like a hang."""
    config = parts.config
    worker = EngineWorker(
        parts.arena,
        machine.factory,
        machine.options(config, device, models, precision),
        start_timeout=config.engine.start_timeout,
        batch_timeout=config.engine.batch_timeout,
        hang_minimum=None if device == "cpu" else config.engine.hang_minimum,
        on_output=lambda line: parts.emit("engine.output", source="engine", line=line),
        heartbeat=heartbeat,
    )
    return parts.watch.add(worker)


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
