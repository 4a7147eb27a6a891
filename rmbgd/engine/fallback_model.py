"""Which models stand in on the CPU while the GPU is away, and whether they stay loaded. Reads file sizes, no weights.

Does not load anything, and does not know whether the GPU is well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rmbgd.config.load import Config
from rmbgd.errors import ConfigError, ModelError
from rmbgd.models import store as places

PREFERRED, ALWAYS_HERE = "birefnet-lite", "u2netp"
PROCESS_BYTES = 512 << 20  # torch and the rest of an idle engine process
WEIGHTS_FACTOR = 12  # memory at work, in sizes of the weights' file: float32 and what lies between the layers
SCARCE = 2.0  # times what they need must be available, or they are started on demand

Size = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class StandIns:
    """`models`: asked for -> computes. `why` is for the operator's log."""

    models: Mapping[str, str]
    warm: bool
    why: str


def stand_ins(config: Config) -> StandIns:
    """A fallback_model that is not there is tried all the same, again and again: the GPU may serve without it, and who
    mends it need not start the service again. Raises ConfigError for a recipe's model that is not there."""
    directory = config.service.models_directory

    def size(model: str) -> int:
        return places.resolve(model, directory).weights.stat().st_size

    asked = {config.recipe_of(folder).model for folder in config.folder}
    fallback = config.health.fallback_model
    if fallback == "auto":
        fallback = _best_here(size)
    try:
        for model in asked:
            size(model)
    except ModelError as error:
        raise ConfigError(f"a recipe's model cannot be used: {error}") from error
    try:
        models = substitutes(asked, fallback, size)
    except ModelError as error:
        why = f"health.fallback_model cannot be used now: {error}"
        return StandIns(dict.fromkeys(asked, fallback), config.health.fallback_start != "on_demand", why)
    need = sum(PROCESS_BYTES + WEIGHTS_FACTOR * size(model) for model in set(models.values()))
    warm, why = warmth(config.health.fallback_start, need, available_bytes())
    return StandIns(models, warm, why)


def substitutes(asked: Iterable[str], fallback: str, size: Size) -> dict[str, str]:
    """A model that is no larger than the fallback stands in for itself: nobody is given a slower one than he wanted."""
    return {model: model if size(model) <= size(fallback) else fallback for model in asked}


def warmth(wanted: str, need: int, available: int) -> tuple[bool, str]:
    """(whether they stay loaded, why). Bytes."""
    if wanted != "auto":
        return wanted == "warm", "as configured in health.fallback_start"
    facts = f"about {need >> 20} MiB needed, {available >> 20} MiB available"
    if available < SCARCE * need:
        return False, f"memory is scarce ({facts}): started when needed, which takes seconds"
    return True, f"kept loaded ({facts})"


def available_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def _best_here(size: Size) -> str:
    try:
        size(PREFERRED)
    except ModelError:
        return ALWAYS_HERE
    return PREFERRED
