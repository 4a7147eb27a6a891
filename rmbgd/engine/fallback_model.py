"""Which model the CPU fallback uses for each that is asked for, and whether it stays loaded or starts on demand."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from rmbgd.config.load import Config
from rmbgd.errors import ConfigError, ModelError
from rmbgd.fs import host_memory
from rmbgd.models.store import resolve

PREFERRED, ALWAYS_HERE = "birefnet-lite", "u2netp"
PROCESS_BYTES = 512 << 20  # torch and the rest of an idle engine process
WEIGHTS_FACTOR = 12  # memory at work, in sizes of the weights' file: float32 and what lies between the layers
SCARCE = 2.0  # times what they need must be available, or they are started on demand


@dataclass(frozen=True, slots=True)
class FallbackModels:
    """`models`: asked for -> computes. `why` is for the operator's log."""

    models: Mapping[str, str]
    warm: bool
    why: str


def choose_fallback_models(config: Config) -> FallbackModels:
    """A model that is no larger than the fallback is its own fallback: no image gets a slower one than it asked for.

    A fallback_model that is not there is tried all the same, again and again: the GPU may serve without it, and it
    can be mended without a restart of the service. Raises ConfigError for a recipe's model that is not there.
    """
    directory = config.service.models_directory

    def size(model: str) -> int:
        return resolve(model, directory).weights.stat().st_size

    fallback = config.health.fallback_model
    if fallback == "auto":
        fallback = ALWAYS_HERE
        with suppress(ModelError):
            size(PREFERRED)
            fallback = PREFERRED
    try:
        asked = {model: size(model) for model in {config.recipe_of(folder).model for folder in config.folder}}
    except ModelError as error:
        raise ConfigError(f"a recipe's model cannot be used: {error}") from error
    try:
        largest = size(fallback)
    except ModelError as error:
        why = f"health.fallback_model cannot be used now: {error}"
        return FallbackModels(dict.fromkeys(asked, fallback), config.health.fallback_start != "on_demand", why)
    models = {model: model if own <= largest else fallback for model, own in asked.items()}
    need = sum(PROCESS_BYTES + WEIGHTS_FACTOR * size(model) for model in set(models.values()))
    warm, why = warmth(config.health.fallback_start, need, host_memory().available)
    return FallbackModels(models, warm, why)


def warmth(wanted: str, need: int, available: int) -> tuple[bool, str]:
    """(whether they stay loaded, why). Bytes."""
    if wanted != "auto":
        return wanted == "warm", "as configured in health.fallback_start"
    facts = f"about {need >> 20} MiB needed, {available >> 20} MiB available"
    if available < SCARCE * need:
        return False, f"memory is scarce ({facts}): started when needed, which takes seconds"
    return True, f"kept loaded ({facts})"
