"""Which engine the configuration asks for, built for the thread that will own it, and the means to take it away.

Does not choose between devices while the service runs: the routing that is built here does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from rmbgd.beat import Beat
from rmbgd.clock import Clock
from rmbgd.config import Config
from rmbgd.engine.arena import Arena
from rmbgd.engine.base import Engine
from rmbgd.engine.lane import Lane
from rmbgd.engine.resilient import OneLane, ResilientEngine
from rmbgd.engine.worker import EngineWorker
from rmbgd.errors import ConfigError
from rmbgd.events import Emit

TORCH_ENGINE = "rmbgd.engine.torch_engine:create"


@dataclass(slots=True)
class EngineWatch:
    """What others may see of the engine: filled by its owner, read by the main and the health thread."""

    worker: EngineWorker | None = None  # the last one that was made
    lane: Lane | None = None


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine can be built from."""

    config: Config
    arena: Arena
    emit: Emit
    clock: Clock
    beat: Beat
    stopping: threading.Event
    watch: EngineWatch = field(default_factory=EngineWatch)


EngineFactory = Callable[[EngineParts], Engine]


def default_engine(parts: EngineParts) -> Engine:
    """A process of its own per device, restarted after faults. Raises ConfigError for a device that is not there."""
    config = parts.config
    device = _device(config.engine.device)
    options = {
        "models": _models(config),
        "models_directory": str(config.service.models_directory),
        "device": device,
        "precision": config.engine.precision,
        "threads": config.engine.threads,
        "batch_maximum": config.pipeline.batch_maximum,
    }

    def make() -> EngineWorker:
        parts.watch.worker = EngineWorker(
            parts.arena,
            TORCH_ENGINE,
            options,
            start_timeout=config.engine.start_timeout,
            batch_timeout=config.engine.batch_timeout,
            on_output=lambda line: parts.emit("engine.output", source="engine", line=line),
            beat=parts.beat,
        )
        return parts.watch.worker

    delay = config.engine.restart_delay_maximum
    lane = parts.watch.lane = Lane(device, make, emit=parts.emit, clock=parts.clock, delay_maximum=delay)
    routing, tries = OneLane(lane), config.engine.tries
    return ResilientEngine(routing, tries=tries, stop=parts.stopping, clock=parts.clock, beat=parts.beat)


def _device(asked: str) -> str:
    if asked in ("auto", "cpu"):
        return "cpu"
    raise ConfigError(
        f'engine.device = "{asked}": this version computes on the CPU only; set engine.device = "cpu" or "auto"'
    )


def _models(config: Config) -> dict[str, dict[str, str]]:
    """The models of every recipe in use, by the name that the recipes give them."""
    models: dict[str, dict[str, str]] = {}
    for folder in config.folder:
        recipe = config.recipe_of(folder)
        choice = {"source": recipe.model, "patch_order": recipe.patch_order, "sha256": recipe.model_sha256}
        if models.setdefault(recipe.model, choice) != choice:
            raise ConfigError(
                f"recipes disagree about patch_order or model_sha256 of model '{recipe.model}'; one file has one of each"
            )
    return models


class EngineRoom:
    """Belongs to the main thread, except `engine`, which the segment thread calls once."""

    def __init__(self, config: Config, arena: Arena, emit: Emit, clock: Clock, factory: EngineFactory) -> None:
        self._config, self._arena, self._emit, self._clock, self._factory = config, arena, emit, clock, factory
        self._stopping = threading.Event()
        self._watch = EngineWatch()

    def engine(self, beat: Beat) -> Engine:
        parts = EngineParts(self._config, self._arena, self._emit, self._clock, beat, self._stopping, self._watch)
        return self._factory(parts)

    def give_up_waiting(self) -> None:
        """The service is stopping: an engine that is down is not waited for, one that works may finish."""
        self._stopping.set()

    def abort(self) -> None:
        """Patience is over: kill the engine's process, so that its owner gets its answer and can put the rest back."""
        self._stopping.set()
        if self._watch.worker is not None:
            self._watch.worker.abort()

    def describe(self) -> dict[str, object]:
        """For the health event. Reads single values only."""
        lane = self._watch.lane
        if lane is None:
            return {"state": "starting"}
        return {
            "state": "ready" if lane.ready else "restarting",
            "device": lane.device,
            "restarts": lane.restarts,
            "failures": lane.failures,
        }
